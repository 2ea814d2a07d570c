"""Guided decoding for engines without their own: masks from llguidance."""

from __future__ import annotations

import json

import numpy
import torch

_tokenizers: dict[int, object] = {}


class Grammar:
    """What one answer may go on with. ``guided`` is ``GuidedDecodingParams`` as a dict."""

    def __init__(self, tokenizer, guided, stop_ids):
        try:
            import llguidance
            import llguidance.hf
            from llguidance.gbnf_to_lark import any_to_lark
        except ImportError as error:
            raise ValueError(
                f"guided decoding needs llguidance in the engine's environment ({error}): "
                "pip install llguidance there, or %engine install native --reinstall"
            ) from None
        if id(tokenizer) not in _tokenizers:  # a second's work
            _tokenizers[id(tokenizer)] = llguidance.hf.from_tokenizer(
                tokenizer, eos_token=list(stop_ids) or None
            )
        compiler = llguidance.LLMatcher
        if guided.get("json") is not None:
            grammar = compiler.grammar_from_json_schema(json.dumps(closed(guided["json"])))
        elif guided.get("regex") is not None:
            # Classes such as \d are ASCII, as elsewhere; in llguidance they are all of Unicode's.
            text = llguidance.regex_to_lark(guided["regex"], use_ascii="dws")
            grammar = compiler.grammar_from_lark(f"start: /{text}/")
        elif guided.get("choice") is not None:
            choices = " | ".join(json.dumps(choice) for choice in guided["choice"])
            grammar = compiler.grammar_from_lark(f"start: {choices}")
        else:
            grammar = compiler.grammar_from_lark(any_to_lark(guided["grammar"]))
        self._matcher = llguidance.LLMatcher(_tokenizers[id(tokenizer)], grammar)
        if self._matcher.is_error():
            raise ValueError(f"llguidance refuses the grammar: {self._matcher.get_error()}")

    def mask(self, scores):
        """Forbid, in place, every token that cannot come next."""
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        allowed = torch.zeros(len(scores), dtype=torch.bool)
        known = torch.from_numpy(numpy.unpackbits(bits, bitorder="little")[: len(scores)])
        allowed[: len(known)] = known.bool()
        scores.masked_fill_(~allowed.to(scores.device), float("-inf"))

    def accept(self, token):
        """A token was chosen."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    @property
    def complete(self):
        """Whether nothing but an end can follow."""
        return self._matcher.is_stopped()


def closed(schema):
    """The schema with no properties but those named, unless it says otherwise itself.

    What llama.cpp and xgrammar take an open schema to mean as well: a small model that may add
    properties adds them until its tokens run out.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {}
    for key, value in schema.items():
        if key in ("enum", "const", "default", "examples"):
            inner[key] = value
        elif key in ("properties", "patternProperties", "$defs", "definitions"):
            inner[key] = {name: closed(part) for name, part in value.items()}
        else:
            inner[key] = closed(value)
    if isinstance(schema.get("properties"), dict) and schema.get("type", "object") == "object":
        inner.setdefault("additionalProperties", False)
    return inner
