"""The peak of a process tree: seen while it lasts, and cheap to look for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from nbinfer import measure

# Grows and gives back on request: mmap returns its pages at once, malloc might keep them.
CODE = """
import mmap, sys
for line in sys.stdin:
    held = mmap.mmap(-1, int(line))
    held.write(b"x" * int(line))
    print(flush=True)
    sys.stdin.readline()
    held.close()
    print(flush=True)
"""


class Child:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self.process.pid

    def ask(self, text: str) -> None:
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()
        self.process.stdout.readline()


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    with made.process:
        yield made
        made.process.kill()


def test_a_peak_that_is_over_is_kept(child):
    child.ask("1000000")
    child.ask("")
    before = measure.tree_bytes(child.pid)
    with measure.PeakSampler(child.pid) as sampler:
        child.ask("80000000")
        sampler._stop.wait(0.5)
        child.ask("")
    assert sampler.peak_bytes > before + 60_000_000
    assert measure.tree_bytes(child.pid) < sampler.peak_bytes - 60_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps the highest resident size")
def test_a_peak_between_two_looks_is_not_missed(child, monkeypatch):
    child.ask("1000000")
    child.ask("")
    before = measure.seen(child.pid)
    monkeypatch.setattr(measure.PeakSampler, "_sample", lambda self: None)  # nobody looks
    for size in (80_000_000, 40_000_000):  # written twice; the first is not the second's peak
        with measure.PeakSampler(child.pid, before) as sampler:
            child.ask(str(size))
            child.ask("")
        assert sampler.peak_bytes == pytest.approx(before.memory + 2 * size, abs=4_000_000)


def test_pss_is_read_again_only_after_growth(child, monkeypatch):
    child.ask("1000000")
    read = []
    true = measure.process_bytes
    monkeypatch.setattr(measure, "process_bytes", lambda pid: read.append(pid) or true(pid))
    sampler = measure.PeakSampler(child.pid)
    for _ in range(10):
        sampler._look()
    assert read == [child.pid]
    child.ask("")
    child.ask("20000000")
    sampler._look()
    assert read == [child.pid] * 2


def test_a_run_that_moves_nothing_reads_nothing(child, monkeypatch):
    """A short cell on a resident engine does not pay for a full look at its memory."""
    child.ask("30000000")
    known = measure.seen(child.pid)
    read = []
    true = measure.process_bytes
    monkeypatch.setattr(measure, "process_bytes", lambda pid: read.append(pid) or true(pid))
    with measure.PeakSampler(child.pid, known) as sampler:
        pass
    assert read == []
    assert sampler.peak_bytes == known.memory
    child.ask("")
    with measure.PeakSampler(child.pid, known):
        pass
    assert read == [child.pid]
    assert known.memory < sampler.peak_bytes - 20_000_000
    with measure.PeakSampler(child.pid, known) as sampler:
        pass
    assert sampler.peak_bytes == known.memory


def test_a_process_that_is_gone_has_no_memory(child):
    child.process.kill()
    child.process.wait()
    with measure.PeakSampler(child.pid) as sampler:
        pass
    assert sampler.peak_bytes == measure.tree_bytes(child.pid) == 0
