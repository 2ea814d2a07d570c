"""The feature table on this machine: every cell is proven by its probe, or has a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nbinfer
from nbinfer.guide import features as table
from nbinfer.guide.reasons import REASONS
from nbinfer.residents import pool

from .conftest import ALL, installed

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
# What a machine with two cores and no GPU must show, whatever else it may.
EVERYWHERE = ("continuous_batching", "prefix_caching", "streaming", "adapters", "cpu")
PROMISED = {
    **dict.fromkeys((*EVERYWHERE, "structured_output"), table.ENGINES),
    "vision": ("native", "llamacpp", "vllm"),
    "quantization_4bit": ("native", "llamacpp"),
    "gguf": ("llamacpp", "native"),
    "tensor_parallel": ("vllm", "native"),
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", table.ENGINES)
@pytest.mark.needs("native")  # it builds what the probes need
def test_every_cell_is_proven_or_has_a_reason(engine, _end):
    installed(next(name for name, variant in ALL.items() if variant.engine == engine))
    pool.unload_all()
    frame = nbinfer.features(probe=True, engines=[engine], details=True, progress=False)
    print(frame[["feature", "state", "detail"]].to_string())
    states = frame.set_index("feature")["state"]
    assert states[~states.isin(["proven", "unsupported", "gpu"])].to_dict() == {}
    kept = [f for f in table.FEATURES if (f, engine) in REASONS]
    assert sorted(states.index[states != "proven"]) == sorted(kept)
    for feature, engines in PROMISED.items():
        assert engine not in engines or states[feature] == "proven", feature


def test_the_committed_page_has_what_is_proven():
    page = PAGE.read_text(encoding="utf-8")
    lines = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", page, re.MULTILINE))
    for feature, title in table.FEATURES.items():
        expected = [table.STATES[cell.state] for cell in table.cells(feature)]
        assert lines[title].split(" | ") == expected, title
