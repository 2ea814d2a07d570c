"""Bytes of a model's weights in each precision, tensor by tensor.

GGUF's k-quants and i-quants mix types: which tensor gets which is decided by llama.cpp's
``src/llama-quant.cpp`` (``llama_tensor_get_type_impl``, ``tensor_allows_quantization``,
``tensor_type_fallback``), which ``gguf_type`` follows, with an importance matrix for the types
that need one. ``tests/unit/test_memory.py`` holds it to the headers of real files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from .. import gguf
from ..checks import nearest, shown
from ..errors import ConfigurationError
from .shapes import SUPPORTED, Shape
from .tensors import Tensor

__all__ = ["GGUF_TYPES", "PRECISIONS", "check", "gguf_type", "weights_bytes"]

# Of a plain precision: bytes of a weight.
_PLAIN = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
# How bits of a layer's linear maps are stored; embeddings, norms and the output stay 16 bits.
#   fp8    one byte, and a scale for each tensor or row (vLLM, config/quantization.py)
#   8-bit  one byte, and a float32 for each row (bitsandbytes, Linear8bitLt's SCB)
#   4-bit  half a byte, and a float32 for each block of 64 (bitsandbytes, quantize_4bit's absmax)
_QUANTIZED: dict[str, Callable[[Tensor], float]] = {
    "fp8": lambda tensor: tensor.count + 4 * tensor.rows,
    "8-bit": lambda tensor: tensor.count + 4 * tensor.rows,
    "4-bit": lambda tensor: tensor.count * (1 / 2 + 4 / 64),
}
# vLLM makes no 4 bits while it loads: it takes checkpoints of AWQ or GPTQ, by default half a byte
# and, for each group of 128, a float16 scale and a zero of 4 bits (arXiv:2306.00978).
_AWQ_BYTES = 1 / 2 + 2.5 / 128
PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "8-bit", "4-bit")

# A file's type: the type of most of its tensors (llama_ftype_get_default_type).
GGUF_TYPES = {
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1",
    "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_1": "Q4_1",
    "Q4_0": "Q4_0",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "IQ3_M": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_XXS": "IQ3_XXS",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "IQ2_M": "IQ2_S",
    "IQ2_S": "IQ2_XS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_XXS": "IQ2_XXS",
    "IQ1_M": "IQ1_M",
    "IQ1_S": "IQ1_S",
}
# Of a model with eight experts: what attention's output is stored better than.
_SMALL = frozenset(
    {"Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"}
    | {"IQ3_S", "IQ3_M"}
)
_LOW = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")


def check(name: str) -> str:
    """The precision as it is called here.

    Raises
    ------
    ConfigurationError
        For another, with the nearest.
    """
    if name in GGUF_TYPES:  # BF16 is a GGUF type, and bf16 is none
        return name
    known = {known.casefold(): known for known in (*GGUF_TYPES, *PRECISIONS)}
    plain = name.strip().casefold() if isinstance(name, str) else ""
    other = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "fp4": "4-bit"}
    plain = other.get(plain, plain)
    for bits in ("8", "4"):
        if plain in (f"{bits}bit", f"int{bits}", f"load_in_{bits}bit"):
            plain = f"{bits}-bit"
    if plain not in known:
        near = nearest(plain, known)
        guess = f"did you mean {known[near]!r}? " if near else ""
        raise ConfigurationError(
            f"no precision is called {shown(name)}",
            hint=f"{guess}There are: {', '.join(known.values())}",
        )
    return known[plain]


def weights_bytes(
    shape: Shape, found: Sequence[Tensor], precision: str, engine: str = "native"
) -> int:
    """Bytes that the weights take in a precision, as an engine makes it.

    bitsandbytes in Transformers takes ``nn.Linear`` alone (``integrations/bitsandbytes.py``), and
    a layer's experts are one parameter there: with ``native`` they stay in 16 bits.
    """
    if precision in GGUF_TYPES:
        kinds = _Chooser(shape, found, precision)
        return sum(gguf.stored_bytes(kinds.of(tensor), tensor.sizes) for tensor in found)
    if precision in _PLAIN:
        return int(sum(tensor.count for tensor in found) * _PLAIN[precision])
    quantized = _QUANTIZED[precision]
    if precision == "4-bit" and engine == "vllm":
        return int(sum(t.count * (_AWQ_BYTES if t.linear else 2) for t in found))
    apart = engine == "native" and precision != "fp8"
    return int(
        sum(
            2 * t.count if not t.linear or (apart and "_exps" in t.name) else quantized(t)
            for t in found
        )
    )


def gguf_type(shape: Shape, found: Sequence[Tensor], precision: str) -> dict[str, str]:
    """The type of each tensor, by its name, in a GGUF file of a type such as ``"Q4_K_M"``."""
    kinds = _Chooser(shape, found, precision)
    return {tensor.name: kinds.of(tensor) for tensor in found}


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _category(name: str) -> str:
    for part in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return "attn_v" if part in ("attn_qkv", "attn_kv_b") else part
    match = re.search(r"ffn_(up|gate|down)", name)
    return match[0] if match else "other"


class _Chooser:
    """llama.cpp's choice of a type for each tensor of a file."""

    def __init__(self, shape: Shape, found: Iterable[Tensor], precision: str) -> None:
        self.file, self.base = precision, GGUF_TYPES[precision]
        self.layers, self.experts = shape.layers, shape.experts
        self.grouped = shape.heads // shape.kv_heads
        self.tied = all(tensor.name != "output.weight" for tensor in found)
        # LLM_TYPE_70B: what has eighty layers, and grouped queries where it is a Llama.
        arch = SUPPORTED.get(shape.kind, shape.kind)
        self.seventy = shape.layers == 80 and (
            arch == "qwen2" or (arch == "llama" and self.grouped > 1)
        )

    def of(self, tensor: Tensor) -> str:
        name = tensor.name
        if len(tensor.sizes) < 2 or "ffn_gate_inp" in name or not name.endswith("weight"):
            return "F32"  # as it was converted
        if self.base in ("F16", "BF16"):
            return self.base
        kind = self.base
        if name == "output.weight" or (name == "token_embd.weight" and self.tied):
            kind = self._output(tensor)
        elif name == "token_embd.weight":
            kind = self._embeddings()
        elif self.file in _LOW:
            kind = self._low(_category(name), tensor.layer or 0)
        else:
            kind = self._usual(name, tensor.layer or 0)
        return self._fitting(kind, tensor.sizes[0])

    def _output(self, tensor: Tensor) -> str:
        elements, _ = gguf.block(self.base)
        if tensor.sizes[0] % elements:
            return "Q8_0"
        if self.file in (*_LOW, "IQ3_XXS"):
            return "Q5_K"
        return "Q8_0" if self.base == "Q8_0" else "Q6_K"

    def _embeddings(self) -> str:
        if self.file in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
            return "Q2_K"
        return "IQ3_S" if self.file in ("IQ2_S", "IQ2_M", "IQ3_XXS") else self.base

    def _low(self, category: str, layer: int) -> str:
        """Files of one and two bits."""
        better = "IQ3_S" if self.file in ("IQ2_S", "IQ2_M") else "Q2_K"
        if category == "attn_v":
            return "Q4_K" if self.grouped >= 4 or self.experts >= 4 else better
        if category == "attn_k" and self.experts == 8:
            return "Q4_K"
        if category == "ffn_down" and layer < self.layers // 8:
            return better
        if category == "attn_output":
            if self.experts == 8:
                return "Q5_K"
            if self.file in ("IQ1_S", "IQ1_M"):
                return "IQ2_XXS"
            return "IQ3_S" if self.file in ("IQ2_S", "IQ2_M") else self.base
        return self.base

    def _usual(self, name: str, layer: int) -> str:
        category = _category(name)
        if category == "attn_v":
            return self._values(layer)
        if category in ("attn_k", "attn_q"):
            if category == "attn_k" and self.experts == 8:
                return "Q8_0"
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.file, self.base)
        if category == "attn_output":
            return self._attention_output()
        if category == "ffn_down":
            return self._down(layer)
        middle = self.layers // 8 <= layer < 7 * self.layers // 8
        if category in ("ffn_gate", "ffn_up") and self.file == "IQ3_XS" and middle:
            return "IQ3_XXS"
        return self.base

    def _values(self, layer: int) -> str:
        file, kind, grouped = self.file, self.base, self.grouped >= 4
        if file == "Q2_K":
            kind = "Q4_K" if grouped else "Q3_K"
        elif (file in ("Q2_K_S", "IQ3_XS", "IQ3_S", "IQ3_XXS") and grouped) or file == "IQ3_M":
            kind = "Q4_K"
        elif file == "Q3_K_M":
            kind = "Q5_K" if layer < 2 else "Q4_K"
        elif file == "Q3_K_L" or (file in ("IQ4_NL", "IQ4_XS") and grouped):
            kind = "Q5_K"
        elif file in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, self.layers):
            kind = "Q6_K"
        elif file == "Q4_K_S" and layer < 4:
            kind = "Q5_K"
        if self.seventy and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.experts == 8 else kind

    def _attention_output(self) -> str:
        if self.experts == 8:
            return "Q5_K" if self.file in _SMALL else self.base
        better = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
        return {**better, "IQ3_M": "Q4_K"}.get(self.file, self.base)

    def _down(self, layer: int) -> str:
        file, layers = self.file, self.layers
        first, more = layer < layers // 8, _more_bits(layer, layers)
        if file == "Q2_K":
            return "Q3_K"
        if file == "Q3_K_M":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        if file == "Q3_K_L":
            return "Q5_K"
        if file in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if more else self.base
        if file == "IQ3_M" and (first or (self.experts == 8 and more)):
            return "Q4_K"
        if file == "Q2_K_S" and first:
            return "Q4_K"
        return "Q5_K" if file == "Q4_K_S" and first else self.base

    @staticmethod
    def _fitting(kind: str, width: int) -> str:
        """Another type where a row is no whole number of blocks (tensor_type_fallback)."""
        if width % gguf.block(kind)[0] == 0:
            return kind
        smaller = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
        found = smaller.get(kind, "IQ4_NL")
        return found if width % gguf.block(found)[0] == 0 else "F16"
