"""What a request costs the client: nbinfer against the openai package, same server, same load.

A server of its own process streams short answers; each client is a process of its own with
256 requests open at once. Nothing may be lost, and memory must not grow with the requests done.

    python benchmarks/remote_client.py [--requests 10000] [--open 256] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time

import psutil
from common import median, table

TOKENS = 16
LENGTH = "content-length"


# ------------------------------------------------------------------------ the server


def event(delta: dict[str, str], reason: str | None = None, usage: object = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}] if usage is None else []
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    value = {**base, "choices": choices, "usage": usage}
    data = f"data: {json.dumps(value)}\n\n".encode()
    return b"%x\r\n" % len(data) + data + b"\r\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request of a connection with its own prompt, token by token."""
    usage = {"prompt_tokens": 3, "completion_tokens": TOKENS, "total_tokens": TOKENS + 3}
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    ending = event({}, "stop") + event({}, usage=usage) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            lengths = [
                line.partition(":")[2] for line in lines if line.startswith("content-length")
            ]
            if not lengths:
                body = json.dumps({"object": "list", "data": [{"id": "m"}]}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n" % len(body) + body
                )
                continue
            asked = json.loads(await reader.readexactly(int(lengths[0])))
            text = asked["messages"][-1]["content"]
            writer.write(head + event({"content": text}))
            for _ in range(TOKENS - 1):
                await asyncio.sleep(0.005)
                writer.write(event({"content": "."}))
            writer.write(ending)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ----------------------------------------------------------------------- the clients


def with_nbinfer(url: str, prompts: list[str], at_once: int) -> list[str]:
    import nbinfer
    from nbinfer import ModelParams, OpenAICompatibleInferenceEngine, RemoteParams

    params = RemoteParams(api_url=url, num_workers=at_once)
    engine = OpenAICompatibleInferenceEngine(ModelParams("m"), remote_params=params)
    outputs = engine.infer(prompts, progress=False)["output"].tolist()
    nbinfer.shutdown()
    return list(outputs)


def with_openai(url: str, prompts: list[str], at_once: int) -> list[str]:
    import openai

    async def work() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")
        places = asyncio.Semaphore(at_once)

        async def one(prompt: str) -> str:
            async with places:
                pieces = []
                stream = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=TOKENS,
                    temperature=0.0,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                async for chunk in stream:
                    pieces += [choice.delta.content or "" for choice in chunk.choices]
                return "".join(pieces)

        return await asyncio.gather(*map(one, prompts))

    return asyncio.run(work())


CLIENTS = {"nbinfer": with_nbinfer, "openai": with_openai}


def client(name: str, url: str, requests: int, at_once: int) -> None:
    """Run a client in this process and print what it cost."""
    send = CLIENTS[name]
    send(url, ["warm"] * at_once, at_once)
    process = psutil.Process()
    sizes = []
    for count in (requests // 10, requests):
        prompts = [f"prompt {i}" for i in range(count)]
        before, began = time.process_time(), time.monotonic()
        outputs = send(url, prompts, at_once)
        wall, cpu = time.monotonic() - began, time.process_time() - before
        sizes.append(process.memory_info().rss)
        lost = sum(o != p + "." * (TOKENS - 1) for o, p in zip(outputs, prompts, strict=True))
        del outputs, prompts
    found = {"wall_s": wall, "cpu_us": cpu / requests * 1e6, "lost": lost}
    print(json.dumps({**found, "grown_bytes": sizes[1] - sizes[0]}))


def measure(rounds: int, requests: int, at_once: int) -> None:
    command = [sys.executable, __file__]
    server = subprocess.Popen([*command, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CLIENTS}
    try:
        for _ in range(rounds):
            for name in CLIENTS:
                asked = [*command, "--client", name, "--url", url]
                asked += ["--requests", str(requests), "--open", str(at_once)]
                done = subprocess.run(asked, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout))
    finally:
        server.kill()
        server.wait()
    rows = [
        [
            name,
            f"{median([f['cpu_us'] for f in all_of]):,.0f}",
            f"{requests / median([f['wall_s'] for f in all_of]):,.0f}",
            f"{max(f['grown_bytes'] for f in all_of) / 1e6:.1f}",
            f"{sum(f['lost'] for f in all_of):.0f}",
        ]
        for name, all_of in found.items()
    ]
    head = ["client", "CPU us a request", "requests/s", "grown MB over 9/10", "lost"]
    print(table(rows, head))
    ours, theirs = (median([f["cpu_us"] for f in found[n]]) for n in ("nbinfer", "openai"))
    print(f"\nCPU of nbinfer over openai: {ours / theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--open", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--client", choices=CLIENTS)
    parser.add_argument("--url", default="")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    elif options.client:
        client(options.client, options.url, options.requests, options.open)
    else:
        measure(options.rounds, options.requests, options.open)


if __name__ == "__main__":
    main()
