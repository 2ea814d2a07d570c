"""LoRA adapters as PEFT writes them, made without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"F32": "<f4", "F16": "<f2"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], kind: str = "F32") -> None:
    """A safetensors file; bfloat16 is the upper half of a float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, place = [], 0
    for name, values in tensors.items():
        if kind == "BF16":
            data = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            data = values.astype(KINDS[kind]).tobytes()
        offsets = [place, place + len(data)]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": offsets}
        chunks.append(data)
        place += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def write_peft(
    folder: Path,
    modules: Mapping[str, tuple[np.ndarray, np.ndarray]],
    kind: str = "F32",
    **config: Any,
) -> str:
    """A PEFT folder of ``{module: (A, B)}``; ``config`` changes its ``adapter_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(iter(modules.values()))[0].shape[0] if modules else 8
    facts = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    tensors = {}
    for module, (a, b) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    write_safetensors(folder / "adapter_model.safetensors", tensors, kind)
    return str(folder)


ATTENTION = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (576, 192)}


def noise(
    folder: Path,
    seed: int,
    *,
    rank: int = 8,
    modules: Mapping[str, tuple[int, int]] = ATTENTION,
    inside: str = "model.layers.{}.",
    scale: float = 0.3,
    **config: Any,
) -> str:
    """A random adapter of 30 layers, its modules with what each takes and gives.

    ``config`` is as of ``write_peft``.
    """
    random = np.random.default_rng(seed)
    found = {}
    for layer in range(30):
        for module, (takes, gives) in modules.items():
            name = f"{inside.format(layer)}{module}"
            if name not in found:  # a module of no layer is one
                a, b = (
                    random.normal(0, scale, (rank, takes)),
                    random.normal(0, scale, (gives, rank)),
                )
                found[name] = (a, b)
    facts = {
        "lora_alpha": rank,
        "task_type": "CAUSAL_LM",
        "target_modules": [module.rpartition(".")[2] for module in modules],
    }
    return write_peft(folder, found, **{**facts, **config})


def smollm2(
    folder: Path, seed: int, scale: float = 0.12, parts: tuple[str, ...] = ("q_proj", "k_proj")
) -> str:
    """A random adapter for SmolLM2-135M, strong enough that its effect is plain to see."""
    sizes = {"q_proj": 576, "k_proj": 192, "v_proj": 192, "o_proj": 576}
    modules = {f"self_attn.{part}": (576, sizes[part]) for part in parts}
    return noise(folder, seed, modules=modules, scale=scale, lora_alpha=16)
