"""vLLM's own server, with the defaults that nbinfer's resident vLLM has."""

from __future__ import annotations

import asyncio
import difflib
import os

from vllm.entrypoints.launchers.api_server.entry import run_server
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.models.protocol import LoRAModulePath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve import create_error_response
from vllm.utils.argparse_utils import FlexibleArgumentParser

from nbinfer.worker.backends import _lora
from nbinfer.worker.backends._vllm_load import cause, derive_all, engine_arguments, telling_stages


def serve(message, stage):
    model, where = message["model"], message["where"]
    derive_all(model, stage)
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
    _lora.check_all(model["adapters"], lambda adapter: _lora.check(adapter, model["path"]))
    _check_later_ones(model["path"])
    if model["adapters"]:
        args.lora_modules = [LoRAModulePath(*given) for given in model["adapters"].items()]
    if model["options"].get("enable_lora"):
        os.environ.setdefault("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    validate_parsed_serve_args(args)
    try:
        with telling_stages(stage):
            asyncio.run(run_server(args))
    except Exception as error:
        raise RuntimeError(cause(error)) from error


def _check_later_ones(model):
    """Refuse an adapter that does not fit: vLLM would copy what it can of it, in silence."""
    own = OpenAIServingModels._check_load_lora_adapter_request

    async def checked(serving, request):
        refused = await own(serving, request)
        if refused is None:
            try:
                _lora.check(request.lora_path, model)
            except (ValueError, OSError) as error:
                return create_error_response(message=str(error))
        return refused

    OpenAIServingModels._check_load_lora_adapter_request = checked


def _of_server(name, args):
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs

    return hasattr(args, name) and name not in {f.name for f in dataclasses.fields(AsyncEngineArgs)}
