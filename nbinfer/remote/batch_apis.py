"""The batch APIs of OpenAI and of Anthropic."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from .batch import BatchState, request
from .exchange import Request
from .failures import from_exception, from_response
from .service import Server

__all__ = ["AnthropicBatches", "OpenAIBatches"]


async def _lines(server: Server, path: str) -> AsyncIterator[dict[str, Any]]:
    """A file of JSON lines."""
    try:
        async with server.client.stream("GET", path) as response:
            if response.status_code != 200:
                raise from_response(response, await response.aread())
            async for line in response.aiter_lines():
                if line.strip():
                    yield json.loads(line)
    except httpx.HTTPError as error:
        raise from_exception(error) from None


class OpenAIBatches:
    """``/v1/files`` and ``/v1/batches``."""

    most = 50_000

    async def create(self, server: Server, requests: Mapping[str, Request]) -> BatchState:
        lines = [
            json.dumps({"custom_id": name, "method": "POST", "url": f"/v1{r.path}", "body": r.body})
            for name, r in requests.items()
        ]
        content = "\n".join(lines).encode()
        file = await request(
            server,
            "POST",
            "/files",
            data={"purpose": "batch"},
            files={"file": ("nbinfer.jsonl", content, "application/jsonl")},
        )
        asked = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        return self._state(await request(server, "POST", "/batches", json=asked))

    async def state(self, server: Server, batch_id: str) -> BatchState:
        return self._state(await request(server, "GET", f"/batches/{batch_id}"))

    def _state(self, batch: Mapping[str, Any]) -> BatchState:
        counts = batch.get("request_counts") or {}
        status = batch["status"]
        errors = (batch.get("errors") or {}).get("data") or []
        files = [batch.get("output_file_id"), batch.get("error_file_id")]
        return BatchState(
            batch["id"],
            status,
            counts.get("completed", 0) + counts.get("failed", 0),
            counts.get("total", 0),
            ended=status in ("completed", "failed", "expired", "cancelled"),
            problem="; ".join(e.get("message", "") for e in errors) if status == "failed" else "",
            results=tuple(name for name in files if name),
        )

    async def results(
        self, server: Server, state: BatchState
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        for name in state.results:
            async for line in _lines(server, f"/files/{name}/content"):
                body: dict[str, Any] = (line.get("response") or {}).get("body") or {}
                error = line.get("error")
                yield line["custom_id"], {"error": error} if error else body


class AnthropicBatches:
    """``/v1/messages/batches``."""

    most = 100_000

    async def create(self, server: Server, requests: Mapping[str, Request]) -> BatchState:
        asked = [{"custom_id": name, "params": r.body} for name, r in requests.items()]
        return self._state(
            await request(server, "POST", "/messages/batches", json={"requests": asked})
        )

    async def state(self, server: Server, batch_id: str) -> BatchState:
        return self._state(await request(server, "GET", f"/messages/batches/{batch_id}"))

    def _state(self, batch: Mapping[str, Any]) -> BatchState:
        counts = batch["request_counts"]
        total = sum(counts.values())
        ended = batch["processing_status"] == "ended"
        return BatchState(
            batch["id"],
            batch["processing_status"],
            total - counts["processing"],
            total,
            ended=ended,
            results=(f"/messages/batches/{batch['id']}/results",) if ended else (),
        )

    async def results(
        self, server: Server, state: BatchState
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        for path in state.results:
            async for line in _lines(server, path):
                result = line["result"]
                kind = result["type"]
                if kind == "succeeded":
                    yield line["custom_id"], result["message"]
                elif kind == "errored":
                    yield line["custom_id"], result["error"]
                else:  # canceled, expired
                    yield line["custom_id"], {"error": {"message": f"the request was {kind}"}}
