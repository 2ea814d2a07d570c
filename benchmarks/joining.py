"""What it is worth that rows join native's running batch, against what else there is.

    python benchmarks/joining.py [--repeats 3]

A run of 8 prompts and 96 tokens each is under way for a second when another of 4 prompts and 32
tokens comes. Three ways: rows join the running batch (``batching="continuous"``), each run has
batches of its own that take turns (``"static"``), and Transformers' own continuous batching
manager, in the same process as the first. Then a list of 16 prompts alone. Printed are output
tokens a second of all, and the seconds from the second run's submission to its first tokens (the
mean of its rows).
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from typing import Any

from common import PROMPTS, median, table

from nbinfer import GenerationParams, ModelParams, NativeTextInferenceEngine

LONG, SHORT = GenerationParams(max_new_tokens=96), GenerationParams(max_new_tokens=32)

MANAGER = """
import json, time
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

def ask(prompts, joining, long, short):
    def ids(text):
        chat = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]

    config = GenerationConfig(max_new_tokens=long, do_sample=False, eos_token_id=2, pad_token_id=2)
    first, made, begun = {}, {}, time.monotonic()
    cb = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512)
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=cb
    ) as manager:
        begun = time.monotonic()
        left = set(manager.add_requests([ids(p) for p in prompts], long, streaming=True))
        joined, late = None, set()
        while left:
            if joining and joined is None and time.monotonic() > begun + 1:
                joined = time.monotonic()
                late = set(manager.add_requests([ids(p) for p in joining], short, streaming=True))
                left |= late
            result = manager.get_result(timeout=0.05)
            if result is None:
                continue
            made[result.request_id] = len(result.generated_tokens)
            first.setdefault(result.request_id, time.monotonic())
            if result.is_finished():
                left.discard(result.request_id)
        seconds = time.monotonic() - begun
    ttft = sum(first[r] - joined for r in late) / len(late) if late else None
    return json.dumps({"tokens": sum(made.values()), "seconds": seconds, "ttft": ttft})
"""


def manager(engine: NativeTextInferenceEngine, joining: list[str]) -> dict[str, Any]:
    prompts = PROMPTS[:8] if joining else PROMPTS
    call = f"ask({prompts!r}, {joining!r}, {96 if joining else 64}, 32)"
    answer = engine.execute(call)
    assert answer is not None
    return dict(json.loads(answer.strip("'")))


def ours(engine: NativeTextInferenceEngine, joining: list[str]) -> dict[str, Any]:
    frames: dict[str, Any] = {}
    begun = time.monotonic()
    if not joining:
        frame = engine.infer(PROMPTS, GenerationParams(max_new_tokens=64), progress=False)
        seconds = time.monotonic() - begun
        return {"tokens": int(frame["output_tokens"].sum()), "seconds": seconds, "ttft": None}

    def first() -> None:
        frames["first"] = engine.infer(PROMPTS[:8], LONG, progress=False)

    thread = threading.Thread(target=first)
    thread.start()
    time.sleep(1)
    frames["second"] = engine.infer(joining, SHORT, progress=False)
    thread.join()
    late = frames["second"]
    return {
        "tokens": int(sum(frame["output_tokens"].sum() for frame in frames.values())),
        "seconds": time.monotonic() - begun,
        "ttft": float((late["queue_s"] + late["ttft_s"]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    joining = [f"Say in one sentence what {thing} is." for thing in ("a", "b", "rain", "a king")]
    # Nothing is kept of earlier rounds: each reads its prompts.
    options = {"prefix_cache_tokens": 0}
    engines = {
        "joins": NativeTextInferenceEngine(ModelParams(model_kwargs=options)).load(),
        "takes turns": NativeTextInferenceEngine(
            ModelParams(model_kwargs={"batching": "static"})
        ).load(),
    }
    engines["joins"].execute(MANAGER)
    ways: dict[str, Any] = {
        "Transformers' manager": lambda late: manager(engines["joins"], late),
        **{name: (lambda late, e=engine: ours(e, late)) for name, engine in engines.items()},
    }
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for round_ in range(repeats + 1):
        for name, ask in ways.items():
            for late in (joining, []):
                answer = ask(late)
                if round_:  # the first warms up
                    found.setdefault((name, bool(late)), []).append(answer)
    rows = []
    for name in ways:
        both, alone = found[name, True], found[name, False]
        rows.append(
            (
                name,
                f"{median([a['tokens'] / a['seconds'] for a in both]):.1f}",
                f"{median([a['ttft'] for a in both]):.2f}",
                f"{median([a['tokens'] / a['seconds'] for a in alone]):.1f}",
            )
        )
    print(table(rows, ("", "both runs, tok/s", "joiner's first token, s", "16 rows alone, tok/s")))


if __name__ == "__main__":
    main()
