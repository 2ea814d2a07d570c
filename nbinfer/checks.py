"""What a field takes: types, ranges, secrets, and how a wrong value is shown.

A :class:`Check` returns the value to keep or refuses it. The dataclasses that use them are in
:mod:`nbinfer.config`, :mod:`nbinfer.generation` and :mod:`nbinfer.settings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .errors import ConfigurationError

__all__ = [
    "Address",
    "Check",
    "Secret",
    "boolean",
    "hidden",
    "integer",
    "items",
    "mapping",
    "nearest",
    "nonempty",
    "number",
    "one_of",
    "optional",
    "own_copy",
    "path_text",
    "shown",
    "shown_address",
    "text",
    "unknown_name",
]

_SHOWN = 80


class Secret(str):
    """Text that works as a ``str`` and never shows itself in a ``repr``.

    Tracebacks, notebooks and containers print values by their ``repr``, so a key that is left
    in a dictionary or a local variable does not get into a saved notebook either.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Address(str):
    """A URL that works as a ``str`` and whose ``repr`` leaves out passwords and its query."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self.masked)

    @property
    def masked(self) -> str:
        """The address with ``***`` for its user part and its query."""
        # Rather too much is masked than too little: these are often mistyped addresses.
        found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", self)
        scheme = found[0] if found else ""
        _, at, place = self[len(scheme) :].rpartition("@")
        place, more = re.subn(r"[?#].*", "", place, count=1, flags=re.DOTALL)
        return f"{scheme}{'***@' if at else ''}{place}{'?***' if more else ''}"


def shown(value: Any) -> str:
    """The value for a message: its ``repr``, at most 80 characters."""
    try:
        text = repr(value)
    except Exception:
        # An object's own broken repr must not hide the error that is being reported.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def hidden(value: Any) -> str:
    """What a message says of a secret: its type alone."""
    return f"a value of type {type(value).__name__}"


def shown_address(value: Any) -> str:
    """An address for a message, without its passwords."""
    return shown(Address(value)) if isinstance(value, str) else hidden(value)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that is most like the name, or ``None`` where none is."""
    by_folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(name.casefold().replace("-", "_"), by_folded, n=1)
    return by_folded[found[0]] if found else None


def choices_hint(name: str, choices: Iterable[str]) -> str:
    """What to do about a name that is none of the choices: the nearest, and all of them."""
    near = nearest(name, choices := list(choices))
    guess = f"did you mean {near!r}? " if near else ""
    return f"{guess}There are: {', '.join(choices)}"


def unknown_name(what: str, name: str, choices: Iterable[str]) -> ConfigurationError:
    """The error for a name that is none of the choices, with the nearest as its hint."""
    names = sorted(choices)
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else f"it has: {', '.join(names)}"
    return ConfigurationError(f"{what} has no field {shown(name)}", hint=hint)


@dataclasses.dataclass(frozen=True)
class Check:
    """What a field takes.

    Parameters
    ----------
    expected : str
        Completes "must be …".
    convert : callable
        Returns the value to keep; raises ``TypeError``, ``ValueError`` or ``OverflowError``.
    show : callable, default :func:`shown`
        How a message words a wrong value.
    """

    expected: str
    convert: Callable[[Any], Any]
    show: Callable[[Any], str] = shown

    def __call__(self, name: str, value: Any) -> Any:
        try:
            return self.convert(value)
        except ConfigurationError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise ConfigurationError(
                f"{name} must be {self.expected}, got {self.show(value)}"
            ) from None


def optional(check: Check) -> Check:
    """The same check, where ``None`` passes."""
    return dataclasses.replace(
        check,
        expected=f"{check.expected}, or None",
        convert=lambda value: None if value is None else check.convert(value),
    )


def _range(low: float | None, high: float | None, above: bool = False) -> str:
    if low is not None and high is not None:
        return f" {'above' if above else 'from'} {low} {'up ' if above else ''}to {high}"
    if low is not None:
        return f" {'above' if above else 'of at least'} {low}"
    return ""


def integer(low: int | None = None, high: int | None = None) -> Check:
    """A whole number (numpy's too, never a bool) in ``[low, high]``."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError
        number = int(value)
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError
        return number

    return Check(f"a whole number{_range(low, high)}", convert)


def number(low: float | None = None, high: float | None = None, *, above: bool = False) -> Check:
    """A finite number in ``[low, high]``, or ``(low, high]`` with ``above``; kept as a float."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError
        real = float(value)
        if not math.isfinite(real):
            raise ValueError
        if low is not None and (real < low or (above and real == low)):
            raise ValueError
        if high is not None and real > high:
            raise ValueError
        return real

    return Check(f"a finite number{_range(low, high, above)}", convert)


def text(*, secret: bool = False) -> Check:
    """A string that is not blank. A secret must also fit in an HTTP header."""

    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        if not value.strip() or (secret and not (value.isascii() and value.isprintable())):
            raise ValueError
        return Secret(value) if secret else value

    kind = "a string of printable ASCII characters" if secret else "a string"
    return Check(f"{kind} that is not empty", convert, hidden if secret else shown)


def nonempty() -> Check:
    """A string of at least one character, which may be a space or a line end."""

    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        if not value:
            raise ValueError
        return value

    return Check("a string of at least one character", convert)


def path_text() -> Check:
    """A string or path object that is not blank; kept as a string."""
    inner = text()
    return Check("a string or a path, not empty", lambda value: inner.convert(os.fspath(value)))


def one_of(*choices: str) -> Check:
    """One of some strings."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    return Check("one of " + ", ".join(map(repr, choices)), convert)


def boolean() -> Check:
    """``True`` or ``False`` and nothing that merely counts as one."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Check("True or False", convert)


def items(check: Check, what: str) -> Check:
    """A list or tuple whose members all pass; kept as a tuple."""

    def convert(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
            raise TypeError
        return tuple(check.convert(member) for member in value)

    return Check(f"a list of {what}", convert, check.show)


def mapping(what: str, key: Check, value: Check | None = None) -> Check:
    """A mapping whose keys and values pass; kept as a dictionary of its own."""

    def convert(given: Any) -> dict[Any, Any]:
        if not isinstance(given, Mapping):
            raise TypeError
        keep = value.convert if value else own_copy
        return {key.convert(k): keep(v) for k, v in given.items()}

    return Check(what, convert, value.show if value else shown)


def own_copy(value: Any) -> Any:
    """The value with its containers copied, so that the caller's later changes do not show."""
    if isinstance(value, Mapping):
        return {k: own_copy(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(own_copy(v) for v in value)
    return value
