"""What every engine that is a server shares: where it is, who may ask, a run on it."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from .. import interrupts, measure, server_records, settings
from ..checks import Secret
from ..config import ModelParams, RemoteParams
from ..errors import ConfigurationError, ModelNotFound, RunInterrupted, UnsupportedParameter
from ..notices import notify
from ..records import RowRequest
from ..remote import service as services
from ..remote.batch import Batches, BatchRun
from ..remote.discovery import check_model, discover
from ..remote.exchange import Wire
from ..remote.loop import loop
from ..remote.run import RemoteRun
from ..remote.service import Service
from ..run import Run
from . import registry
from .base import InferenceEngine

__all__ = ["RemoteEngine"]

# What a server was told when it was started: a request cannot change it.
OF_THE_SERVER = frozenset(
    {
        *("model_max_length", "model_revision", "torch_dtype_str", "trust_remote_code"),
        *("compile", "attn_implementation", "device_map", "tokenizer_name"),
        *("tokenizer_kwargs", "processor_kwargs", "model_kwargs"),
    }
)


class RemoteEngine(InferenceEngine):
    """An engine behind an address: rows go over HTTP, nothing is loaded here.

    A subclass says where it is by default, which variable holds its key, and its ``Wire``.

    Attributes
    ----------
    default_url : str
        Where it is looked for without ``RemoteParams.api_url``; ``""``: an address must be given.
    url_variable, key_variable : str
        The environment variables that hold an address and a key, as its own clients read them.
    library : str or None
        Whose server it must be, where the engine speaks that server's own words.
    """

    default_url: ClassVar[str] = ""
    url_variable: ClassVar[str] = ""
    key_variable: ClassVar[str] = ""
    library: ClassVar[str | None] = None

    remote_params: RemoteParams
    _told: frozenset[str] = frozenset()

    # ------------------------------------------------------------------- checking

    def _check_remote(self, params: RemoteParams | None) -> None:
        if params is not None and not isinstance(params, RemoteParams):
            raise ConfigurationError(f"remote_params must be RemoteParams, not {params!r:.80}")
        self.remote_params = params or settings.remote(self.name) or RemoteParams()

    def _check_model(self, params: ModelParams) -> None:
        """What the server was started with is announced as left out; the rest must be known."""
        changed = set(params.to_dict(changed_only=True)) - {"model_name"} - OF_THE_SERVER
        for name in sorted(changed - self.capabilities.model):
            self._refuse(name, getattr(params, name), of="model")

    def _announce(self) -> None:
        changed = frozenset(self.model_params.to_dict(changed_only=True)) & OF_THE_SERVER
        if changed - self._told:
            self._told = changed
            names = ", ".join(sorted(changed))
            notify(f"{self.name} leaves {names} to the server, which was started with its own")

    @property
    def asked_beyond(self) -> dict[str, Any]:
        extra = self.remote_params.to_dict(changed_only=True).get("extra_body")
        return {"extra_body": extra} if extra else {}

    # ------------------------------------------------------------------ the server

    def wire(self) -> Wire:
        """The server's own words."""
        raise NotImplementedError

    @property
    def urls(self) -> list[str]:
        """Where the server is, or the servers that share the work."""
        given = self.remote_params.api_url
        if given is None:
            given = os.environ.get(self.url_variable) or self._own_url() or self.default_url
        if not given:
            raise ConfigurationError(
                f"{self.name} has no address",
                hint="give one: RemoteParams(api_url=...), or --url in a magic",
            )
        return [given] if isinstance(given, str) else list(given)

    def _own_url(self) -> str | None:
        """The newest server of this kind that was started from a notebook here."""
        found = [s for s in server_records.servers() if s.client == self.name]
        model = self.served_name
        return next((s.url for s in reversed(found) if s.model == model), None) or next(
            (s.url for s in reversed(found)), None
        )

    def _key(self) -> str | None:
        params = self.remote_params
        if params.api_key is not None:
            return Secret(params.api_key)
        name = params.api_key_env_varname or self.key_variable
        found = os.environ.get(name, "").strip() if name else ""
        if params.api_key_env_varname is not None and not found:
            raise ConfigurationError(
                f"the environment variable {name!r} holds no API key",
                hint=f"set it before the kernel starts, or with %env {name}=...",
            )
        if found or len(self.urls) > 1:
            return Secret(found) if found else None
        ours = server_records.find(self.urls[0])
        return ours.api_key if ours is not None else None

    @property
    def service(self) -> Service:
        """Its servers; engines with the same address, key and limits share them."""
        return services.shared(self.urls, self.remote_params, self.wire().headers(self._key()))

    @property
    def served_name(self) -> str:
        """The model's name there: an alias of the settings stands for one."""
        name = self.model_params.model_name
        alias = settings.aliases().get(name)
        if isinstance(alias, str):
            return alias
        return name if alias is None else alias.get(self.name, name)

    async def _ready(self, service: Service, requests: Sequence[RowRequest] = ()) -> None:
        """Make sure that the servers are there and serve the model and the rows' adapters."""
        await discover(service, self.key_variable)
        asked = {r.params["adapter"] for r in requests if r.params.get("adapter")}
        adapters = sorted({*asked, *(self.model_params.adapters or {})})
        for name in check_model(service, self.served_name, self.library, adapters):
            await self._add_adapter(service, name)

    def _check_reads_calls(self, service: Service, hint: str) -> None:
        """Refuse tools of a server that would take them, and tell of no call."""
        for server in service.servers:
            if server.facts.get("reads_calls") is False:
                raise UnsupportedParameter(
                    f"{server.shown} reads no calls of tools out of an answer",
                    parameter="tools",
                    engine=self.name,
                    engines=registry.supporting("auto", of="tool_choice"),
                    hint=hint,
                )

    async def _add_adapter(self, service: Service, name: str) -> None:
        """Have the servers load an adapter that they do not serve yet."""
        served = service.servers[0].facts.get("models", [])
        raise ModelNotFound(
            f"{service.label} serves no adapter {name!r}", hint=f"It serves: {', '.join(served)}"
        )

    # ---------------------------------------------------------------- the contract

    def load(self) -> Self:
        """Ask the servers now whether they are there and serve the model.

        Raises
        ------
        ServerUnreachable, ServerError, ModelNotFound
            With the address and what is served there.
        """
        self._announce()
        with interrupts.guard() as guard:
            future = loop.submit(self._ready(self.service))
            with guard.listening(lambda: _cancel(future)):
                try:
                    future.result()
                except concurrent.futures.CancelledError:
                    raise RunInterrupted(f"stopped waiting for {', '.join(self.urls)}") from None
        return self

    def unload(self) -> int:
        """Close the connections. The server keeps its model."""
        loop.submit(self.service.close()).result()
        return 0

    def memory(self) -> dict[str, int | None]:
        ours = self._ours()
        now = measure.seen(ours.pid).total if ours is not None else None
        return {"memory_bytes": now, "idle_bytes": None, "peak_bytes": None}

    def _ours(self) -> server_records.Server | None:
        """The server, where it runs on this machine and was started by us."""
        return server_records.find(self.urls[0]) if len(self.urls) == 1 else None

    def _open_run(self, requests: Sequence[RowRequest], **options: Any) -> RemoteRun:
        self._announce()
        service = self.service
        return RemoteRun(
            requests,
            service=service,
            wire=self.wire(),
            model=self.served_name,
            prepare=lambda: self._ready(service, requests),
            ours=self._ours(),
            **options,
        )

    def _batches(self) -> Batches | None:
        """The cloud's batch API, where it has one."""
        return None

    def _open_batch(self, batch: bool | str, requests: Sequence[RowRequest], **options: Any) -> Run:
        batches = self._batches()
        if batches is None:
            return super()._open_batch(batch, requests, **options)
        return BatchRun(
            requests,
            service=self.service,
            wire=self.wire(),
            batches=batches,
            model=self.served_name,
            batch=batch,
            **options,
        )

    def _run_facts(self, run: Any) -> dict[str, Any]:
        assert isinstance(run, RemoteRun | BatchRun)
        servers = run.service.servers
        first = next((dict(s.facts) for s in servers if s.facts), {})
        for listed in ("models", "adapters"):
            first.pop(listed, None)
        library, version = first.pop("library", None), first.pop("version", None)
        return {
            "load_s": run.connect_s,
            "running_s": run.done_at - run.sent_at if run.sent_at else None,
            "model_memory_bytes": run.idle_bytes,
            "peak_memory_bytes": run.peak_bytes or None,
            "versions": {library: version} if library else {},
            "engine_facts": {
                **first,
                "servers": [s.shown for s in servers],
                "retries": run.retries,
                "most_requests_at_once": run.service.pace.most_used,
                **({"batch": run.batch_id} if isinstance(run, BatchRun) else {}),
            },
        }


def _cancel(future: concurrent.futures.Future[None]) -> None:
    future.cancel()
