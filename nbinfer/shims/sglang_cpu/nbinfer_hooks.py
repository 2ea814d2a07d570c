"""Run at each start of this environment's Python: lets SGLang run without a GPU.

What it imports of torchvision is seen to by ``torchvision_cpu``, and what of CUDA's kernels by
``sgl_kernel`` beside this file.

SGLang's LoRA has a backend in plain torch, ``--lora-backend torch_native``, and asks for pinned
memory whatever the device, which torch refuses where there is no accelerator to copy to. Here
what would be pinned is ordinary memory then. This can go when ``srt/lora`` asks
``is_pin_memory_available()`` in ``layers.py``, ``lora.py`` and ``backend/torch_backend.py``, as
it does in ``mem_pool.py``.
"""

import os
import sys
from types import ModuleType
from typing import Any

from nbinfer_torchvision import Finder  # type: ignore[import-not-found]


class Unpinned(ModuleType):
    """torch for one module: its tensors are made in memory that is not pinned."""

    def __init__(self, torch: ModuleType) -> None:
        super().__init__(torch.__name__)
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def tensor(self, *given: Any, pin_memory: bool = False, **more: Any) -> Any:  # noqa: ARG002
        return self._torch.tensor(*given, **more)

    def zeros(self, *given: Any, pin_memory: bool = False, **more: Any) -> Any:  # noqa: ARG002
        return self._torch.zeros(*given, **more)


def unpin(module: ModuleType) -> None:
    """Leave out what is for copies to a GPU, where there is none."""
    torch = sys.modules["torch"]
    if torch.accelerator.is_available():
        return
    module.torch = Unpinned(torch)  # type: ignore[attr-defined]
    torch.Tensor.pin_memory = lambda tensor, *_: tensor


sys.meta_path[:0] = [
    Finder("sglang.srt.lora.layers", unpin),
    Finder("sglang.srt.lora.backend.torch_backend", unpin),
]
# SGLang takes a machine for a CPU server only when it is told so, and reads this as it is imported.
os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
