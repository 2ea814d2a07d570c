"""The cause of a failure, where a library tells it to standard error alone."""

from __future__ import annotations

import os
import re

# llama.cpp's own form: "0.00.037.022 E llama_model_load: error loading model: ..."
_ERROR = re.compile(rb"^[\d.]+ E (?:[\w ]+?: )?(.*)$", re.MULTILINE)
_NOISE = re.compile(
    rb"failed to load model|exiting due to|failed to read key-value pairs", re.IGNORECASE
)


def log_size():
    """How long this process's log is now."""
    try:
        return os.fstat(2).st_size
    except OSError:
        return 0


def said_since(begin, marker):
    """The rest of the first line with a marker (bytes) that the log got since it was so long."""
    try:
        text = os.pread(2, max(0, min(os.fstat(2).st_size - begin, 1_000_000)), begin)
    except OSError:
        return None
    _, found, rest = text.partition(marker)
    return rest.partition(b"\n")[0].strip().decode("utf-8", "replace") if found else None


def last_error(size=65536):
    """The first telling error line among the last ``size`` bytes of this process's log."""
    try:
        # The host opened descriptor 2 for reading too.
        text = os.pread(2, size, max(0, os.fstat(2).st_size - size))
    except OSError:
        return None
    lines = [m.group(1).strip() for m in _ERROR.finditer(text)]
    telling = [line for line in lines if not _NOISE.search(line)] or lines
    return telling[0].decode("utf-8", "replace") if telling else None
