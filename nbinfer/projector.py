"""The projector of a GGUF model: the file through which it reads images.

llama.cpp keeps a vision model in two files, the language model and ``mmproj*.gguf``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import gguf, weights
from .checks import shown
from .errors import ConfigurationError, ModelNotFound

__all__ = ["Projector", "choose", "find"]

_NAME = re.compile(r"mmproj.*\.gguf$", re.IGNORECASE)
# As llama.cpp's own tools prefer them: a projector is small, and quantizing it costs most.
_PREFERRED = ("F16", "BF16", "Q8_0", "F32")
# Of an image whose size the file does not tell.
_USUAL_TOKENS = 1024


@dataclass(frozen=True)
class Projector:
    """A projector, and how many tokens an image becomes: a first guess, for the KV cache."""

    path: Path
    image_tokens: int
    size_bytes: int


def choose(names: Iterable[str]) -> str | None:
    """The projector among file names, the preferred precision first; ``None`` without any."""
    found = sorted(name for name in names if _NAME.search(name.rpartition("/")[2]))
    for label in _PREFERRED:
        for name in found:
            if re.search(rf"(?<![A-Za-z0-9]){label}(?![A-Za-z0-9])", name, re.IGNORECASE):
                return name
    return found[0] if found else None


def find(given: str | bool | None, model: Path, header: dict[str, Any]) -> Projector | None:
    """The projector that is asked for, or the one that lies beside a model.

    Parameters
    ----------
    given : str, bool or None
        ``model_kwargs["mmproj"]``: a path; ``False`` for none, ``True`` for one that must be
        there; ``None`` for one that may be.
    model : path
        The model's file.
    header : dict
        Its header.

    Raises
    ------
    ModelNotFound
        Where there is none that was asked for.
    ConfigurationError
        For a file that is no projector.
    """
    if given is False:
        return None
    if isinstance(given, str):
        return _described(Path(given).expanduser().absolute())
    found = _beside(model, header)
    if found is None and given:
        raise ModelNotFound(
            f"no mmproj*.gguf that fits lies beside {str(model)!r}",
            hint="give its path: model_kwargs={'mmproj': PATH}",
        )
    return found


def _beside(model: Path, header: dict[str, Any]) -> Projector | None:
    """One that fits the model's width. Among several models it must have this one's name."""
    try:
        names = [path.name for path in model.parent.iterdir()]
    except OSError:
        return None
    stems = {_stem(first) for first in weights.gguf_groups(names)}
    if len(stems) > 1:
        names = [name for name in names if _stem(model.name) in _stem(name)]
    name = choose(names)
    if name is None:
        return None
    with contextlib.suppress(ModelNotFound, ConfigurationError):
        found = _described(model.with_name(name))
        width = header.get(f"{header.get('general.architecture')}.embedding_length")
        projected = gguf.read_header(found.path).get("clip.vision.projection_dim", width)
        return found if projected == width else None
    return None


def _stem(name: str) -> str:
    """A file's name without what differs between a model's quantizations."""
    name = re.sub(r"-\d{5}-of-\d{5}", "", name.lower().removesuffix(".gguf"))
    return re.sub(r"[^a-z0-9]", "", weights.QUANTIZATION.sub("", name))


def _described(path: Path) -> Projector:
    try:
        header = gguf.read_header(path)
        size = path.stat().st_size
    except OSError as error:
        raise ModelNotFound(f"no projector at {str(path)!r}: {error.strerror}") from None
    except gguf.GGUFError as error:
        raise ConfigurationError(
            f"the projector {str(path)!r} cannot be read: {error}",
            hint="it is the mmproj*.gguf of a model's GGUF files",
        ) from None
    if header.get("general.architecture") != "clip":
        raise ConfigurationError(
            f"{str(path)!r} is no projector: it is {shown(header.get('general.architecture'))}",
            hint="it is the mmproj*.gguf of a model's GGUF files",
        )
    return Projector(path, _image_tokens(header), size)


def _image_tokens(header: dict[str, Any]) -> int:
    """A token for each patch of an image of the size that the encoder takes."""
    size, patch = (header.get(f"clip.vision.{part}_size") for part in ("image", "patch"))
    if isinstance(size, int) and isinstance(patch, int) and 0 < patch <= size:
        return min((size // patch) ** 2 + 1, 4096)
    return _USUAL_TOKENS
