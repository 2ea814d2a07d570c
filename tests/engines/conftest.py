"""Engines shared by the whole session: the real library, the real model, loaded once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

import nbinfer
from nbinfer import GenerationParams, InferenceEngine, ModelParams
from nbinfer.engines import registry

from ..conftest import eventually, our_threads, reset_state, workers

# Every engine that this release has. One that should be here and is not fails in CI.
ENGINES = ("llamacpp",)
GREEDY = GenerationParams(max_new_tokens=16)


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


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, _end: None) -> InferenceEngine:
    """One engine with the embedded model; it stays resident between tests."""
    library = registry.spec(request.param).library
    if importlib.util.find_spec(library) is None:
        reason = f"{request.param}: {library} is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return registry.engine_class(request.param)(
        ModelParams("smollm2-135m", model_kwargs={"n_ctx": 2048})
    )
