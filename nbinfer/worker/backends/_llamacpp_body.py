"""What llama.cpp's server core is asked: a row's parameters in its own words.

Sampling defaults differ from everybody's (top_k 40, min_p 0.05): each one is always sent.
"""

from __future__ import annotations

import json


def body(data, n_ctx, lora):
    """The request's body.

    ``lora`` is what it asks of the adapters that were declared, or ``None`` where none were.
    """
    given = data["params"]
    asked = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        "return_progress": True,
        "cache_prompt": True,
        "max_tokens": given["max_new_tokens"],
        "temperature": given["temperature"],
        "top_p": given["top_p"],
        "top_k": given.get("top_k") or 0,
        "min_p": given["min_p"],
        "typical_p": 1.0,
        "repeat_penalty": given["repetition_penalty"],
        "repeat_last_n": n_ctx,
        "frequency_penalty": given["frequency_penalty"],
        "presence_penalty": given["presence_penalty"],
        "seed": -1 if given.get("seed") is None else given["seed"],
        **_guided(given.get("guided_decoding") or {}, "messages" in data),
    }
    if given.get("stop_strings"):
        asked["stop"] = list(given["stop_strings"])
    if given.get("logit_bias"):
        asked["logit_bias"] = [[int(k), v] for k, v in given["logit_bias"].items()]
    if lora is not None:
        asked["lora"] = lora
    logprobs = given.get("logprobs")
    if "messages" in data:
        asked["messages"] = data["messages"]
        if given.get("chat_template_kwargs"):
            asked["chat_template_kwargs"] = given["chat_template_kwargs"]
        if logprobs is not None:
            asked.update(logprobs=True, top_logprobs=logprobs)
    else:
        asked["prompt"] = data["prompt"]
        if logprobs is not None:
            asked["n_probs"] = max(logprobs, 1)
    return asked


def choice_grammar(choices):
    """GBNF for one of several texts. It knows JSON's escapes, but not of characters in two."""
    return "root ::= " + " | ".join(json.dumps(c, ensure_ascii=False) for c in choices)


def _guided(guided, chat):
    if guided.get("grammar"):
        return {"grammar": guided["grammar"]}
    if guided.get("choice"):
        return {"grammar": choice_grammar(guided["choice"])}
    if guided.get("json") is None:
        return {}
    if not chat:
        return {"json_schema": guided["json"]}
    schema = {"name": "answer", "schema": guided["json"]}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
