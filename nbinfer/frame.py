"""From rows to a DataFrame: one row per completion, fixed columns, exact dtypes."""

from __future__ import annotations

import enum
import importlib
import math
import numbers
import re
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from .config import GenerationParams

__all__ = [
    "ANSWERED",
    "COLUMNS",
    "OPTIONAL",
    "Row",
    "build",
    "fetch_pandas",
    "jsonable",
    "optional_columns",
]

# Name and dtype, in order. Unknown is NA, never 0: hence the nullable types.
COLUMNS: Mapping[str, str | None] = {
    "id": None,
    "prompt": "str",
    "output": "str",
    "finish_reason": "str",
    "prompt_tokens": "Int64",
    "output_tokens": "Int64",
    "cached_tokens": "Int64",
    "queue_s": "Float64",
    "ttft_s": "Float64",
    "tpot_s": "Float64",
    "latency_s": "Float64",
    "model_memory_bytes": "Int64",
    "peak_memory_bytes": "Int64",
    "error": "str",
    "engine": "str",
    "model": "str",
    "run_id": "str",
}
OPTIONAL = ("messages", "logprobs", "prompt_logprobs", "reasoning", "tool_calls", "parsed")
# How a row ends that has an answer.
ANSWERED = ("stop", "length", "tool_calls")
# Columns whose value is the run's, the same in each of its rows. They are columns and not
# only attributes because concat and merge drop a frame's attributes.
OF_RUN = ("model_memory_bytes", "peak_memory_bytes", "engine", "model", "run_id")

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Row:
    """One completion.

    Attributes
    ----------
    index, sample : int
        The prompt's position in the run, and which of its ``n`` completions this is.
    id : object
        The user's identifier, or the position.
    finish_reason : str or None
        ``"stop"``, ``"length"``, ``"tool_calls"``, ``"cancelled"`` or ``"error"``.
    queue_s, ttft_s, tpot_s, latency_s : float or None
        Seconds; see ``nbinfer.worker.scheduler`` for what each is.
    itl_s : list of float or None
        Seconds between tokens, of rows that a benchmark times.
    error : str or None
        Why there is no answer; never an answer's text.
    """

    index: int
    sample: int = 0
    id: Any = None
    prompt: str = ""
    output: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None
    itl_s: list[float] | None = None
    error: str | None = None
    messages: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_logprobs: list[Any] | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    parsed: Any = None


def jsonable(value: Any) -> Any:
    """The value in JSON's own types, so that it survives parquet and any export.

    Tuples and sets become lists, keys and what JSON has no type for become text, NaN and the
    infinities become ``None``.
    """
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, numbers.Integral):  # NumPy's too: a number must not turn into text
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | PurePath):
        return [jsonable(v) for v in value]
    return str(value)


def fetch_pandas() -> None:
    """Import pandas in a thread, while the engine loads: it takes half a second, once."""
    if "pandas" not in sys.modules:
        name = "nbinfer-pandas"
        threading.Thread(target=importlib.import_module, args=("pandas",), name=name).start()


def build(
    rows: Sequence[Row],
    facts: Mapping[str, Any],
    *,
    inputs: pd.DataFrame | None = None,
    samples: bool = False,
    optional: Collection[str] = (),
) -> pd.DataFrame:
    """Make the DataFrame of a run.

    Parameters
    ----------
    rows : sequence of Row
        In any order; the frame has them by (index, sample).
    facts : mapping
        The run's facts. They fill the columns that are the same in each row, and become
        ``df.attrs["nbinfer"]``.
    inputs : pandas.DataFrame, optional
        The user's table, one row per prompt. Its columns come first, unchanged. Its column
        ``id`` is the rows' id; any other that has the name of one of ours is renamed
        ``input_<name>``.
    samples : bool
        Whether to add the column ``sample``, after ``id``.
    optional : collection of str
        Of ``OPTIONAL``: which to add at the end.

    Returns
    -------
    pandas.DataFrame
        ``len(rows)`` rows; columns and dtypes as in ``COLUMNS``.
    """
    import pandas as pd

    ordered = sorted(rows, key=lambda row: (row.index, row.sample))
    columns: dict[str, pd.Series[Any]] = {}
    if inputs is not None:
        columns.update(_inputs(inputs, [row.index for row in ordered], samples, optional))
    for name, dtype in COLUMNS.items():
        if name != "id" or "id" not in columns:
            columns[name] = _column(name, dtype, ordered, facts)
        if name == "id" and samples:
            columns["sample"] = pd.Series([row.sample for row in ordered], dtype="int64")
    for name in OPTIONAL:
        if name in optional:
            columns[name] = pd.Series([getattr(row, name) for row in ordered], dtype=object)
    frame = pd.DataFrame(columns)
    frame.attrs["nbinfer"] = jsonable(facts)
    return frame


def optional_columns(rows: Sequence[Row], params: GenerationParams) -> list[str]:
    """Which of the optional columns a run's rows have something to say in."""
    columns = []
    if any(row.messages is not None and len(row.messages) > 1 for row in rows):
        columns.append("messages")
    if params.logprobs is not None:
        columns.append("logprobs")
    if params.prompt_logprobs is not None:
        columns.append("prompt_logprobs")
    if any(row.reasoning is not None for row in rows):
        columns.append("reasoning")
    if params.tools is not None:
        columns.append("tool_calls")
    if params.guided_decoding is not None and params.guided_decoding.json is not None:
        columns.append("parsed")
    return columns


def _inputs(
    inputs: pd.DataFrame, positions: list[int], samples: bool, optional: Collection[str]
) -> dict[str, pd.Series[Any]]:
    ours = {*COLUMNS, *optional, *(("sample",) if samples else ())} - {"id"}
    repeated = inputs.iloc[positions].reset_index(drop=True)
    taken = {*ours, *inputs.columns}
    columns: dict[str, pd.Series[Any]] = {}
    for place, name in enumerate(inputs.columns):
        new = name
        if name in ours or name in columns:
            new = f"input_{name}"
            while new in taken:
                new = f"input_{new}"
            taken.add(new)
        columns[new] = repeated.iloc[:, place]
    return columns


def _column(
    name: str, dtype: str | None, rows: Sequence[Row], facts: Mapping[str, Any]
) -> pd.Series[Any]:
    import pandas as pd

    if name in OF_RUN:
        value = facts.get(name)
        if dtype == "str":  # a model's name may be a path whose bytes are no text
            value = _encodable(value)
        return pd.Series([value] * len(rows), dtype=dtype)
    values = [getattr(row, name) for row in rows]
    if dtype is None:
        dtype = _dtype_of_ids(values)
    if dtype == "str":
        values = [_encodable(value) for value in values]
    elif dtype == "Float64":
        values = [None if v is None or v != v else v for v in values]
    return pd.Series(values, dtype=dtype)


def _dtype_of_ids(values: Sequence[Any]) -> str:
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        small = all(-(2**63) <= v < 2**63 for v in values)
        return "int64" if small else "object"
    return "str" if all(isinstance(v, str) for v in values) else "object"


def _encodable(value: Any) -> str | None:
    """Text that Arrow can hold: a lone surrogate is no character, and shows as U+FFFD."""
    if value is None or value != value:
        return None
    text = str(value)
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
