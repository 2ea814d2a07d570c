"""LoRA adapters of engines that are servers: served already, or loaded there when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from ..config import ModelParams
from ..errors import ConfigurationError, ModelNotFound, ServerError
from ..records import RowRequest
from ..remote.failures import from_exception, from_response
from ..remote.service import Server, Service
from .remote import RemoteEngine

__all__ = ["AdapterServer", "served_adapters"]


def served_adapters(model: ModelParams) -> dict[str, str]:
    """LoRA folders by the name that they are served under; ``adapter_model`` is ``default``.

    A folder of this machine is told by its whole path: a server has another working directory.
    What is none here may be one there, or a name that the server's library knows.
    """
    declared = dict(model.adapters or {})
    if model.adapter_model is not None:
        declared = {"default": model.adapter_model, **declared}
    here = {name: Path(path).expanduser() for name, path in declared.items()}
    return {
        name: str(here[name].absolute()) if here[name].is_dir() else path
        for name, path in declared.items()
    }


class AdapterServer(RemoteEngine):
    """A server that takes LoRA adapters: by the name that it serves them under, or while it runs.

    A subclass says where that server loads one, and what it must be told when it starts.
    """

    def _adapter_address(self, server: Server) -> str:
        """Where this server is asked to load an adapter."""
        raise NotImplementedError

    def _adapter_hint(self, name: str) -> str:
        """How this server is started so that it can have an adapter."""
        raise NotImplementedError

    @property
    def _adapters(self) -> dict[str, str]:
        return served_adapters(self.model_params)

    def _row_params(self, params: Any) -> dict[str, Any]:
        values = super()._row_params(params)
        if params.adapter is None and self.model_params.adapter_model is not None:
            values["adapter"] = "default"
        return values

    async def _ready(self, service: Service, requests: Sequence[RowRequest] = ()) -> None:
        await super()._ready(service, requests)
        for server in service.servers:
            for name, path in self._adapters.items():
                served = server.facts.get("adapters", {}).get(name)
                if served is not None and served != path:
                    raise ConfigurationError(
                        f"{server.shown} serves the adapter {name!r} from {served!r}, "
                        f"and not from {path!r}",
                        hint="Declare it by another name, or ask for the one that is there: "
                        f"GenerationParams(adapter={name!r}).",
                    )

    async def _add_adapter(self, service: Service, name: str) -> None:
        if name not in self._adapters:
            await super()._add_adapter(service, name)
        for server in service.servers:
            await self._load_adapter(server, name, self._adapters[name])

    async def _load_adapter(self, server: Server, name: str, path: str) -> None:
        """Have a server load a LoRA adapter from a folder of its own."""
        if name in server.facts.get("models", ()):
            return
        try:
            response = await server.client.post(
                self._adapter_address(server), json={"lora_name": name, "lora_path": path}
            )
        except httpx.HTTPError as error:
            raise ServerError(f"{server.shown}: {from_exception(error).message}") from None
        # No such path, in the framework's own words; a folder that is none is the server's.
        unknown = response.status_code == 404 and b'"Not Found"' in response.content
        if unknown or b"LoRA is not enabled" in response.content:
            raise ServerError(
                f"{server.shown} does not serve the adapter {name!r} and loads none while it runs",
                hint=self._adapter_hint(name),
            )
        if response.status_code != 200:
            said = _said(response)
            raise ModelNotFound(
                f"{server.shown} cannot load the adapter {name!r} of {path!r}: {said}"
            )
        server.facts.setdefault("models", []).append(name)
        server.facts.setdefault("adapters", {})[name] = path


def _said(response: httpx.Response) -> str:
    """Why a server loads no adapter: SGLang has a word of its own for it."""
    try:
        own = response.json()["error_message"]
    except (ValueError, KeyError, TypeError):
        own = None
    return own if isinstance(own, str) else from_response(response, response.content).message
