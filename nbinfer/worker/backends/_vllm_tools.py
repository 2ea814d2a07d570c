"""Calls of tools that a model made freely, read by vLLM's own parser of its form."""

from __future__ import annotations

import functools
import json

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager


def reader(name):
    """Who makes the ``Calls`` of an answer, by the name of vLLM's parser."""
    try:
        return functools.partial(Calls, ToolParserManager.get_tool_parser(name))
    except KeyError:
        names = ", ".join(ToolParserManager.list_registered())
        raise ValueError(f"vLLM has no tool_call_parser {name!r}; it has: {names}") from None


class Calls:
    """One answer's calls.

    Attributes
    ----------
    skip_special_tokens : bool
        What the parser needs of the text: some forms are of special tokens.
    """

    def __init__(self, kind, tokenizer, data):
        self._request = ChatCompletionRequest(
            messages=data["messages"], tools=data["params"]["tools"], tool_choice="auto"
        )
        self._parser = kind(tokenizer, self._request.tools)
        self._request = self._parser.adjust_request(self._request)
        self.skip_special_tokens = self._request.skip_special_tokens

    def read(self, text):
        """The calls, and what was said beside them; ``None`` where there was no call."""
        found = self._parser.extract_tool_calls(text, request=self._request)
        if not found.tools_called:
            return None
        calls = [
            {"name": c.function.name, "arguments": json.loads(c.function.arguments or "{}")}
            for c in found.tool_calls
        ]
        return calls, found.content or ""
