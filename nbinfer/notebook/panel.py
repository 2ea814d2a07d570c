"""``%panel``: every engine, a conversation, comparisons and benchmarks, as widgets.

``switcher.py`` knows what is shown of engines and done with them; the parts are in ``panels``,
a tab each. Handlers only ask: what takes time runs in a thread of the panel that lives while
there is work, and one thread draws all panels of the kernel while any is displayed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from ..errors import brief_traceback
from ..progress import in_kernel
from . import cellid
from .engine_rows import State, as_text
from .panels import parts
from .panels.bench import Bench
from .panels.comparison import Comparison
from .panels.engines import Engines
from .panels.front import Front, styled
from .panels.jobs import Job, Jobs
from .panels.prompt import Prompt
from .panels.refresher import refresher
from .panels.results import Results
from .switcher import switcher
from .text import NO_MATH, visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Panel", "panel"]

HINT = "buttons are in Jupyter; here: %engine use NAME, %engine load NAME, %engine unload NAME"
TITLES = ("Start", "Engines", "Prompt", "Compare", "Benchmark", "Rows")
# The panels of each cell and run of it, so that running the cell again closes those before.
_of_cells: dict[str, tuple[str, weakref.WeakSet[Panel]]] = {}


def panel() -> Panel:
    """Show every engine, ask them, compare and measure them.

    What ``%panel`` returns: a widget with a tab for which engine to take; for each engine's state,
    its resident models with their memory, and buttons that do what ``%engine use``, ``load`` and
    ``unload`` do; for a conversation with the engine that a plain ``%%infer`` uses; for a
    comparison; for a benchmark; and for the rows that came of it all. Work runs beside the kernel,
    so cells can run meanwhile. It keeps itself up to date while it is displayed; all panels of a
    kernel show the same engines.

    Returns
    -------
    Panel
        An ``ipywidgets.VBox``; its text form is a table. ``.df`` has the rows of its runs,
        ``wait()`` returns when they have ended, ``close()`` takes it away. Running its cell again
        does, too.
    """
    made = Panel()
    cell, run = cellid.current()
    if cell:
        before, former = _of_cells.get(cell, ("", None))
        if former is None or before != run:
            for one in list(former or ()):
                one.close()
            former = weakref.WeakSet()
        former.add(made)
        _of_cells[cell] = (run, former)
    return made


class Panel(ipywidgets.VBox):  # type: ignore[misc]
    """The widget; make one with :func:`panel`.

    Attributes
    ----------
    engines, prompt, compare, benchmark, rows
        Its tabs. The last three of them, and the questions of the first, are made when they are
        first opened or asked for.
    """

    def __init__(self) -> None:
        # What is asked, a process that ends, a library that is installed, a search of the hub: none
        # waits for another.
        self._queues = tuple(Jobs() for _ in range(4))
        self._jobs, self._chores, self._installing, searches = self._queues
        self._drawn: State | None = None
        self._displayed = False
        self.engines = Engines(refresher.go_on, self._chores, self._installing, searches)
        self.rows = Results()
        self.prompt = Prompt(self._jobs, self.rows.add)
        self._made: dict[str, Any] = {}
        self._pages = {
            name: ipywidgets.VBox(
                [ipywidgets.HTML(parts.quiet("It opens as soon as no cell runs."))]
            )
            for name in ("Start", "Compare", "Benchmark")
        }
        self._tabs = ipywidgets.Tab(
            [
                self._pages["Start"],
                self.engines,
                self.prompt,
                self._pages["Compare"],
                self._pages["Benchmark"],
                self.rows,
            ],
            titles=TITLES,
            selected_index=TITLES.index("Engines"),
        )
        # From 0 on the front end counts the views; with None it would not.
        parts_of_it = [styled(), self._tabs, Front(self.prompt.pictures.given)]
        super().__init__(parts_of_it, _view_count=0)
        self.add_class("nbinfer-panel")
        self._tabs.observe(self._opened, "selected_index")
        self.observe(self._viewed, "_view_count")
        refresher.add(self)

    @property
    def df(self) -> pd.DataFrame:
        """The rows of all that was asked here, in the order in which they came."""
        return self.rows.df

    @property
    def start(self) -> Any:
        """The questions of ``%recommend``."""
        from .recommender import Recommender

        def beside(work: Callable[[], None]) -> None:
            self._jobs.put(Job(work, self.engines.fail, lambda: None))

        return self._page("Start", lambda: Recommender(beside))

    @property
    def compare(self) -> Comparison:
        """The comparison."""
        made: Comparison = self._page("Compare", lambda: Comparison(self._jobs, self.rows.add))
        return made

    @property
    def benchmark(self) -> Bench:
        """The benchmark."""
        made: Bench = self._page("Benchmark", lambda: Bench(self._jobs))
        return made

    @property
    def shown(self) -> bool:
        """Whether it is displayed, as far as the front end has told."""
        return self.comm is not None and (bool(self._view_count) or self._displayed)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing that was asked here is under way; whether that is so."""
        until = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if until is None else max(0.0, until - time.monotonic())

        return all(jobs.wait(left()) for jobs in self._queues)

    def draw(self, state: State) -> None:
        """Show a state; what is as before is not sent again."""
        if self.comm is None:
            return
        if state == self._drawn:
            self.engines.look()
            return
        for part in (self.engines, self.prompt, *self._made.values()):
            if hasattr(part, "draw"):
                part.draw(state)
        self._drawn = state

    def fail(self, error: BaseException) -> None:
        """Show why nothing can be shown."""
        if self.comm is not None:
            self.engines.fail("\n".join(brief_traceback(error)))
            self._drawn = None

    def end(self) -> None:
        """End its runs; returns when their thread has ended. It can still be used."""
        for jobs in self._queues:
            jobs.end()

    def close(self) -> None:
        """End its runs, and take it out of the notebook with all its parts."""
        for jobs in self._queues:
            jobs.end(closed=True)
        refresher.forget(self)
        parts.close(self)

    def _page(self, name: str, make: Callable[[], Any]) -> Any:
        """A tab that is made when it is first wanted."""
        if name not in self._made:
            made = self._made[name] = make()
            if self._drawn is not None and hasattr(made, "draw"):
                made.draw(self._drawn)
            page = self._pages[name]
            before, page.children = page.children, (made,)
            for part in before:
                parts.close(part)
        return self._made[name]

    def _opened(self, _change: Any) -> None:
        title = TITLES[self._tabs.selected_index]
        if title in self._pages:
            getattr(self, title.lower())

    def _viewed(self, _change: Any) -> None:
        self._displayed = False  # from now on the front end tells
        refresher.go_on()

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        # While the kernel is busy the front end's count has to wait, and the panel has not.
        self._displayed = in_kernel() and not self._view_count
        refresher.go_on()
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self.snapshot()}
        if self.comm is not None:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
            bundle["application/vnd.jupyter.widget-view+json"] = view
        return bundle

    def snapshot(self) -> str:
        """What is shown now as static HTML, for a reader of the saved notebook."""
        try:
            engines = self.engines.snapshot()
        except Exception as error:  # broken settings: a picture never raises
            engines = parts.failed("\n".join(brief_traceback(error)))
        shown = [engines, self.prompt.snapshot()]
        shown += [p.snapshot() for p in self._made.values() if hasattr(p, "snapshot")]
        return f'<div class="{NO_MATH}">{"".join([*shown, self.rows.snapshot()])}</div>'

    def __repr__(self) -> str:
        text = as_text_or_error()
        return text if in_kernel() else f"{text}\n{HINT}"


def as_text_or_error() -> str:
    """The engines as text; a repr never raises."""
    try:
        return as_text(switcher.state())
    except Exception as error:
        return visible("\n".join(brief_traceback(error)))
