"""Which engine to take, for this model on this machine: ``%recommend``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import gpu as gpus
from .. import settings
from ..checks import choices_hint
from ..errors import ConfigurationError, ModelNotFound
from . import flowchart, proofs
from .asking import loadable, tokens, whole
from .costs import Job
from .estimates import estimate, room_for
from .features import FEATURES
from .features import cells as feature_cells
from .sources import Described, describe, loadable_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "recommend", "summary"]

COLUMNS = {
    "engine": "str",
    "verdict": "str",
    "reasons": "str",
    "precision": "str",
    "total_bytes": "Int64",
    "fits": "boolean",
    "installed": "boolean",
    "setup": "str",
    "cell": "str",
}
# Whose place a server's is, for memory and form; SGLang's own overhead is not known here.
_LIKE = {"remote-vllm": "vllm", "sglang": "vllm"}
_LOCAL = ("llamacpp", "native", "vllm", "remote-vllm", "sglang")
# What one adds to a cell for a precision that is made while the model is loaded.
_OPTIONS = {
    ("native", "8-bit"): "-k load_in_8bit=true",
    ("native", "4-bit"): "-k load_in_4bit=true",
    ("vllm", "fp8"): "-k quantization=fp8_per_tensor",
}
_ON_A_CPU = ("bf16", "fp16", "fp32")  # what vLLM computes there


@dataclass
class _Candidate:
    """An engine, and what speaks for and against it."""

    engine: str
    named: bool  # whether the flowchart leads to it
    reasons: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)  # each makes it impossible
    precision: str | None = None
    total: int | None = None
    fits: bool | None = None
    installed: bool = True


def recommend(
    model: str | None = None,
    *,
    cloud: bool | None = None,
    gpu: bool | None = None,
    production: bool | None = None,
    distributed: bool | None = None,
    throughput: bool | None = None,
    features: Sequence[str] = (),
    context: int | str | None = None,
    batch: int = 1,
    device: int | str | None = None,
) -> pd.DataFrame:
    """Which engine to take: the guide's flowchart, and what it leaves out.

    Parameters
    ----------
    model : str, optional
        The model, as engines take it. Default: that of a plain ``%%infer``.
    cloud, production, distributed, throughput : bool, optional
        The answers at the flowchart's branches; a question without one is no branch.
    gpu : bool, optional
        Whether there is a GPU. Default: whether this machine has one that CUDA sees.
    features : sequence of str, optional
        What is needed, of ``nbinfer.guide.features.FEATURES``: ``"adapters"``, ``"tools"``, ...
        An engine that has not got it is out.
    context, batch, device
        For how many tokens and requests, and on what device it must fit, as of
        ``nbinfer.memory``.

    Returns
    -------
    pandas.DataFrame
        A row for each engine, the recommended first: ``engine``; ``verdict``
        (``"recommended"``, ``"runner-up"``, or ``"out"``); ``reasons``, one a line, the
        weightiest first; ``precision``, the best that fits; ``total_bytes`` and ``fits``, as of
        ``nbinfer.memory`` and NA where they are not known; ``installed``; ``setup``, the lines
        to run before; ``cell``, which then runs. None is recommended where all are out.

    Raises
    ------
    ConfigurationError
        For an unknown feature or an impossible value.
    ModelNotFound, DownloadError
        For a model that is not known here and cannot be read.
    """
    answers = {
        "cloud": cloud,
        "gpu": bool(gpus.visible()) if gpu is None else gpu,
        "production": production,
        "distributed": distributed,
        "throughput": throughput,
    }
    for name, value in answers.items():
        if value not in (True, False, None):
            raise ConfigurationError(f"{name} is a question for True or False, not {value!r:.80}")
    if isinstance(features, str):
        features = [features]
    walked = flowchart.walk(answers)
    if cloud:
        candidates = [_Candidate(name, True, reasons) for name, reasons in walked]
        return _frame(candidates, model, answers)
    name = model if model is not None else settings.current().default_model
    found = describe(name)
    job = Job(_context(found, context), whole("batch", batch), gpu=bool(answers["gpu"]))
    candidates = _candidates(walked)
    for candidate in candidates:
        _judge_features(candidate, features, has_gpu=job.gpu)
        _judge_memory(candidate, found, job, device)
        _judge_installed(candidate)
    candidates.sort(key=lambda c: (bool(c.against), not c.named))
    return _frame(candidates, loadable_name(name), answers)


def summary(frame: pd.DataFrame) -> str:
    """The recommendation in plain lines: the engine, why, and what to run."""
    first = frame.iloc[0]
    if first["verdict"] == "out":
        return "No engine can do it here. " + str(first["engine"]) + ":\n" + str(first["reasons"])
    lines = [f"Take {first['engine']}:"]
    lines += [f"  - {reason}" for reason in str(first["reasons"]).splitlines()]
    for name in ("setup", "cell"):
        if isinstance(first[name], str):
            lines += ["", *(f"    {line}" for line in first[name].splitlines())]
    return "\n".join(lines)


def _context(found: Described, asked: int | str | None) -> int:
    return tokens(asked) if asked is not None else min(found.shape.context or 4096, 4096)


def _candidates(walked: Sequence[tuple[str, list[str]]]) -> list[_Candidate]:
    """What the flowchart leads to, in its order, and then the others."""
    found = [_Candidate(name, True, list(reasons)) for name, reasons in walked]
    named = {one.engine for one in found}
    # With a GPU the guide's default and its upgrade come next, without one what runs on a CPU.
    gpu_first = ("vllm", "native", "llamacpp", "remote-vllm", "sglang")
    order = _LOCAL if "llamacpp" in named else gpu_first
    return found + [_Candidate(name, False) for name in order if name not in named]


# ----------------------------------------------------------------------------- judging


def _judge_features(candidate: _Candidate, wanted: Sequence[str], *, has_gpu: bool) -> None:
    for feature in wanted:
        if feature not in FEATURES:
            raise ConfigurationError(
                f"no feature is called {feature!r:.80}", hint=choices_hint(str(feature), FEATURES)
            )
        (cell,) = feature_cells(feature, [candidate.engine])
        title = FEATURES[feature]
        if cell.state == "unsupported":
            candidate.against.append(f"{title}: not to be had ({cell.detail})")
        elif cell.state == "gpu" and not has_gpu:
            candidate.against.append(f"{title}: only on a GPU")
        elif cell.state == "failed":
            candidate.against.append(f"{title}: a probe here failed ({cell.detail})")
        elif cell.state == "proven":
            candidate.reasons.append(f"{title}: proven here")
        else:
            candidate.reasons.append(f"{title}: not probed here yet (%features --probe)")


def _judge_memory(
    candidate: _Candidate, found: Described, job: Job, device: int | str | None
) -> None:
    """The best precision that fits, or why none does."""
    engine = _LIKE.get(candidate.engine, candidate.engine)
    try:
        able = loadable(found, engine)
    except ModelNotFound as error:
        candidate.against.append(error.message)
        return
    if engine == "llamacpp" and found.form != "gguf":
        candidate.against.append(
            f"{found.name} is no GGUF: name a GGUF of it (org/name-GGUF:Q4_K_M) for llamacpp"
        )
        return
    own = found.precision if found.precision and found.precision in able else able[0]
    if candidate.engine in ("native", "vllm", "remote-vllm", "sglang") and found.form == "gguf":
        own = "fp32"  # what a GGUF is dequantized to
    order = [own, *(p for p in ("fp8", "8-bit", "4-bit") if p in able and p != own)]
    if engine == "vllm":  # 4 bits would be another checkpoint
        order = [p for p in order if p != "4-bit"]
    if engine == "vllm" and (not job.gpu or candidate.engine == "sglang"):
        order = [p for p in order if p in _ON_A_CPU] or [own]
    place = room_for(engine, job, device)
    if place is None:
        candidate.reasons.append("this machine has no GPU to say whether it fits: give its memory")
    for precision in order:
        made = estimate(found, engine, precision, job)
        candidate.precision, candidate.total = precision, made.total
        if candidate.engine == "sglang":  # what it takes for itself is not known here
            candidate.total = made.weights + made.kv_cache
        candidate.fits = None if place is None else candidate.total <= place.room
        if candidate.fits is not False:
            break
    if place is not None and candidate.total is not None:
        size, room = f"{candidate.total / 1e9:.2f} GB", f"{place.room / 1e9:.1f} GB"
        where = room if device is not None else f"{place.name}, {room}"
        what = " of weights and cache" if candidate.engine == "sglang" else ""
        fits = "fits" if candidate.fits else "does not fit"
        text = f"{size}{what} in {candidate.precision} {fits} ({where})"
        (candidate.reasons if candidate.fits else candidate.against).append(text)


def _judge_installed(candidate: _Candidate) -> None:
    version = proofs.installed_version(candidate.engine)
    candidate.installed = version is not None
    if version is None:
        name = proofs.environment(candidate.engine)
        candidate.reasons.append(f"not installed: %engine install {name}")
    else:
        candidate.reasons.append(f"installed: {version}")


# ------------------------------------------------------------------------ what to run


def _setup(candidate: _Candidate, model: str) -> str | None:
    lines = []
    if not candidate.installed:
        lines.append(f"%engine install {proofs.environment(candidate.engine)}")
    if candidate.engine in _LIKE:
        server = proofs.environment(candidate.engine)
        extra = _OPTIONS.get(("vllm", candidate.precision or ""))
        lines.append(" ".join(filter(None, ["%engine serve", server, "-m", _quoted(model), extra])))
    return "\n".join(lines) or None


def _cell(candidate: _Candidate, model: str | None) -> str | None:
    if candidate.engine in flowchart.CLOUD:
        # No model of a cloud is a default here: they come and go.
        return f"%%infer -e {candidate.engine} -m {_quoted(model)}\nHello!" if model else None
    options = ["%%infer -e", candidate.engine]
    if candidate.engine not in _LIKE:  # a server is asked what it serves
        options += ["-m", _quoted(model or "")]
        options += filter(None, [_OPTIONS.get((candidate.engine, candidate.precision or ""))])
    return " ".join(options) + "\nHello!"


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _frame(
    candidates: list[_Candidate], model: str | None, answers: dict[str, bool | None]
) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for place, one in enumerate(candidates):
        out = bool(one.against)
        rows.append(
            {
                "engine": one.engine,
                "verdict": "out" if out else "runner-up" if place else "recommended",
                "reasons": "\n".join([*one.against, *one.reasons]),
                "precision": one.precision,
                "total_bytes": one.total,
                "fits": one.fits,
                "installed": one.installed,
                "setup": None if out or model is None else _setup(one, model),
                "cell": None if out else _cell(one, model),
            }
        )
    frame = pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()}
    )
    said = [f"{k}: {'yes' if value else 'no'}" for k, value in answers.items() if value is not None]
    open_ = [k for k, value in answers.items() if value is None]
    caption = [f"for {model}" if model else "name a model for a cell", *said]
    if open_ and not answers["cloud"]:
        caption.append(f"not answered: {', '.join(open_)}")
    frame.attrs["nbinfer"] = {
        "table": " · ".join(caption),
        "model": model,
        "answers": answers,
        "recommended": None if rows[0]["verdict"] == "out" else rows[0]["engine"],
    }
    return frame
