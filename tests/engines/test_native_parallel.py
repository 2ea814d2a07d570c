"""Tensor parallelism on native: two real ranks of a tiny Llama, on the CPU."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest

from nbinfer import (
    ConfigurationError,
    EngineCrashed,
    ExecutionError,
    GenerationParams,
    ModelParams,
    NativeTextInferenceEngine,
)
from nbinfer.guide import materials

from ..conftest import eventually
from .conftest import installed

pytestmark = pytest.mark.needs("native")

PROMPTS = ["Hello", "Name three colours, and say of each what it is like.", "1 2 3 4"]
LONG = GenerationParams(max_new_tokens=1500, stop_token_ids=[])


def engine(size=1, model=None, **options):
    name = model or str(materials.get("tensor_parallel"))
    given = {"tensor_parallel_size": size} if size > 1 else {"batching": "static"}
    return NativeTextInferenceEngine(ModelParams(name, model_kwargs={**given, **options}))


@pytest.fixture(scope="module")
def pair(_end):
    installed("native")
    with engine(2) as loaded:
        yield loaded


def ranks(loaded):
    """The worker and its other ranks."""
    worker = psutil.Process(loaded.resident.worker.pid)
    return [worker, *worker.children(recursive=True)]


def test_answers_are_those_of_one_rank(pair):
    every = [
        GenerationParams(max_new_tokens=24),
        GenerationParams(max_new_tokens=12, temperature=0.9, top_k=20, seed=5),
        GenerationParams(max_new_tokens=8, num_beams=2),
    ]
    split = [pair.infer(PROMPTS, params)["output"].tolist() for params in every]
    streamed = "".join(pair.stream(PROMPTS[0], every[0]))
    with engine() as one:
        whole = [one.infer(PROMPTS, params)["output"].tolist() for params in every]
        alone = one.execute("sum(p.numel() for p in model.parameters())")
    assert split == whole
    assert streamed == split[0][0]
    assert pair.resident.report["tensor_parallel_size"] == 2
    held = pair.execute("sum(getattr(p, '_local_tensor', p).numel() for p in model.parameters())")
    assert int(held) < int(alone)


def test_all_ranks_are_counted_and_only_loopback_is_heard(pair):
    worker, other = ranks(pair)
    assert "rank.py" in " ".join(other.cmdline())
    assert os.getsid(other.pid) == worker.pid
    both = sum(process.memory_full_info().pss for process in (worker, other))
    assert pair.memory()["idle_bytes"] > 0.6 * both
    heard = {c.laddr.ip for p in (worker, other) for c in p.net_connections() if c.laddr}
    assert heard <= {"127.0.0.1", "::1"}, heard


def test_a_cancel_stops_all_ranks_between_two_steps(pair):
    stream = pair.stream("Hello", LONG)
    next(stream)
    stream.close()
    began = time.monotonic()
    frame = pair.infer(PROMPTS, GenerationParams(max_new_tokens=8))
    assert time.monotonic() - began < 5
    assert frame["error"].isna().all()
    assert len(ranks(pair)) == 2


def test_a_second_run_has_its_turn_and_a_row_its_own_error(pair):
    found = {}

    def run(name, prompts):
        found[name] = pair.infer(prompts, GenerationParams(max_new_tokens=16))

    threads = [threading.Thread(target=run, args=(n, PROMPTS)) for n in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found["one"]["output"].tolist() == found["two"]["output"].tolist()
    long = pair.infer(["word " * 3000, "Hello"], GenerationParams(max_new_tokens=4))
    assert "context" in long.loc[0, "error"]
    assert long.loc[1, "output_tokens"] == 4


def test_a_cell_cannot_call_one_rank_alone(pair):
    with pytest.raises(ExecutionError, match="other ranks"):
        pair.execute("import torch\nmodel(input_ids=torch.tensor([[1]]))")
    assert pair.infer("Hello", GenerationParams(max_new_tokens=4)).loc[0, "output_tokens"] == 4


def test_a_rank_that_dies_ends_the_worker_with_the_cause(pair):
    stream = pair.stream("Hello", LONG)
    next(stream)
    processes = ranks(pair)
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match="rank 1 of the tensor-parallel model has ended"):
        for _ in stream:
            pass
    assert eventually(lambda: not any(p.is_running() for p in processes))
    frame = pair.infer("Hello", GenerationParams(max_new_tokens=4))  # loads anew
    assert frame.loc[0, "output_tokens"] == 4
    worker, other = ranks(pair)
    worker.kill()  # nobody is left to end the other
    assert eventually(lambda: not other.is_running())


@pytest.mark.parametrize(
    ("size", "model", "words"),
    [(2, "smollm2-135m", "3 heads of keys and values"), (4, None, "4 attention heads")],
)
def test_a_size_that_does_not_divide_the_heads_names_those_that_do(_end, size, model, words):
    installed("native")
    with pytest.raises(ConfigurationError, match=words) as caught:
        engine(size, model).load()
    assert caught.value.hint == f"what would do: 1, {3 if model else 2}"


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"load_in_4bit": True}, {}),
        ({"batching": "continuous"}, {}),
        ({}, {"device_map": "auto"}),
        ({}, {"adapter_model": "/some/adapter"}),
    ],
)
def test_what_needs_the_whole_model_is_refused(options, fields):
    kwargs = {"tensor_parallel_size": 2, **options}
    with pytest.raises(ConfigurationError, match="over ranks"):
        NativeTextInferenceEngine(ModelParams(model_kwargs=kwargs, **fields))
