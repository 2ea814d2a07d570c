"""LoRA adapters of engines on this machine: their names, and what joins a running engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..config import GenerationParams
from ..errors import ConfigurationError, ModelNotFound
from ..resident import Plan
from .local import LocalEngine

__all__ = ["NamedAdapters", "PeftAdapters", "adapter_config"]


class NamedAdapters(LocalEngine):
    """An engine whose requests name an adapter of ``ModelParams.adapters``."""

    @property
    def _adapters(self) -> dict[str, str]:
        """Adapters by name; ``adapter_model`` is ``default``."""
        declared = dict(self.model_params.adapters or {})
        single = self.model_params.adapter_model
        found = {"default": single, **declared} if single is not None else declared
        return {name: str(Path(path).expanduser().absolute()) for name, path in found.items()}

    def _params(self, given: GenerationParams | None) -> GenerationParams:
        params = super()._params(given)
        if params.adapter is None and self.model_params.adapter_model is not None:
            return dataclasses.replace(params, adapter="default")
        if params.adapter is not None and params.adapter not in self._adapters:
            declared = ", ".join(map(repr, self._adapters)) or "none"
            raise ConfigurationError(
                f"adapter {params.adapter!r} is not among this engine's",
                hint=f"declared: {declared}; ModelParams(adapters={{name: path}}) declares one",
            )
        return params


class PeftAdapters(NamedAdapters):
    """An engine whose requests name an adapter by its folder, as PEFT writes it.

    ``ModelParams.adapters`` and ``adapter_model`` say which names mean which folder. They are no
    part of what is resident: engines that differ in them alone share one.
    """

    def _row_params(self, params: GenerationParams) -> dict[str, Any]:
        values = super()._row_params(params)
        if params.adapter is not None:
            path = self._adapters[params.adapter]
            # A folder that is none is told here, before anything runs.
            facts = self._adapter_facts(path)
            values["adapter"] = {"name": params.adapter, "path": path, **facts}
        return values

    def _adapter_facts(self, path: str) -> dict[str, Any]:
        """What else a request says of its adapter; raises where the folder is none."""
        adapter_config(path, self.name)
        return {}

    def plan(self) -> Plan:
        plan = super().plan()
        params = self.model_params.to_dict()
        params.update(adapters=None, adapter_model=None)
        key = (self.name, self.backend, json.dumps(params, sort_keys=True))
        return dataclasses.replace(plan, key=key)


def adapter_config(path: str, engine: str) -> dict[str, Any]:
    """The ``adapter_config.json`` of an adapter's folder.

    Raises
    ------
    ModelNotFound
        If there is none.
    """
    folder = Path(path)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not config.get("peft_type"):
            raise ValueError
        if not any((folder / f"adapter_model.{end}").is_file() for end in ("safetensors", "bin")):
            raise ValueError
    except (OSError, ValueError):
        raise ModelNotFound(
            f"no LoRA adapter at {path!r}: {engine} takes a folder as PEFT writes it, with "
            "adapter_config.json and adapter_model.safetensors"
        ) from None
    return config
