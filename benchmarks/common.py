"""What the benchmarks share: prompts, a raw llama.cpp server in its own process, tables."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS = [
    f"Write a long story about {thing}. Describe every detail."
    for thing in (
        *("a fox", "the sea", "an old house", "a train", "winter", "a clock", "a garden", "a ship"),
        *("a violin", "the moon", "a market", "rain", "a letter", "a bridge", "fire", "a map"),
    )
]
# llama.cpp's defaults differ from nbinfer's; the comparison must not be of two samplers.
SAMPLING = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "cache_prompt": True,
}


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


class Baseline:
    """A program that reads a request a line and writes an answer a line."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Raw(Baseline):
    """xllamacpp's Server alone in a process."""

    def __init__(self, path: str, **settings: Any) -> None:
        super().__init__(sys.executable, __file__, path, json.dumps(settings))


class RawEngine(Baseline):
    """Another raw library (``raw_engines.py``), by the Python that has it."""

    def __init__(self, python: str, library: str, path: str, threads: int) -> None:
        script = Path(__file__).with_name("raw_engines.py")
        super().__init__(python, str(script), library, path, str(threads))


def serve(path: str, settings: dict[str, Any]) -> None:
    """Runs in the baseline's process."""
    import xllamacpp

    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    params = xllamacpp.CommonParams()
    params.model.path = path
    folder = tempfile.mkdtemp()
    params.hostnames = [f"{folder}/s.sock"]
    params.api_keys = [secrets.token_hex(8)]
    params.kv_unified = True
    params.n_parallel = settings["n_parallel"]
    params.n_ctx = settings["n_ctx"]
    params.n_batch = settings["n_batch"]
    params.n_ubatch = min(512, settings["n_batch"])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["n_threads"]
    params.warmup = params.fit_params = False
    params.cache_ram_mib = 0
    params.ui = False
    server = xllamacpp.Server(params)
    shutil.rmtree(folder)
    out = os.fdopen(os.dup(1), "w")
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        work = batch if "prompts" in request else first_token
        print(json.dumps(work(server, request, settings)), file=out, flush=True)


def end_with(parent: int) -> None:
    """A benchmark that was stopped must not leave a computing server behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def batch(server: Any, request: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    """All prompts from as many threads as there are slots; seconds and tokens."""
    waiting, lock, tokens = list(request["prompts"]), threading.Lock(), []

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            body = {"messages": [{"role": "user", "content": prompt}], **SAMPLING}
            answer = server.handle_chat_completions({**body, "max_tokens": request["max_tokens"]})
            tokens.append(answer["usage"]["completion_tokens"])

    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(settings["n_parallel"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": time.perf_counter() - started, "tokens": sum(tokens)}


def first_token(server: Any, request: dict[str, Any], _: dict[str, Any]) -> dict[str, float]:
    """Seconds from the call to the first chunk with content."""
    seen: list[float] = []

    def callback(chunk: dict[str, Any]) -> bool:
        choices = chunk.get("choices") or [{}]
        if not seen and choices[0].get("delta", {}).get("content"):
            seen.append(time.perf_counter())
        return False

    body = {"messages": [{"role": "user", "content": request["prompt"]}], **SAMPLING}
    started = time.perf_counter()
    server.handle_chat_completions({**body, "max_tokens": 4, "stream": True}, callback)
    return {"seconds": seen[0] - started}


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
