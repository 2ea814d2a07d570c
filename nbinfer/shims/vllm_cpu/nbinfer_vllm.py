"""Run at each start of this environment's Python: keeps a LoRA adapter to the rows that ask for it.

In a batch of rows with adapters and without, vLLM gives a row without one the index -1. Its
kernels for GPUs pass such rows over; those in plain torch, for the CPU, take the weights at that
index, which are the last slot's: as soon as as many adapters are in use as there are slots, the
rows without one are answered with the last of them, in silence. Here what such a row takes from
an adapter is nothing. This can go when ``vllm/lora/ops/torch_ops/lora_ops.py`` heeds -1.
"""

import sys
from types import ModuleType
from typing import Any

from nbinfer_torchvision import Finder  # type: ignore[import-not-found]


def heed_none(module: ModuleType) -> None:
    """Empty the rows of no adapter between an adapter's two products, the second of which is then
    empty too.
    """
    shrink = module.bgmv_shrink

    def bgmv_shrink(
        inputs: Any, weights: Any, output_tensor: Any, indices: Any, scaling: float = 1.0
    ) -> None:
        shrink(inputs, weights, output_tensor, indices, scaling)
        output_tensor[indices < 0] = 0

    module.bgmv_shrink = bgmv_shrink  # type: ignore[attr-defined]


sys.meta_path.insert(0, Finder("vllm.lora.ops.torch_ops.lora_ops", heed_none))
