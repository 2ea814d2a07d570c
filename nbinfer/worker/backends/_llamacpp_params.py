"""A load message as xllamacpp's ``CommonParams``; the library is imported here first."""

from __future__ import annotations

import os
import sys

# llama.cpp's threads meet at a barrier many times for each token, and spin there. When
# anything else wants the cores they spin away whole time slices: eight rows on two cores took
# over a minute beside two busy processes, and a few seconds with a bounded spin. This bound keeps
# the library's own times on idle cores. One of 2,000 is better beside a busy process (25 tokens
# a second where this one may be stuck), but doubles TTFT after a rest (30 to 60 ms), and 30,000,
# which does not, is as stuck. The OpenMP runtime reads it when the library is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "200000")

import xllamacpp

if sys.byteorder != "little":
    raise ImportError("GGUF files are read on little-endian machines only")

__all__ = ["common_params", "xllamacpp"]

# Copies that a slot keeps of what its layers with a sliding window hold (or of a recurrent state),
# to go on from where a later prompt parts from an earlier one. A prompt makes two. The library's
# own bound is 32 for each slot: gigabytes for a model whose cache takes a tenth of that.
CHECKPOINTS = 2
SPLIT_MODES = ("none", "layer", "row", "tensor")
CACHE_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def common_params(model):
    """The library's parameters of a load message."""
    options = model["options"]
    p = xllamacpp.CommonParams()
    p.model.path = model["path"]
    p.n_parallel = model["slots"]
    # Small, so that a cancel is heard soon; where there are images, as large as llama.cpp's own
    # default, because some models must read one in a single batch.
    usual = 512 if model.get("mmproj") else 256
    p.n_batch = options.get("n_batch", usual)
    p.n_ubatch = min(options.get("n_ubatch", usual), p.n_batch)
    # Beyond what rows reserve: one batch, and what is guessed ahead of them.
    p.n_ctx = model["kv_tokens"] + p.n_batch + p.n_parallel * _speculation(p, model)
    p.kv_unified = True
    p.kv_unified_per_slot = model["n_ctx"]
    p.cpuparams.n_threads = model["n_threads"]
    p.cpuparams_batch.n_threads = options.get("n_threads_batch", model["n_threads"])
    p.n_gpu_layers = options.get("n_gpu_layers", -1)
    p.n_ctx_checkpoints = CHECKPOINTS
    p.cache_ram_mib = options.get("cache_ram_mib", 0)
    p.main_gpu = options.get("main_gpu", 0)
    p.warmup = False
    p.fit_params = False  # it loads the model a second time to measure it
    p.ui = False
    p.endpoint_slots = False
    p.use_jinja = True
    _memory(p, options)
    _devices(p, options)
    if model.get("mmproj"):
        p.mmproj.path = model["mmproj"]
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


def _speculation(p, model):
    """Draft model or n-grams; returns how many tokens are guessed ahead at most."""
    options, kind = model["options"], model["options"].get("spec_type")
    most, least, size = (options.get(n) for n in ("draft_max", "draft_min", "ngram_size"))
    if model.get("draft"):
        kind, place, names = "draft-simple", p.speculative.draft, ("n_max", "n_min", None)
        place.mparams.path = model["draft"]
        place.cpuparams.n_threads = model["n_threads"]
        place.cpuparams_batch.n_threads = p.cpuparams_batch.n_threads
        place.n_gpu_layers = p.n_gpu_layers
    elif kind is None:
        return 0
    elif kind == "ngram-cache":
        place, names = p.speculative.draft, ("n_max", None, None)
    elif kind == "ngram-mod":
        place, names = p.speculative.ngram_mod, ("n_max", "n_min", "n_match")
    else:
        place = getattr(p.speculative, kind.replace("-", "_"))
        names = ("size_m", None, "size_n")
    for name, value in ((names[0], most), (names[1], least), (names[2], size)):
        if name is not None and value is not None:
            setattr(place, name, value)
    if kind == "ngram-mod" and least is None and most is not None:
        place.n_min = min(place.n_min, most)
    types = xllamacpp.common_speculative_type
    label = "COMMON_SPECULATIVE_TYPE_" + kind.replace("-", "_").upper()
    p.speculative.types = [getattr(types, label)]
    return getattr(place, names[0]) + 1


def _devices(p, options):
    mode = options.get("split_mode")
    if mode is not None:
        name = SPLIT_MODES[mode] if isinstance(mode, int) else mode
        label = "LLAMA_SPLIT_MODE_" + name.upper()
        p.split_mode = getattr(xllamacpp.llama_split_mode, label)
    if options.get("tensor_split"):
        room = len(p.tensor_split)
        given = [float(share) for share in options["tensor_split"]]
        if len(given) > room:
            raise ValueError(f"tensor_split has {len(given)} shares, and llama.cpp takes {room}")
        p.tensor_split = given + [0.0] * (room - len(given))


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
