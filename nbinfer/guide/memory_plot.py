"""The picture behind ``nbinfer.memory(...).infer.plot()``: what takes the memory, and the room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..timeline import blank

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["NEEDED", "draw"]

MOST_ROWS = 60
FAR = 3
PARTS = (
    ("weights", "#3b7dd8"),
    ("kv_cache", "#f0a030"),
    ("activations", "#7fb77e"),
    ("overhead", "#c9c9c9"),
)
NEEDED = ("engine", "precision", "device", *(f"{name}_bytes" for name, _ in PARTS))


def draw(df: pd.DataFrame) -> Figure:
    """A bar for each engine and precision, in its parts; dashed, the room on its device.

    Parameters
    ----------
    df : pandas.DataFrame
        Of ``nbinfer.memory``: its first 60 rows are drawn.

    Raises
    ------
    NbinferError
        Without matplotlib.
    """
    told, shown = df.attrs["nbinfer"], df.head(MOST_ROWS)
    figure = blank(8, 1.4 + 0.26 * len(shown))
    axes = figure.subplots()
    rows = range(len(shown))
    start: Any = 0.0
    for name, colour in PARTS:
        width = (shown[f"{name}_bytes"] / 1e9).to_numpy(dtype=float)
        axes.barh(rows, width, left=start, height=0.8, color=colour, label=name.replace("_", " "))
        start = start + width
    label: str | None = "room"
    for row, device in zip(rows, shown["device"], strict=True):
        room = told["room_bytes"][device] / 1e9
        if room < FAR * max(start):  # a line further off would press the bars together
            axes.plot([room, room], [row - 0.5, row + 0.5], "--", color="#b03030", label=label)
            label = None
    peaks = (shown["measured_peak_bytes"] / 1e9).to_numpy(dtype=float, na_value=float("nan"))
    if not shown["measured_peak_bytes"].isna().all():
        axes.plot(peaks, rows, "D", color="black", markersize=4, label="measured peak")
    labels = [f"{e} · {p}" for e, p in zip(shown["engine"], shown["precision"], strict=True)]
    axes.set_yticks(list(rows), labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(
        "GB (10⁹ bytes)" + (", on each device" if told["tensor_parallel_size"] > 1 else "")
    )
    # A model's name is text, also where it looks like TeX.
    axes.set_title(told["table"].split(" · weights:")[0], loc="left", fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return figure
