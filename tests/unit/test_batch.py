"""Batch APIs: handed over, waited for, fetched; held against the vendors' own types."""

from __future__ import annotations

import json
import re

import pydantic
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from openai.types import Batch, FileObject
from openai.types.batch_create_params import BatchCreateParams
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

import nbinfer
from nbinfer import (
    AnthropicInferenceEngine,
    ConfigurationError,
    GenerationParams,
    OpenAIInferenceEngine,
    RemoteParams,
    RunInterrupted,
    ServerError,
    UnsupportedParameter,
)
from nbinfer.remote import batch

from .apiserver import Server
from .conftest import echo, interrupt_when
from .test_cloud import strictly

PROMPTS = ["one", "two", "three"]


class Cloud:
    """What a batch API does, with what it was asked and how far it is."""

    def __init__(self, server: Server, polls: int = 2) -> None:
        self.requests: dict[str, dict] = {}
        self.polls = polls
        self.asked = 0
        self.failing: set[str] = set()
        self.server = server
        server.script = self.answer

    def ended(self) -> bool:
        self.asked += 1
        return self.asked > self.polls


class OpenAICloud(Cloud):
    def batch(self, ended: bool, **more) -> dict:
        value = {
            "id": "batch_1",
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file-1",
            "completion_window": "24h",
            "created_at": 1,
            "status": "completed" if ended else "in_progress",
            "request_counts": {"completed": 0, "failed": 0, "total": len(self.requests)},
            **({"output_file_id": "file-2", "error_file_id": "file-3"} if ended else {}),
            **more,
        }
        Batch.model_validate(value)
        return value

    async def answer(self, call):
        if call.path == "/v1/files":
            (content,) = re.findall(rb"\r\n\r\n(\{.*\})\r\n", call.raw_body, re.S)
            for line in content.splitlines():
                asked = json.loads(line)
                assert (asked["method"], asked["url"]) == ("POST", "/v1/chat/completions")
                strictly(CompletionCreateParamsNonStreaming, asked["body"])
                self.requests[asked["custom_id"]] = asked["body"]
            file = {
                "id": "file-1",
                "bytes": 1,
                "created_at": 1,
                "filename": "f.jsonl",
                "object": "file",
                "purpose": "batch",
                "status": "processed",
            }
            FileObject.model_validate(file)
            await call.json(file)
        elif call.path == "/v1/batches":
            strictly(BatchCreateParams, call.body)
            await call.json(self.batch(ended=False))

    def others(self):
        async def state(call):
            await call.json(self.batch(self.ended()))

        async def good(call):
            lines = [self.line(n, b) for n, b in self.requests.items() if n not in self.failing]
            await call.send(200, "\n".join(reversed(lines)).encode())

        async def bad(call):
            error = {"message": "too long", "type": "invalid_request_error", "code": "length"}
            lines = [
                json.dumps(
                    {"custom_id": n, "response": {"status_code": 400, "body": {"error": error}}}
                )
                for n in self.failing
            ]
            await call.send(200, "\n".join(lines).encode())

        return {
            "/v1/batches/batch_1": state,
            "/v1/files/file-2/content": good,
            "/v1/files/file-3/content": bad,
        }

    def line(self, name, body):
        text = body["messages"][-1]["content"].upper()
        message = {"role": "assistant", "content": text, "refusal": None}
        ending = {"finish_reason": "stop", "logprobs": None}
        answer = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, **ending}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }
        ChatCompletion.model_validate(answer)
        return json.dumps({"custom_id": name, "response": {"status_code": 200, "body": answer}})


class AnthropicCloud(Cloud):
    def batch(self, ended: bool) -> dict:
        counts = dict.fromkeys(("canceled", "errored", "expired", "processing", "succeeded"), 0)
        counts["succeeded" if ended else "processing"] = len(self.requests)
        value = {
            "id": "msgbatch_1",
            "type": "message_batch",
            "request_counts": counts,
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "processing_status": "ended" if ended else "in_progress",
        }
        MessageBatch.model_validate(value)
        return value

    async def answer(self, call):
        for asked in call.body["requests"]:
            strictly(MessageCreateParamsNonStreaming, asked["params"])
            assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", asked["custom_id"])
            self.requests[asked["custom_id"]] = asked["params"]
        await call.json(self.batch(ended=False))

    def others(self):
        async def state(call):
            await call.json(self.batch(self.ended()))

        async def results(call):
            lines = [self.line(n, b) for n, b in self.requests.items()]
            await call.send(200, "\n".join(reversed(lines)).encode())

        return {
            "/v1/messages/batches/msgbatch_1": state,
            "/v1/messages/batches/msgbatch_1/results": results,
        }

    def line(self, name, params):
        text = params["messages"][-1]["content"].upper()
        message = {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "output_tokens": 2},
        }
        error = {"type": "invalid_request_error", "message": "too long"}
        failed = {"type": "errored", "error": {"type": "error", "error": error, "request_id": None}}
        good = {"type": "succeeded", "message": message}
        value = {"custom_id": name, "result": failed if name in self.failing else good}
        MessageBatchIndividualResponse.model_validate(value)
        return json.dumps(value)


CLOUDS = {
    "openai": (OpenAIInferenceEngine, OpenAICloud, "batch_1"),
    "anthropic": (AnthropicInferenceEngine, AnthropicCloud, "msgbatch_1"),
}


@pytest.fixture(params=CLOUDS)
def cloud(request, clean, monkeypatch):
    """An engine, what stands for its cloud, and the id of its batch."""
    monkeypatch.setattr(batch, "FIRST_POLL_S", 0.02)
    kind, made, name = CLOUDS[request.param]
    with Server() as server:
        cloud = made(server)
        server.others.update(cloud.others())
        params = RemoteParams(api_url=server.url, api_key="sk-planted")
        yield kind("m", remote_params=params), cloud, name
        nbinfer.shutdown()


def test_a_batch(cloud, capsys):
    engine, made, name = cloud
    frame = engine.infer(PROMPTS, GenerationParams(max_new_tokens=9), batch=True)
    assert frame["output"].tolist() == ["ONE", "TWO", "THREE"]
    assert frame["finish_reason"].tolist() == ["stop"] * 3
    assert frame["output_tokens"].tolist() == [2, 2, 2]
    assert frame["ttft_s"].isna().all()
    assert frame["latency_s"].isna().all()
    assert frame.attrs["nbinfer"]["engine_facts"]["batch"] == name
    assert len(made.requests) == 3
    assert made.asked == 3
    assert f"batch {name} is handed over" in capsys.readouterr().err


def test_equal_prompts_and_samples_stay_apart(cloud):
    engine, made, _ = cloud
    frame = engine.infer(["same", "same"], GenerationParams(n=2), batch=True)
    assert frame["output"].tolist() == ["SAME"] * 4
    assert len(made.requests) == 4


def test_an_interrupt_ends_the_waiting_and_the_id_goes_on(cloud, capsys):
    engine, made, name = cloud
    made.polls = 10**6
    with interrupt_when(lambda: made.asked > 2), pytest.raises(RunInterrupted) as caught:
        engine.infer(PROMPTS, batch=True)
    assert caught.value.frame["finish_reason"].tolist() == ["cancelled"] * 3
    assert f"batch={name!r} waits for it again" in capsys.readouterr().err
    made.polls = 0
    count = len(made.server.calls)
    assert engine.infer(PROMPTS, batch=name)["output"].tolist() == ["ONE", "TWO", "THREE"]
    assert len(made.server.calls) == count  # nothing was handed over again


def test_a_batch_of_other_prompts_is_refused(cloud):
    engine, _, name = cloud
    engine.infer(PROMPTS, batch=True)
    with pytest.raises(ConfigurationError, match="answers other prompts"):
        engine.infer(["four", "two", "three"], batch=name)
    with pytest.raises(ConfigurationError, match="answers other prompts"):
        engine.infer(PROMPTS, GenerationParams(max_new_tokens=3), batch=name)


def test_a_request_that_failed_is_that_rows_error(cloud):
    engine, made, _ = cloud
    create = made.answer

    async def one_fails(call):
        await create(call)
        made.failing = {name for name in made.requests if name.startswith("1-")}

    made.server.script = one_fails
    frame = engine.infer(PROMPTS, batch=True)
    assert frame["finish_reason"].tolist() == ["stop", "error", "stop"]
    assert "too long" in frame["error"][1]


def test_finished_rows_of_a_file_are_not_handed_over_again(cloud, tmp_path):
    engine, made, _ = cloud
    path = tmp_path / "rows.db"
    engine.infer(PROMPTS[:2], batch=True, output_path=path)
    made.requests.clear()
    frame = engine.infer(PROMPTS, batch=True, output_path=path)
    assert frame["output"].tolist() == ["ONE", "TWO", "THREE"]
    assert len(made.requests) == 1


def test_a_batch_that_failed_says_why(clean, monkeypatch):
    monkeypatch.setattr(batch, "FIRST_POLL_S", 0.02)
    with Server() as server:
        cloud = OpenAICloud(server)
        server.others.update(cloud.others())

        async def failed(call):
            errors = {"data": [{"message": "the file has a bad line", "code": "x", "line": 1}]}
            await call.json(cloud.batch(ended=False, status="failed", errors=errors))

        server.others["/v1/batches/batch_1"] = failed
        params = RemoteParams(api_url=server.url, api_key="sk-planted")
        with pytest.raises(ServerError, match="the file has a bad line"):
            OpenAIInferenceEngine("m", remote_params=params).infer(PROMPTS, batch=True)
        nbinfer.shutdown()


def test_engines_without_a_batch_api_name_those_that_have(clean):
    with pytest.raises(UnsupportedParameter, match="openai, anthropic"):
        echo().infer("x", batch=True)


def test_these_types_refuse_what_they_do_not_know():
    with pytest.raises(pydantic.ValidationError):
        strictly(MessageCreateParamsNonStreaming, {"model": "m", "temperature": 1})
