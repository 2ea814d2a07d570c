"""Two engines with the same weights in float32 say the same, but for near ties."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbinfer.guide.parity import parity

from .conftest import installed

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
# In float32 sums differ in their last bits with the order of adding: by so much at most do the
# log-probabilities of two tokens then change places.
NEAR = 0.01


@pytest.mark.needs("native", "vllm")
@pytest.mark.timeout(600)
def test_native_and_vllm(_end):
    found = parity([installed("native").make(), installed("vllm").make()])
    print(found)
    assert found.tokens > 1000
    assert found.share >= 0.95
    assert [p for p in found.partings if not p.is_near_tie(NEAR)] == []


def test_the_page_is_a_generated_one():
    text = PAGE.read_text(encoding="utf-8")
    assert "`native` and `vllm`" in text
    assert "benchmarks/parity.py" in text
