"""What a server says of itself: asked when a run first needs it, not assumed.

``/v1/models`` tells what it serves and most often whose server it is; vLLM's ``/version`` and
``/metrics``, SGLang's ``/server_info`` and llama.cpp's ``/props`` tell the rest.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Sequence
from typing import Any

import httpx

from ..errors import ModelNotFound, ServerError, ServerUnreachable
from ..notices import notify
from .failures import Failure, from_exception, from_response
from .service import FIRST_CONNECT_S, Server, Service

__all__ = ["check_model", "discover"]

_LISTED = 20
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}


async def discover(service: Service, key_variable: str = "") -> None:
    """Ask every server of a service, all at once, and keep what they say in ``facts``.

    ``key_variable`` is where a key is looked for, for the message that one is wanted.

    Raises
    ------
    ServerUnreachable
        Where none of them answers; where some do, the others are told of and left out.
    ServerError
        Where one refuses the key, or is no API.
    """
    service.open()
    service.begin()
    if service.known:
        return
    found = await asyncio.gather(*(_ask(server) for server in service.servers))
    lost = [(s, f) for s, f in zip(service.servers, found, strict=True) if f is not None]
    for server, failure in lost:
        if not failure.down:
            raise _refusal(service, server, failure, key_variable)
    if len(lost) == len(service.servers):
        words = "; ".join(f"{s.shown}: {f.message}" for s, f in lost)
        raise ServerUnreachable(
            f"no server answers at {service.label} ({service.scrubbed(words)})",
            hint="Start it (%engine serve), or give its address: RemoteParams(api_url=...), --url.",
        )
    for server, failure in lost:
        notify(f"{server.shown} does not answer and is left out: {failure.message}")
        service.heeds(server, failure)
    service.known = not lost


def _refusal(service: Service, server: Server, failure: Failure, key_variable: str) -> ServerError:
    said = service.scrubbed(failure.message)
    if failure.status in (401, 403):
        return ServerError(
            f"{server.shown} refuses the key that it was given, or wants one: {said}",
            hint=f"Set {key_variable}"
            + ", or name another by RemoteParams(api_key_env_varname=NAME)."
            if key_variable
            else "RemoteParams(api_key_env_varname=NAME) names the variable that holds it.",
        )
    return ServerError(f"{server.shown} cannot be used: {said}")


async def _ask(server: Server) -> Failure | None:
    """Fill a server's facts; what stands in the way of using it, or ``None``."""
    timeout = httpx.Timeout(10.0, connect=min(FIRST_CONNECT_S, server.client.timeout.connect or 9))
    try:
        response = await server.client.get("/models", timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        failure = from_exception(error)
        failure.down = failure.again
        return failure
    server.up, server.given_up = True, False
    server.facts = {}
    if response.status_code in (404, 405, 501):  # not every server has a list
        return None
    if response.status_code != 200:
        return from_response(response, response.content)
    try:
        models = {m["id"]: m for m in response.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return Failure("its /models is no list of models: is this an OpenAI-compatible API?")
    owners = {str(m.get("owned_by", "")).lower() for m in models.values()}
    library = next((name for owner, name in _OWNERS.items() if owner in owners), None)
    lengths = [m.get("max_model_len") for m in models.values() if m.get("max_model_len")]
    server.facts = {"models": list(models), "library": library, "http": response.http_version}
    # vLLM and SGLang list an adapter with its model as "parent", and its folder as "root".
    server.facts["adapters"] = {i: m.get("root") for i, m in models.items() if m.get("parent")}
    if lengths:
        server.facts["max_model_len"] = max(lengths)
    asked = {"vllm": _ask_vllm, "sglang": _ask_sglang, "llama.cpp": _ask_llamacpp}
    if library is not None:
        server.facts.update(await asked[library](server))
    return None


async def _get(server: Server, path: str) -> httpx.Response | None:
    """An answer outside ``/v1``; ``None`` where there is none: such paths may be closed."""
    try:
        response = await server.client.get(server.root + path, timeout=5.0)
    except httpx.HTTPError:
        return None
    return response if response.status_code == 200 else None


def _json(response: httpx.Response | None) -> dict[str, Any]:
    try:
        value = response.json() if response is not None else None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def _ask_vllm(server: Server) -> dict[str, Any]:
    version, metrics = await asyncio.gather(_get(server, "/version"), _get(server, "/metrics"))
    facts = {"version": _json(version).get("version")}
    config = re.search(r"^vllm:cache_config_info\{(.*)\}", metrics.text, re.M) if metrics else None
    if config:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', config[1]))
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if blocks.isdigit() and size.isdigit():
            facts["kv_cache_tokens"] = int(blocks) * int(size)
        facts["prefix_caching"] = labels.get("enable_prefix_caching")
    return facts


async def _ask_sglang(server: Server) -> dict[str, Any]:
    info = _json(await _get(server, "/server_info"))
    names = ("version", "dtype", "quantization", "attention_backend", "grammar_backend")
    facts = {name: info.get(name) for name in names}
    facts["kv_cache_tokens"] = info.get("max_total_num_tokens")
    facts["deterministic"] = info.get("enable_deterministic_inference")
    if "tool_call_parser" in info:
        facts["reads_calls"] = info["tool_call_parser"] is not None
    return facts


async def _ask_llamacpp(server: Server) -> dict[str, Any]:
    props = _json(await _get(server, "/props"))
    facts = {"version": props.get("build_info"), "slots": props.get("total_slots")}
    if isinstance(props.get("chat_template"), str):  # one that knows no tools drops them
        facts["reads_calls"] = re.search(r"\btools\b", props["chat_template"]) is not None
    return facts


def check_model(
    service: Service, model: str, expected: str | None, adapters: Sequence[str]
) -> list[str]:
    """Refuse a model that a server does not serve.

    Parameters
    ----------
    service : Service
        Whose servers were asked.
    model : str
        The name that requests will have.
    expected : str or None
        The library whose words the engine speaks.
    adapters : sequence of str
        LoRA adapters that are served like models.

    Returns
    -------
    list of str
        Those of ``adapters`` that a server does not know yet.

    Raises
    ------
    ModelNotFound
        With the names that are served.
    ServerError
        For a server of another library, which would not know the engine's parameters.
    """
    missing: list[str] = []
    for server in service.servers:
        library, served = server.facts.get("library"), server.facts.get("models")
        if expected is not None and library is not None and library != expected:
            raise ServerError(
                f"{server.shown} is a server of {library}, not of {expected}",
                hint="Engines that are servers: remote-vllm, sglang, openai-compatible.",
            )
        if served is None:
            continue
        if model not in served:
            raise ModelNotFound(
                f"{server.shown} does not serve {model!r}", hint=_offer(model, served)
            )
        missing += [name for name in adapters if name not in served]
    return list(dict.fromkeys(missing))


def _offer(model: str, served: Sequence[str]) -> str:
    near = difflib.get_close_matches(model, served, 3, 0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(served) - _LISTED} more" if len(served) > _LISTED else ""
    return f"{guess}It serves: {', '.join(sorted(served)[:_LISTED]) or 'nothing'}{more}"
