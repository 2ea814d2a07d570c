"""nbinfer's vllm engine against vLLM's own ``LLM.chat``, and what a notebook adds.

    python benchmarks/local_vllm.py [--repeats 3]

16 and 64 chat prompts of 64 tokens: both engines are resident in processes of their own and asked
in turn, so that a machine whose speed drifts slows both; the ratio is the median of the rounds'.
The first round is not counted. Then, on nbinfer's alone: what a second cell takes beside its row's
own latency, how long until the kernel is free after an interrupt, and two cells of 8 prompts at
once against one after the other.
"""

from __future__ import annotations

import argparse
import threading
import time

from common import PROMPTS, RawEngine, median, table

import nbinfer
import nbinfer.prompts
import nbinfer.run
from nbinfer import GenerationParams, ModelParams, VLLMInferenceEngine, environments
from nbinfer.engines.local import physical_cores
from nbinfer.records import Outcome

TOKENS = 64
PARAMS = GenerationParams(max_new_tokens=TOKENS)


def throughput(engine: VLLMInferenceEngine, repeats: int) -> None:
    resident = engine.resident
    assert resident is not None
    python = environments.python_for("vllm")
    raw = RawEngine(python, "vllm", resident.model_facts["path"], physical_cores())
    rows = []
    for count in (16, 64):
        prompts = [f"{PROMPTS[i % len(PROMPTS)]} Chapter {i}." for i in range(count)]
        theirs, ours = [], []
        for round_ in range(repeats + 1):
            # Prompts of their own for each round, or the prefix cache would answer for them.
            asked = [f"Round {round_}. {p}" for p in prompts]
            done = raw.ask(prompts=asked, max_tokens=TOKENS)
            facts = engine.infer(asked, PARAMS, progress=False).attrs["nbinfer"]
            if round_:
                theirs.append(done["tokens"] / done["seconds"])
                ours.append(facts["output_tokens"] / facts["wall_s"])
        ratio = median([b / a for a, b in zip(theirs, ours, strict=True)])
        rows.append((count, f"{median(theirs):.1f}", f"{median(ours):.1f}", f"{ratio:.3f}"))
    raw.close()
    print(table(rows, ("prompts", "LLM.chat, tok/s", "nbinfer, tok/s", "ratio")), flush=True)


def second_cell(engine: VLLMInferenceEngine) -> float:
    """Seconds that a call takes beside its row's latency."""
    started = time.monotonic()
    frame = engine.infer("Name a bird.", GenerationParams(max_new_tokens=1), progress=False)
    return time.monotonic() - started - float(frame["latency_s"][0])


def interrupted(engine: VLLMInferenceEngine) -> float:
    """Seconds from the interrupt of a running batch until the call returns."""
    prompts = [f"{p} And then?" for p in PROMPTS]
    requests = engine._requests(
        nbinfer.prompts.normalise(prompts), GenerationParams(max_new_tokens=400)
    )
    run = engine._open_run(
        requests,
        run_id=nbinfer.run.new_run_id(),
        outcome=Outcome(),
        stream=False,
        wait=True,
        ahead=512,
    )
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        run.stop()

    timer = threading.Timer(2.0, stop)
    timer.start()
    for _ in run.records():
        pass
    return time.monotonic() - stopped[0]


def joined(engine: VLLMInferenceEngine) -> tuple[float, float]:
    """Seconds of two cells one after the other, and at once."""
    halves = (PROMPTS[:8], PROMPTS[8:])
    started = time.monotonic()
    for half in halves:
        engine.infer([f"First: {p}" for p in half], PARAMS, progress=False)
    apart = time.monotonic() - started
    started = time.monotonic()
    threads = [
        threading.Thread(
            target=lambda h=half: engine.infer(
                [f"Together: {p}" for p in h], PARAMS, progress=False
            )
        )
        for half in halves
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return apart, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    engine = VLLMInferenceEngine(ModelParams(model_max_length=2048)).load()
    throughput(engine, repeats)
    starts = [second_cell(engine) for _ in range(10)]
    frees = [interrupted(engine) for _ in range(3)]
    pairs = [joined(engine) for _ in range(repeats)]
    gain = median([apart / together for apart, together in pairs])
    rows = [
        ("second cell beside its latency, ms", f"{median(starts) * 1000:.1f}"),
        ("interrupt to free kernel, s", f"{median(frees):.2f}"),
        ("two cells at once, times the throughput", f"{gain:.2f}"),
        ("loaded in, s", f"{engine.resident.loaded_s:.0f}" if engine.resident else ""),
        ("memory when idle, MB", f"{(engine.memory()['idle_bytes'] or 0) / 1e6:.0f}"),
    ]
    print(table(rows, ("measure", "value")))
    nbinfer.shutdown()


if __name__ == "__main__":
    main()
