"""Images on their way to a model: files, bytes and pictures of the notebook as data URLs."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

from .checks import shown
from .errors import ConfigurationError

__all__ = ["data_url"]

# The first bytes of what image libraries read, and its media type.
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


def data_url(source: Any) -> str:
    """An image as a URL that a chat message can carry.

    Parameters
    ----------
    source : str, pathlib.Path, bytes or PIL image
        An ``http(s)`` or ``data`` URL stays as it is; a path is read;
        whatever has ``save(stream, format=...)``, as PIL's images have, is encoded as PNG.

    Raises
    ------
    ConfigurationError
        For a file that is not there, or bytes that are no image.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return _encoded(bytes(source), "these bytes are")
    if hasattr(source, "save"):
        stream = io.BytesIO()
        source.save(stream, format="PNG")
        return _encoded(stream.getvalue(), "it is")
    if not isinstance(source, str | os.PathLike):
        raise ConfigurationError(
            f"an image is a path, a URL, bytes or a PIL image, not {shown(source)}"
        )
    path = Path(source).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"no image file at {shown(str(source))}: {error.strerror}"
        ) from None
    return _encoded(data, f"{str(source)!r:.120} is")


def _encoded(data: bytes, what: str) -> str:
    kind = next((kind for start, kind in _KINDS if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise ConfigurationError(
            f"{what} no image: it begins with {data[:12]!r}",
            hint="PNG, JPEG, GIF, BMP, TIFF and WebP are known",
        )
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
