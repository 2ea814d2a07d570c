"""What a proof needs beside the embedded model: an adapter, a picture's model, a tiny model.

Each is built once, by a script that the Python of the ``native`` environment runs, and kept
under ``NBINFER_HOME``: in their place whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from .. import environments, models, packages, settings
from ..checks import shown
from ..errors import ConfigurationError, NbinferError

__all__ = ["MATERIALS", "get"]

# What each is, and its version: a changed builder makes it anew.
MATERIALS = {
    "adapter": ("a LoRA adapter trained for a few steps on smollm2-135m", 1),
    "vision": ("a small LLaVA: smollm2-135m behind a tiny vision tower that knows colours", 1),
    "q8_0": ("smollm2-135m with eight-bit weights, as GGUF", 1),
    "w4a16": ("smollm2-135m with four-bit weights, as compressed-tensors", 1),
    "w8a8": ("smollm2-135m with eight-bit weights and activations, as compressed-tensors", 1),
    "tensor_parallel": ("a tiny, untrained Llama whose heads divide by two", 1),
}
_LIMIT_S = 600.0


def get(name: str, progress: packages.Progress | None = None) -> Path:
    """The folder of a material, built if it is not there.

    Parameters
    ----------
    name : str
        A key of ``MATERIALS``.
    progress : callable, optional
        Called with a line of text about twice a second while it is built.

    Raises
    ------
    ConfigurationError
        For another name.
    EngineNotInstalled
        If the ``native`` environment, which builds it, is not there.
    NbinferError
        If building failed, with the last lines of what was printed.
    """
    if name not in MATERIALS:
        raise ConfigurationError(
            f"there is no material {shown(name)}", hint=f"there are: {', '.join(MATERIALS)}"
        )
    what, version = MATERIALS[name]
    folder = settings.home() / "materials" / f"{name}-{version}"
    say = progress or (lambda _: None)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with packages.locked(lock, f"waiting for another process that builds {what}", say):
            if not folder.is_dir():
                _build(name, what, folder, say)
    return folder


def _build(name: str, what: str, folder: Path, say: packages.Progress) -> None:
    python = environments.python_for("native")
    model = models.resolve("smollm2-135m", forms=("safetensors",), engine="native", progress=say)
    prefix = f".{folder.name}-build-"
    for left in folder.parent.glob(prefix + "*"):
        packages.remove_leftover(left)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    source = {
        "gguf": model.derived_from,
        "safetensors": str(model.path),
        "mark": {"sha256": model.sha256},
    }
    script = Path(__file__).parents[1] / "worker" / "build.py"
    command = [python, str(script), name, str(part), json.dumps(source)]
    try:
        status, output = packages.run(
            command,
            lambda spent, _: say(f"building {what}: {spent:.0f} s"),
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            limit_s=_LIMIT_S,
        )
        if status:
            raise NbinferError(f"{what} could not be built:\n{packages.said(output)}")
        part.chmod(0o755)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
