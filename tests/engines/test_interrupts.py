"""Jupyter's stop button, in a real kernel, on the real llama.cpp, in every phase of a run.

The guarantees: the kernel is free again at once, the model stays resident, what was finished
is kept, cells queued behind do not run, and the next cell answers with its own rows alone.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from ..kernel import Kernel, Reply

QUEUED = "queued_cell_ran = True"
STORY = "%%infer --max-new-tokens 1500\nTell me a very long story about an old ship."


def free_limit() -> float:
    """Seconds: the one that a cancel may take, and what a kernel needs to finish and say so.

    That is 0.6 s on a free machine, and in proportion where others keep its cores busy.
    """
    return 1.0 + 0.6 * max(1.0, psutil.getloadavg()[0] / (psutil.cpu_count() or 1))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Kernel() as started:
        started.run("import nbinfer\n%engine use llamacpp -k n_ctx=2048\n%engine load").ok()
        yield started


@dataclass
class Stopped:
    """An interrupted cell, and how long the kernel took to be free."""

    reply: Reply
    free_s: float


def stop(kernel: Kernel, code: str, after: float, shown: int = 0) -> Stopped:
    """Run a cell with another queued behind it, and press stop so long after it began.

    With ``shown``, not before the cell has printed so many characters.
    """
    kernel.run("queued_cell_ran = False; out = None").ok()
    cell, queued = kernel.send(code), kernel.send(QUEUED)
    kernel.began(cell)
    kernel.pump(after)
    kernel.printed(cell, shown)
    pressed = kernel.interrupt()
    reply, behind = kernel.wait(cell, 30), kernel.wait(queued, 30)
    assert reply.ended is not None
    if reply.status == "error":
        assert behind.status == "aborted", behind
        assert kernel.value("queued_cell_ran") is False
    if reply.ename == "KeyboardInterrupt":
        # It struck in IPython, before the magic began: nothing of ours has happened yet.
        assert after < 0.3, reply
        assert kernel.value("out is None") is True
    elif reply.status == "error":
        assert_brief(reply)
    else:
        # It was done before the button was pressed; then nothing is to be stopped.
        reply.ok()
        assert reply.ended <= pressed + 0.1, "an interrupt was swallowed"
    return Stopped(reply, max(0.0, reply.ended - pressed))


def assert_brief(reply: Reply) -> None:
    assert reply.ename == "RunInterrupted", reply
    lines = "\n".join(reply.traceback).splitlines()
    assert 1 <= len(lines) <= 2, lines
    assert not any(".py" in line or "nbinfer/" in line or "File " in line for line in lines), lines


def pid_of_engine(kernel: Kernel, name: str = "llamacpp") -> int:
    """The one resident's process, as ``%engine`` shows it."""
    rows = kernel.rows("get_ipython().run_line_magic('engine', '')")
    (found,) = (r for r in rows if r["engine"] == name)
    assert found["state"] == "ready", found
    pid: int = found["pid"]
    return pid


def answers_alone(kernel: Kernel, options: str = "", prompt: str = "Name a colour.") -> float:
    """Run a later cell and require its own row and nothing else; returns its seconds."""
    reply = kernel.run(f"%%infer -o after --max-new-tokens 8 {options}\n{prompt}").ok()
    (row,) = kernel.rows("after")
    assert row["prompt"] == prompt
    assert row["finish_reason"] in ("stop", "length")
    assert row["output"].strip()
    assert row["error"] is None
    assert reply.began is not None
    assert reply.ended is not None
    return reply.ended - reply.began


def assert_partial(rows: list[dict], prompts: list[str]) -> tuple[int, int]:
    """All rows are there: finished ones answered, the rest cancelled. Counts of both."""
    assert [row["prompt"] for row in rows] == prompts
    done = [row for row in rows if row["finish_reason"] in ("stop", "length")]
    rest = [row for row in rows if row["finish_reason"] == "cancelled"]
    assert len(done) + len(rest) == len(rows), {row["finish_reason"] for row in rows}
    assert all(row["output"] for row in done)
    assert all(row["error"] is None for row in rows)
    return len(done), len(rest)


def cell(prompts: list[str], options: str) -> str:
    return f"%%infer -o out {options}\n" + "\n---\n".join(prompts)


def test_twenty_interrupts_at_random_times(kernel, capsys):
    twenty_interrupts(kernel, capsys, "llamacpp")


def twenty_interrupts(kernel: Kernel, capsys, engine: str) -> None:
    """On the engine that is in use, which answers after each and stays the same process."""
    moments = random.Random(20)
    pid = pid_of_engine(kernel, engine)
    free, stopped = [], 0
    for number in range(20):
        prompts = [f"Story {number}.{k}: tell me about the sea." for k in range(8)]
        after = moments.uniform(0.0, 2.0)
        found = stop(kernel, cell(prompts, "--max-new-tokens 64"), after)
        if found.reply.status == "error":
            stopped += 1
            free.append(found.free_s)
            assert found.free_s < free_limit(), f"interrupt {number} after {after:.2f} s"
        if found.reply.ename == "RunInterrupted":
            assert_partial(kernel.rows("out"), prompts)
            assert kernel.value("nbinfer.last() is out") is True
        answers_alone(kernel, prompt=f"Name colour {number}.")
        assert pid_of_engine(kernel, engine) == pid
    assert stopped >= 10
    with capsys.disabled():
        print(
            f"\n{engine}: {stopped} of 20 interrupted; free after: "
            f"median {statistics.median(free):.2f} s, max {max(free):.2f} s"
        )


def test_while_the_stand_in_engine_loads(kernel):
    found = stop(kernel, "%%infer -o out -e echo -k load_s=2.5\na\n---\nb", 0.8)
    assert found.free_s < free_limit()
    assert assert_partial(kernel.rows("out"), ["a", "b"]) == (0, 2)
    # The load goes on, and whoever asks next gets that process, not a second one.
    (pid,) = (
        r["pid"]
        for r in kernel.rows("get_ipython().run_line_magic('engine', '')")
        if r["engine"] == "echo"
    )
    assert answers_alone(kernel, "-e echo -k load_s=2.5") < 2.5
    assert pid_of_engine(kernel, "echo") == pid
    kernel.run("%engine unload echo").ok()


@pytest.mark.parametrize("after", [0.02, 0.2, 0.4, 0.6])
def test_while_the_real_engine_loads(kernel, after):
    kernel.run("%engine unload llamacpp").ok()
    prompts = ["Tell me a long story about the sea.", "And about the moon."]
    found = stop(kernel, cell(prompts, "--max-new-tokens 200"), after)
    assert found.reply.status == "error"
    assert found.free_s < free_limit()
    if found.reply.ename == "RunInterrupted":
        assert_partial(kernel.rows("out"), prompts)
    answers_alone(kernel)
    assert len(kernel.workers()) == 1
    pid_of_engine(kernel)


def test_while_load_itself_waits(kernel):
    kernel.run("%engine unload llamacpp").ok()
    found = stop(kernel, "%engine load echo -k load_s=1.5", 0.5)
    assert found.reply.status == "error"
    assert found.free_s < free_limit()
    answers_alone(kernel, "-e echo -k load_s=1.5")
    kernel.run("%engine unload echo").ok()


def test_in_a_long_prefill(kernel, capsys):
    options = "-e llamacpp -k n_ctx=6144"
    answers_alone(kernel, options)
    pid = {r["pid"] for r in kernel.rows("get_ipython().run_line_magic('engine', '')")}
    prompt = ("word " * 4700).strip()
    found = stop(kernel, cell([prompt], f"{options} --max-new-tokens 32"), 1.5)
    assert found.reply.status == "error", "the machine is too fast for this test"
    assert found.free_s < free_limit()
    (row,) = kernel.rows("out")
    assert row["finish_reason"] == "cancelled"
    assert row["output"] in (None, "")
    seconds = answers_alone(kernel, options)
    assert seconds < 10 * free_limit()
    assert {r["pid"] for r in kernel.rows("get_ipython().run_line_magic('engine', '')")} == pid
    with capsys.disabled():
        print(
            f"\nprefill of 4,700 tokens: kernel free after {found.free_s:.2f} s, "
            f"the next answer took {seconds:.2f} s"
        )
    kernel.run("%engine unload llamacpp").ok()


def test_with_a_full_queue(kernel):
    prompts = [f"Name {n} animals." for n in range(200)]
    for after in (3.0, 8.0, 20.0):  # on a busy machine the first rows take longer
        found = stop(kernel, cell(prompts, "--max-new-tokens 8"), after)
        assert found.reply.status == "error"
        assert found.free_s < free_limit()
        done, rest = assert_partial(kernel.rows("out"), prompts)
        if done:
            break
    assert done > 0
    assert rest > 0
    facts = kernel.value("out.attrs['nbinfer']")
    assert facts["interrupted"] is True
    assert facts["rows_cancelled"] == rest
    assert f"{done} of 200" in found.reply.traceback[0]
    answers_alone(kernel)


def test_while_one_answer_streams(kernel):
    found = stop(kernel, STORY, 0.5, shown=40)
    assert found.reply.status == "error"
    assert found.free_s < free_limit()
    (row,) = kernel.rows("nbinfer.last()")
    assert row["finish_reason"] == "cancelled"
    assert len(row["output"].split()) > 5
    assert found.reply.stdout == row["output"] + "\n"  # kept: what was seen
    answers_alone(kernel)


def test_while_it_waits_for_another_engine(kernel):
    # Another thread's run holds the device; this cell has not begun to compute.
    kernel.run(
        "import threading\n"
        "from nbinfer import EchoInferenceEngine, ModelParams\n"
        "slow = EchoInferenceEngine(ModelParams(model_kwargs={'token_s': 0.05}))\n"
        "slow.load()\n"
        "other = threading.Thread(target=lambda: slow.infer(['word ' * 60], progress=False))\n"
        "other.start()"
    ).ok()
    found = stop(kernel, cell(["a", "b"], "--max-new-tokens 16"), 0.7)
    assert found.reply.status == "error"
    assert found.free_s < free_limit()
    assert assert_partial(kernel.rows("out"), ["a", "b"]) == (0, 2)
    answers_alone(kernel)
    kernel.run("other.join(); slow.unload()").ok()


def test_the_stop_button_twice(kernel):
    pid = pid_of_engine(kernel)
    cell_ = kernel.send(STORY)
    kernel.began(cell_)
    kernel.printed(cell_, 40)
    pressed = kernel.interrupt()
    kernel.interrupt()
    reply = kernel.wait(cell_, 30)
    assert reply.ename in ("RunInterrupted", "KeyboardInterrupt")
    assert reply.ended is not None
    assert reply.ended - pressed < free_limit()
    answers_alone(kernel)
    assert pid_of_engine(kernel) == pid


def test_through_the_python_api(kernel):
    code = (
        "engine = nbinfer.LlamaCppInferenceEngine(\n"
        "    nbinfer.ModelParams(model_kwargs={'n_ctx': 2048}))\n"
        "caught = None\n"
        "try:\n"
        "    params = nbinfer.GenerationParams(max_new_tokens=64)\n"
        "    engine.infer(['Tell me about rain.'] * 20, params)\n"
        "except nbinfer.RunInterrupted as error:\n"
        "    caught = error.frame\n"
        "    raise"
    )
    sent = kernel.send(code)
    kernel.began(sent)
    kernel.pump(1.0)
    pressed = kernel.interrupt()
    reply = kernel.wait(sent, 30)
    assert reply.ename == "RunInterrupted"
    assert reply.ended is not None
    assert reply.ended - pressed < free_limit()
    assert_partial(kernel.rows("caught"), ["Tell me about rain."] * 20)
    answers_alone(kernel)
