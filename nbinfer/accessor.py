"""``df.infer``: what a frame of rows tells beyond its cells. Inert: nothing here runs work."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .messages import Conversation

__all__ = ["InferAccessor", "compare", "conversations", "install", "manifest", "plot", "summary"]

_FACTS = ("wall_s", "output_tokens_per_s", "requests_per_s", "load_s")
_QUANTILES = {
    "ttft_s_p50": ("ttft_s", 0.5),
    "ttft_s_p90": ("ttft_s", 0.9),
    "tpot_s_p50": ("tpot_s", 0.5),
    "latency_s_p50": ("latency_s", 0.5),
    "latency_s_p90": ("latency_s", 0.9),
}


def _checked(df: pd.DataFrame, *names: str) -> pd.DataFrame:
    missing = [name for name in names if name not in df.columns]
    if missing:
        raise ConfigurationError(
            f"this DataFrame is no result of nbinfer: it has no column {missing[0]!r}"
        )
    return df


def manifest(df: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The facts of each run in the frame, by run id.

    Returns
    -------
    dict of str to dict
        JSON types. Empty for a run of another kernel whose frame lost its attributes.
    """
    from .runstore import recall

    own = df.attrs.get("nbinfer") or {}
    return {
        run: dict(own) if own.get("run_id") == run else recall(run) or {}
        for run in _checked(df, "run_id")["run_id"].dropna().unique()
    }


def summary(df: pd.DataFrame) -> pd.DataFrame:
    """One row for each run in the frame.

    Returns
    -------
    pandas.DataFrame
        ``run_id, engine, model``; ``rows, failed, cancelled, prompt_tokens, output_tokens`` and
        the quantiles of TTFT, TPOT and latency (seconds), all of the rows *at hand*;
        ``wall_s, output_tokens_per_s, requests_per_s, load_s`` of the *whole run*, NA where its
        facts are unknown; memory in bytes.
    """
    import pandas as pd

    _checked(df, "run_id", "engine", "model", "finish_reason", "output_tokens", "latency_s")
    facts = manifest(df)
    rows = []
    for run, part in df.groupby("run_id", sort=False):
        row: dict[str, Any] = {
            "run_id": run,
            "engine": part["engine"].iloc[0],
            "model": part["model"].iloc[0],
            "rows": len(part),
            "failed": int((part["finish_reason"] == "error").sum()),
            "cancelled": int((part["finish_reason"] == "cancelled").sum()),
            "prompt_tokens": part["prompt_tokens"].sum(),
            "output_tokens": part["output_tokens"].sum(),
        }
        row.update({name: facts[str(run)].get(name) for name in _FACTS})
        for name, (column, share) in _QUANTILES.items():
            known = part[column].dropna()
            row[name] = known.quantile(share) if len(known) else None
        for name in ("model_memory_bytes", "peak_memory_bytes"):
            row[name] = part[name].iloc[0]
        rows.append(row)
    names = ["run_id", "engine", "model", "rows", "failed", "cancelled", "prompt_tokens"]
    names += ["output_tokens", *_FACTS, *_QUANTILES, "model_memory_bytes", "peak_memory_bytes"]
    kinds = {n: "Float64" if "_s" in n else "Int64" for n in names[3:]}
    kinds |= dict.fromkeys(names[:3], "str") | dict.fromkeys(("model_memory_bytes",), "Int64")
    kinds |= {"peak_memory_bytes": "Int64", "rows": "int64", "failed": "int64"}
    kinds |= {"cancelled": "int64"}
    table = pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=kinds[name]) for name in names}
    )
    table.attrs["nbinfer"] = {"table": "runs"}
    return table


def compare(df: pd.DataFrame) -> pd.DataFrame:
    """Outputs of several runs side by side.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``id`` (and ``sample``); a column for each run, ``same`` (bool) and
        ``first_difference`` (Int64, the character at which the outputs first differ, NA where
        they are equal).
    """
    import pandas as pd

    _checked(df, "id", "output", "engine", "model", "run_id")
    index = ["id", "sample"] if "sample" in df.columns else ["id"]
    columns: dict[str, pd.Series[Any]] = {}
    for run, part in df.groupby("run_id", sort=False):
        label = f"{part['engine'].iloc[0]} · {part['model'].iloc[0]}"
        if label in columns:
            label = f"{label} · {str(run)[-6:]}"
        columns[label] = part.drop_duplicates(index).set_index(index)["output"]
    side_by_side = pd.DataFrame(columns)
    places = [_first_difference(row) for row in side_by_side.itertuples(index=False)]
    side_by_side["same"] = [place is None for place in places]
    side_by_side["first_difference"] = pd.array(places, dtype="Int64")
    return side_by_side


def _first_difference(outputs: Sequence[Any]) -> int | None:
    texts = [o if isinstance(o, str) else "" for o in outputs]
    if len(set(texts)) <= 1:
        return None
    for place, letters in enumerate(zip(*texts, strict=False)):
        if len(set(letters)) > 1:
            return place
    return min(map(len, texts))


def conversations(df: pd.DataFrame) -> list[Conversation]:
    """Each row as a conversation that ends with the model's answer, where it gave one."""
    from .messages import Conversation, Message, Role

    _checked(df, "id", "prompt", "output")
    found = []
    for row in df.to_dict("records"):
        earlier = row.get("messages")
        messages: list[Any] = (
            list(earlier) if isinstance(earlier, list) else [Message(Role.USER, row["prompt"])]
        )
        if isinstance(row["output"], str):
            messages.append(Message(Role.ASSISTANT, row["output"]))
        found.append(Conversation(messages, str(row["id"])))
    return found


def plot(df: pd.DataFrame) -> Figure:
    """When each row waited, was read and was written: a timeline for each run.

    Returns
    -------
    matplotlib.figure.Figure
        At most four runs, and 60 rows of each.

    Raises
    ------
    NbinferError
        Without matplotlib.
    """
    from .timeline import draw

    _checked(df, "run_id", "engine", "model", "queue_s", "ttft_s", "latency_s")
    return draw(df)


class InferAccessor:
    """``df.infer``: the functions of this module, on this frame."""

    def __init__(self, df: pd.DataFrame) -> None:
        self._df = df

    def summary(self) -> pd.DataFrame:
        """See ``nbinfer.summary``."""
        return summary(self._df)

    def compare(self) -> pd.DataFrame:
        """See ``nbinfer.compare``."""
        return compare(self._df)

    def conversations(self) -> list[Conversation]:
        """See ``nbinfer.conversations``."""
        return conversations(self._df)

    def manifest(self) -> dict[str, dict[str, Any]]:
        """See ``nbinfer.manifest``."""
        return manifest(self._df)

    def plot(self) -> Figure:
        """See ``nbinfer.plot``."""
        return plot(self._df)


# --------------------------------------------------------------------- registration


class _WhenPandasArrives(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets pandas be imported as always, then registers the accessor and is gone."""

    def find_spec(
        self,
        name: str,
        path: Any,  # noqa: ARG002 (the protocol's)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "pandas":
            return None
        _remove_hooks()
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        self._loader = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register(module)


def _remove_hooks() -> None:
    # By name and not by class: after importlib.reload the class is another one.
    name = _WhenPandasArrives.__name__
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != name]


def _register(pandas: Any) -> None:
    with contextlib.suppress(Exception):  # a convenience must never break somebody's import
        if "infer" in pandas.DataFrame._accessors:
            del pandas.DataFrame.infer  # ours from before a reload; pandas would warn
        pandas.api.extensions.register_dataframe_accessor("infer")(InferAccessor)


def install() -> None:
    """Register ``df.infer`` now, or when pandas is imported; never imports pandas itself."""
    pandas = sys.modules.get("pandas")
    _remove_hooks()
    if pandas is not None and hasattr(pandas, "DataFrame"):
        _register(pandas)
    else:
        sys.meta_path.insert(0, _WhenPandasArrives())
