"""vLLM's own server, with the defaults that nbinfer's resident vLLM has."""

from __future__ import annotations

import asyncio
import difflib
import os

from vllm.entrypoints.launchers.api_server.entry import run_server
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from nbinfer.worker.backends._derive import derive
from nbinfer.worker.backends._vllm_load import cause, engine_arguments, telling_stages


def serve(message, stage):
    model, where = message["model"], message["where"]
    if model.get("derive_from"):
        derive(model["derive_from"], model["path"], model["mark"], stage)
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    # vLLM's own flags of a server are not among the engine's arguments.
    own = {k: model["options"].pop(k) for k in list(model["options"]) if _of_server(k, args)}
    arguments, _ = engine_arguments(model)
    wanted = {
        **arguments,
        "served_model_name": [where["name"]],
        "host": where["host"],
        "port": where["port"],
        "enable_prompt_tokens_details": True,
        "api_key": [where["key"]] if where["key"] else None,
        **own,
    }
    if wanted.get("tool_call_parser"):
        wanted.setdefault("enable_auto_tool_choice", True)
    for name, value in wanted.items():
        if not hasattr(args, name):
            near = difflib.get_close_matches(name, vars(args), 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"vLLM's server has no option {name!r}{guess}")
        setattr(args, name, value)
    if model["options"].get("enable_lora"):
        os.environ.setdefault("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    validate_parsed_serve_args(args)
    try:
        with telling_stages(stage):
            asyncio.run(run_server(args))
    except Exception as error:
        raise RuntimeError(cause(error)) from error


def _of_server(name, args):
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs

    return hasattr(args, name) and name not in {f.name for f in dataclasses.fields(AsyncEngineArgs)}
