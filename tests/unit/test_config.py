from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import json
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from nbinfer.config import (
    GenerationParams,
    GuidedDecodingParams,
    ModelParams,
    RemoteParams,
    parse_setting,
)
from nbinfer.errors import ConfigurationError

SECRET = "sk-very-secret-123"


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", "7"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**400),
        ("temperature", False),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", 0),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", 2**32),
        ("stop_strings", ""),
        ("stop_strings", ["a", ""]),
        ("stop_strings", 5),
        ("stop_strings", {"a": 1}),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", "12"),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 1, 1: 2}),
        ("logit_bias", {True: 1}),
        ("logit_bias", [1]),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("repetition_penalty", 0),
        ("num_beams", 0),
        ("n", 0),
        ("n", 1025),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("guided_decoding", "x"),
        ("skip_special_tokens", 1),
        ("raw", None),
        ("adapter", " "),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} ") as caught:
        GenerationParams(**{field: value})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("temperature", 2, 2.0),
        ("top_p", 0.5, 0.5),
        ("min_p", 1, 1.0),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("stop_strings", "\n", ("\n",)),
        ("stop_strings", ["a", " "], ("a", " ")),
        ("stop_token_ids", [0, 5], (0, 5)),
        ("logit_bias", {"7": 1, 8: -100}, {7: 1.0, 8: -100.0}),
        ("n", 1024, 1024),
        ("logprobs", 0, 0),
        ("logprobs", 20, 20),
    ],
)
def test_a_right_value_is_kept(field: str, value: Any, kept: Any) -> None:
    params = GenerationParams(**{field: value})
    assert getattr(params, field) == kept
    (name,) = params.to_dict(changed_only=True)
    assert name == field
    # What is written down makes the same parameters again.
    again = json.loads(json.dumps(params.to_dict()))
    assert GenerationParams(**again) == params


def test_numpy_numbers_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    params = GenerationParams(max_new_tokens=numpy.int64(5), temperature=numpy.float32(0.5))
    assert (type(params.max_new_tokens), type(params.temperature)) == (int, float)
    with pytest.raises(ConfigurationError):
        GenerationParams(max_new_tokens=numpy.bool_(True))


@pytest.mark.parametrize("cls", [GenerationParams, ModelParams, RemoteParams, GuidedDecodingParams])
def test_an_unknown_name_is_a_configuration_error(cls: type[Any]) -> None:
    with pytest.raises(ConfigurationError, match="has no field 'zzzzz'") as caught:
        cls(zzzzz=1)
    assert "it has: " in (caught.value.hint or "")


def test_the_nearest_name_is_the_hint() -> None:
    with pytest.raises(ConfigurationError) as caught:
        GenerationParams(max_new_token=1)  # type: ignore[call-arg]
    assert caught.value.hint == "did you mean 'max_new_tokens'?"
    with pytest.raises(ConfigurationError) as caught:
        dataclasses.replace(GenerationParams(), Temperatur=1)
    assert caught.value.hint == "did you mean 'temperature'?"


def test_positional_arguments_and_signature() -> None:
    assert ModelParams("a.gguf").model_name == "a.gguf"
    with pytest.raises(ConfigurationError, match="positional"):
        ModelParams("a", "b")  # type: ignore[misc]
    names = list(inspect.signature(ModelParams).parameters)
    assert names[0] == "model_name"
    assert "model_kwargs" in names


def test_defaults_show_nothing_and_are_json() -> None:
    for cls in (GenerationParams, ModelParams, RemoteParams):
        params = cls()
        assert params.to_dict(changed_only=True) == {}
        assert repr(params) == f"{cls.__name__}()"
        assert json.loads(json.dumps(params.to_dict())) == params.to_dict()
        assert pickle.loads(pickle.dumps(params)) == params
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(params, dataclasses.fields(params)[0].name, 1)


def test_mappings_are_copied() -> None:
    inner = [1]
    options: dict[str, Any] = {"a": inner}
    bias = {1: 2.0}
    model, generation = ModelParams(model_kwargs=options), GenerationParams(logit_bias=bias)
    options["b"], bias[2] = 1, 1.0
    inner.append(2)
    assert model.model_kwargs == {"a": [1]}
    assert generation.logit_bias == {1: 2.0}
    first = ModelParams()
    first.model_kwargs["x"] = 1  # type: ignore[index]
    assert ModelParams().model_kwargs == {}


def test_long_values_are_bounded_in_messages_and_reprs() -> None:
    with pytest.raises(ConfigurationError) as caught:
        GenerationParams(temperature="x" * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200
    assert len(repr(GenerationParams(stop_strings="x" * 10_000))) < 200


def test_a_value_whose_repr_raises() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(ConfigurationError, match="<Bad>"):
        GenerationParams(temperature=Bad())  # type: ignore[arg-type]


def test_a_container_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(ConfigurationError, match=r"^model_kwargs "):
        ModelParams(model_kwargs=loop)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", ""),
        ("model_name", 3),
        ("adapters", {"a": 1}),
        ("adapters", ["a"]),
        ("model_max_length", 0),
        ("torch_dtype_str", "float23"),
        ("model_kwargs", {1: 2}),
        ("model_kwargs", None),
        ("device_map", 3),
        ("trust_remote_code", "yes"),
    ],
)
def test_model_params_refuse(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} must be "):
        ModelParams(**{field: value})


def test_a_hub_token_among_options_is_hidden() -> None:
    params = ModelParams(model_kwargs={"token": SECRET, "n_ctx": 7})
    assert params.model_kwargs["token"] == SECRET
    assert SECRET not in repr(params) + str(params.to_dict())


# ------------------------------------------------------------------ guided decoding


def test_three_forms_of_a_schema_are_the_same() -> None:
    schema = City.model_json_schema()
    forms = [GuidedDecodingParams(json=f) for f in (schema, json.dumps(schema), City)]
    assert forms[0] == forms[1] == forms[2]
    assert [f.model_class for f in forms] == [None, None, City]
    assert json.loads(json.dumps(forms[2].to_dict())) == forms[2].to_dict()
    assert "model_class" not in forms[2].to_dict()


def test_replace_keeps_the_class_only_with_its_own_schema() -> None:
    params = GuidedDecodingParams(City)
    assert dataclasses.replace(params).model_class is City
    assert dataclasses.replace(params, json={"type": "object"}).model_class is None
    assert dataclasses.replace(params, json=None, regex="a").model_class is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"regex": "a", "choice": ["b"]},
        {"json": "{"},
        {"json": "3"},
        {"json": {"a": {1, 2}}},
        {"json": {"a": float("nan")}},
        {"json": int},
        {"choice": []},
        {"choice": "abc"},
        {"choice": ["a", ""]},
        {"regex": ""},
        {"grammar": 3},
    ],
)
def test_guided_decoding_refuses(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        GuidedDecodingParams(**fields)


def test_guided_decoding_from_a_mapping() -> None:
    params = GenerationParams(guided_decoding={"choice": ["a"]})  # type: ignore[arg-type]
    assert params.guided_decoding == GuidedDecodingParams(choice=["a"])
    assert params.to_dict(changed_only=True) == {"guided_decoding": {"choice": ["a"]}}


# ------------------------------------------------------------------ remote


def test_secrets_are_nowhere_to_be_seen() -> None:
    params = RemoteParams(
        api_url=[f"http://user:{SECRET}@host/v1", f"http://host?key={SECRET}"],
        api_key=SECRET,
        headers={"Authorization": f"Bearer {SECRET}"},
        proxy=f"http://user:{SECRET}@proxy:3128/?next=http://x",
    )
    texts = [repr(params), str(params), f"{params}", repr(vars(params)), repr(params.headers)]
    texts += [json.dumps(params.to_dict()), json.dumps(params.to_dict(changed_only=True))]
    texts += [repr(dataclasses.asdict(params)), repr(copy.deepcopy(params))]
    texts.append(repr(pickle.loads(pickle.dumps(params))))
    for text in texts:
        assert SECRET not in text
        assert "***" in text
    # and yet they work
    assert params.api_key == SECRET
    assert params.headers["Authorization"] == f"Bearer {SECRET}"
    assert params.to_dict()["api_key"] == "***"
    assert params.to_dict()["headers"] == {"Authorization": "***"}


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": SECRET.encode()},
        {"api_key": SECRET + "\n"},
        {"api_key": [SECRET]},
        {"headers": {"Authorization": SECRET + "\r\nX: y"}},
        {"headers": {"Authorization": SECRET.encode()}},
        {"headers": {"not a name": SECRET}},
        {"headers": [SECRET]},
        {"api_url": f"user:{SECRET}@host"},
        {"api_url": f"user:{SECRET}@host/?n=http://x"},
        {"api_url": f"http://u:{SECRET}@host:port"},
        {"api_url": [f"http://u:{SECRET}@host:port"]},
        {"api_url": f"ftp://host/?key={SECRET}"},
        {"proxy": f"ftp://u:{SECRET}@host"},
        {"apikey": SECRET},
        {"api_key": SECRET, "headers": 3},
    ],
)
def test_secrets_are_in_no_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RemoteParams(**fields)
    shown = traceback.format_exception_only(caught.value)
    assert SECRET not in "".join(shown) + repr(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("api_url", ""),
        ("api_url", "localhost:8000"),
        ("api_url", "http://"),
        ("api_url", "http://a b"),
        ("api_url", []),
        ("api_url", ["http://a", "b"]),
        ("api_key", ""),
        ("max_retries", -1),
        ("max_retries", 1.0),
        ("connection_timeout_s", 0),
        ("read_timeout_s", float("inf")),
        ("num_workers", 0),
        ("retry_backoff_base_s", -1),
        ("requests_per_minute", 0),
        ("headers", {"12 ": "x"}),
        ("verify", 1),
        ("proxy", "host:1"),
    ],
)
def test_remote_params_refuse(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} must be "):
        RemoteParams(**{field: value})


def test_backoff_bounds_agree() -> None:
    with pytest.raises(ConfigurationError, match="retry_backoff_max_s"):
        RemoteParams(retry_backoff_base_s=5, retry_backoff_max_s=1)


def test_one_or_several_addresses() -> None:
    assert RemoteParams("http://localhost:8000").api_url == "http://localhost:8000"
    assert RemoteParams(["http://a", "https://[::1]:1/v1"]).api_url == (
        "http://a",
        "https://[::1]:1/v1",
    )


# ------------------------------------------------------------------ KEY=VALUE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top_k=40", ("top_k", 40)),
        ("temperature = 0.5", ("temperature", 0.5)),
        ("raw=TRUE", ("raw", True)),
        ("raw=false", ("raw", False)),
        ("seed=None", ("seed", None)),
        ("stop_strings=END", ("stop_strings", "END")),
        ("stop_strings=a=b", ("stop_strings", "a=b")),
        ("stop_strings=['a', 'b']", ("stop_strings", ["a", "b"])),
        ("stop_strings=1if", ("stop_strings", "1if")),
        ("logit_bias={5: -1}", ("logit_bias", {5: -1})),
        ('guided_decoding={"json": {"a": true}}', ("guided_decoding", {"json": {"a": True}})),
        ("stop_strings=" + "(" * 500, ("stop_strings", "(" * 500)),
    ],
)
def test_parse_setting(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


def test_parse_setting_refuses() -> None:
    with pytest.raises(ConfigurationError, match="KEY=VALUE"):
        parse_setting("top_k")
    with pytest.raises(ConfigurationError) as caught:
        parse_setting("topk=3")
    assert caught.value.hint == "did you mean 'top_k'?"


@given(st.text(max_size=60))
def test_any_text_is_a_setting_or_a_configuration_error(text: str) -> None:
    name, value = parse_setting(f"stop_strings={text}")
    with contextlib.suppress(ConfigurationError):
        GenerationParams(**{name: value})
