"""Small pictures for proofs, without a library for images."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

__all__ = ["png"]

SIDE = 56


def png(name: str, side: int = SIDE) -> bytes:
    """A PNG of ``side`` x ``side`` pixels, RGB: ``"red"``, ``"blue"``, ``"stripes"`` or ``"disc"``.

    The format is that of the PNG specification (ISO/IEC 15948), sections 5 and 11.
    """
    draw = _DRAWN[name]
    lines = (
        b"\0" + b"".join(bytes(draw(x / side, y / side)) for x in range(side)) for y in range(side)
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def _stripes(x: float, _: float) -> tuple[int, int, int]:
    return (250, 240, 60) if int(x * 7) % 2 else (20, 60, 230)


def _disc(x: float, y: float) -> tuple[int, int, int]:
    return (30, 10, 10) if (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1 else (200, 30, 40)


_DRAWN: dict[str, Callable[[float, float], tuple[int, int, int]]] = {
    "red": lambda *_: (220, 30, 30),
    "blue": lambda *_: (30, 60, 220),
    "stripes": _stripes,
    "disc": _disc,
}
