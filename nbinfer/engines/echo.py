"""The engine without a model: see ``nbinfer.worker.backends.echo``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .local import LocalEngine

__all__ = ["EchoInferenceEngine"]


class EchoInferenceEngine(LocalEngine):
    """Answers with the prompt, one word a token. For tests, and for learning the magics."""

    name = "echo"
    backend = "echo"

    def _prepare(self, _progress: Callable[[str], None]) -> tuple[dict[str, Any], int]:
        options = dict(self.model_params.model_kwargs)
        return {"options": options}, 20_000_000 + int(options.get("memory_bytes", 0))
