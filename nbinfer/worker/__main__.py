"""A worker's first lines: streams, signals and parent, before any engine is imported.

Run by path with the engine's own Python, never with ``-m``: that Python need not have
nbinfer installed. The package is adopted from where this file lies, without putting the
kernel's ``site-packages`` on the path.
"""

from __future__ import annotations

import os
import sys
import types

# Engines whose library starts processes of its own.
WITH_CHILDREN = ("vllm",)
# Engines whose tensors are on the heap of whichever thread computes.
ONE_HEAP = ("native",)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def take_streams():
    """Keep the pipes for ourselves; what the engine prints goes to the log instead.

    The host opened descriptor 2 on the log. Native code writes to 1 and 2 as it likes,
    and nothing that it does to them can corrupt the protocol.
    """
    requests = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    events = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    for fd in (requests.fileno(), events):
        os.set_inheritable(fd, False)
    return requests, events


def die_with_parent(parent):
    """Ask Linux for a SIGKILL when the spawning thread ends; elsewhere EOF tells us."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


def share_heap():
    """One heap for all threads: what one gave back is there for the others."""
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        import contextlib
        import ctypes

        with contextlib.suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX, before there are threads


def adopt_package():
    """Make ``nbinfer.worker`` importable without running ``nbinfer/__init__.py``."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != here]
    package = types.ModuleType("nbinfer")
    package.__path__ = [ROOT]
    sys.modules["nbinfer"] = package


def main():
    backend, parent = sys.argv[1], int(sys.argv[2])
    die_with_parent(parent)
    requests, events = take_streams()
    adopt_package()
    if backend in ONE_HEAP:
        share_heap()
    if backend in WITH_CHILDREN:
        from nbinfer.worker import guardian

        guardian.start()
    from nbinfer.worker.engine import Engine

    Engine(backend, requests, events).run()


if __name__ == "__main__":
    main()
