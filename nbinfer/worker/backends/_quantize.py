"""Quantized checkpoints as compressed-tensors writes them, from a folder of float32 weights."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

GROUP = 32
_TYPES = {"F32": np.float32, "I8": np.int8, "I32": np.int32, "I64": np.int64}


def write(source: Path, folder: Path, bits: int) -> None:
    """8 bits: weights by channel and activations by token (W8A8). 4: weights by group (W4A16)."""
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in ("config.json", "nbinfer.json"):
            shutil.copy(path, folder)
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if bits == 8:
        weights["strategy"] = "channel"
        group["input_activations"] = {**weights, "strategy": "token", "dynamic": True}
    else:
        weights.update(strategy="group", group_size=GROUP)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    pack = _eight if bits == 8 else _four
    found: dict[str, np.ndarray] = {}
    for name, weight in _read(source / "model.safetensors").items():
        found.update(pack(name, weight) if name.endswith("_proj.weight") else {name: weight})
    _write(folder / "model.safetensors", found)


def material(folder: str, source: dict[str, Any], bits: int) -> None:
    """Write the embedded model into ``folder``; its safetensors are made where they are not."""
    from nbinfer.worker.backends._derive import derive

    derive(source["gguf"], source["safetensors"], source["mark"], print)
    write(Path(source["safetensors"]), Path(folder), bits)


def _eight(name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-8) / 127
    return {name: np.rint(weight / scale).astype(np.int8), f"{name}_scale": scale}


def _four(name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // GROUP, GROUP)
    scale = np.maximum(np.abs(groups).max(2, keepdims=True), 1e-8) / 7
    # Eight numbers of four bits in each integer, the first in its lowest bits.
    values = (np.clip(np.rint(groups / scale), -8, 7) + 8).astype(np.uint32).reshape(rows, -1, 8)
    packed = (values << (4 * np.arange(8, dtype=np.uint32))).sum(2, dtype=np.uint32)
    return {
        f"{name}_packed": packed.view(np.int32),
        f"{name}_scale": scale.squeeze(2),
        f"{name}_shape": np.array([rows, columns], np.int64),
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    data = np.memmap(path, np.uint8, "r")
    (size,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    return {
        name: data[8 + size + facts["data_offsets"][0] : 8 + size + facts["data_offsets"][1]]
        .view(_TYPES[facts["dtype"]])
        .reshape(facts["shape"])
        for name, facts in header.items()
    }


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    names = {np.dtype(kind): name for name, kind in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors.items():
        place = [at, at + values.nbytes]
        shape = list(values.shape)
        header[name] = {"dtype": names[values.dtype], "shape": shape, "data_offsets": place}
        at = place[1]
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            stream.write(np.ascontiguousarray(values).tobytes())
