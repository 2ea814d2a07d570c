"""The same prompts through several engines: ``%%compare`` and ``nbinfer.compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from . import accessor, runstore
from .errors import ConfigurationError, NbinferError, RunInterrupted
from .notices import notify

if TYPE_CHECKING:
    import pandas as pd

    from .config import GenerationParams
    from .engines.base import InferenceEngine
    from .prompts import Prompts

__all__ = ["compare", "label_of"]


def compare(
    what: pd.DataFrame | Sequence[InferenceEngine],
    prompts: Prompts | None = None,
    generation_params: GenerationParams | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Send the same prompts to several engines, or lay the runs of a frame side by side.

    Parameters
    ----------
    what : DataFrame or sequence of InferenceEngine
        Rows of several runs that are there already, or at least two engines to ask. Engines
        run one after another, never at once; those that do not fit in memory together are
        loaded one after another.
    prompts : str, Conversation, DataFrame, or sequence, optional
        With engines: as ``engine.infer`` takes them.
    generation_params : GenerationParams, optional
        With engines: for all of them. By default greedy, so that answers can be compared.
    **options
        With engines: what else ``engine.infer`` takes.

    Returns
    -------
    pandas.DataFrame
        Of a frame: see ``df.infer.compare()``. Of engines: all rows of all engines, a
        prompt's answers below each other, in the columns of ``engine.infer`` and
        ``first_difference`` (Int64): the character at which the answer first differs from the
        first engine's, NA where it does not. ``df.infer.summary()`` has speed and memory.

    Raises
    ------
    ConfigurationError
        For fewer than two engines, two that would be the same resident, or a parameter that
        one of them cannot honour; before any has run.
    RunInterrupted, NbinferError
        If one of them ends early; ``.frame`` has the rows of all that ran.
    """
    if not isinstance(what, list | tuple) and hasattr(what, "columns"):
        if prompts is not None or generation_params is not None or options:
            raise ConfigurationError(
                "compare(frame) takes nothing else", hint="compare([engines], prompts) runs them"
            )
        return accessor.compare(cast("pd.DataFrame", what))
    engines = list(cast("Sequence[InferenceEngine]", what))
    if options.get("output_path") is not None:
        raise ConfigurationError(
            "a comparison has no output_path: a file holds one engine's rows",
            hint="run each with engine.infer(..., output_path=...), and compare(pd.concat(frames))",
        )
    _check(engines, generation_params)
    frames: list[pd.DataFrame] = []
    for engine in engines:
        try:
            frames.append(engine.infer(prompts, generation_params, **options))
        except (NbinferError, RunInterrupted) as error:
            if error.frame is not None:
                frames.append(error.frame)
            if frames:
                error.frame = _together(frames)
                runstore.set_last(error.frame)
            raise
    _warn_of_precision(frames)
    result = _together(frames)
    runstore.set_last(result)
    return result


def _check(engines: Sequence[InferenceEngine], params: GenerationParams | None) -> None:
    if len(engines) < 2:
        raise ConfigurationError(
            f"a comparison needs two engines or more, got {len(engines)}",
            hint="%%compare -e llamacpp,native",
        )
    labels = [label_of(e) for e in engines]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigurationError(f"{label} is there twice: it would be compared with itself")
    for engine in engines:  # all are asked before the first of them runs for minutes
        engine._params(params)


def label_of(engine: InferenceEngine) -> str:
    """An engine with its model and how it is loaded: two with one label are the same."""
    options = dict(engine.model_params.model_kwargs)
    extra = " " + " ".join(f"{k}={v}" for k, v in sorted(options.items())) if options else ""
    return f"{engine.name} · {engine.model_params.model_name}{extra}"


def _warn_of_precision(frames: Sequence[pd.DataFrame]) -> None:
    """Answers of a Q4 and of a float32 model differ for a reason that is not the engine."""
    found = {}
    for frame in frames:
        facts = frame.attrs["nbinfer"]
        found[facts["engine"]] = (facts.get("model_facts") or {}).get("precision")
    if len({p for p in found.values() if p}) > 1:
        said = ", ".join(f"{engine} has {precision}" for engine, precision in found.items())
        notify(f"the precisions differ, and the answers may for that alone: {said}")


def _together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows, a prompt's answers below each other in the engines' order."""
    import pandas as pd

    facts = [dict(frame.attrs["nbinfer"]) for frame in frames]
    bare = []
    for number, frame in enumerate(frames):
        part = frame.copy()
        part.attrs = {}  # concat compares them, whole
        part["__engine"], part["__row"] = number, range(len(part))
        bare.append(part)
    rows = pd.concat(bare, ignore_index=True)
    rows = rows.sort_values(["__row", "__engine"], kind="stable", ignore_index=True)
    places: list[int | None] = []
    for _, part in rows.groupby("__row", sort=False):
        outputs = part["output"].tolist()
        places += [accessor.first_difference([outputs[0], other]) for other in outputs]
    at = list(rows.columns).index("output") + 1
    rows = rows.drop(columns=["__row", "__engine"])
    rows.insert(at, "first_difference", pd.Series(places, dtype="Int64", index=rows.index))
    rows.attrs["nbinfer"] = {
        "comparison": [f["run_id"] for f in facts],
        "caption": _caption(facts, rows),
        "hidden": ["run_id", "model"] if len({f["model"] for f in facts}) == 1 else ["run_id"],
    }
    return rows


def _caption(facts: Sequence[Mapping[str, Any]], rows: pd.DataFrame) -> str:
    parts = []
    for fact in facts:
        speed, memory = fact.get("output_tokens_per_s"), fact.get("model_memory_bytes")
        said = [f"{speed:,.0f} tok/s"] if speed else []
        said += [f"{memory / 1e6:,.0f} MB"] if memory else []
        parts.append(f"{fact['engine']}: {', '.join(said) or 'did not finish'}")
    prompts = len(rows) // max(len(facts), 1)
    others = rows["run_id"] != facts[0]["run_id"]
    same = int(rows.loc[others, "first_difference"].isna().sum()) if others.any() else 0
    total = int(others.sum())
    agreed = f"{same} of {total} answers equal {facts[0]['engine']}'s" if total else ""
    return " · ".join([f"{prompts} prompts", *parts, *([agreed] if agreed else [])])
