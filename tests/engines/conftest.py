"""Engines shared by the whole session: the real library, the real model, loaded once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

import nbinfer
from nbinfer import GenerationParams, InferenceEngine, ModelParams, environments
from nbinfer.engines import registry
from nbinfer.guide import materials
from nbinfer.residents import pool

from ..conftest import WITHOUT, eventually, our_threads, reset_state, workers


@dataclass(frozen=True)
class Variant:
    """An engine as the suite runs it, and the managed environment that its library needs.

    ``server`` is what ``nbinfer.serve`` starts for it: a real one, on loopback.
    """

    engine: str
    recipe: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    server: str = ""

    def make(self, **changes: Any) -> InferenceEngine:
        if self.server:  # it finds its server by itself, as a notebook's would
            return registry.engine_class(self.engine)(ModelParams("smollm2-135m", **changes))
        given = {"model_max_length": 2048, "model_kwargs": dict(self.options), **changes}
        return registry.engine_class(self.engine)(ModelParams("smollm2-135m", **given))

    @property
    def line(self) -> str:
        """The same as the options of a magic."""
        return " ".join([self.engine, *(f"-k {k}={v}" for k, v in self.options.items())])


# Every engine that this release has. One that should be here and is not fails in CI.
VARIANTS = {
    "llamacpp": Variant("llamacpp"),
    "llama-cpp-python": Variant("llamacpp", "llama-cpp-python", {"binding": "llama-cpp-python"}),
    "native": Variant("native", "native"),
    "vllm": Variant("vllm", "vllm", {"tool_call_parser": "hermes"}),
}
SERVERS = {
    "remote-vllm": Variant("remote-vllm", "vllm", server="vllm"),
    "sglang": Variant("sglang", "sglang", server="sglang"),
}
ALL = {**SERVERS, **VARIANTS}  # servers first: the last one stays until the session ends
GREEDY = GenerationParams(max_new_tokens=16)
ADAPTER = "trained"  # what the servers have from their start, by this name


@pytest.fixture(autouse=True)
def _state() -> Iterator[None]:
    reset_state()
    yield
    reset_state()


@pytest.fixture(scope="session")
def _end() -> Iterator[None]:
    yield
    nbinfer.shutdown()
    assert eventually(lambda: not workers()), workers()
    assert eventually(lambda: not our_threads()), our_threads()


def installed(name: str) -> Variant:
    """A variant whose library is there; ``pytest_collection_finish`` has seen to it."""
    variant = ALL[name]
    if variant.recipe:
        if variant.recipe in os.environ.get(WITHOUT, "").split(","):
            pytest.skip(f"{name} is left out by {WITHOUT}")
        environments.python_for(variant.recipe)
    return variant


@pytest.fixture(scope="session", params=ALL)
def variant(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """Each engine in turn, installed; its server, where it is one, runs meanwhile."""
    found = installed(request.param)
    if not found.server:
        yield found
        return
    pool.unload_all()  # one at a time: a server keeps the cores busy
    adapters = {ADAPTER: str(materials.get("adapter"))}
    with nbinfer.serve(found.server, ModelParams(model_max_length=2048, adapters=adapters)):
        yield found


@pytest.fixture
def engine(variant: Variant, _end: None) -> InferenceEngine:
    """One engine with the embedded model; it stays resident between tests."""
    return variant.make()
