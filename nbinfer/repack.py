"""The weights that llama.cpp holds beside their file, on a CPU.

Matrices of some types are copied at load into an order from which eight rows are multiplied at
once (ggml's ``ggml-cpu/repack.cpp``, ``ggml_repack_get_optimal_repack_type``). A file that is
mapped into memory stays mapped meanwhile, so a model may be there twice; read instead of mapped,
its copied matrices are there once. Where input and output share one matrix it is read by row and
multiplied, and kept for both.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Sequence

from . import gguf

__all__ = ["beside_file"]

_ROWS = 8  # at once
_X86 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})  # with AVX2, which both bindings need
_ARM = _X86 | {"Q5_K", "Q6_K", "Q8_0"}
_WORTH = 4  # a file is read, and not mapped, where more than this part of it would be there twice


def _copied_types() -> frozenset[str]:
    """Types that this machine's CPU multiplies so; macOS computes on its GPU."""
    if sys.platform == "darwin":
        return frozenset()
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return _X86
    return _ARM if machine in ("aarch64", "arm64") else frozenset()


def beside_file(
    tensors: Iterable[tuple[str, Sequence[int], str | None]], mapped: bool | None = None
) -> tuple[bool, int]:
    """Whether a file is best mapped, and the bytes of weights that are held beside its own.

    Parameters
    ----------
    tensors : iterable of (str, sequence of int, str or None)
        llama.cpp's name of a tensor, its sizes with the row's length first, its GGUF type or
        ``None`` where that is unknown.
    mapped : bool, optional
        Whether the file is mapped. Default: unless more than a quarter of it would be copied.

    Returns
    -------
    tuple of bool and int
        Whether it is mapped, and bytes.
    """
    types, tied = _copied_types(), True
    whole = copied = embeddings = 0
    for name, sizes, kind in tensors:
        tied = tied and name != "output.weight"
        if kind is None:
            continue
        size = gguf.stored_bytes(kind, sizes)
        whole += size
        if kind not in types or len(sizes) < 2 or sizes[1] % _ROWS:
            continue
        if name == "token_embd.weight":
            embeddings = size
        elif "token_embd" not in name:  # others are read by row alone
            copied += size
    again = embeddings if tied else 0
    if mapped is None:
        mapped = _WORTH * (copied + again) <= whole
    return mapped, again + (copied if mapped else 0)
