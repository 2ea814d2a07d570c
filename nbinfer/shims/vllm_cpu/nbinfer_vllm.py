"""Run at each start of this environment's Python: keeps a LoRA adapter to the rows that ask for it.

In a batch of rows with adapters and without, vLLM gives a row without one the index -1. Its
kernels for GPUs pass such rows over; those in plain torch, for the CPU, take the weights at that
index, which are the last slot's: as soon as as many adapters are in use as there are slots, the
rows without one are answered with the last of them, in silence. Here what such a row takes from
an adapter is nothing. For the log probabilities of a prompt they get fewer indices than rows, by
which the engine can end. This can go when ``vllm/lora/ops/torch_ops/lora_ops.py`` heeds -1 and
``LogitsProcessorWithLoRA`` tells whose tokens it scores.
"""

import sys
from types import ModuleType
from typing import Any

from nbinfer_torchvision import Finder  # type: ignore[import-not-found]


def for_rows(indices: Any, weights: Any, rows: int) -> Any:
    """An index for each row.

    For the log probabilities of a prompt vLLM scores its tokens with the indices of the batch's
    requests. Where these are all the same it is meant; else no adapter must change the scores.
    """
    if len(indices) == rows:
        return indices
    used = indices.unique()
    if len(used) == 1:
        return used.expand(rows)
    if weights[used[used >= 0]].any():
        raise RuntimeError(
            "log probabilities of a prompt, beside requests of other adapters, cannot be had with "
            "an adapter that changes the output layer"
        )
    return indices.new_full((rows,), -1)


def heed_none(module: ModuleType) -> None:
    """Empty the rows of no adapter between an adapter's two products, the second of which is then
    empty too.
    """
    shrink, expand = module.bgmv_shrink, module.bgmv_expand

    def bgmv_shrink(
        inputs: Any, weights: Any, output_tensor: Any, indices: Any, scaling: float = 1.0
    ) -> None:
        indices = for_rows(indices, weights, len(inputs))
        shrink(inputs, weights, output_tensor, indices, scaling)
        output_tensor[indices < 0] = 0

    def bgmv_expand(
        inputs: Any, weights: Any, output_tensor: Any, indices: Any, add_inputs: bool = True
    ) -> None:
        expand(inputs, weights, output_tensor, for_rows(indices, weights, len(inputs)), add_inputs)

    module.bgmv_shrink = bgmv_shrink  # type: ignore[attr-defined]
    module.bgmv_expand = bgmv_expand  # type: ignore[attr-defined]


sys.meta_path.insert(0, Finder("vllm.lora.ops.torch_ops.lora_ops", heed_none))
