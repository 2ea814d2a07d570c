"""Every weight of the well-known architectures, from their config alone.

The lists follow Transformers' ``modeling_<model_type>.py`` (``tests/unit/test_memory.py`` holds
them to it, on the meta device) and have llama.cpp's names, which its quantization goes by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .shapes import Shape, check_supported

__all__ = ["Tensor", "parameters", "tensors", "vision_parameters"]


@dataclass(frozen=True)
class Tensor:
    """One tensor: llama.cpp's name, its layer, and its sizes with the row's length first.

    ``linear`` tells the weights of a layer's linear maps: what 8-bit, 4-bit and fp8 quantize.
    ``stored`` is its type in the GGUF file that was read.
    """

    name: str
    layer: int | None
    sizes: tuple[int, ...]
    linear: bool = False
    stored: str | None = None

    @property
    def count(self) -> int:
        """Its parameters."""
        return math.prod(self.sizes)

    @property
    def rows(self) -> int:
        """Its rows: output features, of all experts."""
        return math.prod(self.sizes[1:])


def parameters(shape: Shape) -> int:
    """All parameters of the language model."""
    return sum(tensor.count for tensor in tensors(shape))


def tensors(shape: Shape, name: str = "this model") -> list[Tensor]:
    """The weights of a model.

    Raises
    ------
    ConfigurationError
        For an architecture that is not listed here.
    """
    check_supported(shape, name)
    found = [Tensor("token_embd.weight", None, (shape.hidden, shape.vocab))]
    for layer in range(shape.layers):
        for tensor in (*_attention(shape), *_mlp(shape, layer), *_norms(shape)):
            label, sizes, linear = tensor
            found.append(Tensor(f"blk.{layer}.{label}", layer, sizes, linear))
    found.append(Tensor("output_norm.weight", None, (shape.hidden,)))
    if not shape.tied:
        found.append(Tensor("output.weight", None, (shape.hidden, shape.vocab)))
    return found


_Part = tuple[str, tuple[int, ...], bool]


def _linear(label: str, width: int, *rows: int, bias: bool = False) -> Iterator[_Part]:
    yield f"{label}.weight", (width, *rows), True
    if bias:
        yield f"{label}.bias", rows, False


def _norms(shape: Shape) -> Iterator[_Part]:
    names = ["attn_norm", "ffn_norm"]
    if shape.kind.startswith("gemma"):
        names += ["post_attention_norm", "post_ffw_norm"]
    for name in names:
        yield f"{name}.weight", (shape.hidden,), False


def _attention(shape: Shape) -> Iterator[_Part]:
    if shape.latent is not None:
        yield from _latent_attention(shape)
        return
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    bias = shape.kind in ("qwen2", "qwen2_moe") or bool(shape.config.get("attention_bias"))
    if shape.kind == "phi3":
        yield from _linear("attn_qkv", shape.hidden, queries + 2 * keys)
    else:
        yield from _linear("attn_q", shape.hidden, queries, bias=bias)
        yield from _linear("attn_k", shape.hidden, keys, bias=bias)
        yield from _linear("attn_v", shape.hidden, keys, bias=bias)
    # Qwen 2 has a bias on queries, keys and values alone.
    output_bias = bias and not shape.kind.startswith("qwen2")
    yield from _linear("attn_output", queries, shape.hidden, bias=output_bias)
    if shape.kind in ("qwen3", "qwen3_moe", "gemma3_text"):
        yield "attn_q_norm.weight", (shape.head_dim,), False
        yield "attn_k_norm.weight", (shape.head_dim,), False


def _latent_attention(shape: Shape) -> Iterator[_Part]:
    """DeepSeek's: keys and values are made of one small vector for each token (MLA)."""
    size: Mapping[str, Any] = shape.config
    rank, turned, plain = size["kv_lora_rank"], size["qk_rope_head_dim"], size["qk_nope_head_dim"]
    queries = shape.heads * (plain + turned)
    if size.get("q_lora_rank"):
        yield from _linear("attn_q_a", shape.hidden, size["q_lora_rank"])
        yield "attn_q_a_norm.weight", (size["q_lora_rank"],), False
        yield from _linear("attn_q_b", size["q_lora_rank"], queries)
    else:
        yield from _linear("attn_q", shape.hidden, queries)
    yield from _linear("attn_kv_a_mqa", shape.hidden, rank + turned)
    yield "attn_kv_a_norm.weight", (rank,), False
    # llama.cpp has these two apart, and so quantizes them as it does what has no rule.
    yield from _linear("attn_k_b", plain, rank, shape.heads)
    yield from _linear("attn_v_b", rank, shape.value_dim, shape.heads)
    yield from _linear("attn_output", shape.heads * shape.value_dim, shape.hidden)


def _mlp(shape: Shape, layer: int) -> Iterator[_Part]:
    hidden = shape.hidden
    if not _has_experts(shape, layer):
        if shape.kind == "phi3":
            yield from _linear("ffn_up", hidden, 2 * shape.intermediate)
        else:
            yield from _linear("ffn_gate", hidden, shape.intermediate)
            yield from _linear("ffn_up", hidden, shape.intermediate)
        yield from _linear("ffn_down", shape.intermediate, hidden)
        return
    size = shape.config
    width = size.get("moe_intermediate_size") or shape.intermediate
    yield "ffn_gate_inp.weight", (hidden, shape.experts), False
    if shape.kind == "deepseek_v3":
        yield "exp_probs_b.bias", (shape.experts,), False
    yield from _linear("ffn_gate_exps", hidden, width, shape.experts)
    yield from _linear("ffn_up_exps", hidden, width, shape.experts)
    yield from _linear("ffn_down_exps", width, hidden, shape.experts)
    shared = size.get("shared_expert_intermediate_size") or 0
    if shape.kind == "qwen2_moe" and shared:
        yield "ffn_gate_inp_shexp.weight", (hidden,), False
    elif size.get("n_shared_experts"):
        shared = size["n_shared_experts"] * width
    if shared:
        yield from _linear("ffn_gate_shexp", hidden, shared)
        yield from _linear("ffn_up_shexp", hidden, shared)
        yield from _linear("ffn_down_shexp", shared, hidden)


def _has_experts(shape: Shape, layer: int) -> bool:
    if not shape.experts:
        return False
    size = shape.config
    if layer < (size.get("first_k_dense_replace") or 0):
        return False
    if layer in (size.get("mlp_only_layers") or ()):
        return False
    return (layer + 1) % (size.get("decoder_sparse_step") or 1) == 0


def vision_parameters(config: Mapping[str, Any], hidden: int) -> int:
    """Parameters of the tower that sees, SigLIP with Gemma 3's projector; 0 without one.

    Transformers' ``modeling_siglip.py`` and ``modeling_gemma3.py``.
    """
    tower = config.get("vision_config")
    if config.get("model_type") != "gemma3" or not isinstance(tower, Mapping):
        return 0
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    patch, image = tower["patch_size"], tower["image_size"]
    layer = 4 * (width + 1) * width + (width + 1) * inner + (inner + 1) * width + 4 * width
    embeddings = (3 * patch * patch + 1) * width + (image // patch) ** 2 * width
    projector = width * hidden + width
    return int(embeddings + tower["num_hidden_layers"] * layer + 2 * width + projector)
