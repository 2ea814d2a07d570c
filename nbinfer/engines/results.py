"""How a run ends, the same for ``infer()`` and ``stream()``: facts, frame, and what is raised."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import frame as frames
from .. import runstore
from ..errors import RunInterrupted
from ..guide import peaks
from ..measure import machine

if TYPE_CHECKING:
    import pandas as pd

    from ..config import GenerationParams
    from ..run import Run
    from .base import InferenceEngine

__all__ = ["conclude"]


def conclude(
    engine: InferenceEngine,
    run: Run,
    rows: Sequence[frames.Row],
    params: GenerationParams,
    *,
    started: float,
    resumed: int = 0,
    inputs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Make a run's frame, keep it as the last, and raise what ended the run, if anything did.

    Parameters
    ----------
    engine, run, rows, params
        Whose run it was, its outcome, its rows in any order but for the resumed ones, which are
        first, and what was asked.
    started : float
        ``time.monotonic()`` when the run was asked for.
    resumed : int
        How many of the rows came from a file.
    inputs : DataFrame, optional
        The user's table, where the prompts came from one.

    Raises
    ------
    RunInterrupted, EngineCrashed
        With all rows in ``.frame``.
    NbinferError
        Without rows, where none reached the engine (a load that failed).
    """
    outcome = run.outcome
    if outcome.error is not None and not (outcome.sent or outcome.interrupted or resumed):
        raise outcome.error
    facts = _facts(engine, run, rows, params, time.monotonic() - started, resumed)
    result = frames.build(
        rows,
        facts,
        inputs=inputs,
        samples=params.n > 1,
        optional=frames.optional_columns(rows, params),
    )
    runstore.remember(facts)
    peaks.remember(facts)
    runstore.set_last(result)
    if outcome.interrupted:
        done = sum(row.finish_reason in (*frames.ANSWERED, "error") for row in rows)
        raise RunInterrupted(
            f"stopped with {done} of {len(rows)} rows finished; they are kept in nbinfer.last()",
            result,
        )
    if outcome.error is not None:
        outcome.error.frame = result
        raise outcome.error
    return result


def _facts(
    engine: InferenceEngine,
    run: Run,
    rows: Sequence[frames.Row],
    params: GenerationParams,
    wall_s: float,
    resumed: int,
) -> dict[str, Any]:
    from .. import __version__

    own = engine._run_facts(run)
    made = rows[resumed:]  # by this run: throughput is of these alone
    tokens = sum(row.output_tokens or 0 for row in made)
    answered = sum(row.finish_reason in frames.ANSWERED for row in made)
    running_s = own.get("running_s") or None
    facts: dict[str, Any] = {
        "run_id": run.run_id,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "nbinfer_version": __version__,
        "engine": engine.name,
        "model": engine.model_params.model_name,
        "rows": len(rows),
        "rows_resumed": resumed,
        "rows_failed": sum(row.finish_reason == "error" for row in rows),
        "rows_cancelled": sum(row.finish_reason == "cancelled" for row in rows),
        "interrupted": run.outcome.interrupted,
        "prompt_tokens": sum(row.prompt_tokens or 0 for row in rows),
        "output_tokens": sum(row.output_tokens or 0 for row in rows),
        "wall_s": wall_s,
        "output_tokens_per_s": tokens / running_s if running_s else None,
        "requests_per_s": answered / running_s if running_s else None,
        "seed": params.seed,
        "generation_params": params.to_dict(),
        "model_params": engine.model_params.to_dict(),
        "machine": machine(),
    }
    plain: dict[str, Any] = frames.jsonable({**facts, **own})
    return plain
