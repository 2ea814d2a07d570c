"""What lies at a path: a GGUF file, or a folder as Transformers saves one.

Standard library only. Nothing is judged here that the engine's library words better: a broken
file or a missing tokenizer is left to it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import gguf, tensors
from .checks import shown
from .errors import ModelNotFound

__all__ = [
    "QUANTIZATION",
    "Weights",
    "check_parts",
    "find",
    "gguf_groups",
    "mismatch",
    "parts",
    "safetensors_dtype",
    "safetensors_header",
    "weight_files",
]

# A quantization inside a file's name.
QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(?:I?Q[1-9](?:_(?:[01KSML]|X{1,2}[SL]|NL))*|TQ[12]_0|BF16|FP?16|FP?32|"
    r"MXFP4(?:_MOE)?)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
# GGUF files that are no language model: a vision projector, a quantizer's statistics.
_NO_MODEL = re.compile(r"mmproj|^imatrix|imatrix\.gguf$", re.IGNORECASE)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FORM_NAMES = {
    "gguf": "a .gguf file",
    "safetensors": "a folder of safetensors with its config.json",
}


@dataclass(frozen=True)
class Weights:
    """A model on disk.

    Attributes
    ----------
    path : pathlib.Path
        The file, its first shard, or the folder.
    format : str
        ``"gguf"`` or ``"safetensors"``; a folder of ``pytorch_model*.bin`` counts as the latter.
    precision : str or None
        Such as ``"Q4_1"``, ``"bfloat16"`` or ``"awq-4bit"``; ``None`` where nothing says it.
    size_bytes : int
        Of all weight files.
    """

    path: Path
    format: str
    precision: str | None
    size_bytes: int


def find(path: Path, forms: Sequence[str], engine: str | None) -> Weights:
    """The model at an existing path, in the first of the forms that is there.

    Raises
    ------
    ModelNotFound
        Where there is none, more than one, or one in another form than the engine needs; and
        where the path cannot be read.
    """
    try:
        return _find(path, forms, engine)
    except OSError as error:
        raise ModelNotFound(f"{shown(str(path))} cannot be read: {error.strerror}") from None


def _find(path: Path, forms: Sequence[str], engine: str | None) -> Weights:
    if path.is_dir():
        return _folder(path, forms, engine)
    if path.is_file() and path.suffix.lower() == ".gguf":
        if "gguf" not in forms:
            raise mismatch(f"{shown(str(path))} is a GGUF file", "gguf", forms, engine)
        return _gguf(path)
    if path.suffix == ".safetensors":
        raise ModelNotFound(
            f"{shown(str(path))} is a single safetensors file",
            hint="give the folder that holds it with its config.json and tokenizer",
        )
    raise ModelNotFound(f"{shown(str(path))} is no .gguf file", hint=f"a model is {_needed(forms)}")


def mismatch(what: str, form: str, forms: Sequence[str], engine: str | None) -> ModelNotFound:
    """The error for a model in a form that the engine cannot load."""
    from .engines import registry

    able = [s.name for s in registry.specs() if form in s.capabilities.features]
    others = f"; engines that load it: {', '.join(able)}" if able else ""
    return ModelNotFound(what, hint=f"{engine or 'this engine'} needs {_needed(forms)}{others}")


def _needed(forms: Sequence[str]) -> str:
    return " or ".join(_FORM_NAMES[form] for form in forms)


# -------------------------------------------------------------------------- GGUF


def gguf_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Models among file names: the first file of each, with all of its parts in order.

    A part may be missing: :func:`check_parts` tells.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not _NO_MODEL.search(name.rpartition("/")[2]):
            files = parts(name)
            groups[files[0]] = files
    return groups


def check_parts(files: Sequence[str], names: Iterable[str]) -> None:
    """Refuse a model of which a part is not among the names."""
    missing = sorted(set(files) - set(names))
    if missing:
        raise ModelNotFound(
            f"{shown(files[0].rpartition('/')[2])} is a model in {len(files)} parts, and "
            f"{', '.join(missing[:3])} is missing",
            hint="all parts must be in one folder, under their own names",
        )


def parts(name: str) -> list[str]:
    """The file names of all parts of a GGUF model, given one of them."""
    match = _SHARD.search(name)
    if match is None:
        return [name]
    # A count beyond any real model's is damage: not that many names are made of it.
    count = max(1, min(int(match[2]), 9999))
    stem, suffix = name[: match.start()], name[-len(".gguf") :]
    return [f"{stem}-{n:05d}-of-{match[2]}{suffix}" for n in range(1, count + 1)]


def _gguf(path: Path) -> Weights:
    files = [path.with_name(name) for name in parts(path.name)]
    check_parts([p.name for p in files], [p.name for p in files if p.is_file()])
    size = sum(file.stat().st_size for file in files)
    # A damaged file is refused where it is loaded, by the library that knows why.
    precision = None
    with contextlib.suppress(gguf.GGUFError, OSError):
        precision = gguf.precision(gguf.read_header(files[0]))
    return Weights(files[0], "gguf", precision, size)


# ----------------------------------------------------------------------- folders


def _folder(path: Path, forms: Sequence[str], engine: str | None) -> Weights:
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    weights = weight_files(names)
    groups = gguf_groups(names)
    for form in forms:
        if form == "safetensors" and weights and "config.json" in names:
            size = sum((path / name).stat().st_size for name in weights)
            return Weights(path, form, _precision(path, weights), size)
        if form == "gguf" and groups:
            if len(groups) == 1:
                return _gguf(path / next(iter(groups)))
            listed = ", ".join(list(groups)[:10])
            raise ModelNotFound(
                f"{shown(str(path))} holds {len(groups)} GGUF models",
                hint=f"give the path of one: {listed}",
            )
    if "adapter_config.json" in names:
        raise ModelNotFound(
            f"{shown(str(path))} is a LoRA adapter",
            hint="give the model that it was made for, and the adapter with --adapter",
        )
    if groups:
        raise mismatch(f"{shown(str(path))} holds GGUF alone", "gguf", forms, engine)
    if weights and "config.json" in names:
        what = f"{shown(str(path))} is a folder of safetensors"
        raise mismatch(what, "safetensors", forms, engine)
    lacks = "no config.json" if weights else "no weights (*.safetensors, *.gguf)"
    raise ModelNotFound(
        f"{shown(str(path))} is a folder with {lacks}", hint=f"a model is {_needed(forms)}"
    )


def weight_files(names: Iterable[str]) -> list[str]:
    """The files that hold the weights, among the names in a folder that Transformers loads.

    Mistral's folders hold the same weights twice, the second time as ``consolidated``.
    """
    names = sorted(n for n in names if "/" not in n)
    found = [n for n in names if n.endswith(".safetensors") and not n.startswith("adapter_model")]
    found = [n for n in found if not n.startswith("consolidated")] or found
    if "model.safetensors" in found:
        return ["model.safetensors"]
    return found or [n for n in names if re.fullmatch(r"pytorch_model.*\.bin", n)]


def _precision(path: Path, weights: Sequence[str]) -> str | None:
    config: Any = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        config = {}
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        quantized = part.get("quantization_config")
        if isinstance(quantized, dict):
            return _quantization(quantized)
        dtype = part.get("dtype") or part.get("torch_dtype")
        if isinstance(dtype, str):
            return dtype.removeprefix("torch.")
    if weights and weights[0].endswith(".safetensors"):
        return safetensors_dtype(path / weights[0])
    return None


def _quantization(config: Mapping[str, Any]) -> str:
    method = str(config.get("quant_method") or "quantized")
    bits = config.get("bits", config.get("w_bit"))
    if bits is None:  # compressed-tensors has them by groups of layers
        groups = config.get("config_groups")
        parts = [g.get("weights") for g in groups.values()] if isinstance(groups, dict) else []
        found = {p.get("num_bits") for p in parts if isinstance(p, dict)}
        bits = found.pop() if len(found) == 1 else None
    if bits is None:
        bits = 4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else None
    return f"{method}-{bits}bit" if isinstance(bits, int) else method


def safetensors_header(
    path: str | os.PathLike[str],
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """The tensors of a safetensors file by name: type, shape and bytes; none of a damaged file."""
    found: dict[str, tuple[str, tuple[int, ...], int]] = {}
    try:
        for name, tensor in tensors.read_header(path)[0].items():
            begin, end = tensor["data_offsets"]
            found[name] = str(tensor["dtype"]), tuple(map(int, tensor["shape"])), end - begin
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found


def safetensors_dtype(path: str | os.PathLike[str]) -> str | None:
    """The type of most of a safetensors file's bytes, such as ``"bfloat16"``.

    Returns
    -------
    str or None
        ``None`` where the file is damaged: the library that loads it says how.
    """
    share: collections.Counter[str] = collections.Counter()
    for dtype, _, size in safetensors_header(path).values():
        share[dtype] += size
    if not share:
        return None
    kind = share.most_common(1)[0][0]
    return _DTYPES.get(kind, kind.lower())
