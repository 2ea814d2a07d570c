"""The one thread that draws all panels of a kernel anew, while any of them is displayed."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import Protocol

from ... import residents
from ..engine_rows import State
from ..switcher import switcher

__all__ = ["Refresher", "refresher"]

INTERVAL_S = 1.0


class Drawn(Protocol):
    """What it draws: a panel."""

    @property
    def shown(self) -> bool: ...

    def draw(self, state: State) -> None: ...

    def fail(self, error: BaseException) -> None: ...

    def end(self) -> None: ...


class Refresher:
    """Draws all panels alike: once a second while one is shown, and at once after a click."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._panels: weakref.WeakSet[Drawn] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        switcher.changed = self._wake.set

    def add(self, one: Drawn) -> None:
        with self._lock:
            self._panels.add(one)
        self.draw()

    def forget(self, one: Drawn) -> None:
        with self._lock:
            self._panels.discard(one)
            last = not any(p.shown for p in self._panels)
        if last:
            self.stop()

    def start(self) -> None:
        """Begin to refresh, if that has not begun."""
        with self._lock:
            if self._thread is None:
                made = threading.Thread(target=self._run, name="nbinfer-panel", daemon=True)
                self._thread = made
                made.start()

    def go_on(self) -> None:
        """Draw now, and go on refreshing, also after a shutdown."""
        self.draw()
        if any(one.shown for one in list(self._panels)):
            self.start()

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        with self._lock:
            thread, self._thread = self._thread, None
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def draw(self) -> None:
        """Draw every panel now."""
        with self._lock:
            try:
                state = switcher.state()
                for one in list(self._panels):
                    one.draw(state)
            except Exception as error:  # broken settings, say: shown, and the thread goes on
                for one in list(self._panels):
                    one.fail(error)

    def _goes_on(self) -> bool:
        with self._lock:
            if self._thread is not threading.current_thread():
                return False
            if not any(one.shown for one in self._panels):
                self._thread = None
            return self._thread is not None

    def _run(self) -> None:
        while self._goes_on():
            self._wake.clear()
            self.draw()
            self._wake.wait(INTERVAL_S)

    def shut_down(self) -> None:
        """End every thread, and show what is left: panels can still be used."""
        for one in list(self._panels):
            one.end()
        self.stop()
        self.draw()

    def exit(self) -> None:
        """The interpreter ends: nothing is drawn any more."""
        for one in list(self._panels):
            one.end()
        self._panels.clear()
        self.stop()


refresher = Refresher()
residents.closing.append(refresher.shut_down)
# After residents' own, so it runs before it.
atexit.register(refresher.exit)
