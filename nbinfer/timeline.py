"""The picture behind ``df.infer.plot()``, and the empty figure that each of ours begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import NbinferError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["blank", "draw"]

MOST_ROWS = 60
MOST_RUNS = 4
PHASES = (("queue", "#c9c9c9"), ("prefill (TTFT)", "#f0a030"), ("decode", "#3b7dd8"))


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches.

    Raises
    ------
    NbinferError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: nothing stays registered
    except ImportError:
        raise NbinferError(
            "plots need matplotlib, which is not installed", hint='pip install "nbinfer[plot]"'
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def draw(df: pd.DataFrame) -> Figure:
    """A bar for each row, from its submission on, split in queue, prefill and decode."""
    every = list(df.groupby("run_id", sort=False))
    runs = every[:MOST_RUNS]
    heights = [0.9 + 0.16 * min(len(part), MOST_ROWS) for _, part in runs]
    figure = blank(8, sum(heights) + 0.6)
    panels = figure.subplots(
        len(runs), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for panel, (run, part) in zip(panels[:, 0], runs, strict=True):
        _bars(panel, str(run), part)
    panels[-1, 0].set_xlabel("seconds since the run was submitted")
    if len(every) > len(runs):
        figure.suptitle(f"the first {len(runs)} of {len(every)} runs", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _bars(panel: Any, run: str, part: pd.DataFrame) -> None:
    shown = part.head(MOST_ROWS)
    known = shown[["queue_s", "ttft_s", "latency_s"]].astype("Float64").fillna(0.0)
    queue, first, whole = (known[name].to_numpy(dtype=float) for name in known)
    rows = range(len(shown))
    starts = (0 * queue, queue, queue + first)
    for (label, colour), start, width in zip(
        PHASES, starts, (queue, first, (whole - first).clip(min=0)), strict=True
    ):
        panel.barh(rows, width, left=start, height=0.8, color=colour, label=label)
    left_out = len(part) - len(shown)
    more = f", {left_out:,} more rows left out" if left_out else ""
    title = f"{part['engine'].iloc[0]} · {part['model'].iloc[0]} · {run}{more}"
    # A model's name or an id is text, also where it looks like TeX.
    panel.set_title(title, loc="left", fontsize=9, parse_math=False)
    labels = [str(i)[:16] for i in shown["id"]]
    panel.set_yticks(list(rows), labels, fontsize=7, parse_math=False)
    panel.invert_yaxis()
    panel.set_ylabel("id")
    panel.spines[["top", "right"]].set_visible(False)
