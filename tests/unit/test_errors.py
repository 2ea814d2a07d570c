"""The tree of exceptions, as its docstring draws it."""

from __future__ import annotations

import inspect
import re

import pytest

import nbinfer
from nbinfer import errors
from nbinfer.errors import brief_traceback

LINE = re.compile(r"^(?P<lead>[ │├└─]*)(?P<name>[A-Z]\w+)(?: \((?P<also>\w+)\))?")


def drawn() -> set[tuple[str, str, str]]:
    """Name, parent and second base of every class in the drawing."""
    doc = inspect.getdoc(errors)
    assert doc is not None
    block = doc.split("::\n", 1)[1].split("\n\nA row", 1)[0]
    path: list[tuple[int, str]] = []
    found = set()
    for line in block.strip("\n").splitlines():
        match = LINE.match(line)
        assert match, line
        depth = match["lead"].__len__()
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            found.add((match["name"], path[-1][1], match["also"] or ""))
        path.append((depth, match["name"]))
    return found


def real() -> set[tuple[str, str, str]]:
    classes = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value)
        and issubclass(value, BaseException)
        and value.__module__ == errors.__name__
    ]
    return {
        (
            c.__name__,
            c.__bases__[0].__name__,
            c.__bases__[1].__name__ if len(c.__bases__) > 1 else "",
        )
        for c in classes
    }


def test_the_drawing_is_the_tree():
    assert drawn() == real()
    assert len(real()) == len(errors.__all__)


def test_every_error_is_public():
    assert {name for name, _, _ in real()} == set(errors.__all__)
    assert set(errors.__all__) <= set(nbinfer.__all__)


def test_who_catches_what():
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.RunInterrupted, KeyboardInterrupt)
    assert not issubclass(errors.RunInterrupted, Exception)


def test_text_and_hint():
    error = errors.ModelNotFound("no file at 'x'", hint="look again")
    assert str(error) == "no file at 'x'\nlook again"
    assert brief_traceback(error) == ["ModelNotFound: no file at 'x'", "look again"]
    assert brief_traceback(errors.LoadError("why")) == ["LoadError: why"]
    assert brief_traceback(errors.RunInterrupted("stopped")) == ["RunInterrupted: stopped"]
    assert error.frame is None


def test_fields():
    refused = errors.UnsupportedParameter("m", parameter="p", engine="e", engines=("a",))
    assert (refused.parameter, refused.engine, refused.engines) == ("p", "e", ("a",))
    crash = errors.EngineCrashed("m", signal="SIGSEGV", peak_memory_bytes=3, log_tail="t")
    assert (crash.signal, crash.exit_code, crash.peak_memory_bytes) == ("SIGSEGV", None, 3)
    with pytest.raises(KeyboardInterrupt):
        raise errors.RunInterrupted("m")
