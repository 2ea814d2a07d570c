"""Tools and their calls for chat templates, also for those that know neither."""

from __future__ import annotations

import json
import re

TOLD = """You can call these tools, each described by a JSON Schema:
{tools}
To call one, answer with JSON alone: {{"name": the tool's name, "arguments": {{...}}}}"""


def knows(template, word):
    """Whether a chat template names a variable; one that is no text brings its own code."""
    if isinstance(template, dict):
        template = " ".join(template.values())
    return not isinstance(template, str) or re.search(rf"\b{word}\b", template) is not None


def for_template(messages, tools, template, *, in_text=False):
    """Messages and tools as the template can show them: nothing of either is left out.

    A template drops in silence what it does not know. It is told of it in plain text then;
    ``in_text`` has tools told so in any case.
    """
    if tools and (in_text or not knows(template, "tools")):
        messages = _with_system(messages, TOLD.format(tools="\n".join(map(json.dumps, tools))))
        tools = None
    if not knows(template, "tool_calls"):
        messages = [_plain(message) for message in messages]
    return messages, tools


def with_objects(messages):
    """Arguments as objects, which Hugging Face's templates take, out of OpenAI's JSON text."""
    return [_with_objects(m) if m.get("tool_calls") else m for m in messages]


def _with_objects(message):
    calls = [
        {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
        for c in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _with_system(messages, text):
    if messages and messages[0]["role"] == "system" and isinstance(messages[0]["content"], str):
        first = {**messages[0], "content": messages[0]["content"] + "\n\n" + text}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _plain(message):
    if message["role"] == "tool":
        return {"role": "user", "content": "The tool answered: {}".format(message["content"])}
    if not message.get("tool_calls"):
        return message
    calls = [
        json.dumps({"name": f["name"], "arguments": json.loads(f["arguments"])}, ensure_ascii=False)
        for f in (call["function"] for call in message["tool_calls"])
    ]
    return {"role": "assistant", "content": "\n".join([message["content"], *calls]).strip()}
