"""``df.infer``: what a frame of rows tells beyond its cells. Inert: nothing here runs work.

A frame that lacks columns raises ``ConfigurationError``, which names them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .messages import Conversation

__all__ = [
    "InferAccessor",
    "compare",
    "conversations",
    "first_difference",
    "install",
    "manifest",
    "plot",
    "summary",
]

_TOKENS = ("prompt_tokens", "output_tokens")
_MEMORY = ("model_memory_bytes", "peak_memory_bytes")
_FACTS = ("wall_s", "output_tokens_per_s", "requests_per_s", "load_s")
_NTH = "(nth)"
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
        lacking = f"column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}"
        raise ConfigurationError(f"this DataFrame is no result of nbinfer: it lacks the {lacking}")
    return df


def manifest(df: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The facts of each run in the frame, by run id.

    Returns
    -------
    dict of str to dict
        JSON types, and a copy: changing it changes no run. A run of another kernel whose frame
        lost its attributes has an empty one.

    """
    from .frame import jsonable
    from .runstore import recall

    own = df.attrs.get("nbinfer") or {}
    return {
        run: jsonable(own if own.get("run_id") == run else recall(run) or {})
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
        facts are unknown; memory in bytes. Of a part of a run's rows, the counts and quantiles
        describe that part, while wall time and throughput still describe the whole run.
    """
    import pandas as pd

    _checked(df, "run_id", "engine", "model", "finish_reason", *_TOKENS)
    _checked(df, "ttft_s", "tpot_s", "latency_s", *_MEMORY)
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
        }
        # min_count: the sum of nothing known is unknown, not 0.
        row.update({name: part[name].sum(min_count=1) for name in _TOKENS})
        row.update({name: facts[str(run)].get(name) for name in _FACTS})
        for name, (column, share) in _QUANTILES.items():
            known = part[column].dropna()
            row[name] = known.quantile(share) if len(known) else None
        row.update({name: part[name].iloc[0] for name in _MEMORY})
        rows.append(row)
    kinds = dict.fromkeys(("run_id", "engine", "model"), "str")
    kinds |= dict.fromkeys(("rows", "failed", "cancelled"), "int64")
    kinds |= dict.fromkeys(_TOKENS, "Int64")
    kinds |= dict.fromkeys((*_FACTS, *_QUANTILES), "Float64") | dict.fromkeys(_MEMORY, "Int64")
    table = pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()}
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
        they are equal). No output at all is not the same as an empty one. Rows of one run that
        share an id are compared in their order.
    """
    import pandas as pd

    _checked(df, "id", "output", "engine", "model", "run_id")
    index = ["id", "sample"] if "sample" in df.columns else ["id"]
    rows = df[["run_id", *index, "engine", "model", "output"]].reset_index(drop=True)
    if "sample" in index:  # NA in a run of n=1 that was put beside one of n>1
        rows["sample"] = rows["sample"].fillna(0).astype("int64")
    # Nothing makes ids unique: the n-th row of an id stands beside the n-th of the other runs.
    rows[_NTH] = rows.groupby(["run_id", *index], sort=False, dropna=False).cumcount()
    keys = [*index, _NTH]
    order = pd.MultiIndex.from_frame(rows[keys].drop_duplicates())
    columns: dict[str, pd.Series[Any]] = {}
    for run, part in rows.groupby("run_id", sort=False):
        label = f"{part['engine'].iloc[0]} · {part['model'].iloc[0]}"
        if label in columns:
            label = f"{label} · {str(run)[-6:]}"
        if label in columns:
            label = f"{label} · {run}"
        columns[label] = part.set_index(keys)["output"].reindex(order)
    side_by_side = pd.DataFrame(columns, index=order).droplevel(_NTH)
    places = [first_difference(row) for row in side_by_side.itertuples(index=False)]
    side_by_side["same"] = [place is None for place in places]
    side_by_side["first_difference"] = pd.array(places, dtype="Int64")
    return side_by_side


def first_difference(outputs: Sequence[Any]) -> int | None:
    """The character at which texts first differ; ``None`` where they are equal."""
    known = [o if isinstance(o, str) else None for o in outputs]
    if len(set(known)) <= 1:
        return None
    texts = [text or "" for text in known]
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
        # Any iterable: a list comes back from parquet as an array.
        messages: list[Any] = list(earlier) if isinstance(earlier, Iterable) else []
        if not messages:
            prompt = row["prompt"]
            messages = [Message(Role.USER, prompt if isinstance(prompt, str) else "")]
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

    _checked(df, "id", "run_id", "engine", "model", "queue_s", "ttft_s", "latency_s")
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
        """A timeline; of a benchmark, throughput against latency; of ``%memory``, its parts."""
        facts = self._df.attrs.get("nbinfer") or {}
        if "benchmark" in facts:
            from .guide.report import draw

            return draw(self._df)
        if "room_bytes" in facts:
            from .guide import memory_plot

            return memory_plot.draw(_checked(self._df, *memory_plot.NEEDED))
        return plot(self._df)

    def requests(self) -> pd.DataFrame:
        """A row for each request of a benchmark: see ``nbinfer.guide.results.requests``."""
        from .guide.results import requests

        return requests(self._df)


class _WhenPandasArrives(importlib.abc.MetaPathFinder):
    """Lets the other finders find pandas, and registers the accessor once it is imported."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "pandas":
            return None
        for finder in sys.meta_path:
            if _is_hook(finder):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                # Still installed: many only ask whether pandas is there and import it later.
                if spec.loader is not None:
                    spec.loader = _Registering(spec.loader)
                return spec
        return None


class _Registering(importlib.abc.Loader):
    """pandas' own loader, with the registration after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        # Only now: an import that failed may be tried again.
        _remove_hooks()
        _register(module)


def _is_hook(finder: Any) -> bool:
    # By name and not by class: after importlib.reload the class is another one.
    return type(finder).__name__ == _WhenPandasArrives.__name__


def _remove_hooks() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_hook(finder)]


def _register(pandas: Any) -> None:
    with contextlib.suppress(Exception):  # a convenience must never break somebody's import
        before = getattr(pandas.DataFrame, "infer", None)
        if getattr(before, "__module__", None) == __name__:
            del pandas.DataFrame.infer  # ours from before a reload; pandas would warn
        pandas.api.extensions.register_dataframe_accessor("infer")(InferAccessor)


def install() -> None:
    """Register ``df.infer`` now, or when pandas is imported; never imports pandas itself.

    Calling it again does no harm.
    """
    pandas = sys.modules.get("pandas")
    _remove_hooks()
    if pandas is None:
        sys.meta_path.insert(0, _WhenPandasArrives())
        return
    if getattr(pandas.__spec__, "_initializing", False):
        # Another thread is in the middle of it: this waits for its end and imports nothing.
        with contextlib.suppress(ImportError):
            importlib.import_module("pandas")
    _register(pandas)
