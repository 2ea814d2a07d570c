"""What a model's name says of its size: its own files' headers, or the file of known configs."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .. import gguf, hub, hubheaders, models, weights
from ..checks import nearest, shown
from ..errors import ConfigurationError, DownloadError, ModelNotFound
from .shapes import Shape, from_config, from_gguf
from .tensors import Tensor, tensors, vision_parameters

__all__ = ["Described", "describe", "families", "loadable_name"]

_PLAIN_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([BbMm])\s*")
_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_CONFIG_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8": "fp8"}
# Names of a checkpoint's tensors, and llama.cpp's, by which its quantization goes.
_ROLES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_output",
    "kv_b_proj": "attn_kv_b",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "gate_up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}


@dataclass(frozen=True)
class Described:
    """A model's shape and weights.

    Attributes
    ----------
    name : str
        As it was asked for.
    shape : Shape
        Its sizes.
    tensors : tuple of Tensor
        Its weights.
    form : str
        ``"gguf"``, ``"safetensors"``, or ``"config"`` where no file was read.
    precision : str or None
        What its files are in, such as ``"bf16"`` or ``"Q4_K_M"``; ``None`` where that is none of
        ours (``"awq-4bit"``).
    own_bytes : int or None
        Of its tensors as they are stored; ``None`` without files.
    extra : int
        Parameters beside the language model: a tower that sees.
    origin : str
        Where all this is from.
    """

    name: str
    shape: Shape
    tensors: tuple[Tensor, ...]
    form: str
    precision: str | None
    own_bytes: int | None
    extra: int
    origin: str
    stored: str | None = None


@functools.cache
def families() -> Mapping[str, Any]:
    """The well-known models' configs, by hub id, each with its source."""
    text = resources.files(__package__).joinpath("families.json").read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


def describe(name: str, progress: Callable[[str], None] | None = None) -> Described:
    """Find out a model's size without downloading or loading it.

    In this order: an alias, the embedded model, a path, a model of the data file (by its hub id,
    or by the id's last part), a hub id, whose headers are read.

    Raises
    ------
    ConfigurationError
        For a config that lacks a size, an architecture that is not known and has no files, a
        size such as ``"7B"`` in a model's place.
    ModelNotFound, DownloadError
        For what is no model, or cannot be read.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"a model's name must be a string, got {shown(name)}")
    if not name.strip():
        raise _unknown(name)
    target = models.unaliased(name, ("safetensors", "gguf"), None)
    _refuse_size(target)
    if target in models.EMBEDDED:
        found = models.resolve(target, forms=("gguf",), progress=progress)
        return _of_gguf(name, gguf.read_header(found.path), f"the header of {found.path.name}")
    path = models.existing(target)
    if path is not None:
        return _of_path(name, path)
    known = _known(target)
    if known is not None:
        return _of_family(name, known)
    hub_name = hub.parse(target)
    if hub_name is None:
        raise _unknown(target)
    try:
        header = hubheaders.peek(hub_name, progress)
    except DownloadError as error:
        raise DownloadError(error.message, hint=_offline_hint(error.hint, target)) from None
    origin = f"the headers of {hub_name.repo} at {header.commit[:7]}"
    if header.form == "gguf":
        return _of_gguf(name, dict(header.gguf), origin)
    return _of_safetensors(name, header.config, header.tensors, origin)


# --------------------------------------------------------------------------- the kinds


def _of_family(name: str, repo: str) -> Described:
    entry = families()[repo]
    shape = from_config(entry["config"], repo)
    return Described(
        name=name,
        shape=shape,
        tensors=tuple(tensors(shape, repo)),
        form="config",
        precision=_CONFIG_DTYPES[entry["dtype"]],
        own_bytes=None,
        extra=vision_parameters(entry["config"], shape.hidden),
        origin=entry["source"],
    )


def _of_path(name: str, path: Path) -> Described:
    if path.is_dir() and (path / "config.json").is_file():
        config = _read_config(path / "config.json")
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        stored: dict[str, Any] = {}
        for file in weights.weight_files(names):
            stored.update(weights.safetensors_header(path / file))
        return _of_safetensors(name, config, stored, f"the headers in {path}")
    found = weights.find(path, ("safetensors", "gguf"), None)
    groups = weights.gguf_groups(p.name for p in found.path.parent.iterdir())
    files = groups.get(found.path.name, [found.path.name])
    try:
        headers = [gguf.read_header(found.path.with_name(file)) for file in files]
    except gguf.GGUFError as error:
        raise ModelNotFound(f"{shown(str(path))}: {error}") from None
    return _of_gguf(name, hubheaders.joined(headers), f"the header of {found.path.name}")


def _read_config(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    raise ConfigurationError(f"{shown(str(path))} is damaged: it is no JSON object")


def _of_gguf(name: str, header: dict[str, Any], origin: str) -> Described:
    shape = from_gguf(header, name)
    found = tuple(
        Tensor(label, _layer(label), sizes, _is_linear(label, sizes), gguf.type_name(kind))
        for label, sizes, kind, _ in header["tensors"]
    )
    size = gguf.tensor_bytes(header)
    return Described(name, shape, found, "gguf", gguf.precision(header), size, 0, origin)


def _of_safetensors(
    name: str,
    config: Mapping[str, Any],
    stored: Mapping[str, tuple[str, tuple[int, ...], int]],
    origin: str,
) -> Described:
    shape = from_config(config, name)
    if not stored:  # weights in PyTorch's own files, or none
        found = tuple(tensors(shape, name))
        dtype = _CONFIG_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
        origin = f"the config of {name}"
        return Described(name, shape, found, "config", dtype, None, 0, origin)
    share: dict[str, int] = {}
    for dtype, _, size in stored.values():
        share[dtype] = share.get(dtype, 0) + size
    kind = max(share, key=lambda dtype: share[dtype])
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else kind
    precision = _DTYPES.get(kind)
    if quantized:
        precision = "fp8" if method == "fp8" else None
    language = {n: t for n, t in stored.items() if not _sees(n)}
    return Described(
        name=name,
        shape=shape,
        tensors=tuple(_named(n, sizes) for n, (_, sizes, _) in language.items()),
        form="safetensors",
        precision=precision,
        own_bytes=sum(size for _, _, size in stored.values()),
        extra=sum(_count(sizes) for n, (_, sizes, _) in stored.items() if n not in language),
        origin=origin,
        stored=str(method),
    )


def _count(sizes: tuple[int, ...]) -> int:
    return Tensor("", None, sizes).count


def _sees(name: str) -> bool:
    return re.search(r"vision|visual|multi_modal|image", name) is not None


def _named(name: str, sizes: tuple[int, ...]) -> Tensor:
    """A checkpoint's tensor under llama.cpp's name, its row's length first as there."""
    layer, turned = _layer(name), tuple(reversed(sizes))
    if layer is None:
        if name.endswith(("embed_tokens.weight", "wte.weight")):
            return Tensor("token_embd.weight", None, turned)
        label = "output.weight" if name.endswith("lm_head.weight") else name
        return Tensor(label, None, turned)
    stem = name.rpartition(".")[0].rpartition(".")[2]
    role = _ROLES.get(stem, "ffn_gate_inp" if stem in ("gate", "router") else stem)
    if "expert" in name:
        role += "_exps"
    label = f"blk.{layer}.{role}.{name.rpartition('.')[2]}"
    return Tensor(label, layer, turned, _is_linear(label, turned))


def _layer(name: str) -> int | None:
    match = re.search(r"(?:^|\.)(?:blk|layers|h)\.([0-9]{1,5})\.", name)
    return int(match[1]) if match else None


def _is_linear(name: str, sizes: tuple[int, ...]) -> bool:
    plain = name.endswith("weight") and "norm" not in name and "ffn_gate_inp" not in name
    return plain and len(sizes) > 1 and _layer(name) is not None


# ----------------------------------------------------------------------------- names


def _known(target: str) -> str | None:
    """The data file's id of a name: whole, or the last part alone, in any case.

    The instruct model of a family has its base's sizes.
    """
    wanted = target.casefold()
    plain = re.sub(r"-(?:instruct|it|chat|pt|base)(?=-|$)", "", wanted)
    for repo in families():
        folded = repo.casefold()
        bare = re.sub(r"-(?:instruct|it|chat|pt|base)(?=-|$)", "", folded)
        if wanted in (folded, folded.partition("/")[2]) or plain in (bare, bare.partition("/")[2]):
            return repo
    return None


def loadable_name(name: str) -> str:
    """The name as an engine takes it: a well-known model's with its organisation."""
    target = models.unaliased(name, ("safetensors", "gguf"), None)
    if "/" in target or target in models.EMBEDDED or models.existing(target) is not None:
        return name
    known = _known(target)
    return name if known is None else f"{known.partition('/')[0]}/{target}"


def _refuse_size(target: str) -> None:
    """``"7B"`` is no model: the cache and the activations depend on more than a count."""
    match = _PLAIN_SIZE.fullmatch(target)
    if match is None:
        return
    wanted = float(match[1]) * (1e9 if match[2] in "Bb" else 1e6)
    near = sorted(families(), key=lambda repo: abs(_parameters(repo) / wanted - 1))[:4]
    raise ConfigurationError(
        f"{target.strip()} is a size and no model: memory depends on its layers and heads too",
        hint=f"name one of about that size: {', '.join(near)}",
    )


@functools.cache
def _parameters(repo: str) -> int:
    return sum(t.count for t in tensors(from_config(families()[repo]["config"], repo)))


def _unknown(target: str) -> ModelNotFound:
    near = nearest(target, families())
    guess = f"did you mean {near}? " if near else ""
    return ModelNotFound(
        f"no model {shown(target)}",
        hint=f"{guess}Give a path, a hub id (org/name), or one of: {', '.join(families())}",
    )


def _offline_hint(hint: str | None, target: str) -> str:
    near = nearest(target, families())
    known = f"nbinfer knows the sizes of {near} without the hub." if near else ""
    return f"{hint or ''} {known}".strip()
