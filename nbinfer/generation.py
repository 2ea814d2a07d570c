"""How to generate: GenerationParams, GuidedDecodingParams, and KEY=VALUE settings of them."""

from __future__ import annotations

import ast
import json as jsonlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .checks import (
    Check,
    boolean,
    integer,
    items,
    nonempty,
    number,
    optional,
    shown,
    text,
    unknown_name,
)
from .errors import ConfigurationError
from .tools import check_choice, checked_tools
from .validation import Params, checked, known_names

__all__ = ["GenerationParams", "GuidedDecodingParams", "parse_setting", "parse_value"]

_STRINGS = items(nonempty(), "strings, none of them empty")


def _schema(value: Any) -> Any:
    """A JSON Schema from a dictionary, a JSON string or a pydantic model class."""
    if isinstance(value, str):
        value = jsonlib.loads(value)
    elif hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    if not isinstance(value, Mapping):
        raise TypeError
    # Through JSON and back: a copy of its own that is certain to be JSON.
    return jsonlib.loads(jsonlib.dumps(dict(value), allow_nan=False))


@known_names
@dataclass(frozen=True, repr=False)
class GuidedDecodingParams(Params):
    r"""A form that the answer must have. Exactly one of the four is given.

    Parameters
    ----------
    json : dict, str or pydantic model class, optional
        A JSON Schema, the same as JSON text, or a class with ``model_json_schema()``.
        Kept as a dictionary; the class stays in ``model_class``.
    regex : str, optional
        A regular expression for the whole answer, such as ``r"\d{4}"``.
    choice : list of str, optional
        The answers allowed.
    grammar : str, optional
        A grammar in the engine's own notation (GBNF for llama.cpp).

    Raises
    ------
    ConfigurationError
        Unless exactly one is set, or for a value that is no schema, list or text.
    """

    json: Any = checked(  # noqa: RUF009
        None, optional(Check("a JSON Schema (dict, JSON text or pydantic model class)", _schema))
    )
    regex: str | None = checked(None, optional(nonempty()))
    choice: Sequence[str] | None = checked(None, optional(_STRINGS))
    grammar: str | None = checked(None, optional(text()))
    model_class: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        given = self.json
        is_class = isinstance(given, type) and hasattr(given, "model_json_schema")
        super().__post_init__()
        kept = given if is_class else self.model_class
        # replace(params, json=...) hands the former class on: it must not parse another schema.
        if kept is not None and (self.json is None or _schema(kept) != self.json):
            kept = None
        object.__setattr__(self, "model_class", kept)

    def _check_together(self) -> None:
        names = ("json", "regex", "choice", "grammar")
        given = [n for n in names if getattr(self, n) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"GuidedDecodingParams takes exactly one of {', '.join(names)}, "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.choice is not None and not self.choice:
            raise ConfigurationError("choice must be a list of strings that is not empty, got []")


def _stop_strings(value: Any) -> Any:
    return _STRINGS.convert([value] if isinstance(value, str) else value)


def _token_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise TypeError
    token, bias = integer(0), number(-100, 100)
    numeric = {
        int(k) if isinstance(k, str) and re.fullmatch("[0-9]{1,18}", k) else k: v
        for k, v in value.items()
    }
    if len(numeric) != len(value):
        raise ValueError
    return {token.convert(k): bias.convert(v) for k, v in numeric.items()}


def _logprobs(value: Any) -> int:
    if isinstance(value, bool):
        raise ConfigurationError(
            f"logprobs takes how many alternatives per token, 0 to 20, got {value}",
            hint="logprobs=0 gives each token's own; leave it out for none",
        )
    return int(integer(0, 20).convert(value))


def _guided(value: Any) -> GuidedDecodingParams:
    if isinstance(value, GuidedDecodingParams):
        return value
    if isinstance(value, Mapping):
        return GuidedDecodingParams(**value)
    raise TypeError


@known_names
@dataclass(frozen=True, repr=False)
class GenerationParams(Params):
    """How to generate. What an engine cannot honour it refuses; nothing is dropped.

    Parameters
    ----------
    max_new_tokens : int, default 512
        Most tokens per answer, at least 1.
    temperature : float, default 0.0
        0 is greedy; any finite number above is allowed.
    top_p : float, default 1.0
        Nucleus sampling, in (0, 1].
    top_k : int, optional
        Sample among the k likeliest tokens, at least 1.
    min_p : float, default 0.0
        Least probability relative to the likeliest token's, in [0, 1].
    seed : int, optional
        From 0 to 2**32 - 1.
    stop_strings : str or list of str, optional
        Texts that end an answer. Kept as a tuple.
    stop_token_ids : list of int, optional
        Tokens that end an answer. Kept as a tuple.
    logit_bias : mapping of int or numeric str to float, default {}
        Added to a token's logit, in [-100, 100].
    frequency_penalty, presence_penalty : float, default 0.0
        In [-2, 2].
    repetition_penalty : float, default 1.0
        Above 0; 1 is none.
    num_beams : int, default 1
        Beams of a beam search, at least 1; 1 is none.
    n : int, default 1
        Answers per prompt, 1 to 1024.
    logprobs : int, optional
        Alternatives per token whose log-probability is kept, 0 to 20; 0 keeps the token's own.
    guided_decoding : GuidedDecodingParams or mapping of its fields, optional
        A form that the answer must have.
    skip_special_tokens : bool, default True
        Leave special tokens out of the text.
    raw : bool, default False
        Give the model the prompt as it is, without a chat template.
    adapter : str, optional
        A name out of ``ModelParams.adapters``.
    prompt_logprobs : int, optional
        Alternatives per token of the prompt whose log-probability is kept, 0 to 20.
    ignore_eos : bool, default False
        Go on past the model's own end until ``max_new_tokens``: answers of one length, for
        benchmarks.
    priority : int, default 0
        Requests with a lower one are served first, where the server was started for it.
    tools : list of (dict or callable), optional
        What the model may call: schemas as OpenAI's API takes them, or Python functions with
        type hints and a docstring. Kept as schemas. Calls are in the column ``tool_calls``.
    tool_choice : str, default "auto"
        ``"auto"``: the model decides; ``"none"``: it calls none; ``"required"``: it calls one;
        or the name of the tool that it calls.
    separate_reasoning : bool, default True
        Put what the model thinks in a leading ``<think>`` block, or what a server tells of it,
        in the column ``reasoning`` and not in ``output``. ``False`` leaves it in the output,
        between the tags.

    Raises
    ------
    ConfigurationError
        For an unknown field, or a value of the wrong type or range.
    """

    max_new_tokens: int = checked(512, integer(1))
    temperature: float = checked(0.0, number(0))
    top_p: float = checked(1.0, number(0, 1, above=True))
    top_k: int | None = checked(None, optional(integer(1)))
    min_p: float = checked(0.0, number(0, 1))
    seed: int | None = checked(None, optional(integer(0, 2**32 - 1)))
    stop_strings: str | Sequence[str] | None = checked(
        None, optional(Check("a string or a list of strings, none of them empty", _stop_strings))
    )
    stop_token_ids: Sequence[int] | None = checked(
        None, optional(items(integer(0), "token ids (whole numbers of at least 0)"))
    )
    logit_bias: Mapping[int, float] | Mapping[str, float] = checked(
        {}, Check("a mapping of token ids to numbers from -100 to 100", _token_bias)
    )
    frequency_penalty: float = checked(0.0, number(-2, 2))
    presence_penalty: float = checked(0.0, number(-2, 2))
    repetition_penalty: float = checked(1.0, number(0, above=True))
    num_beams: int = checked(1, integer(1))
    n: int = checked(1, integer(1, 1024))
    logprobs: int | None = checked(None, optional(Check("a whole number from 0 to 20", _logprobs)))
    guided_decoding: GuidedDecodingParams | None = checked(  # noqa: RUF009
        None, optional(Check("GuidedDecodingParams or a mapping of its fields", _guided))
    )
    skip_special_tokens: bool = checked(True, boolean())
    raw: bool = checked(False, boolean())
    adapter: str | None = checked(None, optional(text()))
    prompt_logprobs: int | None = checked(
        None, optional(Check("a whole number from 0 to 20", _logprobs))
    )
    ignore_eos: bool = checked(False, boolean())
    priority: int = checked(0, integer())
    tools: Sequence[Any] | None = checked(
        None, optional(Check("a list of function schemas or Python functions", checked_tools))
    )
    tool_choice: str = checked("auto", nonempty())
    separate_reasoning: bool = checked(True, boolean())

    def _check_together(self) -> None:
        check_choice(self.tools, self.tool_choice)
        for name in ("guided_decoding", "raw") if self.tools is not None else ():
            if getattr(self, name):
                raise ConfigurationError(
                    f"tools and {name} exclude each other",
                    hint="tools are told of in a chat template, and calls have a form of their own",
                )


_WORDS = {"true": True, "false": False, "none": None}


def parse_setting(text: str) -> tuple[str, Any]:
    """One ``KEY=VALUE`` as a field of GenerationParams and its value.

    Parameters
    ----------
    text : str
        Split at the first ``=``. The value is read as a Python or JSON literal, ``true``,
        ``false`` and ``none`` in any case, and as plain text where it is none of them.

    Returns
    -------
    tuple of (str, object)
        Name and value, whose range ``GenerationParams`` itself checks.

    Raises
    ------
    ConfigurationError
        Without a ``=``, or for a name that GenerationParams does not have.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigurationError(f"a setting is KEY=VALUE, got {shown(text)}")
    names = [f.name for f in fields(GenerationParams)]
    if name not in names:
        raise unknown_name("GenerationParams", name, names)
    return name, parse_value(value)


def parse_value(text: str) -> Any:
    """A value typed on a command line: a Python or JSON literal, or else the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in (ast.literal_eval, jsonlib.loads):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "1if" makes Python's parser warn
                return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text
