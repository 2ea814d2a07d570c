"""The panel's benchmark: ``%benchmark`` with the fields that most need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from ...config import parse_value
from ...errors import ConfigurationError
from ..engine_rows import State
from .cells import benchmark_cell
from .jobs import Jobs
from .live import Status
from .parts import WIDE, quiet, table, titled
from .picker import Picker
from .work import Work

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Bench"]

FIELDS = {
    "prompt_tokens": ("Prompt tokens", "128"),
    "output_tokens": ("Answer tokens", "64"),
    "concurrency": ("Requests at once", "1"),
    "requests": ("Requests", "four times those at once, at least 16"),
    "repeats": ("Repeats", "3"),
}


class Bench(Work):
    """Engines and a load, and the table of what was measured.

    Attributes
    ----------
    frame : pandas.DataFrame or None
        What ``nbinfer.benchmark`` has given last.
    """

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(jobs, "Measure")
        self.frame: pd.DataFrame | None = None
        self.picker = Picker()
        self.fields = {
            name: ipywidgets.Text(
                description=title,
                placeholder=default,
                tooltip=f"{title}: {default} by default; several by comma"
                if name == "concurrency"
                else f"{title}: {default} by default",
                style={"description_width": "10em"},
                layout={"width": "auto"},
            )
            for name, (title, default) in FIELDS.items()
        }
        self.table = ipywidgets.HTML()
        self.children = (
            titled("Engines", self.picker),
            titled("Load", ipywidgets.VBox(list(self.fields.values()), layout=WIDE)),
            ipywidgets.HBox([self.go, self.stop]),
            self.status,
            self.notes,
            self.table,
            self.same_box,
        )

    def draw(self, state: State) -> None:
        """Show the engines that there are."""
        self.picker.draw(state)

    def prepare(self) -> tuple[Callable[[], None], str]:
        """Read the fields."""
        from ...guide.benchmark import benchmark

        selections = self.picker.selections
        if not selections:
            raise ConfigurationError("no engine is chosen", hint="choose one or several")
        given = {name: box.value.strip() for name, box in self.fields.items() if box.value.strip()}
        values = {name: _value(name, text) for name, text in given.items()}
        engines = [selection.make() for selection in selections]

        def work() -> None:
            self.keep(benchmark(engines, progress=Status(self.told), **values))
            self.told.now(quiet("measured; the whole table is in panel.benchmark.frame"))

        return work, benchmark_cell(selections, given)

    def keep(self, frame: pd.DataFrame) -> None:
        """Show what was measured."""
        from ..display import frame_html

        self.frame = frame
        if self.comm is not None:
            self.table.value = table(frame_html(frame))

    def snapshot(self) -> str:
        """The table as static HTML."""
        return str(self.table.value)


def _value(name: str, text: str) -> Any:
    if name in ("prompt_tokens", "output_tokens"):
        return text
    values = [parse_value(word.strip()) for word in text.split(",") if word.strip()]
    title = FIELDS[name][0]
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise ConfigurationError(f"{title} takes whole numbers, not {text!r:.80}")
    if name == "concurrency":
        return values
    if len(values) != 1:
        raise ConfigurationError(f"{title} takes one number, not {text!r:.80}")
    return values[0]
