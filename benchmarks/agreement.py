"""nbinfer.benchmark against ``vllm bench serve``: the same server, the same prompts, in turn.

Each round asks one and then the other, so that a machine whose speed drifts slows both; the figures
are medians of the rounds, and each must be within 5 %. With ``--llama-bench PATH`` also llama.cpp's
own benchmark against the ``llamacpp`` engine, on one request at a time.

    python benchmarks/agreement.py [--prompts 32] [--open 4] [--tokens 48] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess

from common import PROMPTS, median, table
from remote_server import MODEL, vllm_bench

import nbinfer
from nbinfer import LlamaCppInferenceEngine, ModelParams, RemoteParams, RemoteVLLMInferenceEngine

BOUND = 0.05
# Ours, and theirs with what makes seconds of it.
SAME = {
    "output_tokens_per_s": ("output_throughput", 1.0),
    "requests_per_s": ("request_throughput", 1.0),
    "ttft_s_mean": ("mean_ttft_ms", 1e-3),
    "ttft_s_p50": ("median_ttft_ms", 1e-3),
    "tpot_s_mean": ("mean_tpot_ms", 1e-3),
    "tpot_s_p50": ("median_tpot_ms", 1e-3),
    "tpot_s_p99": ("p99_tpot_ms", 1e-3),
    "itl_s_mean": ("mean_itl_ms", 1e-3),
    "itl_s_p50": ("median_itl_ms", 1e-3),
    "latency_s_mean": ("mean_e2el_ms", 1e-3),
    "latency_s_p50": ("median_e2el_ms", 1e-3),
    "latency_s_p99": ("p99_e2el_ms", 1e-3),
}


def against_vllm(prompts: list[str], at_once: int, tokens: int, rounds: int) -> bool:
    """Print the table; whether all is within the bound."""
    with nbinfer.serve("vllm") as server:
        tokenizer = str(nbinfer.models.resolve(MODEL, forms=("safetensors",), engine="vllm").path)
        engine = RemoteVLLMInferenceEngine(
            ModelParams(MODEL), remote_params=RemoteParams(api_url=server.url)
        )

        def ours() -> dict[str, float]:
            frame = nbinfer.benchmark(
                engine,
                prompts=prompts,
                output_tokens=tokens,
                requests=len(prompts),
                concurrency=at_once,
                repeats=1,
                warmup=0,
                progress=False,
            )
            assert frame["failed"][0] == 0, frame["error"][0]
            assert frame["output_tokens"][0] == tokens
            return {name: float(frame[name][0]) for name in SAME}

        def theirs() -> dict[str, float]:
            found = vllm_bench(server.python, tokenizer, server.url, prompts, at_once, tokens)
            return {name: found[other] * unit for name, (other, unit) in SAME.items()}

        ours(), theirs()  # warm: then both are answered from the same prefix cache
        seen: list[tuple[dict[str, float], dict[str, float]]] = []
        for number in range(rounds):
            # In turn first, so that what runs second has no advantage.
            if number % 2:
                other = theirs()
                seen.append((ours(), other))
            else:
                mine = ours()
                seen.append((mine, theirs()))
    rows, good = [], True
    for name in SAME:
        mine, other = (median([pair[i][name] for pair in seen]) for i in (0, 1))
        ratio = median([a[name] / b[name] for a, b in seen])
        good &= abs(ratio - 1) <= BOUND
        rows.append([name, f"{mine:.4g}", f"{other:.4g}", f"{ratio:.3f}"])
    print(table(rows, ["metric", "nbinfer", "vllm bench serve", "ratio"]))
    return good


def against_llama_bench(program: str, rounds: int) -> bool:
    """Decoding alone, one request at a time: ``tg`` of llama-bench and 1/TPOT."""
    path = str(nbinfer.models.resolve(MODEL, forms=("gguf",), engine="llamacpp").path)
    command = [program, "-m", path, "-p", "0", "-n", "64", "-r", str(rounds), "-o", "json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    frame = nbinfer.benchmark(
        LlamaCppInferenceEngine(), prompt_tokens=32, output_tokens=64, requests=4, repeats=rounds
    )
    mine, other = 1 / float(frame["tpot_s_mean"][0]), float(told[0]["avg_ts"])
    print(f"decode tok/s: nbinfer {mine:.1f}, llama-bench {other:.1f}, ratio {mine / other:.3f}")
    return abs(mine / other - 1) <= BOUND


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--open", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-bench", metavar="PATH")
    options = parser.parse_args()
    prompts = [f"{PROMPTS[i % len(PROMPTS)]} ({i})" for i in range(options.prompts)]
    good = against_vllm(prompts, options.open, options.tokens, options.rounds)
    if options.llama_bench:
        good &= against_llama_bench(options.llama_bench, options.rounds)
    nbinfer.shutdown()
    print("all within 5 %" if good else "NOT all within 5 %")


if __name__ == "__main__":
    main()
