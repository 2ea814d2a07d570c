"""SGLang's own server. It shows its key in its log, so the log is told another."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os

from sglang.launch_server import run_server
from sglang.srt.managers.io_struct import LoadLoRAAdapterReqOutput
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.server_args import ServerArgs, prepare_server_args

from nbinfer.worker.backends import _lora
from nbinfer.worker.backends._derive import derive

# Without a GPU: what was seen to work, and a KV cache that is not a share of all memory.
ON_CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "dtype": "float32",
    "mem_fraction_static": 0.1,
    "max_total_tokens": 8192,
    "grammar_backend": "xgrammar",
    "lora_backend": "torch_native",
}
# What SGLang wants to know where it is given no adapter to see it from.
ANY_ADAPTER = {
    "max_lora_rank": 16,  # vLLM's default
    "lora_target_modules": [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ],
}
# Modules that SGLang computes as one, and those without which it drops the others of an adapter
# in silence, or fails (``normalize_qkv_proj`` and ``normalize_gate_up_proj`` of its ``lora.py``).
FUSED = (
    (("q_proj", "k_proj", "v_proj"), {"q_proj", "v_proj"}),
    (("gate_proj", "up_proj"), {"gate_proj"}),
)


def serve(message, stage):
    model, where = message["model"], message["where"]
    if model.get("derive_from"):
        derive(model["derive_from"], model["path"], model["mark"], stage)
    wanted = {
        **({} if model["gpu"] else ON_CPU),
        "model_path": model["path"],
        "served_model_name": where["name"],
        "context_length": model.get("n_ctx"),
        "host": where["host"],
        "port": where["port"],
        "api_key": where["key"],
        "enable_cache_report": True,
        "trust_remote_code": model["trust_remote_code"],
        **_adapters(model),
        **model["options"],
    }
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {flag.lstrip("-") for action in parser._actions for flag in action.option_strings}
    known = {flag.replace("-", "_") for flag in flags}  # other names of the same too
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"SGLang's server has no option {name!r}{guess}")
    if where["key"]:
        _mask(where["key"])
    _check_adapters(model)
    if not model["gpu"]:
        _share_cpus(model["options"])
    stage("starting its scheduler")
    run_server(prepare_server_args(list(_flags(wanted))))


def _share_cpus(options):
    """Give each rank CPUs of its own: by itself SGLang wants a NUMA node for each."""
    ranks = options.get("tensor_parallel_size") or options.get("tp_size") or 1
    cpus = sorted(os.sched_getaffinity(0))
    if ranks == 1 or "SGLANG_CPU_OMP_THREADS_BIND" in os.environ:
        return
    if ranks > len(cpus):
        raise ValueError(f"{ranks} ranks need a CPU each, and there are {len(cpus)}")
    each = len(cpus) // ranks
    groups = [cpus[i * each : (i + 1) * each] for i in range(ranks)]
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, g)) for g in groups)


def _adapters(model):
    """What SGLang is told of LoRA: the adapters that it has from the start, or what may come."""
    if model["adapters"]:
        given = model["adapters"].items()
        return {"lora_paths": [json.dumps({"lora_name": n, "lora_path": p}) for n, p in given]}
    return ANY_ADAPTER if model["options"].get("enable_lora") else {}


def _check_adapters(model):
    """Refuse an adapter that does not fit, now or when it is loaded later.

    SGLang's scheduler would end with its first request. On a CPU one of the output layer is
    refused too: SGLang's ``torch_backend.py`` overlooks that this layer is given each prompt's
    last token alone, and would take one row's for another's.
    """

    def check(adapter):
        if not model["gpu"] and _lora.changes(adapter, "lm_head"):
            raise ValueError("it changes lm_head, which SGLang's LoRA on a CPU cannot")
        _lora.check(adapter, model["path"])
        for parts, needed in FUSED:
            found = {part for part in parts if _lora.changes(adapter, part)}
            if found and not needed <= found:
                raise ValueError(
                    f"it changes {' and '.join(sorted(found))}, and SGLang, which computes "
                    f"{', '.join(parts)} as one, takes none without {' and '.join(sorted(needed))}"
                )

    _lora.check_all(model["adapters"], check)
    load = TokenizerManager.load_lora_adapter

    async def checked(manager, wanted, request=None):
        try:
            check(wanted.lora_path)
        except (ValueError, OSError) as error:
            return LoadLoRAAdapterReqOutput(success=False, error_message=str(error))
        return await load(manager, wanted, request)

    TokenizerManager.load_lora_adapter = checked


def _flags(options):
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            yield flag
        elif value is not None and value is not False:
            yield from (flag, *map(str, value if isinstance(value, list | tuple) else [value]))


def _mask(key):
    """SGLang logs every argument: no record of the log has the key."""
    make = logging.getLogRecordFactory()

    def masked(*args, **kwargs):
        record = make(*args, **kwargs)
        text = record.getMessage()
        if key in text:
            record.msg, record.args = text.replace(key, "***"), None
        return record

    logging.setLogRecordFactory(masked)
