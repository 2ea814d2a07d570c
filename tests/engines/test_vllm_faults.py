"""vLLM is three processes: what happens when one of them, or all, or the kernel is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from ..conftest import eventually
from ..kernel import Kernel
from .conftest import installed
from .test_interrupts import QUEUED, answers_alone, assert_brief, cell, free_limit, pid_of_engine

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.timeout(600)]
LOAD_S = 280


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    installed("vllm")
    with Kernel() as started:
        started.run("import nbinfer\n%engine use vllm").ok()
        yield started


def family(kernel: Kernel) -> dict[str, psutil.Process]:
    """The worker, its engine core and the core's own worker, by what they are."""
    (worker,) = kernel.workers()
    root = psutil.Process(worker)
    found = {"worker": root}
    for process in root.children(recursive=True):
        if "EngineCore" in process.name():
            found["core"] = process
        elif "VLLM" in process.name():
            found["rank"] = process
    assert set(found) == {"worker", "core", "rank"}, found
    return found


def loaded(kernel: Kernel) -> dict[str, psutil.Process]:
    kernel.run("%%infer -o warm --max-new-tokens 2\nHello", timeout=LOAD_S).ok()
    return family(kernel)


def test_an_interrupt_during_the_load_leaves_it_loading(kernel):
    running, queued = kernel.send(cell(["Hello"], "--max-new-tokens 4")), kernel.send(QUEUED)
    kernel.began(running)
    kernel.pump(4.0)
    pressed = kernel.interrupt()
    reply, behind = kernel.wait(running, 30), kernel.wait(queued, 30)
    assert reply.ended - pressed < free_limit()
    assert_brief(reply)
    assert behind.status == "aborted"
    (pid,) = kernel.workers()
    reply = kernel.run("%%infer -o after --max-new-tokens 8\nName a colour.", timeout=LOAD_S).ok()
    (row,) = kernel.rows("after")
    assert row["output"].strip()
    assert pid_of_engine(kernel, "vllm") == pid


@pytest.mark.parametrize("victims", [("core",), ("rank",), ("worker", "core", "rank")])
def test_a_death_is_told_and_the_next_use_loads_again(kernel, victims):
    processes = loaded(kernel)
    prompts = ["Count to ten.", "Tell me a very long story about an old ship."]
    running = kernel.send(cell(prompts, "--max-new-tokens 700"))
    kernel.began(running)
    kernel.pump(3.0)
    for name in victims:
        processes[name].send_signal(signal.SIGKILL)
    reply = kernel.wait(running, 60)
    assert reply.ename == "EngineCrashed", reply
    text = "\n".join(reply.traceback)
    assert "SIGKILL" in text or "engine core has ended" in text
    assert [row["prompt"] for row in kernel.rows("out")] == prompts
    assert eventually(lambda: not any(p.is_running() for p in processes.values()))
    again = loaded(kernel)
    assert again["worker"].pid != processes["worker"].pid
    answers_alone(kernel)


def test_a_death_while_idle_is_seen(kernel):
    processes = loaded(kernel)
    processes["core"].kill()
    assert eventually(lambda: not processes["worker"].is_running(), 20)
    rows = kernel.rows("get_ipython().run_line_magic('engine', '')")
    assert [row["state"] for row in rows] == ["crashed"]


def test_when_the_kernel_is_killed_nothing_is_left():
    """Its worker is killed by the system; the worker's own children are the guardian's."""
    installed("vllm")
    with Kernel() as doomed:
        doomed.run("import nbinfer\n%engine use vllm").ok()
        session = loaded(doomed)["worker"].pid
        members = [p for p in psutil.process_iter() if _session(p.pid) == session]
        assert len(members) >= 4  # the guardian is one of them
        doomed.kill9()
        assert eventually(lambda: not any(_runs(p) for p in members), 20), members


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
