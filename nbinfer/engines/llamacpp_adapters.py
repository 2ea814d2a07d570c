"""Which resident serves a request's LoRA adapter: llama.cpp takes adapters when it loads alone."""

from __future__ import annotations

import abc
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from .. import adapters, gguf, weights
from ..config import GenerationParams, ModelParams
from ..errors import ConfigurationError, LoadError
from ..local_run import LocalRun
from ..notices import notify
from ..records import RowRequest
from ..resident import Plan, Resident
from ..residents import pool
from .adapters import NamedAdapters

__all__ = ["AdapterEngine", "read_header"]


class AdapterEngine(NamedAdapters):
    """An engine whose residents differ in the adapters that they were loaded with."""

    def _check_model(self, params: ModelParams) -> None:
        super()._check_model(params)
        if params.model_kwargs.get("cache_ram_mib") and (params.adapters or params.adapter_model):
            # Looked up by the prompt's tokens alone, whatever adapter computed it.
            raise ConfigurationError(
                "model_kwargs['cache_ram_mib'] and adapters cannot be had together: llama.cpp's "
                "cache in memory does not know which adapter a prompt was computed with",
                hint="leave cache_ram_mib out; each slot's own cache knows",
            )

    def _row_params(self, params: GenerationParams) -> dict[str, Any]:
        values = super()._row_params(params)
        if params.adapter is not None:
            values["adapter"] = self._adapters[params.adapter]
        return values

    @abc.abstractmethod
    def _prepare_with(
        self, files: Sequence[str], progress: Callable[[str], None]
    ) -> tuple[dict[str, Any], int]:
        """As ``_prepare``, with these adapters."""

    def _prepare(self, progress: Callable[[str], None]) -> tuple[dict[str, Any], int]:
        return self._prepare_with(list(self._adapters.values()), progress)

    def plan(self) -> Plan:
        """What has to be resident: one llama.cpp, with all the adapters that were asked for.

        llama.cpp takes adapters when it loads its model, and none later. So one that has more
        serves a request with fewer, and one that lacks any is loaded anew with both its own and
        the new ones: who goes back and forth between two loads twice, not each time.
        """
        wanted = self._wanted()
        together = dict(wanted)
        for kin in self._kin():
            loaded = _loaded(kin)
            if wanted.items() <= loaded.items():
                return self._plan(loaded)
            for path, mark in loaded.items():
                if mark is not None and adapters.stamp(path) == mark:
                    together.setdefault(path, mark)
        return self._plan(together)

    def _wanted(self) -> dict[str, str | None]:
        return {path: adapters.stamp(path) for path in self._adapters.values()}

    def _plan(self, files: Mapping[str, str | None]) -> Plan:
        plan = super().plan()
        listed = json.dumps(sorted(files.items()))
        prepare = functools.partial(self._prepare_with, list(files))
        return replace(plan, key=(*self._family(), listed), prepare=prepare)

    def _family(self) -> tuple[str, ...]:
        """What residents have in common that differ in their adapters alone."""
        params = self.model_params.to_dict()
        params.update(adapters=None, adapter_model=None)
        return self.name, self.backend, json.dumps(params, sort_keys=True)

    def _kin(self) -> list[Resident]:
        family = self._family()
        return [
            r
            for r in pool.residents()
            if r.plan.key[:-1] == family and r.state in ("loading", "ready")
        ]

    def _make_way(self) -> None:
        """Unload the same model with fewer adapters: two of it are not needed.

        Not for an adapter that does not fit: what is loaded stays then.
        """
        wanted, others = self._wanted(), self._kin()
        if all(wanted.items() <= _loaded(kin).items() for kin in others):
            return
        plan = self.plan()
        for kin in others:
            if kin.plan.key != plan.key and kin.state == "ready" and not kin.busy:
                header = read_header(Path(kin.model_facts["path"]))
                for path in self._adapters.values() if header else ():
                    adapters.gguf_for(path, header, lambda _: None)
                notify(f"loading {kin.label} anew, with the adapter that is asked for")
                pool.unload(kin)
                # At once: the plan has the adapters of what was just unloaded, and a later one
                # would not know of them.
                pool.ensure(plan, lambda _: None)
                return

    def load(self) -> Self:
        self._make_way()
        return super().load()

    def _open_run(self, requests: Sequence[RowRequest], **options: Any) -> LocalRun:
        self._make_way()
        return super()._open_run(requests, **options)


def _loaded(kin: Resident) -> dict[str, str | None]:
    """The adapters of a resident, by their paths."""
    return dict(json.loads(kin.plan.key[-1]))


def read_header(path: Path) -> dict[str, Any]:
    """The model's header, with the tensors of all its parts where it is in several.

    A broken file's is empty: it is left to the library, which words it best.
    """
    try:
        header = gguf.read_header(path)
        for part in weights.parts(path.name)[1:]:
            header["tensors"] += gguf.read_header(path.with_name(part))["tensors"]
    except gguf.GGUFError:
        return {}
    except OSError as error:
        raise LoadError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return header
