"""A PEFT adapter as the GGUF file that llama.cpp loads beside a model.

Names come from llama.cpp's own map (the package ``gguf``), and what its converter does to a
model's weights is done to the adapter's: for Llama's kin the rows of query and key projections
change places, because llama.cpp turns neighbouring values of a head where Transformers turns
its halves. As W' = P W for such a permutation, and B A are rows of W, it is B whose rows move.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import shown
from .errors import ConfigurationError
from .peft import Pair, PeftAdapter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CONVERTED", "check_gguf", "write"]

# Architectures whose converter changes nothing of linear layers but this order of rows, by the
# names that GGUF gives them; those whose layers it splits, joins or transposes are left out.
_PERMUTED = frozenset(
    {
        *("llama", "mistral3", "granite", "granitemoe", "minicpm"),
        *("olmo", "arcee", "smollm3", "deepseek"),
    }
)
_PLAIN = frozenset(
    {
        *("qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3"),
        *("olmo2", "olmoe", "starcoder2", "stablelm", "command-r", "cohere2"),
        *("exaone", "exaone4", "seed_oss", "nemotron"),
    }
)
CONVERTED = _PERMUTED | _PLAIN
# Language models inside vision models carry one of these before their own names.
_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")


def write(adapter: PeftAdapter, base: dict[str, Any], path: Path) -> None:
    """Write an adapter for a model.

    Parameters
    ----------
    adapter : PeftAdapter
        What PEFT wrote.
    base : dict
        The header of the model's GGUF file, as ``nbinfer.gguf.read_header`` gives it.
    path : path
        Where the file goes; weights are float32, whatever they were.

    Raises
    ------
    ConfigurationError
        Where the adapter does not fit the model, or the architecture is not known here.
    """
    import gguf

    architecture = str(base.get("general.architecture"))
    targets = list(_targets(adapter, base, architecture))  # all is checked before a byte is written
    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        # llama.cpp scales by alpha / rank, and reads an alpha of 0 as "none".
        alpha = adapter.alpha or 1.0
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for pair, name, heads in targets:
            a, b = adapter.tensors.read(pair.a), adapter.tensors.read(pair.b)
            _check_finite(adapter, pair, a, b)
            if heads is not None:
                b = permuted(b, heads)
            if pair.scaling != alpha / pair.rank:
                b = b * (pair.scaling * pair.rank / alpha)
            writer.add_tensor(f"{name}.lora_a", a)
            writer.add_tensor(f"{name}.lora_b", b)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def permuted(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a projection in llama.cpp's order: (half, pair) of each head become (pair, half)."""
    outputs = rows.shape[0]
    halves = rows.reshape(heads, 2, outputs // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _check_finite(adapter: PeftAdapter, pair: Pair, *matrices: NDArray[np.float32]) -> None:
    import numpy as np

    if not all(np.isfinite(matrix).all() for matrix in matrices):
        raise adapter.refusal(f"the matrices of {pair.module} hold values that are no numbers")


def _targets(
    adapter: PeftAdapter, base: dict[str, Any], architecture: str
) -> Iterator[tuple[Pair, str, int | None]]:
    """Each pair with the tensor that it is for, and the heads by which its rows are permuted."""
    import gguf

    if architecture not in CONVERTED:
        raise adapter.refusal(
            f"adapters for models of the architecture {shown(architecture)} are not converted here",
            hint="convert it with llama.cpp's convert_lora_to_gguf.py, and give the .gguf file",
        )
    shapes = {name: shape for name, shape, _, _ in base["tensors"]}
    known = {text: arch for arch, text in gguf.MODEL_ARCH_NAMES.items()}
    layers = int(base.get(f"{architecture}.block_count", 0))
    names = gguf.get_tensor_name_map(known[architecture], layers)
    for pair in adapter.pairs:
        module = pair.module
        for prefix in _PREFIXES:
            if module.startswith(prefix):
                module = "model." + module.removeprefix(prefix)
                break
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None or name not in shapes:
            raise _another(adapter, f"it has weights for {pair.module}, which the model has not")
        if len(shapes[name]) != 2:
            raise adapter.refusal(f"{pair.module} is a layer of experts, which is not converted")
        for what, wanted, found in (
            ("takes", shapes[name][0], pair.inputs),
            ("gives", shapes[name][1], pair.outputs),
        ):
            if wanted != found:
                raise _another(
                    adapter, f"{pair.module} {what} {wanted} values and the adapter's {found}"
                )
        yield pair, name, _heads(base, architecture, name)


def _another(adapter: PeftAdapter, why: str) -> ConfigurationError:
    trained = f"; it was trained on {shown(adapter.trained_on)}" if adapter.trained_on else ""
    return adapter.refusal(f"it does not fit this model: {why}{trained}")


def _heads(base: dict[str, Any], architecture: str, name: str) -> int | None:
    _, _, rest = name.partition("blk.")
    layer, _, part = rest.partition(".")
    if architecture not in _PERMUTED or part not in ("attn_q.weight", "attn_k.weight"):
        return None
    heads: Any = base.get(f"{architecture}.attention.head_count")
    if part == "attn_k.weight":
        heads = base.get(f"{architecture}.attention.head_count_kv", heads)
    return int(heads[int(layer)] if isinstance(heads, list) else heads)


def check_gguf(path: Path, header: dict[str, Any], base: dict[str, Any]) -> None:
    """Refuse a GGUF file that is no LoRA adapter, or one for another model.

    Raises
    ------
    ConfigurationError
        With the first thing that does not fit.
    """
    name = repr(str(path))
    if header.get("general.type") != "adapter" or header.get("adapter.type") != "lora":
        raise ConfigurationError(
            f"{name} is a GGUF file, but no LoRA adapter",
            hint="an adapter is a folder as PEFT writes it, or what convert_lora_to_gguf.py makes",
        )
    ours, theirs = base.get("general.architecture"), header.get("general.architecture")
    if ours != theirs:
        raise ConfigurationError(
            f"the adapter at {name} is for models of the architecture {shown(theirs)}, "
            f"and this one is {shown(ours)}"
        )
    shapes = {tensor: shape for tensor, shape, _, _ in base["tensors"]}
    for tensor, shape, _, _ in header["tensors"]:
        module, _, side = tensor.rpartition(".lora_")
        if side not in ("a", "b") or module == "token_embd.weight":
            continue
        if module not in shapes:
            raise ConfigurationError(
                f"the adapter at {name} does not fit this model: it has weights for {module}, "
                "which the model has not"
            )
        ends = (shapes[module][0], shape[0]) if side == "a" else (shapes[module][1], shape[1])
        if ends[0] != ends[1]:
            what = "takes" if side == "a" else "gives"
            raise ConfigurationError(
                f"the adapter at {name} does not fit this model: {module} {what} {ends[0]} "
                f"values and the adapter's {ends[1]}"
            )
