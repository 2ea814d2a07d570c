"""Run probes and keep what they saw."""

from __future__ import annotations

from collections.abc import Sequence

from ..progress import Reporter

__all__ = ["prove"]


def prove(
    engines: Sequence[str], features: Sequence[str], progress: bool | Reporter | None = None
) -> None:
    """Probe each feature on each engine; what is done is kept even if it is stopped."""
    raise NotImplementedError
