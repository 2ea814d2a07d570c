"""Interrupts and deaths of the engines beside the default one, in a real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..kernel import Kernel
from .conftest import Variant, installed
from .test_interrupts import (
    answers_alone,
    cell,
    free_limit,
    pid_of_engine,
    stop,
    twenty_interrupts,
)

LONG = ("word " * 3000).strip()
SETUP = """
import os, signal, threading, time
import nbinfer
from nbinfer import records
from nbinfer.residents import pool

def strike(number, after_s):
    "Send a signal to the one worker that is busy, some time after its run began."
    def watch():
        while not any(r.busy for r in pool.residents()):
            time.sleep(0.01)
        time.sleep(after_s)
        (busy,) = (r for r in pool.residents() if r.busy)
        os.kill(busy.worker.pid, number)
    threading.Thread(target=watch, daemon=True).start()
"""


@pytest.fixture(scope="module", params=["native", "llama-cpp-python", "vllm"])
def other(request: pytest.FixtureRequest) -> Variant:
    return installed(request.param)


@pytest.fixture(scope="module")
def kernel(other: Variant) -> Iterator[Kernel]:
    with Kernel() as started:
        started.run(SETUP).ok()
        more = " -k n_ctx=4096" if other.engine == "llamacpp" else ""
        started.run(f"%engine use {other.line}{more}").ok()
        started.run("%engine load", timeout=300).ok()
        yield started


def test_twenty_interrupts(kernel, other, capsys):
    twenty_interrupts(kernel, capsys, other.engine)


def test_a_long_prefill_is_stopped_in_the_middle(kernel, other):
    pid = pid_of_engine(kernel, other.engine)
    found = stop(kernel, cell([LONG], "--max-new-tokens 8"), 1.0)
    assert found.reply.status == "error", "the machine is too fast for this test"
    assert found.free_s < free_limit()
    (row,) = kernel.rows("out")
    assert row["finish_reason"] == "cancelled"
    assert answers_alone(kernel) < 10 * free_limit()
    assert pid_of_engine(kernel, other.engine) == pid


def test_a_stream_is_stopped_and_kept(kernel, other):
    code = "%%infer --max-new-tokens 900\nTell me a very long story about an old ship."
    found = stop(kernel, code, 0.5, shown=20)
    assert found.reply.status == "error"
    assert found.free_s < free_limit()
    (row,) = kernel.rows("nbinfer.last()")
    assert row["finish_reason"] == "cancelled"
    assert found.reply.stdout == row["output"] + "\n"
    answers_alone(kernel)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_sigkill(kernel, other, phase):
    if phase == "prefill":
        prompts, tokens, after = [LONG, "Hello"], 8, 1.0
    else:
        prompts, tokens, after = ["Count to ten.", "Tell me a long story."], 600, 1.0
    kernel.run(f"strike(signal.SIGKILL, {after})").ok()
    reply = kernel.run(cell(prompts, f"--max-new-tokens {tokens}"), timeout=120)
    assert reply.ename == "EngineCrashed", reply
    assert "SIGKILL" in reply.traceback[0]
    assert [row["prompt"] for row in kernel.rows("out")] == prompts
    kernel.run("%%infer -o again --max-new-tokens 4\nHello", timeout=300).ok()
    assert kernel.rows("again")[0]["error"] is None


def test_sigsegv_names_the_likely_cause(kernel, other):
    kernel.run("strike(signal.SIGSEGV, 0.5)").ok()
    reply = kernel.run(cell(["Tell me a long story."], "--max-new-tokens 300"), timeout=120)
    assert reply.ename == "EngineCrashed", reply
    text = "\n".join(reply.traceback)
    assert "SIGSEGV" in text
    if other.recipe == "llama-cpp-python":
        assert "%engine install llama-cpp-python --reinstall" in text
    kernel.run("%%infer -o again --max-new-tokens 4\nHello", timeout=300).ok()


@pytest.mark.needs("native", "llama-cpp-python", "vllm")
def test_four_engines_in_one_kernel(kernel, other):
    """All are resident at once; each answers, and all memory comes back."""
    if other.engine != "vllm":
        pytest.skip("once is enough: it loads all four")
    installed("native"), installed("llama-cpp-python")
    lines = ("llamacpp", "llamacpp -k binding=llama-cpp-python", "native", "vllm")
    for line in lines:
        kernel.run(f"%%infer -e {line} -o one --max-new-tokens 4\nHello", timeout=300).ok()
    rows = kernel.rows("get_ipython().run_line_magic('engine', '')")
    assert [row["state"] for row in rows] == ["ready"] * 4
    assert len({row["pid"] for row in rows}) == 4
    assert len({row["python"] for row in rows}) == 4
    assert len(kernel.workers()) == 4
    code = "%%compare -e llamacpp,native,vllm -o all --max-new-tokens 8\nName a colour.\n---\nHello"
    reply = kernel.run(code, timeout=120).ok()
    assert "llamacpp has Q4_1, native has float32" in reply.stderr
    both = kernel.rows("all")
    assert [row["engine"] for row in both] == ["llamacpp", "native", "vllm"] * 2
    # The same weights in the same precision, greedily: the same answers.
    assert [r["output"] for r in both if r["engine"] == "native"] == [
        r["output"] for r in both if r["engine"] == "vllm"
    ]
    kernel.run("%engine unload").ok()
    assert kernel.left(2.0) == []
