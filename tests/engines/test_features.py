"""The feature table on this machine: every cell is proven by its probe, or has a reason."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import nbinfer
from nbinfer.guide import features as table
from nbinfer.guide.probes import PROBES
from nbinfer.guide.reasons import REASONS
from nbinfer.residents import pool

from ..conftest import THOROUGH
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


# What a server is started anew for takes half a minute and more: in CI what is promised, no more.
SETUPS = {"remote-vllm": ("", "adapters"), "sglang": ("", "adapters")}


def in_ci(engine: str) -> list[str]:
    """The features that are probed here, or that have a reason."""
    setups = None if os.environ.get(THOROUGH) else SETUPS.get(engine)
    return [
        feature
        for feature in table.FEATURES
        if setups is None or (feature, engine) in REASONS or PROBES[feature].setup in setups
    ]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", table.ENGINES)
@pytest.mark.needs("native")  # it builds what the probes need
def test_every_cell_is_proven_or_has_a_reason(engine, _end):
    installed(next(name for name, variant in ALL.items() if variant.engine == engine))
    pool.unload_all()
    frame = nbinfer.features(
        probe=True, engines=[engine], only=in_ci(engine), details=True, progress=False
    )
    print(frame[["feature", "state", "detail"]].to_string())
    states = frame.set_index("feature")["state"]
    assert states[~states.isin(["proven", "unsupported", "gpu"])].to_dict() == {}
    kept = [feature for feature in in_ci(engine) if (feature, engine) in REASONS]
    assert sorted(states.index[states != "proven"]) == sorted(kept)
    for feature, engines in PROMISED.items():
        assert engine not in engines or states[feature] == "proven", feature


def test_the_committed_page_has_what_is_proven():
    page = PAGE.read_text(encoding="utf-8")
    lines = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", page, re.MULTILINE))
    for engine in table.ENGINES:
        place = table.ENGINES.index(engine)
        for feature in in_ci(engine):
            (cell,) = table.cells(feature, [engine])
            committed = lines[table.FEATURES[feature]].split(" | ")[place]
            assert committed == table.STATES[cell.state], (feature, engine)
