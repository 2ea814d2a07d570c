"""Safetensors files, read without torch.

A file begins with the length of its header, eight bytes little-endian, and the header, JSON:
``{"name": {"dtype", "shape", "data_offsets": [begin, end]}}``; then come the tensors' bytes.
numpy has no bfloat16, so the ``safetensors`` package cannot read it without torch either.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TensorFile", "read_header"]

MAX_HEADER_BYTES = 25_000_000
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors of a safetensors file by name, and where their bytes begin.

    Raises
    ------
    ValueError
        For a damaged header. No length in the file is trusted.
    OSError
        Where the file cannot be read.
    """
    with Path(path).open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > min(MAX_HEADER_BYTES, size):
            raise ValueError("it is no safetensors file, or a damaged one")
        try:
            header = json.loads(stream.read(length))
        except RecursionError:
            raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return {name: facts for name, facts in header.items() if name != "__metadata__"}, 8 + length


class TensorFile:
    """A safetensors file whose tensors are read one at a time.

    Parameters
    ----------
    path : path
        The file.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Each tensor's shape, rows first.

    Raises
    ------
    ValueError
        For a damaged file, or a tensor that is not float32, float16 or bfloat16.
    OSError
        Where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        header, self._begin = read_header(path)
        size = path.stat().st_size - self._begin
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[str, int, int]] = {}
        for name, facts in header.items():
            try:
                kind, shape = facts["dtype"], tuple(int(n) for n in facts["shape"])
                begin, end = (int(n) for n in facts["data_offsets"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"the entry of {name!r:.120} in its header is damaged") from None
            if kind not in _WIDTHS:
                raise ValueError(f"{name!r:.120} is {kind!r:.20}, not float32, float16 or bfloat16")
            if not 0 <= begin <= end <= size or end - begin != math.prod(shape) * _WIDTHS[kind]:
                raise ValueError(f"it ends before {name!r:.120} does, or is damaged")
            self.shapes[name] = shape
            self._places[name] = (kind, begin, end)

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, which holds each of the three types exactly."""
        import numpy as np

        kind, begin, end = self._places[name]
        with self._path.open("rb") as stream:
            stream.seek(self._begin + begin)
            data = stream.read(end - begin)
        if len(data) != end - begin:
            raise ValueError(f"it ends before {name!r:.120} does")
        if kind == "BF16":  # the upper half of a float32
            wide = np.frombuffer(data, "<u2").astype("<u4") << 16
            values = wide.view("<f4")
        else:
            values = np.frombuffer(data, "<f4" if kind == "F32" else "<f2").astype("<f4")
        return values.reshape(self.shapes[name])
