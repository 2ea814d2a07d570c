"""A model's shape: what decides how much memory it takes, from a config or a GGUF header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import nearest, shown
from ..errors import ConfigurationError

__all__ = ["LEFT_OUT", "SUPPORTED", "Shape", "check_supported", "from_config", "from_gguf"]

# Architectures whose tensors are listed in ``tensors.py``: name in a config, name in llama.cpp.
SUPPORTED = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
# Every so many layers one attends to all tokens, in Transformers' configuration_gemma2.py and
# configuration_gemma3.py as in llama.cpp's (set_swa_pattern); a config's own layer_types win.
_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6}
# What Gemma 3's own configs leave out, as Transformers' configuration_gemma3.py fills it in.
LEFT_OUT: dict[str, dict[str, int]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    }
}
_MOST = 10**9  # of any size in a config: beyond it, it is damage


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes
    ----------
    kind : str
        ``model_type`` of its config, or llama.cpp's name of its architecture.
    layers, hidden, heads, kv_heads, head_dim, value_dim, intermediate, vocab : int
        As in a config: ``num_hidden_layers``, ``hidden_size``, ``num_attention_heads``,
        ``num_key_value_heads``, ``head_dim`` of keys and of values, ``intermediate_size``,
        ``vocab_size``.
    tied : bool
        Whether the embeddings are the output's weights too.
    context : int or None
        Tokens it was made for.
    window : int or None
        Tokens that a layer with a sliding window attends to.
    windowed : int
        How many layers have that window.
    latent : int or None
        MLA (DeepSeek): what is kept of a token in each layer, ``kv_lora_rank`` and
        ``qk_rope_head_dim`` together.
    experts : int
        Experts of a layer, 0 for none.
    config : mapping
        The config itself, for what only some architectures have; empty for a GGUF file.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    intermediate: int
    vocab: int
    tied: bool
    context: int | None
    window: int | None
    windowed: int
    latent: int | None
    experts: int
    config: Mapping[str, Any]


# ---------------------------------------------------------------------------- config.json


def from_config(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a ``config.json`` describes.

    Parameters
    ----------
    config : mapping
        As Transformers writes it. Of a model that also sees, its ``text_config`` counts.
    name : str
        The model's, for messages.

    Raises
    ------
    ConfigurationError
        For a field that is missing or no size, by name.
    """
    kind = config.get("model_type")
    text = config.get("text_config")
    if isinstance(text, Mapping):
        inherited = {k: config[k] for k in ("tie_word_embeddings",) if k in config}
        inner = {"model_type": f"{kind}_text", **inherited, **text}
        return from_config({**LEFT_OUT.get(inner["model_type"], {}), **inner}, name)
    if not isinstance(kind, str):
        raise _missing(name, "model_type")
    read = _Reader(config, name)
    heads, hidden = read.size("num_attention_heads"), read.size("hidden_size")
    layers = read.size("num_hidden_layers")
    head_dim = read.size("head_dim", -(-hidden // heads))
    latent = None
    if config.get("kv_lora_rank") is not None:
        latent = read.size("kv_lora_rank") + read.size("qk_rope_head_dim")
    window, windowed = _windows(read, kind, layers)
    return Shape(
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=read.size("num_key_value_heads", heads),
        head_dim=head_dim,
        value_dim=read.size("v_head_dim", head_dim) if latent else head_dim,
        intermediate=read.size("intermediate_size"),
        vocab=read.size("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
        context=read.size("max_position_embeddings", 0) or None,
        window=window,
        windowed=windowed,
        latent=latent,
        experts=next(
            (
                read.size(key)
                for key in ("num_local_experts", "num_experts", "n_routed_experts")
                if config.get(key) is not None
            ),
            0,
        ),
        config=config,
    )


class _Reader:
    """Sizes of a config, or the error that names the field."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self.config, self._name = config, name

    def size(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise _missing(self._name, key)
            return default
        if type(value) is not int or not 0 < value <= _MOST:
            raise ConfigurationError(f"the config of {self._name} has {key}={shown(value)}")
        return value


def _missing(name: str, key: str) -> ConfigurationError:
    return ConfigurationError(
        f"the config of {_called(name)} has no {key}: its memory cannot be computed",
        hint="a config.json as Transformers writes it has every size, or a GGUF file's header",
    )


def _called(name: str) -> str:
    """A model's name as a message shows it."""
    return name if len(name) <= 120 else shown(name)


def _windows(read: _Reader, kind: str, layers: int) -> tuple[int | None, int]:
    """The sliding window and how many layers have it.

    Qwen's configs carry a ``sliding_window`` that ``use_sliding_window`` turns off.
    """
    config = read.config
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return None, 0
    window, types = read.size("sliding_window"), config.get("layer_types")
    if kind.startswith("qwen") and not config.get("use_sliding_window"):
        return None, 0
    if isinstance(types, list):
        return window, sum(t == "sliding_attention" for t in types[:layers])
    pattern = config.get("sliding_window_pattern") or _PATTERNS.get(kind)
    if type(pattern) is int and pattern > 0:
        return window, layers - layers // pattern
    return window, layers


# ---------------------------------------------------------------------------- GGUF header


def from_gguf(header: Mapping[str, Any], name: str) -> Shape:
    """The shape that a GGUF header describes.

    Parameters
    ----------
    header : mapping
        What ``gguf.read_header`` returns.
    name : str
        The model's, for messages.

    Raises
    ------
    ConfigurationError
        For a key that is missing or no size, by name.
    """
    kind = header.get("general.architecture")
    if not isinstance(kind, str):
        raise _missing(name, "general.architecture")
    values = {k.removeprefix(f"{kind}."): v for k, v in header.items() if k.startswith(f"{kind}.")}
    read = _Reader(values, name)
    layers, hidden = read.size("block_count"), read.size("embedding_length")
    per_layer = values.get("attention.head_count_kv")
    if isinstance(per_layer, list):  # one for each layer: their mean counts
        counts = [n for n in per_layer[:layers] if type(n) is int and n >= 0]
        values["attention.head_count_kv"] = max(1, sum(counts) // max(1, len(counts)))
    heads = read.size("attention.head_count")
    head_dim = read.size("attention.key_length", hidden // heads)
    latent = None
    if values.get("attention.kv_lora_rank") is not None:
        latent = read.size("attention.kv_lora_rank") + read.size("rope.dimension_count")
    window = windowed = None
    if kind in _PATTERNS and values.get("attention.sliding_window") is not None:
        window = read.size("attention.sliding_window")
        windowed = layers - layers // _PATTERNS[kind]
    tensors = {t[0]: t[1] for t in header.get("tensors", ())}
    embedding = tensors.get("token_embd.weight", (hidden, read.size("vocab_size", 1)))
    return Shape(
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=read.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        value_dim=read.size("attention.value_length", head_dim),
        intermediate=read.size("feed_forward_length", 4 * hidden),
        vocab=int(embedding[-1]),
        tied="output.weight" not in tensors,
        context=read.size("context_length", 0) or None,
        window=window,
        windowed=windowed or 0,
        latent=latent,
        experts=read.size("expert_count", 0),
        config={},
    )


def check_supported(shape: Shape, name: str) -> None:
    """Refuse to count the tensors of an architecture that is not known here."""
    if shape.kind not in SUPPORTED:
        near = nearest(shape.kind, SUPPORTED)
        raise ConfigurationError(
            f"{_called(name)} is a {shown(shape.kind)}, whose weights cannot be computed from "
            "its config alone",
            hint=f"give its files (a folder, a hub id or a .gguf): their headers are read. Known "
            f"from configs: {', '.join(SUPPORTED)}" + (f"; nearest: {near}" if near else ""),
        )
