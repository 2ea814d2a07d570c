"""The panel's comparison: the same prompts through several engines, answers beside each other."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from ... import accessor
from ...comparison import compare
from ...errors import ConfigurationError
from ..differences import marked
from ..engine_rows import State, label
from ..text import unknown, visible
from .cells import Asked, compare_cell, separated
from .form import Form
from .jobs import Jobs
from .live import speed
from .parts import (
    EDGE,
    SCROLLS,
    TEXT,
    WIDE,
    Shown,
    block,
    cut,
    failed,
    quiet,
    system_message,
    table,
    titled,
)
from .picker import Picker
from .plots import Watch
from .work import Work

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison"]

# Of what is drawn; the frame has all.
MOST_PROMPTS = 50
MOST_CHARS = 2_000
NUMBERS = (
    *("engine", "model", "rows", "failed", "output_tokens_per_s", "ttft_s_p50"),
    *("latency_s_p50", "model_memory_bytes"),
)


class Comparison(Work):
    """Engines, prompts, answers side by side, and the numbers of each run.

    Attributes
    ----------
    frame : pandas.DataFrame or None
        What ``nbinfer.compare`` has given last.
    """

    def __init__(self, jobs: Jobs, keep: Callable[[pd.DataFrame], None]) -> None:
        super().__init__(jobs, "Run")
        self._keep = keep
        self.frame: pd.DataFrame | None = None
        self.picker = Picker(self._chosen)
        self.form = Form()
        self.system = system_message()
        self.text = ipywidgets.Textarea(
            placeholder="prompts, with a line --- between them",
            rows=4,
            tooltip="Prompts, with a line --- between them",
            layout=WIDE,
        )
        self.answers = ipywidgets.HTML()
        self.numbers = ipywidgets.HTML()
        self.plots = ipywidgets.HTML()
        self._picture = Shown(self.plots)
        self.children = (
            titled("Engines", self.picker),
            titled("Prompts", self.text),
            titled("System message", self.system),
            self.form.box,
            ipywidgets.HBox([self.go, self.stop]),
            self.status,
            self.notes,
            self.plots,
            self.numbers,
            self.answers,
            self.same_box,
        )

    def draw(self, state: State) -> None:
        """Show the engines that there are."""
        self.picker.draw(state)

    def _chosen(self) -> None:
        self.form.suit([s.engine for s in self.picker.selections])

    def prepare(self) -> tuple[Callable[[], None], str]:
        """Read the fields."""
        selections = self.picker.selections
        if len(selections) < 2:
            raise ConfigurationError("a comparison needs two engines or more", hint="choose them")
        prompts = separated(self.text.value)
        if not prompts:
            raise ConfigurationError("there is no prompt", hint="write one in the box above")
        asked = Asked(selections, prompts, self.form.params(), self.system.value.strip() or None)
        engines = [selection.make() for selection in selections]
        for engine in engines:
            engine._params(asked.params)
        names = [label(selection) for selection in selections]

        def work() -> None:
            self._picture.now("")
            progress = Watch(self.told, names, self._picture)
            frame = compare(
                engines, [*asked.prompts], asked.params, system=asked.system, progress=progress
            )
            self.keep(frame)
            self.told.now(quiet(f"{len(frame):,} rows; they are in panel.compare.frame"))

        return work, compare_cell(asked)

    def keep(self, frame: pd.DataFrame) -> None:
        """Show a comparison, whole or not, and keep its rows."""
        from ..display import frame_html

        self.frame = frame
        numbers = accessor.summary(frame)
        shown = numbers[list(NUMBERS)]
        shown.attrs = {"nbinfer": {"table": "runs"}}
        if self.comm is not None:
            self.numbers.value = table(frame_html(shown)) + _bars(numbers)
            self.answers.value = side_by_side(frame)
        self._keep(frame)

    def snapshot(self) -> str:
        """The comparison as static HTML."""
        return str(self.plots.value + self.numbers.value + self.answers.value)


def side_by_side(frame: pd.DataFrame) -> str:
    """A prompt's answers beside each other; what differs from the first engine's is marked.

    Parameters
    ----------
    frame : DataFrame
        Of ``nbinfer.compare``: a prompt's answers below each other.
    """
    rows = list(frame.itertuples())
    count = frame["run_id"].nunique()
    groups = [rows[place : place + count] for place in range(0, len(rows), max(1, count))]
    if not groups:
        return ""
    cell = f"padding:.3em .6em;vertical-align:top;{EDGE};text-align:left"
    heads = [f"{row.engine} · {row.model}" for row in groups[0]]
    names = "".join(
        f'<th scope="col" style="{cell};width:{width}">{block(cut(name, 200))}</th>'
        for name, width in [("", "8em"), *((head, "16em") for head in heads)]
    )
    body = "".join(_line(group, cell) for group in groups[:MOST_PROMPTS])
    more = len(groups) - MOST_PROMPTS
    note = quiet(f"… {more:,} more prompts; panel.compare.frame has all …") if more > 0 else ""
    return (
        f'<div style="{SCROLLS}"><table style="{TEXT};border-collapse:collapse;'
        'table-layout:fixed;min-width:100%">'
        f"<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _line(group: Sequence[Any], cell: str) -> str:
    prompt = block(cut(str(group[0].prompt), 500))
    cells = [f'<th scope="row" style="{cell};font-weight:400;opacity:.8">{prompt}</th>']
    reference: str | None = None
    for row in group:
        text = None if unknown(row.output) else visible(cut(str(row.output), MOST_CHARS))
        if not unknown(row.error):
            drawn = failed(cut(str(row.error), MOST_CHARS))
        elif text is None:
            drawn = quiet("no answer")
        else:
            marks = html.escape(text) if reference is None else marked(reference, text)
            drawn = f'<div style="{TEXT};white-space:pre-wrap">{marks}</div>'
            reference = reference or text
        cells.append(f'<td style="{cell}">{drawn}{quiet(speed(row))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _bars(numbers: pd.DataFrame) -> str:
    """Throughput of each run as bars, the longest the fastest; the number stands beside each."""
    speeds = [None if unknown(v) else float(v) for v in numbers["output_tokens_per_s"]]
    most = max((v for v in speeds if v), default=0.0)
    if not most:
        return ""
    lines = []
    for engine, value in zip(numbers["engine"], speeds, strict=True):
        share = 100 * (value or 0.0) / most
        said = "–" if value is None else f"{value:,.1f} tok/s"
        lines.append(
            f'<div style="display:flex;gap:.6em;align-items:center;{TEXT}">'
            f'<span style="flex:0 0 9em">{html.escape(visible(str(engine)))}</span>'
            '<span style="flex:1 1 auto"><span aria-hidden="true" style="display:block;'
            f'height:.7em;width:{share:.1f}%;background:currentColor;opacity:.45"></span></span>'
            f'<span style="flex:0 0 8em;text-align:right">{said}</span></div>'
        )
    return "".join(lines)
