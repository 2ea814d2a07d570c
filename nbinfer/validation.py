"""The machinery under the parameter classes: unknown names, checks, what is shown."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from .checks import Address, Check, Secret, shown, unknown_name
from .errors import ConfigurationError

__all__ = ["Params", "checked", "jsonable", "known_names"]

_T = TypeVar("_T")


def jsonable(value: Any) -> Any:
    """The value in JSON's own types, with ``***`` for secrets and text for foreign objects."""
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, Params):
        return value.to_dict(changed_only=True)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if isinstance(value, Address):
        return value.masked
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else shown(value)


def checked(default: Any, check: Check, **options: Any) -> Any:
    """A dataclass field with its default and its check. A dictionary is copied per instance."""
    metadata = {"check": check}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata, **options)
    return dataclasses.field(default=default, metadata=metadata, **options)


class Params:
    """Base of the parameter classes: checks every field, and shows what was changed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            check = field.metadata.get("check")
            if check is not None:
                object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))
        self._check_together()

    def _check_together(self) -> None:
        """Checks that need more than one field."""

    def _values(self, changed_only: bool) -> dict[str, Any]:
        values = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, default = getattr(self, field.name), field.default
            if default is dataclasses.MISSING and callable(field.default_factory):
                default = field.default_factory()
            if field.repr and not (changed_only and value == default):
                values[field.name] = value
        return values

    def to_dict(self, *, changed_only: bool = False) -> dict[str, Any]:
        """The fields in JSON's own types, with ``***`` in place of secrets.

        Parameters
        ----------
        changed_only : bool, default False
            Leave out fields that have their default value.
        """
        return {k: jsonable(v) for k, v in self._values(changed_only).items()}

    def __repr__(self) -> str:
        values = self._values(changed_only=True)
        return f"{type(self).__name__}({', '.join(f'{k}={shown(v)}' for k, v in values.items())})"


def known_names(cls: type[_T]) -> type[_T]:
    """Make a dataclass refuse an unknown field with a ``ConfigurationError`` and a near match.

    The constructor's signature stays as it was, for tab completion and type checkers.
    """
    original = cls.__init__
    signature = inspect.signature(original)
    names = [n for n in signature.parameters if n != "self"]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        for name in kwargs:
            if name not in names:
                raise unknown_name(cls.__name__, name, names)
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise ConfigurationError(f"{cls.__name__}: {error}") from None
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls
