"""Which build of torch an environment gets.

PyPI's torch for Linux is the CUDA build, gigabytes of it. On a machine without a GPU the CPU
build is taken wherever it can be had.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TorchBuild", "torch_build"]

INDEX = "https://download.pytorch.org/whl/cpu/"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class TorchBuild:
    """How uv is asked for torch.

    Attributes
    ----------
    arguments : tuple of str
        Added to uv's.
    constraint : str
        A requirement beside the recipe's own, or ``""``.
    note : str
        What the user should know, or ``""``.
    """

    arguments: tuple[str, ...] = ()
    constraint: str = ""
    note: str = ""


def torch_build(requirement: str = "torch") -> TorchBuild:
    """Decide which build of torch to ask for.

    Without a GPU, on Linux: the newest ``+cpu`` wheel for this Python in the folders of
    ``PIP_FIND_LINKS`` and ``UV_FIND_LINKS``, else PyTorch's CPU index if it answers, else the
    package index's own. With a GPU: PyTorch's index for it, if it answers. ``UV_TORCH_BACKEND``
    wins over all that.

    Parameters
    ----------
    requirement : str
        The recipe's own: of ``"torch>=2.13"`` older wheels are passed over, of
        ``"torch==2.13.0"`` all others.
    """
    if sys.platform != "linux" or os.environ.get("UV_TORCH_BACKEND"):
        return TorchBuild()
    if has_gpu():
        return TorchBuild(("--torch-backend=auto",)) if index_answers() else TorchBuild()
    asked = re.search(r"(>=|==)\s*([\d.]+)", requirement)
    exact = asked is not None and asked.group(1) == "=="
    version = local_cpu_wheel(asked.group(2) if asked else "0", exact=exact)
    if version is not None:
        return TorchBuild(constraint=f"torch=={version}")
    if index_answers():
        return TorchBuild(("--torch-backend=cpu",))
    if exact:  # whose own library asks for the CPU build may have it from an index of the user's
        return TorchBuild(note="PyTorch's index, which has torch's CPU build, cannot be reached")
    return TorchBuild(
        note="PyTorch's index cannot be reached, so torch is the CUDA build: gigabytes"
    )


def has_gpu() -> bool:
    """Whether an NVIDIA or AMD driver is there."""
    return bool(gpu_vendor())


def gpu_vendor() -> str:
    """``"nvidia"``, ``"amd"`` or ``""``: whose driver is there."""
    if any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/nvidiactl")):
        return "nvidia"
    return "amd" if Path("/dev/kfd").exists() else ""


def local_cpu_wheel(minimum: str, *, exact: bool = False) -> str | None:
    """The version of the newest CPU wheel for this Python that lies in a given folder.

    With ``exact``, of that very version and no newer one.
    """
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = re.compile(
        rf"torch-([\d.]+\+cpu)-{python}-{python}-\w*linux\w*_{re.escape(platform.machine())}\.whl"
    )
    places = os.environ.get("PIP_FIND_LINKS", "").split()
    places += os.environ.get("UV_FIND_LINKS", "").replace(",", " ").split()
    found = []
    for place in places:
        folder = Path(place.removeprefix("file://"))
        if folder.is_dir():
            matches = (pattern.fullmatch(path.name) for path in folder.iterdir())
            found += [match.group(1) for match in matches if match]
    least = _release(minimum)
    good = [v for v in found if (_release(v) == least if exact else _release(v) >= least)]
    return max(good, key=_release, default=None)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part)


def index_answers() -> bool:
    """Whether PyTorch's own index can be reached, asked for five seconds at most."""
    import httpx

    try:
        answer = httpx.head(INDEX, timeout=_PATIENCE_S, follow_redirects=True)
    except (httpx.HTTPError, OSError):
        return False
    return answer.status_code < 400
