"""Whether a LoRA adapter fits a model, told from the headers of both.

vLLM copies what it can of an adapter of another shape and says nothing: every answer would be of
a model that nobody trained. SGLang's scheduler ends.
"""

from __future__ import annotations

import glob
import json
import os
import re
import struct

_PART = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.\w+)?$")
LARGEST_HEADER = 100_000_000


def check(adapter, model):
    """Raise where an adapter's folder does not fit a model's.

    Only what both tell is compared: an adapter in another format, or a module whose weight is
    packed or fused, is left to the library.

    Raises
    ------
    ValueError
        With the first module that does not fit.
    """
    file = os.path.join(adapter, "adapter_model.safetensors")
    if not os.path.isfile(file):
        return
    weights = {}
    for part in glob.glob(os.path.join(glob.escape(model), "*.safetensors")):
        weights.update(shapes(part))
    if not weights:
        return
    parents = {_parent(name) for name in weights}
    for name, shape in sorted(shapes(file).items()):
        match = _PART.match(name.removesuffix(".weight"))
        if match is None or len(shape) != 2:
            continue
        module, side = match.groups()
        base = next((weights[n] for n in (module + ".weight", module) if n in weights), None)
        if base is None:
            # A fused module of the checkpoint is another's name for the same: its layer must be.
            if _parent(module) not in parents:
                raise ValueError(f"it has weights for {module}, which the model does not have")
            continue
        if len(base) != 2 or side not in "AB":
            continue
        wanted, found = (base[1], shape[1]) if side == "A" else (base[0], shape[0])
        if wanted != found:
            what = "takes" if side == "A" else "gives"
            raise ValueError(f"{module} {what} {wanted} values and the adapter's {found}")


def check_all(adapters, check):
    """Raise where ``check`` refuses one of several, with its name.

    Raises
    ------
    ValueError
        With the first that does not.
    """
    for name, path in adapters.items():
        try:
            check(path)
        except ValueError as error:
            raise ValueError(f"the adapter {name!r} does not fit: {error}") from None


def changes(adapter, module):
    """Whether an adapter's folder has weights for a module of this name."""
    file = os.path.join(adapter, "adapter_model.safetensors")
    return os.path.isfile(file) and any(f"{module}." in name for name in shapes(file))


def _parent(name):
    return name.removesuffix(".weight").rpartition(".")[0]


def shapes(path):
    """Names and shapes of a safetensors file, from its header."""
    with open(path, "rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > LARGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(stream.read(size))
    return {name: facts["shape"] for name, facts in header.items() if name != "__metadata__"}
