"""Engines that are servers: requests, rows, timings, what is asked, what is told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
import time

import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    GenerationParams,
    ModelNotFound,
    ModelParams,
    OpenAICompatibleInferenceEngine,
    OpenAIInferenceEngine,
    RemoteParams,
    RemoteVLLMInferenceEngine,
    RunInterrupted,
    ServerError,
    ServerUnreachable,
    SGLangInferenceEngine,
    UnsupportedParameter,
)
from nbinfer.remote.service import base_url

from .apiserver import Call, Server, chunk, echo, events, stream
from .conftest import interrupt_when

KEY = "sk-planted-8d1f2c"


def made(server, engine=OpenAICompatibleInferenceEngine, model="m", **params):
    given = model if isinstance(model, ModelParams) else ModelParams(model)
    return engine(given, remote_params=RemoteParams(api_url=server.url, **params))


@pytest.fixture
def server(clean):
    with Server() as server:
        yield server
        nbinfer.shutdown()


# ------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("http://host:8000/v1/", "http://host:8000/v1"),
        ("http://host:8000/v1/chat/completions", "http://host:8000/v1"),
        ("https://host/api/v1/", "https://host/api/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
        ("https://host/gateway", "https://host/gateway/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("http://host:8000?a=b#c", "http://host:8000/v1"),
    ],
)
def test_base_urls(given, base):
    assert base_url(given) == base


# ------------------------------------------------------------------------------ rows


def test_rows(server):
    frame = made(server).infer(["one two three", "four"])
    assert frame["output"].tolist() == ["one two three", "four"]
    assert frame["finish_reason"].tolist() == ["stop", "stop"]
    assert frame["prompt_tokens"].tolist() == [5, 5]
    assert frame["output_tokens"].tolist() == [3, 1]
    assert frame["cached_tokens"].tolist() == [2, 2]
    assert frame["error"].isna().all()
    assert (frame["latency_s"] >= frame["ttft_s"]).all()
    assert frame["tpot_s"].notna().tolist() == [True, False]
    assert frame["model_memory_bytes"].isna().all()
    assert frame["engine"].tolist() == ["openai-compatible"] * 2
    facts = frame.attrs["nbinfer"]
    assert facts["engine_facts"]["servers"] == [server.url]
    assert facts["output_tokens_per_s"] > 0


def test_ttft_is_the_first_content_and_not_the_first_byte(server):
    async def script(call):
        await call.event(chunk(""))
        await asyncio.sleep(0.3)
        await call.event(chunk("a"))
        await asyncio.sleep(0.2)
        await call.event(chunk("b"))
        await asyncio.sleep(0.2)  # what comes after the last token is no part of the latency
        for event in events("a b")[-3:]:
            await call.event(event)
        await call.end()

    server.script = script
    engine = made(server).load()
    began = time.monotonic()
    row = engine.infer("x").loc[0]
    wall_s = time.monotonic() - began
    assert row["ttft_s"] >= 0.3
    assert row["latency_s"] - row["ttft_s"] >= 0.2
    assert row["tpot_s"] == pytest.approx(row["latency_s"] - row["ttft_s"])
    assert wall_s - row["latency_s"] >= 0.2


def test_what_the_server_does_not_tell_is_unknown(server):
    async def script(call):
        for event in (chunk("a"), chunk("b", "stop"), "[DONE]"):
            await call.event(event)
        await call.end()

    server.script = script
    row = made(server).infer("x")
    assert row["output"][0] == "ab"
    for name in ("prompt_tokens", "output_tokens", "cached_tokens", "tpot_s"):
        assert row[name].isna()[0]
    assert row["ttft_s"].notna()[0]


def test_an_answer_in_one_piece(server):
    async def script(call):
        message = {"role": "assistant", "content": "whole"}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        await call.json({"choices": [choice], "usage": usage})

    server.script = script
    row = made(server).infer("x")
    assert row["output"][0] == "whole"
    assert row["finish_reason"][0] == "length"
    assert row["output_tokens"][0] == 2
    assert row["ttft_s"].isna()[0]
    assert row["latency_s"].notna()[0]


def test_streaming(server):
    stream = made(server).stream("one two three")
    assert list(stream) == ["one", " two", " three"]
    assert stream.result["output"][0] == "one two three"


def test_reasoning_is_no_part_of_the_answer_but_its_tokens_count(server):
    async def script(call):
        piece = chunk()
        piece["choices"][0]["delta"] = {"reasoning_content": "hmm"}
        await call.event(piece)
        await asyncio.sleep(0.2)
        for event in events("yes")[1:]:
            await call.event(event)
        await call.end()

    server.script = script
    row = made(server).infer("x").loc[0]
    assert row["output"] == "yes"
    assert row["latency_s"] - row["ttft_s"] >= 0.2


# --------------------------------------------------------------------------- requests


def sent(server, engine, params, prompt="hi", **model):
    """The body of the one request."""
    before = len(server.calls)
    frame = engine.infer(prompt, params)
    assert frame["error"].isna().all(), frame["error"][0]
    (call,) = server.calls[before:]
    return call


def test_what_is_not_asked_for_is_not_sent(server):
    call = sent(server, made(server), GenerationParams(max_new_tokens=7))
    assert call.path == "/v1/chat/completions"
    assert call.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 7,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "authorization" not in call.headers


@pytest.mark.parametrize(
    ("owner", "engine", "all_tokens"),
    [("vllm", RemoteVLLMInferenceEngine, 0), ("sglang", SGLangInferenceEngine, -1)],
)
def test_a_models_own_defaults_do_not_apply(server, owner, engine, all_tokens):
    server.owner = owner
    body = sent(server, made(server, engine), GenerationParams()).body
    assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, all_tokens, 0.0)
    assert body["repetition_penalty"] == 1.0


def test_what_is_asked_for_is_sent(server):
    server.owner = "vllm"
    params = GenerationParams(
        max_new_tokens=9,
        temperature=0.7,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        seed=3,
        stop_strings=["END"],
        stop_token_ids=[2],
        logit_bias={5: -100},
        frequency_penalty=0.5,
        presence_penalty=0.25,
        repetition_penalty=1.1,
        skip_special_tokens=False,
        priority=-1,
        logprobs=2,
        guided_decoding={"choice": ["a", "b"]},
    )
    engine = RemoteVLLMInferenceEngine(
        ModelParams("m", chat_template_kwargs={"enable_thinking": False}),
        remote_params=RemoteParams(api_url=server.url, extra_body={"cache_salt": "s"}),
    )
    body = sent(server, engine, params).body
    assert body["max_tokens"] == 9
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "priority"):
        assert body[name] == getattr(params, name)
    for name in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
        assert body[name] == getattr(params, name)
    assert body["stop"] == ["END"]
    assert body["stop_token_ids"] == [2]
    assert body["logit_bias"] == {"5": -100.0}
    assert body["skip_special_tokens"] is False
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["structured_outputs"] == {"choice": ["a", "b"]}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["cache_salt"] == "s"


def test_a_raw_prompt_is_a_completion(server):
    async def script(call):
        for text, reason in (("a", None), ("b", "stop")):
            await call.event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})
        await call.event("[DONE]")
        await call.end()

    server.script = script
    engine = made(server)
    call = sent(server, engine, GenerationParams(raw=True))
    assert call.path == "/v1/completions"
    assert call.body["prompt"] == "hi"
    assert nbinfer.last()["output"][0] == "ab"


@pytest.mark.parametrize(
    ("guided", "expected"),
    [
        ({"regex": "[0-9]+"}, {"regex": "[0-9]+"}),
        ({"choice": ["a.b", "c"]}, {"regex": r"a\.b|c"}),
        ({"grammar": 'root ::= "a"'}, {"ebnf": 'root ::= "a"'}),
    ],
)
def test_guided_decoding_in_sglangs_words(server, guided, expected):
    server.owner = "sglang"
    engine = made(server, SGLangInferenceEngine)
    body = sent(server, engine, GenerationParams(guided_decoding=guided)).body
    assert {k: v for k, v in body.items() if k in ("regex", "ebnf")} == expected


def test_a_schema_in_everybodys_words(server):
    closed = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }

    async def script(call):
        await stream(call, '{"a":1}')

    server.script = script
    for schema, strict in ((closed, True), ({**closed, "required": []}, False)):
        params = GenerationParams(guided_decoding={"json": schema})
        form = sent(server, made(server), params).body["response_format"]
        assert form["json_schema"] == {"name": "answer", "schema": schema, "strict": strict}
    assert nbinfer.last()["parsed"][0] == {"a": 1}


def test_sglang_gives_log_probabilities_of_a_raw_prompt_by_its_own_request(server):
    server.owner = "sglang"

    async def script(call):
        assert call.path == "/generate"
        assert call.body["logprob_start_len"] == 0
        meta = {
            "finish_reason": {"type": "length", "length": 2},
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "cached_tokens": 1,
            "input_token_logprobs": [[None, 7, "a"], [-0.5, 8, "b"]],
            "input_top_logprobs": [None, [[-0.25, 9, "c"]]],
        }
        await call.json({"text": "out", "meta_info": meta})

    server.script = script
    engine = made(server, SGLangInferenceEngine)
    with pytest.raises(ConfigurationError, match="raw prompts alone"):
        engine.infer("x", GenerationParams(prompt_logprobs=1))
    row = engine.infer("x", GenerationParams(prompt_logprobs=1, raw=True)).loc[0]
    assert row["output"] == "out"
    assert row["cached_tokens"] == 1
    first, second = row["prompt_logprobs"]
    assert first is None
    assert second[0] == {"token": "b", "id": 8, "logprob": -0.5}


def test_sglangs_own_request_leaves_out_no_parameter(server):
    async def script(call):
        meta = {
            "finish_reason": {"type": "stop"},
            "input_token_logprobs": [[None, 7, "a"]],
            "output_token_logprobs": [[-0.5, 8, "b"]],
            "output_top_logprobs": [[[-0.5, 8, "b"], [-1.5, 9, "c"]]],
        }
        await call.json({"text": "b", "meta_info": meta})

    async def info(call):
        await call.json({"enable_deterministic_inference": True})

    server.owner, server.script = "sglang", script
    server.others["/server_info"] = info
    values = {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    values |= {"frequency_penalty": 0.2, "presence_penalty": 0.3, "temperature": 0.7}
    values |= {"stop_token_ids": [3], "skip_special_tokens": False, "max_new_tokens": 4}
    params = GenerationParams(
        **values,
        seed=0,
        stop_strings=["."],
        logit_bias={5: -1.0},
        logprobs=2,
        prompt_logprobs=1,
        raw=True,
        priority=2,
        guided_decoding={"json": {"type": "string"}},
    )
    engine = made(server, SGLangInferenceEngine)
    row = engine.infer("x", params).loc[0]
    (call,) = server.calls
    assert call.body["sampling_params"] == {
        **values,
        "stop_token_ids": [3],
        "sampling_seed": 0,
        "stop": ["."],
        "logit_bias": {"5": -1.0},
        "json_schema": '{"type": "string"}',
    }
    assert call.body["priority"] == 2
    assert call.body["top_logprobs_num"] == 2
    assert [t["token"] for t in row["logprobs"][0]["top"]] == ["b", "c"]


def test_a_seed_that_a_server_does_not_heed_is_refused(server):
    async def info(call):
        await call.json({"version": "0.5.23", "enable_deterministic_inference": heeds})

    server.owner = "sglang"
    server.others["/server_info"] = info
    heeds = False
    params = GenerationParams(seed=1, temperature=0.5)
    with pytest.raises(UnsupportedParameter, match="cannot honour seed") as caught:
        made(server, SGLangInferenceEngine).infer("x", params)
    assert "--enable-deterministic-inference" in caught.value.hint
    assert server.calls == []
    heeds = True
    nbinfer.shutdown()
    assert sent(server, made(server, SGLangInferenceEngine), params).body["seed"] == 1


def test_openai_wants_its_own_name_for_the_limit(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    call = sent(server, made(server, OpenAIInferenceEngine), GenerationParams(max_new_tokens=5))
    assert call.body["max_completion_tokens"] == 5
    assert "max_tokens" not in call.body
    assert call.headers["authorization"] == f"Bearer {KEY}"


# ------------------------------------------------------------------- what is refused


def test_what_an_engine_cannot_honour_is_refused_before_anything_is_sent(server):
    with pytest.raises(UnsupportedParameter, match="openai cannot honour top_k=4") as caught:
        made(server, OpenAIInferenceEngine).infer("x", GenerationParams(top_k=4))
    assert "remote-vllm" in caught.value.engines
    with pytest.raises(UnsupportedParameter, match="openai cannot honour raw=True"):
        made(server, OpenAIInferenceEngine).infer("x", GenerationParams(raw=True))
    with pytest.raises(UnsupportedParameter, match="takes no remote_params"):
        nbinfer.LlamaCppInferenceEngine(remote_params=RemoteParams())
    assert server.calls == []


def test_parameters_of_a_load_are_left_to_the_server_and_that_is_said_once(server, capsys):
    params = ModelParams("m", model_max_length=512, model_kwargs={"tensor_parallel_size": 4})
    engine = OpenAICompatibleInferenceEngine(params, remote_params=RemoteParams(api_url=server.url))
    engine.infer("x")
    engine.infer("x")
    said = capsys.readouterr().err
    assert said.count("leaves model_kwargs, model_max_length to the server") == 1


def test_a_wrong_model_lists_those_that_are_served(server):
    server.models = ["org/small", "org/large"]
    with pytest.raises(ModelNotFound, match="does not serve 'org/smal'") as caught:
        made(server, model="org/smal").load()
    assert "did you mean 'org/small'?" in caught.value.hint
    assert "org/large" in caught.value.hint
    assert server.calls == []


def test_a_server_of_another_library_is_refused(server):
    server.owner = "sglang"
    with pytest.raises(ServerError, match="is a server of sglang, not of vllm"):
        made(server, RemoteVLLMInferenceEngine).infer("x")


def test_a_server_without_a_list_of_models_is_used_all_the_same(server):
    server.models = None
    assert made(server).infer("hello")["output"][0] == "hello"


def test_a_server_that_is_not_there_is_told_within_two_seconds(clean):
    began = time.monotonic()
    with Server() as server:
        url = server.url
    with pytest.raises(ServerUnreachable, match=url):
        OpenAICompatibleInferenceEngine("m", remote_params=RemoteParams(api_url=url)).infer("x")
    assert time.monotonic() - began < 2


def test_a_server_that_takes_no_connection_is_told_within_two_seconds(clean):
    import socket

    with socket.socket() as full:  # its queue of connections is full: new ones wait for ever
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}"
        began = time.monotonic()
        with pytest.raises(ServerUnreachable, match="no connection in time"):
            OpenAICompatibleInferenceEngine("m", remote_params=RemoteParams(api_url=url)).load()
        assert time.monotonic() - began < 2
        for each in waiting:
            each.close()


def test_an_engine_without_an_address_says_so(clean):
    with pytest.raises(ConfigurationError, match="openai-compatible has no address"):
        OpenAICompatibleInferenceEngine("m").infer("x")


def test_a_key_that_is_not_set_is_told_before_anything_is_sent(server):
    engine = made(server, api_key_env_varname="NBINFER_NO_SUCH_KEY")
    with pytest.raises(ConfigurationError, match="'NBINFER_NO_SUCH_KEY' holds no API key"):
        engine.infer("x")


def test_a_key_that_is_refused_is_told_once_and_not_by_row(server):
    async def models(call):
        await call.error(401, f"Incorrect API key provided: {KEY}")

    server.others["/v1/models"] = models
    with pytest.raises(ServerError, match="refuses the key") as caught:
        made(server, api_key=KEY).infer(["x"] * 5)
    assert KEY not in str(caught.value)
    assert server.calls == []


# --------------------------------------------------------------------- what it is asked


def test_what_a_vllm_server_says_of_itself_is_in_the_facts(server):
    async def version(call):
        await call.json({"version": "0.99.1"})

    async def metrics(call):
        text = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'
        await call.send(200, text.encode(), "text/plain")

    server.owner = "vllm"
    server.others = {"/version": version, "/metrics": metrics}
    facts = made(server, RemoteVLLMInferenceEngine).infer("x").attrs["nbinfer"]
    assert facts["versions"] == {"vllm": "0.99.1"}
    assert facts["engine_facts"]["kv_cache_tokens"] == 1600


def test_a_second_run_asks_nothing_again(server):
    asked = []
    models = server._models

    async def counted(call):
        asked.append(call.path)
        await models(call)

    server.others["/v1/models"] = counted
    engine = made(server)
    engine.infer("x")
    made(server).infer("y")  # another engine of the same address shares its connections
    assert asked == ["/v1/models"]
    assert server.connections == 1


def test_an_adapter_is_loaded_where_it_is_not_served_yet(server):
    loaded = []

    async def load(call):
        loaded.append(call.body)
        await call.send(200, b"Success", "text/plain")

    server.owner = "vllm"
    server.others["/v1/load_lora_adapter"] = load
    engine = RemoteVLLMInferenceEngine(
        ModelParams("m", adapters={"a": "/lora/a"}),
        remote_params=RemoteParams(api_url=server.url),
    )
    assert sent(server, engine, GenerationParams(adapter="a")).body["model"] == "a"
    assert sent(server, engine, GenerationParams(adapter="a")).body["model"] == "a"
    assert loaded == [{"lora_name": "a", "lora_path": "/lora/a"}]
    with pytest.raises(ModelNotFound, match="no adapter 'b'"):
        engine.infer("x", GenerationParams(adapter="b"))


def test_sglang_loads_an_adapter_by_its_own_address(server):
    """It is beside /v1, and a request asks for it beside the model's name."""
    loaded = []

    async def load(call):
        loaded.append(call.body)
        if call.body["lora_name"] == "a":
            await call.json({"success": True, "loaded_adapters": {}})
        else:
            await call.json({"success": False, "error_message": "rank 99 is too much"}, 400)

    server.owner = "sglang"
    server.others["/load_lora_adapter"] = load
    engine = made(server, SGLangInferenceEngine, ModelParams("m", adapter_model="/lora/d"))
    with pytest.raises(ModelNotFound, match="'default' of '/lora/d': rank 99 is too much"):
        engine.infer("x")
    engine = made(server, SGLangInferenceEngine, ModelParams("m", adapters={"a": "/lora/a"}))
    assert sent(server, engine, GenerationParams(adapter="a")).body["lora_path"] == "a"
    assert "lora_path" not in sent(server, engine, GenerationParams()).body
    assert [given["lora_name"] for given in loaded] == ["default", "a"]


@pytest.mark.parametrize("kind", [RemoteVLLMInferenceEngine, SGLangInferenceEngine])
def test_an_adapter_of_that_name_from_another_folder_is_not_taken_for_it(server, kind):
    async def models(call):
        mine = {"id": "m", "owned_by": server.owner, "root": "/models/m", "parent": None}
        other = {"id": "a", "owned_by": server.owner, "root": "/lora/old", "parent": "m"}
        await call.json({"object": "list", "data": [mine, other]})

    server.owner = kind.library
    server.others["/v1/models"] = models
    with pytest.raises(ConfigurationError, match="'a' from '/lora/old', and not from '/lora/a'"):
        made(server, kind, ModelParams("m", adapters={"a": "/lora/a"})).load()
    # What is there can be asked for by its name, without a folder.
    assert sent(server, made(server, kind), GenerationParams(adapter="a")).body


def test_a_server_that_loads_no_adapters_says_what_to_start_it_with(server):
    server.owner = "vllm"
    engine = RemoteVLLMInferenceEngine(
        ModelParams("m", adapters={"a": "/lora/a"}),
        remote_params=RemoteParams(api_url=server.url),
    )

    async def none(call):
        await call.send(404, b'{"detail":"Not Found"}')

    server.others["/v1/load_lora_adapter"] = none
    with pytest.raises(ServerError, match="loads none while it runs") as caught:
        engine.load()
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in caught.value.hint

    async def off(call):
        words = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."
        await call.json({"success": False, "error_message": words}, 400)

    server.owner = "sglang"
    server.others["/load_lora_adapter"] = off
    engine = made(
        server, SGLangInferenceEngine, ModelParams("m", adapters={"a": "/lora/a"}), max_retries=1
    )
    with pytest.raises(ServerError, match="loads none while it runs") as caught:
        engine.load()
    assert "--lora-paths a=FOLDER" in caught.value.hint


# -------------------------------------------------------------------------- many at once


def test_as_many_at_once_as_asked_for(server):
    async def slow(call):
        await asyncio.sleep(0.02)
        await echo(call)

    server.script = slow
    frame = made(server, num_workers=7).infer([f"p{i}" for i in range(60)])
    assert frame["output"].tolist() == [f"p{i}" for i in range(60)]
    assert server.most_at_once == 7
    assert frame.attrs["nbinfer"]["engine_facts"]["most_requests_at_once"] == 7


def test_fewer_at_once_when_the_server_asks(server):
    now = most = 0

    async def picky(call):
        nonlocal now, most
        if now >= 8:
            await call.error(429)
            return
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.03)
        now -= 1
        await echo(call)

    server.script = picky
    engine = made(server, max_retries=50, retry_backoff_base_s=0.01, retry_backoff_max_s=0.1)
    frame = engine.infer([f"p{i}" for i in range(200)])
    assert frame["error"].isna().all()
    assert engine.service.pace.limit < 16


def test_requests_a_minute(server):
    engine = made(server, requests_per_minute=600)
    began = time.monotonic()
    engine.infer([f"p{i}" for i in range(20)])
    assert time.monotonic() - began > 0.8  # ten a second may come at once, then one each 0.1 s


def test_work_is_shared_by_servers_and_outlives_one_of_them(clean):
    with Server() as one, Server() as two, Server() as three:

        async def slow(call):
            await asyncio.sleep(0.01)
            await echo(call)

        async def dying(call):
            if call.number == 5:
                threading.Thread(target=two.stop).start()
                await asyncio.sleep(5)
            await slow(call)

        one.script = three.script = slow
        two.script = dying
        engine = OpenAICompatibleInferenceEngine(
            "m", remote_params=RemoteParams(api_url=[one.url, two.url, three.url])
        )
        frame = engine.infer([f"p{i}" for i in range(300)])
        assert frame["error"].isna().all()
        assert frame["output"].tolist() == [f"p{i}" for i in range(300)]
        assert len(one.calls) > 80
        assert len(three.calls) > 80
        assert len(two.calls) >= 6
        nbinfer.shutdown()


def test_a_server_that_is_down_from_the_start_is_left_out(server, capsys):
    with Server() as gone:
        url = gone.url
    engine = OpenAICompatibleInferenceEngine(
        "m", remote_params=RemoteParams(api_url=[url, server.url])
    )
    assert engine.infer(["a", "b"])["error"].isna().all()
    assert f"{url} does not answer and is left out" in capsys.readouterr().err


def test_two_cells_at_once_share_connections_and_keep_their_rows_apart(server):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        work = [
            threads.submit(made(server).infer, [f"{name}{i}" for i in range(50)]) for name in "ab"
        ]
        for name, future in zip("ab", work, strict=True):
            assert future.result()["output"].tolist() == [f"{name}{i}" for i in range(50)]


# -------------------------------------------------------------------------- interrupts


def test_an_interrupt_keeps_what_finished_and_closes_the_requests(server):
    closed = threading.Event()

    async def script(call: Call) -> None:
        if call.text == "quick":
            await echo(call)
            return
        await call.event(chunk("partly"))
        with pytest.raises(ConnectionError):
            while True:
                await call.event(chunk(""))
                await asyncio.sleep(0.01)
        closed.set()

    server.script = script
    with interrupt_when(lambda: len(server.calls) == 3 and time.sleep(0.2) is None):
        began = time.monotonic()
        with pytest.raises(RunInterrupted) as caught:
            made(server).infer(["quick", "slow", "slow"])
    assert time.monotonic() - began < 2
    frame = caught.value.frame
    assert frame["finish_reason"].tolist() == ["stop", "cancelled", "cancelled"]
    assert frame["output"].tolist() == ["quick", "partly", "partly"]
    assert closed.wait(2)
    server.script = echo
    assert made(server).infer("next")["output"][0] == "next"


def test_an_interrupt_while_the_server_is_asked(server):
    async def never(call):
        await asyncio.sleep(30)

    server.others["/v1/models"] = never
    for work in (made(server).load, lambda: made(server).infer("x")):
        began = time.monotonic()
        with interrupt_when(lambda: time.sleep(0.3) is None), pytest.raises(RunInterrupted):
            work()
        assert time.monotonic() - began < 2


def test_a_stream_that_is_left_closes_its_request(server):
    closed = threading.Event()

    async def script(call):
        with pytest.raises(ConnectionError):
            while True:
                await call.event(chunk("x"))
                await asyncio.sleep(0.01)
        closed.set()

    server.script = script
    pieces = made(server).stream("x")
    next(pieces)
    pieces.close()
    assert closed.wait(2)


# ----------------------------------------------------------------------------- magics


def test_the_magic_takes_an_address(server, shell):
    shell.run_cell_magic("infer", f"-e openai-compatible -m m --url {server.url} -o df", "hello")
    assert shell.user_ns["df"]["output"][0] == "hello"
    shell.run_line_magic(
        "engine", f"use openai-compatible -m m --url {server.url} -r num_workers=3"
    )
    shell.run_cell_magic("infer", "-o df", "again")
    assert shell.user_ns["df"]["output"][0] == "again"
    assert shell.user_ns["df"].attrs["nbinfer"]["engine"] == "openai-compatible"


def test_engine_load_says_where_it_is_served(server, shell, capsys):
    shell.run_line_magic("engine", f"load openai-compatible -m m --url {server.url}")
    assert f"openai-compatible · m is served at {server.url}" in capsys.readouterr().out


def test_the_panel_and_the_doctor_know_servers(server):
    from nbinfer.doctor import report
    from nbinfer.notebook.switcher import Switcher

    nbinfer.configure(remote={"openai-compatible": {"api_url": server.url}})
    (row,) = (r for r in Switcher().state().rows if r.selection.engine == "openai-compatible")
    assert (row.state, row.actions) == ("server", ("use",))
    assert server.url in row.note
    assert any(f"openai-compatible: {server.url}" in line for line in report()[0])
    assert server.calls == []


def test_a_key_in_a_cell_is_refused(server, shell):
    with pytest.raises(ConfigurationError, match="saved with the notebook"):
        shell.run_cell_magic(
            "infer", f"-e openai-compatible -m m --url {server.url} -r api_key={KEY}", "x"
        )


def test_the_settings_name_an_address(server):
    nbinfer.configure(remote={"openai-compatible": {"api_url": server.url, "num_workers": 2}})
    engine = OpenAICompatibleInferenceEngine("m")
    assert engine.infer("hello")["output"][0] == "hello"
    assert engine.remote_params.num_workers == 2


def test_a_run_goes_on_from_its_file_unless_more_was_asked(server, tmp_path):
    path = tmp_path / "rows.db"
    made(server).infer(["a", "b"], output_path=path)
    frame = made(server).infer(["a", "b", "c"], output_path=path)
    assert frame["output"].tolist() == ["a", "b", "c"]
    assert len(server.calls) == 3
    with pytest.raises(ConfigurationError, match="extra_body"):
        made(server, extra_body={"cache_salt": "x"}).infer(["a", "b"], output_path=path)


def test_keys_are_nowhere(server, monkeypatch):
    monkeypatch.setenv("PLANTED", KEY)

    async def told(call):
        await call.error(400, f"bad request with {call.headers['authorization']}")

    server.script = told
    engine = made(server, api_key_env_varname="PLANTED", headers={"x-own": "planted-header-77"})
    frame = engine.infer("x")
    assert frame["error"].notna()[0]
    everything = json.dumps(frame.attrs["nbinfer"]) + frame.to_csv() + repr(engine)
    everything += repr(engine.remote_params) + repr(engine.service) + repr(engine.service.servers)
    assert KEY not in everything
    assert "planted-header-77" not in everything
