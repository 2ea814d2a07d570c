"""What vLLM's errors say, in one line."""

from __future__ import annotations


def worded(error):
    """The first line of what vLLM says; its validation errors add the offending object.

    Of a grammar or a regular expression that is none, the line that says why is further down.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    why = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f"{lines[0]} {why[0]}" if why and lines[0].endswith(":") else lines[0]
