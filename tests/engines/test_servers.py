"""Real servers, started by our own command: found, asked, stopped, gone with their kernel."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from pathlib import Path

import httpx
import psutil
import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    GenerationParams,
    LoadError,
    ModelParams,
    OpenAICompatibleInferenceEngine,
    RemoteParams,
    RunInterrupted,
    ServerUnreachable,
    settings,
)
from nbinfer.records import Finished
from nbinfer.worker.sessions import session_pids

from ..conftest import Hears, eventually
from ..kernel import Kernel
from ..unit.conftest import interrupt_when
from .conftest import SERVERS

SHORT = GenerationParams(max_new_tokens=8)


@pytest.fixture
def server(clean):
    with nbinfer.serve("llamacpp", ModelParams(model_kwargs={"n_ctx": 512})) as server:
        yield server


def test_a_server_of_llamacpp(server):
    frame = OpenAICompatibleInferenceEngine().infer(["Name a colour.", "Name an animal."], SHORT)
    assert frame["error"].isna().all()
    assert frame["output_tokens"].between(1, 8).all()
    facts = frame.attrs["nbinfer"]
    assert facts["engine_facts"]["servers"] == [server.url]
    # It is ours and on this machine: what it takes is measured.
    assert frame["model_memory_bytes"][0] > 150_000_000
    assert frame["peak_memory_bytes"][0] >= frame["model_memory_bytes"][0]


def test_it_is_listed_and_its_key_is_nowhere(server, capsys):
    key = str(server.api_key)
    assert len(key) > 20
    table = nbinfer.engines()
    row = table[table["address"] == server.url].iloc[0]
    assert (row["engine"], row["state"], row["pid"]) == ("llamacpp", "serving", server.pid)
    assert row["memory_bytes"] > 150_000_000
    record = settings.home() / "servers" / f"{server.pid}.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
    OpenAICompatibleInferenceEngine().infer("x", SHORT)
    seen = repr(server) + table.to_csv() + repr(nbinfer.servers()) + Path(server.log).read_text()
    for pid in session_pids(server.pid):
        seen += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
    said = capsys.readouterr()
    seen += said.out + said.err + nbinfer.last().to_csv() + str(nbinfer.last().attrs)
    assert key not in seen


def test_it_asks_for_its_key_and_answers_no_strange_page(server):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    url = f"{server.url}/v1/chat/completions"
    assert httpx.post(url, json=body).status_code == 401
    headers = {"authorization": f"Bearer {server.api_key}", "origin": "https://elsewhere.example"}
    allowed = httpx.post(url, json=body, headers=headers, timeout=60).headers.get(
        "access-control-allow-origin"
    )
    assert allowed not in ("*", "https://elsewhere.example")
    engine = OpenAICompatibleInferenceEngine(
        remote_params=RemoteParams(api_url=server.url, api_key="sk-wrong")
    )
    with pytest.raises(nbinfer.ServerError, match="refuses the key"):
        engine.infer("x", SHORT)


def test_stopped_it_is_gone(server):
    pids = session_pids(server.pid)
    assert pids
    with pytest.raises(ConfigurationError, match="no server is 'sglang'"):
        nbinfer.stop("sglang")
    assert [s.url for s in nbinfer.stop(server.url)] == [server.url]
    assert not any(psutil.pid_exists(p) and p in session_pids(server.pid) for p in pids)
    assert nbinfer.servers() == []
    assert not (settings.home() / "servers" / f"{server.pid}.json").exists()


def test_a_record_of_a_process_that_is_gone_is_none(server):
    os.kill(server.pid, signal.SIGKILL)
    assert eventually(lambda: nbinfer.servers() == [])
    assert eventually(lambda: session_pids(server.pid) == [])


def test_one_that_ends_in_a_run_is_told_with_its_last_words(server):
    def heard(record):
        if isinstance(record, Finished):
            os.kill(server.pid, signal.SIGKILL)

    engine = OpenAICompatibleInferenceEngine(remote_params=RemoteParams(num_workers=1))
    with pytest.raises(ServerUnreachable, match=r"its process has ended \(\d+ of 50") as caught:
        engine.infer([f"Count to {n}." for n in range(50)], SHORT, progress=Hears(heard))
    assert server.log in str(caught.value)
    frame = caught.value.frame
    assert frame["finish_reason"].isin(["stop", "length"]).any()
    assert frame["error"].notna().any()


def test_a_port_of_ones_own_and_one_that_is_taken(clean):
    with nbinfer.serve("llamacpp") as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 cannot be had"):
            nbinfer.serve("llamacpp", port=port)
    with nbinfer.serve("llamacpp", port=port) as again:
        assert again.url == first.url


def test_beyond_this_machine_it_has_a_random_key_and_says_where(clean, capsys):
    with nbinfer.serve("llamacpp", host="0.0.0.0") as server:
        assert len(server.api_key) > 20
        assert server.url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{server.url}/props").status_code == 401
    assert nbinfer.serving._key("vllm", "0.0.0.0")
    assert nbinfer.serving._key("vllm", "127.0.0.1") is None
    said = capsys.readouterr().err
    assert f"its API key is in {settings.home() / 'servers'}" in said
    assert str(server.api_key) not in said


def test_what_cannot_start_says_why(clean, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")
    with pytest.raises(LoadError, match="server of llamacpp did not start") as caught:
        nbinfer.serve("llamacpp", str(broken))
    assert caught.value.log_tail
    assert nbinfer.servers() == []
    with pytest.raises(ConfigurationError, match="native has no server to start"):
        nbinfer.serve("native")


def test_an_interrupt_while_it_starts_ends_it(clean, monkeypatch):
    monkeypatch.setattr("nbinfer.server_start._answers", lambda *_: False)
    with interrupt_when(lambda: nbinfer.servers()), pytest.raises(RunInterrupted):
        nbinfer.serve("llamacpp")
    assert nbinfer.servers() == []


@pytest.mark.parametrize("keep", [False, True])
def test_a_server_ends_with_its_kernel_unless_it_is_kept(keep):
    with Kernel() as kernel:
        option = "--keep" if keep else ""
        told = kernel.run(f"%engine serve llamacpp {option}").ok().stdout
        url = re.search(r"http://[\d.:]+", told)[0]
        (server,) = [s for s in nbinfer.servers() if s.url == url]
        assert kernel.run("%infer -e openai-compatible --max-new-tokens 4 Hello").ok().results
        kernel.kill9()
        if keep:
            time.sleep(1)
            assert server.alive
            server.stop()
        assert eventually(lambda: not server.alive and session_pids(server.pid) == [])


def test_the_command_line_serves_and_stops(clean, tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "-m", "nbinfer.cli"]
    with subprocess.Popen(
        [*command, "serve", "llamacpp", "-k", "n_ctx=512"], stdout=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        assert "llamacpp serves smollm2-135m at http://127.0.0.1:" in line
        done = subprocess.run([*command, "stop", "llamacpp"], capture_output=True, text=True)
        assert done.returncode == 0
        assert "is stopped" in done.stdout
        assert process.wait(10) == 0


# The guide's blocks, to the letter but for the import, the model's name and the address.
GUIDE = {
    "remote-vllm": """
engine = RemoteVLLMInferenceEngine(
    model_params=ModelParams(model_name="{model}"),
    remote_params=RemoteParams(
        api_url="{url}",
        max_retries=3,
    )
)
""",
    "sglang": """
engine = SGLangInferenceEngine(
    model_params=ModelParams(model_name="{model}"),
    remote_params=RemoteParams(api_url="{url}")
)
""",
}
LOCAL_TO_REMOTE = """
engine = VLLMInferenceEngine(model_params)

engine = RemoteVLLMInferenceEngine(
    model_params=model_params,
    remote_params=RemoteParams(api_url="{url}")
)
"""


@pytest.mark.parametrize("variant", SERVERS, indirect=True)
def test_the_guides_blocks_run(variant, engine):
    (url,) = engine.urls
    model = "smollm2-135m"
    model_params = ModelParams(model_name=model, model_kwargs={"tensor_parallel_size": 1})
    names = {name: getattr(nbinfer, name) for name in nbinfer.__all__}
    names["model_params"] = model_params
    blocks = [GUIDE[variant.engine]]
    blocks += [LOCAL_TO_REMOTE] if variant.engine == "remote-vllm" else []
    for block in blocks:
        exec(block.format(model=model, url=url), names)
        frame = names["engine"].infer(["Name a colour.", "Name an animal."], SHORT)
        assert frame["error"].isna().all()
        assert (frame["output"].str.len() > 0).all()
        assert frame.attrs["nbinfer"]["engine_facts"]["kv_cache_tokens"] > 0


@pytest.mark.parametrize("variant", SERVERS, indirect=True)
def test_an_interrupt_reaches_the_server(variant, engine):
    """The kernel is free, and the server computes for nobody: the next answer is soon there."""
    first = engine.infer("Hi", SHORT)
    long = GenerationParams(max_new_tokens=1500)
    began = time.monotonic()
    with (
        interrupt_when(lambda: time.monotonic() > began + 1.5),
        pytest.raises(RunInterrupted) as caught,
    ):
        engine.infer(["Write a long story about a fox."] * 8, long)
    assert (caught.value.frame["finish_reason"] == "cancelled").sum() > 0
    again = engine.infer("Hi", SHORT)
    assert again["output"][0] == first["output"][0]
    assert again["latency_s"][0] < 20


@pytest.mark.parametrize("variant", SERVERS, indirect=True)
def test_guided_decoding_in_the_servers_words(variant, engine):
    for guided, fits in (
        ({"regex": "[0-9]{4}"}, r"\d{4}"),
        ({"choice": ["yes", "no (really)"]}, r"yes|no \(really\)"),
        ({"grammar": 'root ::= "up" | "down"'}, "up|down"),
    ):
        params = GenerationParams(max_new_tokens=12, guided_decoding=guided)
        row = engine.infer("Answer.", params).loc[0]
        assert re.fullmatch(fits, row["output"]), (guided, row["output"])


@pytest.mark.parametrize("variant", SERVERS, indirect=True)
def test_log_probabilities_of_a_prompt(variant, engine):
    params = GenerationParams(max_new_tokens=2, prompt_logprobs=1, raw=True)
    prompts = ["The capital of France is Paris.", "Red, blue and green are colours, are they not?"]
    alone = [engine.infer(prompt, params).loc[0] for prompt in prompts]
    together = engine.infer(prompts, params)
    assert together["error"].isna().all()
    for one, row in zip(alone, together.to_dict("records"), strict=True):
        for found in (one, row):
            first, *others = found["prompt_logprobs"]
            assert first is None
            assert len(others) == found["prompt_tokens"] - 1
            assert all(token[0]["logprob"] <= 0 for token in others)
