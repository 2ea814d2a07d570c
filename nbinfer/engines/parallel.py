"""Whether a model can be divided among ranks, told before anything is loaded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import gguf, gpu
from ..errors import ConfigurationError
from ..models import ResolvedModel

__all__ = ["check_tensor_parallel"]

_OPTION = "model_kwargs['tensor_parallel_size']"


def check_tensor_parallel(model: ResolvedModel, size: int, *, repeats_kv: bool) -> None:
    """Refuse a number of ranks that the model or this machine does not allow.

    Parameters
    ----------
    model : ResolvedModel
        Its ``config.json`` is read, or the header of the GGUF that it is to be derived from.
    size : int
        How many ranks.
    repeats_kv : bool
        Whether the library gives several ranks the same head of keys and values.

    Raises
    ------
    ConfigurationError
        With the numbers that would do. What the files do not tell is left to the library.
    """
    if size == 1:
        return
    shape = _shape(model)
    heads = shape.get("heads")
    if heads is not None and not _divides(size, shape, repeats_kv):
        fits = [n for n in range(2, heads + 1) if _divides(n, shape, repeats_kv)]
        what = ", ".join(
            f"{shape[name]} {words}" for name, words in _PARTS.items() if name in shape
        )
        raise ConfigurationError(
            f"{_OPTION}={size} does not divide the model, which has {what}",
            hint=f"what would do: {', '.join(map(str, [1, *fits]))}",
        )
    devices = gpu.visible()
    have = len(devices) or _cpus()
    if size > have:
        one = "GPU" if devices else "CPU"
        raise ConfigurationError(
            f"{_OPTION}={size} needs a {one} for each rank, and there {_are(have, one)} here",
            hint=f"at most {have}",
        )


_PARTS = {
    "heads": "attention heads",
    "kv_heads": "heads of keys and values",
    "width": "columns in its feed-forward layers",
}


def _divides(size: int, shape: Mapping[str, int], repeats_kv: bool) -> bool:
    kv_heads = shape.get("kv_heads", shape["heads"])
    repeated = repeats_kv and size % kv_heads == 0
    return (
        shape["heads"] % size == 0
        and (kv_heads % size == 0 or repeated)
        and shape.get("width", size) % size == 0
    )


def _shape(model: ResolvedModel) -> dict[str, int]:
    """What has to be divided, by the names of ``_PARTS``; what is not told is left out."""
    if not model.ready and model.derived_from:
        with contextlib.suppress(gguf.GGUFError, OSError):
            return _named(gguf.read_header(model.derived_from), _GGUF)
        return {}
    config: Any = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        config = json.loads((Path(model.path) / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        return {}
    inner = config.get("text_config")
    return _named({**config, **inner} if isinstance(inner, dict) else config, _CONFIG)


_CONFIG = {
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "width": "intermediate_size",
}
_GGUF = {
    "heads": "{}.attention.head_count",
    "kv_heads": "{}.attention.head_count_kv",
    "width": "{}.feed_forward_length",
}


def _named(values: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, int]:
    architecture = values.get("general.architecture", "")
    found = {name: values.get(key.format(architecture)) for name, key in keys.items()}
    return {k: v for k, v in found.items() if type(v) is int and v > 0}


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _are(count: int, what: str) -> str:
    return f"is {count} {what}" if count == 1 else f"are {count} {what}s"
