"""A load message as xllamacpp's ``CommonParams``; the library is imported here first."""

from __future__ import annotations

import os
import sys

# llama.cpp's threads meet at a barrier many times for each token, and spin there. When
# anything else wants the cores they spin away whole time slices: eight rows on two cores took
# over a minute beside two busy processes, and a few seconds with a bounded spin. Too short a
# spin costs a tenth of the speed on idle cores (1,000 did); this bound keeps most of both. The
# OpenMP runtime reads it when the library is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "200000")

import xllamacpp

if sys.byteorder != "little":
    raise ImportError("GGUF files are read on little-endian machines only")

__all__ = ["common_params", "xllamacpp"]

CACHE_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def common_params(model):
    """The library's parameters of a load message."""
    options = model["options"]
    p = xllamacpp.CommonParams()
    p.model.path = model["path"]
    p.n_parallel = model["slots"]
    p.n_batch = options.get("n_batch", 256)
    p.n_ubatch = min(options.get("n_ubatch", 256), p.n_batch)
    p.n_ctx = model["kv_tokens"] + p.n_batch  # slack of one batch
    p.kv_unified = True
    p.kv_unified_per_slot = model["n_ctx"]
    p.cpuparams.n_threads = model["n_threads"]
    p.cpuparams_batch.n_threads = options.get("n_threads_batch", model["n_threads"])
    p.n_gpu_layers = options.get("n_gpu_layers", -1)
    p.cache_ram_mib = options.get("cache_ram_mib", 0)
    p.main_gpu = options.get("main_gpu", 0)
    p.warmup = False
    p.fit_params = False  # it loads the model a second time to measure it
    p.ui = False
    p.endpoint_slots = False
    p.use_jinja = True
    _memory(p, options)
    for key in ("rope_freq_base", "rope_freq_scale"):
        if options.get(key):
            setattr(p, key, options[key])
    if model.get("chat_template"):
        p.chat_template = model["chat_template"]
    if model.get("adapters"):
        p.lora_adapters = [
            xllamacpp.CommonAdapterLoraInfo(a["path"], 1.0) for a in model["adapters"]
        ]
    return p


def _memory(p, options):
    """How weights and cache lie in memory."""
    if options.get("flash_attn") is not None:
        name = "ENABLED" if options["flash_attn"] else "DISABLED"
        p.flash_attn_type = getattr(
            xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_" + name
        )
    for key in ("cache_type_k", "cache_type_v"):
        if options.get(key):
            kind = "GGML_TYPE_" + CACHE_TYPES[options[key]]
            setattr(p, key, getattr(xllamacpp.ggml_type, kind))
    if options.get("use_mmap") is False:
        p.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    elif options.get("use_mlock"):
        p.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP_MLOCK
