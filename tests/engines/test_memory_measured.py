"""``%memory`` against the peak of a real engine; ``benchmarks/memory.py`` has more of it."""

from __future__ import annotations

import pytest

from nbinfer import (
    GenerationParams,
    LlamaCppInferenceEngine,
    ModelParams,
    NativeTextInferenceEngine,
    models,
)
from nbinfer.guide.costs import Job
from nbinfer.guide.estimates import estimate
from nbinfer.guide.sources import describe
from nbinfer.worker.backends._material_q8_0 import write

NEW = 6
WORDS = ("red", "green", "blue", "black")  # a token each, and no two rows begin alike


@pytest.fixture
def alone(_end):
    """No other engine of the same file: PSS shares its pages between them."""
    from nbinfer.residents import pool

    pool.unload_all()


def llamacpp(model, context, batch):
    options = {"n_ctx": context, "n_parallel": batch, "kv_tokens": context * batch}
    return LlamaCppInferenceEngine(ModelParams(model, model_kwargs=options))


def native(model, context, batch):
    options = {"batch_size": batch}
    params = ModelParams(model, model_max_length=context, model_kwargs=options)
    return NativeTextInferenceEngine(params)


def both(make, context, batch, model="smollm2-135m"):
    """The estimate and the peak of an engine whose every row is full, in bytes."""
    engine, found = make(model, context, batch), describe(model)
    precision = "fp32" if make is native else found.precision
    made = estimate(found, engine.name, precision, Job(context, batch)).total
    prompts = [f" {word}" * (context - 2 * NEW) for word in WORDS[:batch]]
    with engine:
        frame = engine.infer(prompts, GenerationParams(max_new_tokens=NEW, raw=True))
    assert frame["error"].isna().all()
    return made, int(frame["peak_memory_bytes"].iloc[0])


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "make", [llamacpp, pytest.param(native, marks=pytest.mark.needs("native"))]
)
def test_an_estimate_is_what_an_engine_takes(make):
    small, large = both(make, 256, 1), both(make, 1024, 4)
    for made, peak in (small, large):
        assert made == pytest.approx(peak, rel=0.1)
    # No constant can make the difference right.
    assert large[0] - small[0] == pytest.approx(large[1] - small[1], rel=0.1)


@pytest.mark.usefixtures("alone")
def test_weights_that_llamacpp_copies_at_load(tmp_path):
    """On a CPU a matrix of Q4_0 is held in another order; where it is not, both sides lack it."""
    path = tmp_path / "q4_0.gguf"
    write(str(path), str(models.resolve("smollm2-135m", forms=("gguf",)).path), "Q4_0")
    made, peak = both(llamacpp, 256, 1, str(path))
    assert made == pytest.approx(peak, rel=0.1)
