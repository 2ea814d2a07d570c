"""What llama.cpp's server core is asked: a row's parameters in its own words.

Sampling defaults differ from everybody's (top_k 40, min_p 0.05): each one is always sent.
"""

from __future__ import annotations

import json

from nbinfer.worker.backends._toolform import for_template, knows

# Temperature comes before what cuts the tail, as in Transformers, vLLM and SGLang: llama.cpp's own
# order has it last, where top_p 0.9 is another set of tokens. What top_k leaves is the same on
# either side of it, and less work follows when it comes first.
SAMPLERS = ["penalties", "top_k", "temperature", "top_p", "min_p"]
# The likeliest token, alone: at temperature 0 the order above would weigh a whole vocabulary of
# which all but one are impossible, a tenth of a small model's time.
GREEDY = {"samplers": ["penalties", "top_k"], "top_k": 1}


def body(data, n_ctx, lora, template):
    """The request's body.

    ``lora`` is what it asks of the adapters that were loaded, or ``None`` where none were;
    ``template`` the model's chat template.

    Raises
    ------
    ValueError
        Where tools are given to a template that knows none.
    """
    given = data["params"]
    guided = given.get("guided_decoding") or {}
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
        "samplers": SAMPLERS,
        "repeat_penalty": given["repetition_penalty"],
        "repeat_last_n": n_ctx,
        "frequency_penalty": given["frequency_penalty"],
        "presence_penalty": given["presence_penalty"],
        "seed": -1 if given.get("seed") is None else given["seed"],
        "ignore_eos": given["ignore_eos"],
        **_guided(guided, "messages" in data),
    }
    if given["temperature"] == 0:
        asked.update(GREEDY)
    if given.get("stop_strings"):
        asked["stop"] = list(given["stop_strings"])
    if given.get("logit_bias"):
        asked["logit_bias"] = [[int(k), v] for k, v in given["logit_bias"].items()]
    if lora is not None:
        asked["lora"] = lora
    logprobs = given.get("logprobs")
    if "messages" in data:
        _add_messages(asked, data["messages"], given, template)
        if given.get("chat_template_kwargs"):
            asked["chat_template_kwargs"] = given["chat_template_kwargs"]
        if logprobs is not None:
            asked.update(logprobs=True, top_logprobs=logprobs)
    else:
        asked["prompt"] = data["prompt"]
        if logprobs is not None:
            asked["n_probs"] = max(logprobs, 1)
    return asked


def _add_messages(asked, messages, given, template):
    """A conversation, and tools: llama.cpp drops them where the template knows none."""
    tools, choice = given.get("tools"), given.get("tool_choice")
    if tools and choice == "auto" and not knows(template, "tools"):
        raise ValueError(
            "the model's chat template knows no tools, so that llama.cpp can read no calls: "
            "force one by tool_choice='required' or a name, or give another template in "
            "ModelParams(chat_template=...)"
        )
    # A forced call is held to its schema: llama.cpp takes no names and says nothing, and where it
    # was told that one is required, in a template's own form, none was seen to come.
    asked["messages"], tools = for_template(messages, tools, template, in_text=choice != "auto")
    if tools:
        asked.update(tools=tools, tool_choice=choice)


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
