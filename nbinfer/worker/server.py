"""A server's first lines: run by path with the engine's own Python, like a worker's.

The kernel writes one JSON line to its standard input: how to load the model, where to listen,
the API key. So the key is in no argument and in no environment that other processes can read.
What the load is at goes to its standard output, a JSON line each; the library's own words go to
the log. It ends with its session: on SIGTERM, when whoever started it is gone (unless it was told
to outlive that), and with it all that the library has started.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback

GRACE_S = 10.0


def main():
    # Not beyond these lines: the package's folder has modules with names of other libraries,
    # and what the library starts by "spawn" imports this file again.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    start = importlib.import_module("worker.__main__")

    sys.path.pop(0)
    backend, parent, keep = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "keep"
    if not keep:
        start.die_with_parent(parent)
    requests, events = start.take_streams()
    start.adopt_package()
    from nbinfer.worker import guardian

    guardian.start()
    line = requests.readline()
    if not line:
        os._exit(1)  # whoever started it has gone
    message = json.loads(line)
    if not keep:
        threading.Thread(target=end_with, args=(requests,), daemon=True).start()

    def tell(**event):
        os.write(events, json.dumps(event).encode() + b"\n")

    status = 0
    try:
        module = importlib.import_module("nbinfer.worker.backends._serve_" + backend)
        module.serve(message, lambda text: tell(stage=text))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        traceback.print_exc()
        tell(failed=str(error) or type(error).__name__)
        status = 2
    guardian.kill_others(os.getpid())
    os._exit(status)


def end_with(requests):
    """Wait until the kernel's end of the pipe is closed, then end, by force if need be."""
    from nbinfer.worker import guardian

    requests.read(1)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    guardian.kill_others(os.getpid())
    os._exit(1)


if __name__ == "__main__":
    main()
