"""The same prompts through several engines: ``%%compare`` and ``nbinfer.compare``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from . import accessor, runstore
from .agreement import agreement, logprob_gaps
from .config import GenerationParams
from .errors import ConfigurationError, NbinferError, RunInterrupted
from .frame import COLUMNS
from .notices import notify

if TYPE_CHECKING:
    import pandas as pd

    from .engines.base import InferenceEngine
    from .prompts import Prompts

__all__ = ["compare", "label_of"]

ALTERNATIVES = 5
# What an answer is against the first engine's.
_KINDS = {
    "first_difference": "Int64",
    "agreement": "Float64",
    "logprob_gap": "Float64",
    "reference_gap": "Float64",
}
# A wide frame's columns, of each engine.
_OF_EACH = (
    *("output", *_KINDS, "finish_reason", "error", "prompt_tokens", "output_tokens", "ttft_s"),
    *("tpot_s", "latency_s", "model_memory_bytes", "peak_memory_bytes", "run_id"),
)


def compare(
    what: pd.DataFrame | Sequence[InferenceEngine],
    prompts: Prompts | None = None,
    generation_params: GenerationParams | None = None,
    *,
    wide: bool = False,
    alternatives: int | None = ALTERNATIVES,
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
    wide : bool, default False
        With engines: one row for each prompt, and columns ``<engine>_output``, ``<engine>_...``.
    alternatives : int, optional
        With engines: how many alternatives for each token those engines are asked for that can
        tell them, so that ``logprob_gap`` is known; default 5. ``None`` asks for none.
    **options
        With engines: what else ``engine.infer`` takes.

    Returns
    -------
    pandas.DataFrame
        Of a frame: see ``df.infer.compare()``. Of engines: all rows of all engines, a
        prompt's answers below each other, in the columns of ``engine.infer`` and, of each answer
        against the first engine's, ``first_difference`` (Int64): the character at which they
        first differ, NA where they do not; ``agreement`` (Float64, 0 to 1): see
        ``nbinfer.agreement.agreement``; ``logprob_gap`` and ``reference_gap`` (Float64): by how
        much this engine and the first preferred their own token there, NA where it is not known
        (``nbinfer.agreement.logprob_gaps``). ``df.infer.summary()`` has speed and memory.

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

    def asked(engine: InferenceEngine) -> GenerationParams | None:
        return _asked(engine, generation_params, alternatives)

    for engine in engines:
        try:
            frames.append(engine.infer(prompts, asked(engine), **options))
        except (NbinferError, RunInterrupted) as error:
            if error.frame is not None:
                frames.append(error.frame)
            if frames:
                error.frame = _finished(frames, generation_params, wide)
                runstore.set_last(error.frame)
            raise
    _warn_of_precision(frames)
    result = _finished(frames, generation_params, wide)
    runstore.set_last(result)
    return result


def _asked(
    engine: InferenceEngine, params: GenerationParams | None, alternatives: int | None
) -> GenerationParams | None:
    """What an engine is asked, with log-probabilities where it can tell them."""
    own = params or engine.generation_params
    able = "logprobs" in engine.capabilities.generation and own.num_beams == 1
    if alternatives is None or not able or own.logprobs is not None:
        return params
    return dataclasses.replace(own, logprobs=alternatives)


def _finished(
    frames: Sequence[pd.DataFrame], params: GenerationParams | None, wide: bool
) -> pd.DataFrame:
    """What is given back: without the log-probabilities that only we have asked for."""
    result = _together(frames)
    if "logprobs" in result and (params is None or params.logprobs is None):
        result = result.drop(columns="logprobs")
    return _wide(result, len(frames)) if wide else result


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
    found: dict[str, list[Any]] = {name: [] for name in _KINDS}
    for _, part in rows.groupby("__row", sort=False):
        outputs = part["output"].tolist()
        logprobs = part["logprobs"].tolist() if "logprobs" in part else [None] * len(part)
        for number, answer in enumerate(zip(outputs, logprobs, strict=True)):
            place = accessor.first_difference([outputs[0], answer[0]])
            reference, own = logprob_gaps(place, (outputs[0], logprobs[0]), answer)
            score = agreement(outputs[0], answer[0]) if number else None
            for name, value in zip(_KINDS, (place, score, own, reference), strict=True):
                found[name].append(value)
    at = list(rows.columns).index("output") + 1
    rows = rows.drop(columns=["__row", "__engine"])
    for offset, (name, kind) in enumerate(_KINDS.items()):
        rows.insert(at + offset, name, pd.Series(found[name], dtype=kind, index=rows.index))
    one = len({f["model"] for f in facts}) == 1
    rows.attrs["nbinfer"] = {
        "comparison": [f["run_id"] for f in facts],
        "caption": _caption(facts, rows),
        "hidden": ["reference_gap", "run_id", *(["model"] if one else [])],
    }
    return rows


def _wide(rows: pd.DataFrame, engines: int) -> pd.DataFrame:
    """One row for each prompt: what is the prompt's, then each engine's in turn."""
    import pandas as pd

    shared = [name for name in rows.columns if name not in COLUMNS and name not in _KINDS]
    shared = [*shared, *(n for n in ("id", "sample", "prompt") if n in rows and n not in shared)]
    order = [name for name in rows.columns if name in shared and name not in ("messages", "parsed")]
    labels: list[str] = []
    for name in rows["engine"].head(engines):
        same = sum(label == name or label.startswith(f"{name}_") for label in labels)
        labels.append(f"{name}_{same + 1}" if same else name)
    columns = {name: rows[name].iloc[::engines].reset_index(drop=True) for name in order}
    for number, label in enumerate(labels):
        part = rows.iloc[number::engines].reset_index(drop=True)
        for name in _OF_EACH:
            if number or name not in _KINDS:
                columns[f"{label}_{name}"] = part[name]
        seconds = part["latency_s"].where(part["latency_s"] > 0)
        columns[f"{label}_tokens_per_s"] = (part["output_tokens"] / seconds).astype("Float64")
    table = pd.DataFrame(columns)
    facts = dict(rows.attrs["nbinfer"])
    shown = ("output", "first_difference", "agreement", "logprob_gap", "latency_s", "tokens_per_s")
    hidden = [c for label in labels for c in columns if c.startswith(f"{label}_")]
    hidden = [c for c in hidden if not c.endswith(tuple(f"_{name}" for name in shown))]
    table.attrs["nbinfer"] = {**facts, "hidden": hidden}
    return table


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
    score = rows["agreement"].mean()
    if total and same < total and score == score:
        agreed += f", agreement {score:.2f}"
    return " · ".join([f"{prompts} prompts", *parts, *([agreed] if agreed else [])])
