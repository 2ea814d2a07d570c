"""From a load message to a Transformers model, with errors that say what to do."""

from __future__ import annotations

import os

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from nbinfer.worker.backends import _vision

DTYPES = {
    **dict.fromkeys(("float32", "float", "f32"), torch.float32),
    **dict.fromkeys(("float16", "half", "f16"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float64", "double", "f64"), torch.float64),
}
BITS = ("load_in_4bit", "load_in_8bit")


def load_tokenizer(model):
    """The tokenizer of a load message, padding on the left."""
    place, options = _place(model)
    if model.get("tokenizer"):
        place, options = model["tokenizer"], {}
    options = {**options, **(model.get("tokenizer_kwargs") or {}), "padding_side": "left"}
    trust = bool(model.get("trust_remote_code"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust, **options)
    except Exception as error:
        raise ValueError(_worded(error, "its tokenizer", place)) from error
    if model.get("chat_template"):
        tokenizer.chat_template = model["chat_template"]
    return tokenizer


def load_model(model, options):
    """The model of a load message; ``options`` are the user's ``model_kwargs``."""
    place, arguments = _place(model)
    dtype = model.get("dtype") or "auto"
    arguments["dtype"] = DTYPES.get(dtype, "auto")
    for name in ("attn_implementation", "device_map"):
        if model.get(name) is not None:
            arguments[name] = model[name]
    parallel = "distributed_config" in options
    if "device_map" not in arguments and torch.cuda.is_available() and not parallel:
        arguments["device_map"] = "auto"
    quantization = _quantization(options)
    if quantization is not None:
        arguments["quantization_config"] = quantization
    trust = bool(model.get("trust_remote_code"))
    try:
        loader = AutoModelForCausalLM
        if "gguf_file" not in arguments:
            config = AutoConfig.from_pretrained(place, trust_remote_code=trust)
            loader = AutoModelForImageTextToText if _vision.sees(config) else loader
        loaded = loader.from_pretrained(place, trust_remote_code=trust, **arguments, **options)
    except Exception as error:
        raise ValueError(_worded(error, "the model", place)) from error
    return loaded.eval()


def _place(model):
    path = model["path"]
    if os.path.isdir(path):
        return path, {}
    return os.path.dirname(path), {"gguf_file": os.path.basename(path)}


def _quantization(options):
    """What bitsandbytes is to do, out of ``load_in_4bit`` and its like; they leave ``options``."""
    given = {k: options.pop(k) for k in list(options) if k in BITS or k.startswith("bnb_")}
    given.update({k: options.pop(k) for k in list(options) if k.startswith("llm_int8_")})
    config = options.get("quantization_config")
    if not any(given.get(k) for k in BITS):
        if (
            isinstance(config, dict)
            and config.get("quant_method", "bitsandbytes") == "bitsandbytes"
        ):
            return BitsAndBytesConfig(
                **{
                    k: v
                    for k, v in options.pop("quantization_config").items()
                    if k != "quant_method"
                }
            )
        return None
    if given.get("load_in_4bit"):
        given.setdefault("bnb_4bit_quant_type", "nf4")
    return BitsAndBytesConfig(**given)


def precision(model):
    """What the weights are in, in a word: ``"float32"``, ``"4-bit nf4"``, ``"8-bit"``."""
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is None or not getattr(model, "is_quantized", False):
        return str(model.dtype).removeprefix("torch.")
    given = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if given.get("load_in_4bit"):
        return f"4-bit {given.get('bnb_4bit_quant_type', '')}".strip()
    if given.get("load_in_8bit"):
        return "8-bit"
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method")))
    # A GGUF's weights are dequantized as they are read.
    return str(model.dtype).removeprefix("torch.") if method == "gguf" else method


def _worded(error, what, place):
    """One or two lines: what could not be loaded, why, and what to do."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if name == "SafetensorError":
        return f"a weights file in {place!r} is broken ({text}): fetch it again"
    if "trust_remote_code" in text:
        return (
            f"{place!r} brings Python code of its own, which nbinfer does not run unasked: read "
            "it, then load with ModelParams(trust_remote_code=True)"
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return (
            f"Transformers {transformers.__version__} does not know this architecture: {text[:300]}"
        )
    if "unexpected keyword argument" in text:
        option = text.rpartition("argument")[2].strip(" '")
        return f"model_kwargs has {option!r}, which neither Transformers nor this model takes"
    if what == "its tokenizer" and name in ("OSError", "ValueError", "TypeError", "AttributeError"):
        return (
            f"no usable tokenizer in {place!r} ({text[:300]}): put its tokenizer.json there, or "
            "name another folder in ModelParams(tokenizer_name=...)"
        )
    return f"{what} of {place!r} could not be loaded: {name}: {text[:500]}"
