"""Run at each start of this environment's Python: lets SGLang be imported without a GPU.

Two things are done, each when the module that needs it has been imported.

SGLang imports torchvision whatever the model. PyPI's torchvision is built for the CUDA torch: its
library of operators cannot be loaded beside a CPU torch, and the import then fails, not for want
of those operators, but because two are given shapes that nobody has declared. They are declared
here, without an implementation: whoever calls one gets NotImplementedError. Nothing is declared
where torchvision's own library was loaded, as in the build of PyTorch's CPU index. This can go
when PyPI's torchvision can be imported without its library, or when SGLang imports it for models
that see images alone.

SGLang's LoRA has a backend in plain torch, ``--lora-backend torch_native``, and asks for pinned
memory whatever the device, which torch refuses where there is no accelerator to copy to. Here
what would be pinned is ordinary memory then. This can go when ``srt/lora`` asks
``is_pin_memory_available()`` in ``layers.py``, ``lora.py`` and ``backend/torch_backend.py``, as
it does in ``mem_pool.py``.
"""

import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
libraries: list[Any] = []  # torch forgets what a library has declared when that is collected


class Finder(MetaPathFinder):
    """Finds one module where Python would, and has something done after it has run."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The module's own spec, with more to do for its loader."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def declare(_: ModuleType) -> None:
    """Declare the operators that are not there."""
    torch = sys.modules["torch"]
    for operator in OPERATORS:
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(operator)
            libraries.append(library)


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


# The first loads torchvision's library, before any other module of it asks for an operator.
sys.meta_path[:0] = [
    Finder("torchvision.extension", declare),
    Finder("sglang.srt.lora.layers", unpin),
    Finder("sglang.srt.lora.backend.torch_backend", unpin),
]
# SGLang takes a machine for a CPU server only when it is told so, and reads this as it is imported.
os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
