"""What each engine can do here: the guide's feature table, proven instead of typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import choices_hint, shown
from ..errors import ConfigurationError
from . import proofs, reasons

if TYPE_CHECKING:
    import pandas as pd

    from ..progress import Reporter

__all__ = ["ENGINES", "FEATURES", "STATES", "Cell", "cells", "features"]

# In the guide's order: its columns, its rows, and then what it leaves out.
ENGINES = ("vllm", "native", "llamacpp", "remote-vllm", "sglang")
FEATURES = {
    "continuous_batching": "Continuous batching",
    "tensor_parallel": "Tensor parallelism",
    "adapters": "LoRA adapters",
    "quantization_4bit": "4-bit quantization",
    "quantization_8bit": "8-bit quantization",
    "gguf": "GGUF format",
    "prefix_caching": "Prefix caching",
    "streaming": "Streaming",
    "vision": "Vision models",
    "cpu": "CPU support",
    "structured_output": "Structured output",
    "tools": "Tool calls",
    "reasoning": "Reasoning content",
    "multi_turn": "Turns that keep the cache",
    "speculative": "Speculative decoding",
    "logprobs": "Log-probabilities",
    "samples": "Several samples (n > 1)",
    "seeds": "Seeds",
    "stop_strings": "Stop strings",
    "beam_search": "Beam search",
    "embeddings": "Embeddings",
}
STATES = {
    "proven": "✅ proven",
    "failed": "⚠️ a probe failed",
    "unsupported": "❌ not supported",
    "gpu": "🖥️ needs a GPU",
    "not probed": "· not probed",
    "not installed": "· not installed",
}


@dataclass(frozen=True)
class Cell:
    """One engine's word on one feature.

    Attributes
    ----------
    feature, engine : str
        A key of ``FEATURES`` and one of ``ENGINES``.
    state : str
        A key of ``STATES``.
    detail : str
        What the probe saw, why it failed, or why the feature is not to be had.
    source : str
        Where a reason can be read: an address, or a file of the library.
    version : str
        The library that the probe ran on, or that is installed.
    date : str
        The day of the probe, ISO 8601 in UTC; ``""`` without one.
    """

    feature: str
    engine: str
    state: str
    detail: str = ""
    source: str = ""
    version: str = ""
    date: str = ""


def features(
    *,
    probe: bool = False,
    engines: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    details: bool = False,
    progress: bool | Reporter | None = None,
) -> pd.DataFrame:
    """The guide's feature table for what is installed here.

    Parameters
    ----------
    probe : bool, default False
        Prove first what can be proven: each feature is used on the real engine, which takes
        minutes, and what was seen is kept under ``NBINFER_HOME`` with the library's version and
        the date. A proof of another version counts no more.
    engines : sequence of str, optional
        Of ``ENGINES``. Default: all.
    only : sequence of str, optional
        Of ``FEATURES``. Default: all.
    details : bool, default False
        One row for each cell, with what was seen, or the reason and where it can be read.
    progress : bool or Reporter, optional
        With ``probe``: by default shown in notebooks and terminals.

    Returns
    -------
    pandas.DataFrame
        A row for each feature (``feature``) and a column for each engine; with ``details`` the
        columns ``feature, engine, state, detail, source, version, date``. ``state`` is
        ``"proven"``, ``"failed"`` (a probe ran and saw otherwise), ``"unsupported"`` (by the
        library or by nbinfer, with the reason), ``"gpu"`` (only a GPU could prove it),
        ``"not probed"`` or ``"not installed"``.

    Raises
    ------
    ConfigurationError
        For an unknown engine or feature, with the nearest one.
    RunInterrupted
        When the user stops the probes; those that are done are kept.
    """
    columns = _chosen("engine", engines, ENGINES)
    rows = _chosen("feature", only, FEATURES)
    if probe:
        from .probing import prove

        prove(columns, rows, progress)
    found = [cells(row, columns) for row in rows]
    return _details(found) if details else _table(found, rows, columns)


def cells(feature: str, engines: Iterable[str] = ENGINES) -> list[Cell]:
    """One feature's cells, without running anything."""
    return [_cell(feature, engine) for engine in engines]


def _cell(feature: str, engine: str) -> Cell:
    reason = reasons.REASONS.get((feature, engine))
    version = proofs.installed_version(engine)
    if reason is not None:
        return Cell(
            feature, engine, reason.state, reason.text, reason.source, version=version or ""
        )
    if version is None:
        hint = f"%engine install {proofs.environment(engine)}"
        return Cell(feature, engine, "not installed", hint)
    proof = proofs.read(engine, feature)
    if proof is None:
        return Cell(feature, engine, "not probed", version=version)
    if proof.version != version:
        was = f"{proof.state} with {proof.version} on {proof.date}"
        return Cell(feature, engine, "not probed", was, version=version)
    return Cell(feature, engine, proof.state, proof.detail, version=proof.version, date=proof.date)


def _chosen(what: str, asked: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    if asked is None:
        return list(known)
    if not asked:
        raise ConfigurationError(f"no {what} is named", hint=f"there are: {', '.join(known)}")
    for name in asked:
        if name not in known:
            raise ConfigurationError(
                f"no {what} of the table is called {shown(name)}", hint=choices_hint(name, known)
            )
    return list(dict.fromkeys(asked))


def _table(found: list[list[Cell]], rows: list[str], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "feature": [FEATURES[row] for row in rows],
            **{
                engine: [STATES[line[place].state] for line in found]
                for place, engine in enumerate(columns)
            },
        },
        dtype="str",
    )
    frame.attrs["nbinfer"] = {"table": _caption(found, columns)}
    return frame


def _caption(found: list[list[Cell]], columns: list[str]) -> str:
    """How many are proven, on which versions, and how to see why."""
    every = [cell for line in found for cell in line]
    proven = sum(cell.state == "proven" for cell in every)
    versions = [v for e in columns if (v := proofs.installed_version(e))]
    parts = [f"{proven} of {len(every)} proven here", *dict.fromkeys(versions)]
    if any(cell.state == "not probed" for cell in every):
        parts.append("--probe proves the rest")
    return " · ".join([*parts, "--details says why"])


def _details(found: list[list[Cell]]) -> pd.DataFrame:
    import pandas as pd

    names = list(Cell.__dataclass_fields__)
    rows: list[dict[str, Any]] = [vars(cell) for line in found for cell in line]
    frame = pd.DataFrame(
        {name: pd.Series([row[name] or None for row in rows], dtype="str") for name in names}
    )
    frame.attrs["nbinfer"] = {"table": f"{len(rows)} cells of the feature table"}
    return frame
