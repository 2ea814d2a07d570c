"""What every tab that runs something has: its button, Stop, a status, and the same as a cell."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import ipywidgets

from ... import notices
from ...errors import NbinferError, RunInterrupted, brief_traceback
from .jobs import Job, Jobs
from .parts import WIDE, Shown, button, copying, cut, failed, quiet, titled

__all__ = ["Work"]

# More than that is no cell that anybody would copy from a box.
MOST_OF_A_CELL = 100_000
# Of what nbinfer said unasked while it ran: an eviction, precisions that differ.
MOST_NOTES = 5


class Work(ipywidgets.VBox):  # type: ignore[misc]
    """A tab with one run at a time.

    Parameters
    ----------
    jobs : Jobs
        The panel's.
    go : str
        The word of the button that begins a run.
    """

    def __init__(self, jobs: Jobs, go: str) -> None:
        super().__init__(layout=WIDE)
        self._jobs = jobs
        self._job: Job | None = None
        self.go = button(go, f"{go}: the run goes on beside the kernel", lambda _: self.start())
        self.stop = button(
            "Stop", "end this run; finished rows are kept", lambda _: self.halt(), disabled=True
        )
        self.status = ipywidgets.HTML()
        self.told = Shown(self.status)
        self.notes = ipywidgets.HTML()
        self._notes: deque[str] = deque(maxlen=MOST_NOTES)
        self.cell = ipywidgets.Textarea(
            placeholder="what you have just done, as a cell",
            tooltip="The same as a cell: select all, and copy",
            rows=4,
            layout=WIDE,
        )
        self.same_box = titled("The same as a cell", self.cell, copying())
        self.same_box.add_class("nbinfer-cell")
        self.same = self._same = ""
        self.cell.observe(self._undo, "value")

    # -------------------------------------------------------------- what a tab does

    def prepare(self) -> tuple[Callable[[], None], str]:
        """Read the fields: what is to be run, and the cell that does the same.

        Raises
        ------
        NbinferError
            For what cannot be right; it is shown, and nothing is run.
        """
        raise NotImplementedError

    def keep(self, frame: Any) -> None:
        """Take the rows of a run, whole or not."""
        raise NotImplementedError

    # -------------------------------------------------------------------------- running

    @property
    def busy(self) -> bool:
        """Whether a run is under way or waits."""
        return self._job is not None

    def start(self) -> None:
        """Begin what the fields say; returns at once."""
        if self.busy:
            return
        try:
            work, cell = self.prepare()
        except NbinferError as error:
            self.told.now(failed("\n".join(brief_traceback(error))))
            return
        self.same_as(cell)
        job = Job(lambda: self._work(work), self._failed, self._dropped)
        self._job = job
        self._buttons()
        self.told.now(quiet("waiting for its turn"))
        if not self._jobs.put(job):
            self._ended(failed("the panel is closed; %panel opens another"))

    def halt(self) -> None:
        """Stop the run; its finished rows are kept and the model stays loaded."""
        job = self._job
        if job is not None:
            self.told.now(quiet("stopping"))
            self._jobs.stop(job)

    def same_as(self, cell: str) -> None:
        """Show the cell that does the same; ``same`` has it whole, however long it is."""
        self.same = cell
        long = len(cell) > MOST_OF_A_CELL
        self._same = f"# {len(cell):,} characters: print(panel.….same) has them" if long else cell
        self.cell.rows = min(12, self._same.count("\n") + 2)
        self.cell.value = self._same

    def _undo(self, _change: Any) -> None:
        # A disabled box could not be reached by keys, nor copied from in every browser.
        if self.cell.value != self._same:
            self.cell.value = self._same

    def _noticed(self, text: str) -> None:
        self._notes.append(text)
        if self.comm is not None:
            self.notes.value = quiet("\n".join(cut(one, 500) for one in self._notes))

    def _work(self, work: Callable[[], None]) -> None:
        self._notes.clear()
        self.notes.value = ""
        notices.listeners.append(self._noticed)
        try:
            self._try(work)
        finally:
            with contextlib.suppress(ValueError):
                notices.listeners.remove(self._noticed)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except RunInterrupted as stopped:
            if stopped.frame is not None:
                self.keep(stopped.frame)
            self._ended(quiet(stopped.message))
        except NbinferError as error:
            if error.frame is not None:
                self.keep(error.frame)
            self._failed("\n".join(brief_traceback(error)))
        else:
            self._ended(None)

    def _failed(self, text: str) -> None:
        self._ended(failed(text))

    def _dropped(self) -> None:
        self._ended(quiet("stopped before it began"))

    def _ended(self, value: str | None) -> None:
        self._job = None
        if value is not None:
            self.told.now(value)
        self._buttons()

    def _buttons(self) -> None:
        if self.comm is not None:
            self.go.disabled = self.busy
            self.stop.disabled = not self.busy
