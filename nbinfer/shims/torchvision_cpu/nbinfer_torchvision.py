"""Run at each start of this environment's Python: lets torchvision be imported beside a CPU torch.

SGLang imports torchvision whatever the model, and vLLM with every model that sees images. PyPI's
torchvision is built for the CUDA torch: its library of operators cannot be loaded beside a CPU
torch, and the import then fails, not for want of those operators, but because two are given
shapes that nobody has declared. They are declared here, without an implementation: whoever calls
one gets NotImplementedError.

Nothing is declared where torchvision's own library was loaded, as in the build of PyTorch's CPU
index. This can go when PyPI's torchvision can be imported without its library.
"""

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


# It loads torchvision's library, before any other module of it asks for an operator.
sys.meta_path.insert(0, Finder("torchvision.extension", declare))
