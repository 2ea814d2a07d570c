"""The one thread that talks to servers: an event loop beside the notebook's own.

A notebook's kernel has a loop in its main thread that is blocked while a cell runs, so requests
need one of their own. It starts with the first request and ends with ``nbinfer.shutdown()``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..residents import closing

__all__ = ["Loop", "loop"]

T = TypeVar("T")


class Loop:
    """An event loop in a thread. Everything but ``closers`` may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Called in the loop when it ends: services close their connections.
        self.closers: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine; its future can be waited for, or cancelled, in this thread."""
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def soon(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the loop."""
        self._running().call_soon_threadsafe(call, *arguments)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="nbinfer-remote", daemon=True
                )
                self._thread.start()
            return self._loop

    def stop(self) -> None:
        """Cancel what is under way, close every connection and end the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._wind_up(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    async def _wind_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for close in self.closers:
            await close()
        loop = asyncio.get_running_loop()
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()  # the thread that looks up addresses


loop = Loop()
closing.append(loop.stop)
