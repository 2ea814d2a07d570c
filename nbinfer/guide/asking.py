"""What is asked of ``%memory``: engines, precisions, tokens, and which of them go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..checks import choices_hint, shown
from ..errors import ConfigurationError, ModelNotFound, UnsupportedParameter
from . import quantization
from .sources import Described

__all__ = [
    "ENGINES",
    "MOST_BATCH",
    "MOST_TOKENS",
    "check_context",
    "check_parallel",
    "chosen",
    "engines",
    "listed",
    "loadable",
    "tokens",
    "whole",
]

# What each loads: of 16 bits both kinds, and what it makes of them as it loads; 4 bits with vLLM
# are a checkpoint of AWQ or GPTQ.
ENGINES: dict[str, tuple[str, ...]] = {
    "vllm": ("bf16", "fp16", "fp32", "fp8", "4-bit"),
    "native": ("bf16", "fp16", "fp32", "8-bit", "4-bit"),
    "llamacpp": tuple(quantization.GGUF_TYPES),
}
# 16 bits, as a checkpoint's type is called and as a GGUF file's.
_SAME = {"bf16": "BF16", "fp16": "F16", "BF16": "bf16", "F16": "fp16"}
MOST_TOKENS = 2**30
MOST_BATCH = 65_536
_TOKENS = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([km]?)i?\s*", re.IGNORECASE)


def tokens(value: int | str) -> int:
    """A number of tokens: ``8192``, ``"8k"`` (8192), ``"128K"``, ``"1M"``.

    Raises
    ------
    ConfigurationError
        For anything else, 0 and negative numbers.
    """
    wrong = ConfigurationError(
        f"{shown(value)} is no number of tokens", hint='a context is like 8192, "8k" or "128k"'
    )
    if isinstance(value, str):
        match = _TOKENS.fullmatch(value)
        if match is None:
            raise wrong
        exact = float(match[1]) * 1024 ** {"": 0, "k": 1, "m": 2}[match[2].lower()]
        if exact != int(exact):
            raise wrong
        value = int(exact)
    if type(value) is not int or not 0 < value <= MOST_TOKENS:
        raise wrong
    return value


def whole(what: str, value: Any, most: int = MOST_BATCH) -> int:
    """A whole number from 1 to ``most``, also as text; ``ConfigurationError`` for another."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if type(value) is not int or not 0 < value <= most:
        raise ConfigurationError(
            f"{what} must be a whole number from 1 to {most:,}: {shown(value)}"
        )
    return value


def listed(value: Sequence[str] | str) -> list[str]:
    found = [value] if isinstance(value, str) else list(value)
    if not found:
        raise ConfigurationError("an empty list asks for nothing", hint="leave it out for all")
    return found


def engines(asked: Sequence[str] | str | None) -> list[str]:
    if asked is None:
        return list(ENGINES)
    for name in listed(asked):
        if name in ("remote-vllm", "sglang", "openai", "anthropic", "openai-compatible"):
            hint = "vllm computes what a vLLM server takes" if name == "remote-vllm" else None
            raise UnsupportedParameter(
                f"the memory of {name} is its server's, and is not computed here; engines that "
                f"can: {', '.join(ENGINES)}",
                parameter="engines",
                engine=name,
                engines=tuple(ENGINES),
                hint=hint,
            )
        if name not in ENGINES:
            raise ConfigurationError(
                f"no engine is called {shown(name)}", hint=choices_hint(str(name), ENGINES)
            )
    return list(dict.fromkeys(listed(asked)))


def check_context(found: Described, length: int | None) -> None:
    most = found.shape.context
    if length is not None and most is not None and length > most:
        raise ConfigurationError(
            f"{found.name} was made for {most:,} tokens, not for {length:,}",
            hint=f"context={most} is its longest",
        )


def check_parallel(found: Described, parallel: int, wanted: Any) -> None:
    heads = found.shape.heads
    if heads % parallel:
        divisors = [n for n in range(1, min(heads, 64) + 1) if heads % n == 0]
        raise ConfigurationError(
            f"{found.name} has {heads} attention heads, which {parallel} devices cannot share",
            hint=f"tensor_parallel_size may be {', '.join(map(str, divisors))}",
        )
    if parallel > 1 and wanted is not None and "llamacpp" in listed(wanted):
        able = tuple(name for name in ENGINES if name != "llamacpp")
        raise UnsupportedParameter(
            f"llamacpp has no tensor parallelism here; engines that can: {', '.join(able)}",
            parameter="tensor_parallel_size",
            engine="llamacpp",
            engines=able,
        )


def chosen(
    found: Described,
    engines: Sequence[str],
    wanted: Sequence[str] | None,
    *,
    asked: bool,
    parallel: int,
) -> list[tuple[str, str]]:
    """Engine and precision of each row, or the error that says why there is none."""
    chosen = []
    for engine in engines:
        if engine == "llamacpp" and parallel > 1:
            continue
        try:
            able = loadable(found, engine)
        except ModelNotFound:
            if asked:
                raise
            continue
        chosen += [(engine, p) for p in _usual(found, able) if wanted is None]
        same = [_SAME.get(p, p) if p not in able else p for p in wanted or ()]
        chosen += [(engine, p) for p in dict.fromkeys(same) if p in able]
    made = {p for _, p in chosen}
    missing = [p for p in wanted or () if p not in made and _SAME.get(p) not in made]
    if missing:
        able = tuple(name for name in ENGINES if missing[0] in _loadable(found, name))
        who = f"engines that can: {', '.join(able)}" if able else "no engine can"
        raise UnsupportedParameter(
            f"{', '.join(engines)} cannot load {found.name} in {missing[0]}; {who}",
            parameter="precisions",
            engine=engines[0],
            engines=able,
        )
    return chosen


def _usual(found: Described, able: Sequence[str]) -> Iterator[str]:
    return (p for p in able if p != "fp32" or found.precision == "fp32" or found.form == "gguf")


def _loadable(found: Described, engine: str) -> Sequence[str]:
    try:
        return loadable(found, engine)
    except ModelNotFound:
        return ()


def loadable(found: Described, engine: str) -> Sequence[str]:
    """What an engine can load of a model.

    Raises
    ------
    ModelNotFound
        Where it can load nothing of it.
    """
    from ..models import EMBEDDED

    if found.stored and found.precision is None and found.form == "safetensors":
        raise ModelNotFound(
            f"{found.name} is stored quantized ({found.stored}): nbinfer computes the memory of "
            "what it was made from",
            hint="name the model that it was made from, with precisions=['4-bit']",
        )
    if found.form != "gguf":
        return ENGINES[engine]
    if engine == "llamacpp":
        if found.precision is None:
            raise ModelNotFound(f"the header of {found.name} does not say its precision")
        return (found.precision,)
    if engine == "vllm" and found.name not in EMBEDDED:
        raise ModelNotFound(
            f"{found.name} is a GGUF file, which vllm does not load here",
            hint="engines that load it: llamacpp, native (dequantized)",
        )
    # Dequantized to float32, which a dtype or bitsandbytes then changes.
    return tuple(p for p in ENGINES[engine] if p not in ("fp8",))
