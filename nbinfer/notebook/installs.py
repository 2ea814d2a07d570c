"""Installations that a panel has asked for: beside the kernel, their stage told in every panel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import NbinferError, RunInterrupted, brief_traceback
from ..progress import Silent
from ..records import Record, Stage
from .engine_rows import Said
from .panels.jobs import Job, Jobs

if TYPE_CHECKING:
    from .switcher import Switcher

__all__ = ["Installs"]


class Installs:
    """What is being installed. Thread-safe.

    Parameters
    ----------
    switcher : Switcher
        Tells what came of each.
    """

    def __init__(self, switcher: Switcher) -> None:
        self._switcher = switcher
        self._lock = threading.Lock()
        self._stages: dict[str, str] = {}
        self._stops: dict[str, Callable[[], None]] = {}

    def stage(self, recipe: str) -> str:
        """How far an installation is, ``""`` where none is under way."""
        return self._stages.get(recipe, "")

    def begin(self, recipe: str, jobs: Jobs) -> None:
        """Install, in the jobs' thread; another that asks for the same meanwhile is that one."""
        job = Job(
            lambda: self._install(recipe),
            lambda text: self._end(recipe, text, failed=True),
            lambda: self._end(recipe, f"the installation of {recipe} was stopped"),
        )
        with self._lock:
            if recipe in self._stages:
                return
            self._stages[recipe] = "waiting for its turn"
            self._stops[recipe] = lambda: jobs.stop(job)
        if jobs.put(job):
            self._tell(f"installing {recipe}", recipe)
        else:
            self._end(recipe, "the panel is closed", failed=True)

    def stop(self, recipe: str) -> None:
        """End an installation; nothing is left of it."""
        stop = self._stops.get(recipe)
        if stop is not None:
            stop()

    def _install(self, recipe: str) -> None:
        from ..installing import run_install

        try:
            lines = run_install(recipe, _Stages(lambda text: self._at(recipe, text)))
        except RunInterrupted as stopped:
            self._end(recipe, stopped.message)
        except NbinferError as error:
            self._end(recipe, "\n".join(brief_traceback(error)), failed=True)
        else:
            self._end(recipe, "\n".join(lines))

    def _at(self, recipe: str, stage: str) -> None:
        self._stages[recipe] = stage
        self._switcher.changed()

    def _end(self, recipe: str, text: str, *, failed: bool = False) -> None:
        with self._lock:
            self._stages.pop(recipe, None)
            self._stops.pop(recipe, None)
        self._switcher.forget()
        self._tell(text, recipe, failed=failed)

    def _tell(self, text: str, recipe: str, **more: Any) -> None:
        self._switcher.tell(Said(text, f"%engine install {recipe}", **more))


class _Stages(Silent):
    """A reporter: each new stage."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told

    def __call__(self, record: Record) -> None:
        if isinstance(record, Stage):
            self._told(record.text)
