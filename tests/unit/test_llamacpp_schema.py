"""Schemas that nothing fits are told with the place; those that something fits are let through."""

from __future__ import annotations

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbinfer.worker.backends._llamacpp_schema import TYPES, impossible

TEXT = {"type": "string"}
ASKS = {"type": "object", "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (False, "it allows nothing"),
        ({"type": "nonsense"}, "'nonsense' is no type"),
        ({"type": ["string", "text"]}, "'text' is no type"),
        ({"enum": []}, "enum is empty"),
        ({"anyOf": []}, "anyOf is empty"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength is 5 and maxLength is 2"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum is 5"),
        ({"$ref": "#/$defs/none"}, "'#/$defs/none'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"enum": []}}}, "enum is empty"),
        ({"allOf": [TEXT, {"type": "integer"}]}, "several types"),
        ({"anyOf": [{"enum": []}, False]}, "enum is empty"),
        ({**ASKS, "additionalProperties": False}, "'a' is required and not allowed"),
        ({**ASKS, "properties": {"a": {"enum": []}}}, "enum at a is empty"),
        (
            {**ASKS, "properties": {"a": {"type": "array", "minItems": 1, "items": {"type": "x"}}}},
            "'x' at a[] is no type",
        ),
    ],
)
def test_a_contradiction_is_told_with_its_place(schema, why):
    assert why in impossible(schema)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        TEXT,
        {"allOf": [{"type": "number"}, {"type": "integer"}]},
        {"anyOf": [{"enum": []}, TEXT]},
        {"properties": {"a": {"enum": []}}},  # none is asked for
        {"type": "array", "items": {"enum": []}},  # an empty one
        {"required": ["a"]},
        {**ASKS, "additionalProperties": False, "patternProperties": {"^a": TEXT}},
        {"required": ["a"], "additionalProperties": False},  # of what is no object nothing is said
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"next": {"$ref": "#/$defs/a"}}}}},
        {"$ref": "#"},
        {"$ref": "https://example.org/schema"},
        {"type": "string", "minLength": 2, "maxLength": 2},
        {"minLength": 3, "maxLength": 2},
    ],
)
def test_what_something_fits_is_let_through(schema):
    assert impossible(schema) is None


SCHEMAS = st.recursive(
    st.sampled_from([True, {}, *({"type": kind} for kind in TYPES), {"enum": [1, "a"]}])
    | st.builds(
        lambda low, high: {"type": "string", "minLength": low, "maxLength": high},
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    lambda inner: (
        st.builds(
            lambda part, name: {name: [part]}, inner, st.sampled_from(["anyOf", "allOf", "oneOf"])
        )
        | st.builds(lambda part: {**ASKS, "properties": {"a": part}}, inner)
        | st.builds(lambda part: {"type": "array", "minItems": 1, "items": part}, inner)
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.fixed_dictionaries({"a": inner}),
    max_leaves=4,
)


@given(SCHEMAS, VALUES)
def test_no_value_fits_what_is_called_impossible(schema, value):
    if impossible(schema) is not None:
        assert not jsonschema.Draft202012Validator(schema).is_valid(value)
