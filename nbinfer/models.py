"""Which file a model's name means."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import gguf
from .checks import shown
from .embedded import EMBEDDED, EmbeddedModel, fetch_embedded
from .errors import ConfigurationError, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EMBEDDED", "EmbeddedModel", "ResolvedModel", "fetch_embedded", "resolve"]


@dataclass(frozen=True)
class ResolvedModel:
    """The file that a name means.

    Attributes
    ----------
    name : str
        As it was asked for.
    path : pathlib.Path
        The file, absolute.
    format : str
        ``"gguf"``.
    precision : str or None
        Such as ``"Q4_1"``; ``None`` where the file does not say or is damaged.
    revision : str or None
        The release of an embedded model.
    size_bytes : int
        The file's size.
    sha256 : str or None
        Of an embedded model; a user's own file is not hashed.
    """

    name: str
    path: Path
    format: str
    precision: str | None
    revision: str | None
    size_bytes: int
    sha256: str | None

    def to_dict(self) -> dict[str, Any]:
        """The fields in JSON's own types."""
        return {**vars(self), "path": str(self.path)}


def resolve(name: str, *, progress: Callable[[str], None] | None = None) -> ResolvedModel:
    """Find the file that a model's name means; fetch the embedded model if need be.

    Parameters
    ----------
    name : str
        ``"smollm2-135m"``, or the path of a ``.gguf`` file (``~`` is expanded).
    progress : callable, optional
        Called with a line of text while something is fetched.

    Raises
    ------
    ModelNotFound
        For anything else; the hint names what is like it.
    DownloadError
        If the embedded model cannot be fetched or stored.
    """
    if not isinstance(name, str | os.PathLike):
        raise ConfigurationError(f"a model's name must be a string, got {shown(name)}")
    name = os.fspath(name)
    if name in EMBEDDED:
        model, path = EMBEDDED[name], fetch_embedded(name, progress)
        return ResolvedModel(
            name, path, "gguf", model.precision, model.revision, model.size, model.sha256
        )
    if not name.strip():
        raise ModelNotFound("the model's name is empty", hint=_what_else(name))
    path = Path(name)
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        path = path.expanduser().absolute()
        if path.is_dir():
            raise ModelNotFound(
                f"{shown(name)} is a folder", hint="give the path of a .gguf file in it"
            )
        if path.exists() and not (path.is_file() and path.suffix.lower() == ".gguf"):
            raise ModelNotFound(
                f"{shown(name)} is no .gguf file",
                hint="a model is a .gguf file, or one of: " + ", ".join(EMBEDDED),
            )
        if path.exists():
            size = path.stat().st_size
            return ResolvedModel(name, path, "gguf", _precision(path), None, size, None)
    raise ModelNotFound(f"no model {shown(name)}", hint=_what_else(name))


def _precision(path: Path) -> str | None:
    # A damaged file is refused where it is loaded, by the library that knows why.
    with contextlib.suppress(gguf.GGUFError, OSError):
        return gguf.precision(gguf.read_header(path))
    return None


def _what_else(name: str) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+(?:[:@][\w.-]+)?", name) and not name.endswith(".gguf"):
        return "llamacpp needs a GGUF file, not a hub id: download one and give its path"
    with contextlib.suppress(OSError):
        # Sorted, so that a crowded folder gives the same answer each time.
        files = sorted(path.name for path in Path.cwd().glob("*.gguf"))[:200]
        near = difflib.get_close_matches(name, [*EMBEDDED, *files], n=3, cutoff=0.5)
        if near:
            return "did you mean " + " or ".join(map(repr, near)) + "?"
        if files:
            return "here are: " + ", ".join([*EMBEDDED, *files[:10]])
    return "give the path of a .gguf file, or one of: " + ", ".join(EMBEDDED)
