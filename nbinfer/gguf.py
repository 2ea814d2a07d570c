"""The header of a GGUF file: what a model is, before any library loads it.

Standard library only, and nothing else of this package: it also runs inside a worker, whose
Python (3.9 or later) may hold no more than an engine. No length in the file is trusted.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

__all__ = [
    "GGUFError",
    "block",
    "check_complete",
    "context_length",
    "kv_bytes_per_token",
    "precision",
    "read_header",
    "read_stream",
    "stored_bytes",
    "tensor_bytes",
    "type_name",
]

MAX_HEADER_BYTES = 64 * 1024 * 1024
# Longer arrays (a tokenizer's tokens) are skipped and stand in the header as their length.
LONGEST_ARRAY = 1024
_CHUNK = 1024 * 1024
_LONGEST_KEY = 65_535
_TENSOR_INFO_BYTES = 24  # name length, dimensions, type, offset: the least that one can take

# fmt: off
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i",
    6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}
_STRING, _ARRAY = 8, 9

# ggml type: (name, elements per block, bytes per block)
_BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}

_BY_NAME = {name: (elements, size) for name, elements, size in _BLOCKS.values()}

# llama.cpp's llama_ftype, the number in general.file_type
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0",
    9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S",
    15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S",
    27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}
# fmt: on
_GUESSED = 1024


class GGUFError(ValueError):
    """The file is no GGUF file, or one that is damaged or of an unknown version."""


class _Reader:
    """Reads forward through a file's first bytes, and never past the limit."""

    def __init__(self, stream: BinaryIO, size: int, limit: int) -> None:
        self._stream, self._size, self._limit = stream, size, limit
        self.data = bytearray()
        self.position = 0

    @property
    def left(self) -> int:
        return self._size - self.position

    def need(self, count: int) -> None:
        """Have that many bytes ready, or refuse before anything is allocated for them."""
        end = self.position + count
        if end <= len(self.data):
            return
        if end > self._size:
            raise GGUFError("the file ends in the middle of the metadata")
        if end > self._limit:
            raise GGUFError(f"the metadata is larger than {self._limit} bytes")
        while len(self.data) < end:
            chunk = self._stream.read(max(_CHUNK, end - len(self.data)))
            if not chunk:
                raise GGUFError("the file ends in the middle of the metadata")
            self.data += chunk

    def skip(self, count: int) -> None:
        self.need(count)
        self.position += count

    def unpack(self, form: str) -> Any:
        size = struct.calcsize("<" + form)
        self.need(size)
        value = struct.unpack_from("<" + form, self.data, self.position)
        self.position += size
        return value[0]

    def text(self, longest: int | None = None) -> str:
        length = self.unpack("Q")
        if longest is not None and length > longest:
            raise GGUFError(f"a name of {length} bytes: the file is damaged")
        self.skip(length)
        return self.data[self.position - length : self.position].decode("utf-8", "replace")


def read_header(path: str | os.PathLike[str], max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """Metadata and tensor list of a GGUF file, version 2 or 3.

    Parameters
    ----------
    path : str or path
        The file.
    max_bytes : int, default 64 MiB
        Most that is read of it.

    Returns
    -------
    dict
        The file's own keys (``"general.architecture"`` ...); an array of more than 1024 values
        is represented by its length. Besides: ``"tensors"``, a list of
        ``(name, shape, type id, offset)``; ``"gguf.version"``; ``"gguf.data_offset"``, where
        the tensors' data begins; ``"gguf.file_bytes"``, the file's size.

    Raises
    ------
    GGUFError
        For another kind of file, a damaged one, or an unsupported version.
    OSError
        Where the file cannot be read.
    """
    with open(path, "rb") as stream:  # noqa: PTH123
        return read_stream(stream, os.fstat(stream.fileno()).st_size, max_bytes)


def read_stream(stream: BinaryIO, size: int, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """The same of what is read forward from a stream of ``size`` bytes, such as a download's."""
    reader = _Reader(stream, size, max_bytes)
    try:
        return _read(reader, size)
    except struct.error as error:
        raise GGUFError(f"the metadata is damaged: {error}") from None


def _read(reader: _Reader, size: int) -> dict[str, Any]:
    if size < 4:
        raise GGUFError("not a GGUF file: it is shorter than four bytes")
    reader.skip(4)
    if reader.data[:4] != b"GGUF":
        raise GGUFError(f"not a GGUF file: it begins with {bytes(reader.data[:4])!r}")
    version = reader.unpack("I")
    if version not in (2, 3):
        raise GGUFError(f"GGUF version {version} is not supported (2 and 3 are)")
    tensor_count, pair_count = reader.unpack("Q"), reader.unpack("Q")
    header: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.text(_LONGEST_KEY)
        header[key] = _value(reader, reader.unpack("I"))
    if tensor_count * _TENSOR_INFO_BYTES > reader.left:
        raise GGUFError("the file ends in the middle of the metadata")
    tensors = [_tensor(reader) for _ in range(tensor_count)]
    alignment = header.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise GGUFError(f"general.alignment is {alignment!r:.80}, not a power of two")
    header["tensors"] = tensors
    header["gguf.version"] = version
    header["gguf.data_offset"] = -(-reader.position // alignment) * alignment
    header["gguf.file_bytes"] = size
    return header


def _value(reader: _Reader, kind: int) -> Any:
    if kind in _SCALARS:
        return reader.unpack(_SCALARS[kind])
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        return _array(reader)
    raise GGUFError(f"a value of unknown type {kind}: the file is damaged")


def _array(reader: _Reader) -> Any:
    kind, count = reader.unpack("I"), reader.unpack("Q")
    if kind not in _SCALARS and kind != _STRING:
        raise GGUFError(f"an array of unknown type {kind}: the file is damaged")
    width = struct.calcsize("<" + _SCALARS.get(kind, "Q"))
    if count * width > reader.left:
        raise GGUFError("the file ends in the middle of the metadata")
    if count <= LONGEST_ARRAY:
        return [_value(reader, kind) for _ in range(count)]
    if kind != _STRING:
        reader.skip(count * width)
        return count
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(count):
        # need() inline where it can be: a tokenizer has hundreds of thousands of strings.
        if reader.position + 8 > len(reader.data):
            reader.need(8)
        length = unpack(reader.data, reader.position)[0]
        reader.position += 8
        reader.skip(length)
    return count


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text(_LONGEST_KEY)
    dimensions = reader.unpack("I")
    if dimensions > 8:
        raise GGUFError(f"a tensor of {dimensions} dimensions: the file is damaged")
    shape = tuple(reader.unpack("Q") for _ in range(dimensions))
    return name, shape, reader.unpack("I"), reader.unpack("Q")


def block(kind: str) -> tuple[int, int]:
    """Elements and bytes of one block of a type, such as ``"Q4_K"``: 256 and 144."""
    return _BY_NAME[kind]


def stored_bytes(kind: str, sizes: Sequence[int]) -> int:
    """Bytes of a tensor of these sizes, in a type such as ``"Q4_K"``."""
    elements, size = block(kind)
    return -(-math.prod(sizes) // elements) * size


def tensor_bytes(header: dict[str, Any]) -> int:
    """Bytes of all tensors; those of a type unknown here are not counted."""
    total = 0
    for _, shape, kind, _ in header["tensors"]:
        if kind in _BLOCKS:
            total += stored_bytes(_BLOCKS[kind][0], shape)
    return total


def check_complete(header: dict[str, Any]) -> None:
    """Refuse a file that ends before its last tensor does, as an aborted download does.

    Parameters
    ----------
    header : dict
        What :func:`read_header` returned. A tensor of a type unknown here is not checked.

    Raises
    ------
    GGUFError
        ``truncated: needs N bytes, has M``.
    """
    end = 0
    for _, shape, kind, offset in header["tensors"]:
        if kind not in _BLOCKS:
            continue
        end = max(end, offset + stored_bytes(_BLOCKS[kind][0], shape))
    needed, found = header["gguf.data_offset"] + end, header["gguf.file_bytes"]
    if end and needed > found:
        raise GGUFError(f"truncated: needs {needed} bytes, has {found}")


def _count(header: dict[str, Any], key: str) -> int | None:
    """``<architecture>.<key>`` where it is a whole number above 0."""
    value = header.get(f"{header.get('general.architecture')}.{key}")
    return value if type(value) is int and value > 0 else None


def context_length(header: dict[str, Any]) -> int | None:
    """Tokens of context that the model was made for, or ``None`` where it is not said."""
    return _count(header, "context_length")


def kv_bytes_per_token(header: dict[str, Any]) -> int | None:
    """Bytes of KV cache for one token of one sequence, with K and V in 16 bits.

    All layers are counted as keeping every token: an upper bound for models with sliding
    windows.

    Returns
    -------
    int or None
        ``None`` where the header does not say enough.
    """
    layers, heads = _count(header, "block_count"), _count(header, "attention.head_count")
    architecture = header.get("general.architecture")
    kv_heads = header.get(f"{architecture}.attention.head_count_kv", heads)
    if layers is None:
        return None
    if type(kv_heads) is int and kv_heads > 0:
        all_heads = kv_heads * layers
    elif isinstance(kv_heads, list) and all(type(h) is int and h >= 0 for h in kv_heads):
        all_heads = sum(kv_heads[:layers])
    else:
        return None
    width, embedding = 0, _count(header, "embedding_length")
    for part in ("key_length", "value_length"):
        length = _count(header, f"attention.{part}")
        if length is None:
            if embedding is None or heads is None:
                return None
            length = embedding // heads
        width += length
    return all_heads * width * 2 or None


def precision(header: dict[str, Any]) -> str | None:
    """How the weights are stored, such as ``"Q4_1"``; ``None`` where it is not said."""
    kind = header.get("general.file_type")
    return _FILE_TYPES.get(kind % _GUESSED) if type(kind) is int else None


def type_name(kind: int) -> str | None:
    """A tensor type's name, such as ``"Q4_K"``, by its number."""
    return _BLOCKS[kind][0] if kind in _BLOCKS else None
