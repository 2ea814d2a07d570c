"""Stands in for SGLang's library of CUDA kernels where there is no GPU.

SGLang takes functions from ``sgl_kernel`` as its modules are imported, and calls none of them
with ``--device cpu --attention-backend torch_native --sampling-backend pytorch``. PyPI's
``sgl_kernel`` loads CUDA's libraries when it is imported. Here every name is a function that
raises.

A real one that is installed comes before this one. This can go when PyPI has a build of it for
the CPU, or when SGLang can be imported without it.
"""

from collections.abc import Callable
from typing import Any, NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)  # Python itself asks a module for such names

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU, and this environment is without")

    return missing
