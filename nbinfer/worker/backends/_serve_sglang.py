"""SGLang's own server. It shows its key in its log, so the log is told another."""

from __future__ import annotations

import argparse
import difflib
import logging

from sglang.launch_server import run_server
from sglang.srt.server_args import ServerArgs, prepare_server_args

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
}


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
        **model["options"],
    }
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = {action.dest for action in parser._actions}
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"SGLang's server has no option {name!r}{guess}")
    if where["key"]:
        _mask(where["key"])
    stage("starting its scheduler")
    run_server(prepare_server_args(list(_flags(wanted))))


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
