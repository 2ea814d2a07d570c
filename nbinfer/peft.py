"""A LoRA adapter as PEFT writes it: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import shown
from .errors import ConfigurationError, ModelNotFound
from .tensors import TensorFile

__all__ = ["CONFIG", "WEIGHTS", "Pair", "PeftAdapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Ways to begin a training that change the model's own weights too.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
_MATRIX = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight$")
# What an adapter may also be or hold, and what it is called: by the key of its config ...
_OTHER_KINDS = {
    "use_dora": "DoRA, which also scales each weight's norm",
    "lora_bias": "biases inside its matrices",
    "modules_to_save": "whole modules beside its matrices",
    "trainable_token_indices": "new embeddings of single tokens",
    "target_parameters": "matrices for the parameters of experts",
    "layer_replication": "layers that are used more than once",
    "alora_invocation_tokens": "an activated LoRA, which begins at certain tokens",
    "fan_in_fan_out": "layers whose weights lie transposed",
    "use_qalora": "QALoRA, which pools a layer's inputs",
    "use_bdlora": "block-diagonal matrices",
    "arrow_config": "Arrow, which chooses among adapters",
    "kasa_config": "KaSA, which also scales singular values",
}
# ... and by the names of its tensors.
_OTHER_PARTS = (
    ("lora_magnitude_vector", "DoRA, which also scales each weight's norm"),
    ("lora_embedding_", "matrices for embeddings"),
    ("embed_tokens", "embeddings"),
    ("lm_head", "an output layer"),
    ("bias", "biases"),
)


@dataclass(frozen=True)
class Pair:
    """The two matrices of one module: the weight becomes ``W + scaling · B A``.

    Attributes
    ----------
    module : str
        As Transformers names it: ``model.layers.0.self_attn.q_proj``.
    a, b : str
        The names of the tensors of shapes ``(rank, inputs)`` and ``(outputs, rank)``.
    rank, inputs, outputs : int
        Their sizes.
    scaling : float
        ``alpha / rank``, or ``alpha / sqrt(rank)`` for a rank-stabilised adapter
        (Kalajdzievski, 2023, arXiv:2312.03732).
    """

    module: str
    a: str
    b: str
    rank: int
    inputs: int
    outputs: int
    scaling: float


class PeftAdapter:
    """What a folder holds, checked: plain LoRA matrices of linear layers and nothing else.

    Parameters
    ----------
    folder : path
        With ``adapter_config.json`` and ``adapter_model.safetensors``.

    Attributes
    ----------
    alpha : float
        ``lora_alpha`` of the whole adapter.
    trained_on : str or None
        The model that its config names.

    Raises
    ------
    ModelNotFound
        Where the folder holds no adapter.
    ConfigurationError
        For another kind of adapter, or a damaged one; the message says what it has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = self._read_config()
        self.alpha = self._number("lora_alpha", 8)
        named = self._config.get("base_model_name_or_path")
        self.trained_on = named if isinstance(named, str) and named else None
        self.tensors = self._open()
        self.pairs = sorted(self._pairs(), key=lambda pair: pair.module)
        if not self.pairs:
            raise self.refusal("it has no LoRA matrices")

    def refusal(self, why: str, hint: str | None = None) -> ConfigurationError:
        """The error for this adapter."""
        return ConfigurationError(f"the adapter at {str(self.folder)!r}: {why}", hint=hint)

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelNotFound(
                f"no LoRA adapter at {str(self.folder)!r}: {CONFIG} cannot be read "
                f"({error.strerror})",
                hint=f"give a folder as PEFT writes it, with {CONFIG} and {WEIGHTS}",
            ) from None
        except (ValueError, RecursionError):
            raise self.refusal(f"{CONFIG} is no JSON") from None
        if not isinstance(config, dict):
            raise self.refusal(f"{CONFIG} is no JSON object")
        kind = config.get("peft_type", "LORA")
        if kind != "LORA":
            raise self.refusal(f"it is {shown(kind)}, and only LORA is taken")
        for key, what in _OTHER_KINDS.items():
            if config.get(key):
                raise self._beyond(what, f"{key}={shown(config[key])}")
        began = config.get("init_lora_weights")
        if isinstance(began, str) and began.lower().startswith(_CHANGED_BASE):
            raise self._beyond("a changed model as its base", f"init_lora_weights={shown(began)}")
        if config.get("bias", "none") != "none":
            raise self._beyond("biases", f"bias={shown(config['bias'])}")
        return config

    def _beyond(self, what: str, where: str) -> ConfigurationError:
        return self.refusal(
            f"it has {what} ({where}), which cannot be converted",
            hint="merge it into its model (merge_and_unload), or run it on native or vllm",
        )

    def _number(self, key: str, default: float) -> float:
        value = self._config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise self.refusal(f"{key} is {shown(value)} in {CONFIG}")
        return float(value)

    def _open(self) -> TensorFile:
        path = self.folder / WEIGHTS
        if not path.is_file():
            pickled = (self.folder / "adapter_model.bin").is_file()
            raise ModelNotFound(
                f"no {WEIGHTS} in {str(self.folder)!r}",
                hint="adapter_model.bin is a pickle, which can run code: save it again with "
                "safe_serialization=True"
                if pickled
                else None,
            )
        try:
            return TensorFile(path)
        except ValueError as error:
            raise self.refusal(f"{WEIGHTS}: {error}") from None
        except OSError as error:
            raise self.refusal(f"{WEIGHTS} cannot be read: {error.strerror}") from None

    def _pairs(self) -> Iterator[Pair]:
        found: dict[str, dict[str, str]] = {}
        for name in self.tensors.shapes:
            match = _MATRIX.match(name)
            if match is None:
                what = next((w for part, w in _OTHER_PARTS if part in name), "other weights")
                raise self._beyond(what, name[:120])
            found.setdefault(match[1], {})[match[2]] = name
        for module, sides in found.items():
            if len(sides) != 2:
                raise self.refusal(f"{module} has lora_{next(iter(sides))} alone")
            yield self._pair(module, sides["A"], sides["B"])

    def _pair(self, module: str, a: str, b: str) -> Pair:
        first, second = self.tensors.shapes[a], self.tensors.shapes[b]
        if len(first) != 2 or len(second) != 2 or first[0] != second[1] or not first[0]:
            raise self.refusal(
                f"{module} has lora_A of shape {first} and lora_B of shape {second}: "
                "their ranks do not meet"
            )
        rank = first[0]
        wanted = self._pattern("rank_pattern", module, self._config.get("r", rank))
        if wanted != rank:
            raise self.refusal(f"{CONFIG} gives {module} rank {shown(wanted)}, its matrices {rank}")
        alpha = float(self._pattern("alpha_pattern", module, self.alpha))
        over = math.sqrt(rank) if self._config.get("use_rslora") else rank
        return Pair(module, a, b, rank, first[1], second[0], alpha / over)

    def _pattern(self, key: str, module: str, default: Any) -> Any:
        """A module's own value, by PEFT's rule: the first pattern that its name ends with."""
        patterns = self._config.get(key) or {}
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error:
                raise self.refusal(f"{key} holds {shown(pattern)}, which is no pattern") from None
            if matches:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise self.refusal(f"{key} gives {shown(pattern)} the value {shown(value)}")
                return value
        return default
