"""native's own caches give what Transformers' give, and take the memory that they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbinfer import GenerationParams

from ..conftest import eventually
from .test_native_rows import native, plain  # noqa: F401 - a fixture

pytestmark = pytest.mark.needs("native")
HERE = Path(__file__).parent


def test_layers_and_rows_are_those_of_transformers(native):  # noqa: F811
    native.execute(f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport caches\ncaches.check()")


def test_rows_that_outgrow_their_room(native):  # noqa: F811
    """Room is made anew again and again while rows of several lengths come and go."""
    asked = ["Count to ten.", "Why is the sky blue? Be brief.", "Hi!"]
    wanted = [plain(native, prompt, 12) for prompt in asked]
    native.execute("from nbinfer.worker.backends import _growing\n_growing.AHEAD = 3")
    try:
        found = native.infer(asked, GenerationParams(max_new_tokens=12, temperature=0.0))
    finally:
        native.execute("_growing.AHEAD = 512")
    assert found["output"].tolist() == wanted


def test_keys_and_values_come_back(native):  # noqa: F811
    """A long batch leaves nothing but the prefixes that are kept."""
    params = GenerationParams(max_new_tokens=2, raw=True)
    native.infer([" red" * 1000], params)
    before = native.memory()["memory_bytes"]
    frame = native.infer([f" {word}" * 1000 for word in ("green", "blue", "black")], params)
    kept = 3000 * 2 * 30 * 3 * 64 * 4  # layers, heads, width, float32
    assert frame["peak_memory_bytes"].iloc[0] > before + 1.5 * kept
    assert eventually(lambda: native.memory()["memory_bytes"] < before + 1.2 * kept)
