"""Rows to DataFrame: columns, dtypes, order, input columns, JSON facts."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbinfer.frame import COLUMNS, Row, build, jsonable

FACTS = {
    "run_id": "r-1",
    "engine": "echo",
    "model": "m",
    "model_memory_bytes": 10,
    "peak_memory_bytes": None,
    "wall_s": math.nan,
}


def rows(*indices: int) -> list[Row]:
    return [Row(i, id=i, prompt=f"p{i}", output=f"o{i}", output_tokens=i) for i in indices]


def test_columns_and_dtypes_are_fixed_whatever_is_known():
    for given_rows in (rows(0, 1), [Row(0, id=0)], []):
        frame = build(given_rows, FACTS)
        assert list(frame.columns) == list(COLUMNS)
        kinds = {n: str(k) for n, k in frame.dtypes.items()}
        assert kinds == {n: k or "int64" for n, k in COLUMNS.items()}


def test_unknown_is_na_and_never_zero():
    frame = build([Row(0, id=0, ttft_s=math.nan, output_tokens=0)], FACTS)
    row = frame.loc[0]
    for name in ("output", "prompt_tokens", "ttft_s", "peak_memory_bytes", "error"):
        assert pd.isna(row[name]), name
    assert row["output_tokens"] == 0
    assert row["model_memory_bytes"] == 10


def test_rows_come_in_order_of_prompt_and_sample():
    given_rows = [Row(1, 0, id=1), Row(0, 1, id=0), Row(0, 0, id=0), Row(1, 1, id=1)]
    frame = build(given_rows, FACTS, samples=True)
    assert list(frame.columns[:3]) == ["id", "sample", "prompt"]
    assert list(zip(frame["id"], frame["sample"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert str(frame["sample"].dtype) == "int64"


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [([3, 1], "int64"), (["a", "b"], "str"), ([1, "b"], "object"), ([True, 1], "object")],
)
def test_ids_keep_their_type(ids, dtype):
    frame = build([Row(i, id=value) for i, value in enumerate(ids)], FACTS)
    assert str(frame["id"].dtype) == dtype
    assert frame["id"].tolist() == ids


def test_input_columns_come_first_and_unchanged():
    inputs = pd.DataFrame(
        {"word": pd.Categorical(["a", "b"]), "x": pd.array([1, None], dtype="Int8")}, index=[7, 9]
    )
    frame = build(
        [Row(i, s, id=i) for i in (0, 1) for s in (0, 1)], FACTS, inputs=inputs, samples=True
    )
    assert list(frame.columns[:4]) == ["word", "x", "id", "sample"]
    assert frame["word"].tolist() == ["a", "a", "b", "b"]
    assert str(frame["word"].dtype) == "category"
    assert str(frame["x"].dtype) == "Int8"
    assert frame.index.tolist() == [0, 1, 2, 3]
    assert inputs.index.tolist() == [7, 9]


def test_colliding_input_columns():
    inputs = pd.DataFrame({"id": ["k"], "output": ["old"], "input_output": [1], "prompt": ["q"]})
    frame = build([Row(0, id="k", prompt="p", output="new")], FACTS, inputs=inputs)
    assert list(frame.columns[:4]) == ["id", "input_input_output", "input_output", "input_prompt"]
    assert frame.columns.is_unique
    assert frame.loc[0, "input_input_output"] == "old"
    assert frame.loc[0, "output"] == "new"
    assert frame.loc[0, "prompt"] == "p"


def test_optional_columns_are_last():
    row = Row(0, id=0, logprobs=[{"token": "a"}], parsed={"k": 1}, messages=[])
    frame = build([row], FACTS, optional=("parsed", "logprobs"))
    assert list(frame.columns[-2:]) == ["logprobs", "parsed"]
    assert frame["parsed"][0] == {"k": 1}


def test_any_text_can_be_held():
    texts = ["a\0b", "🙂👩‍👩‍👧", "שלום", "half \ud800 and \udfff", "", "x" * 1_000_000]
    frame = build([Row(i, id=i, prompt=t, output=t) for i, t in enumerate(texts)], FACTS)
    shown = frame["prompt"].tolist()
    assert shown[:3] == texts[:3]
    assert shown[3] == "half \ufffd and \ufffd"
    assert shown[4:] == texts[4:]


@given(st.lists(st.text(st.characters()), max_size=5))
def test_every_text_survives_or_shows_a_replacement(texts):
    frame = build([Row(i, id=i, prompt=t) for i, t in enumerate(texts)], FACTS)
    for text, held in zip(texts, frame["prompt"].tolist(), strict=True):
        assert len(held) == len(text)
        assert all(h in (t, "\ufffd") for h, t in zip(held, text, strict=True))


def test_parquet_keeps_dtypes_and_facts(tmp_path):
    frame = build(rows(0, 1), {**FACTS, "path": Path("/x"), "kinds": {1: (2, 3)}})
    frame.to_parquet(tmp_path / "f.parquet")
    again = pd.read_parquet(tmp_path / "f.parquet")
    pd.testing.assert_frame_equal(again, frame)
    assert again.attrs == frame.attrs


def test_facts_are_json():
    class Kind(enum.Enum):
        A = "a"

    value = {"n": math.nan, "i": math.inf, "t": (1, {2}), Path("/p"): Kind.A, "o": object}
    plain = jsonable(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["n"] is None
    assert plain["t"] == [1, [2]]
    assert plain["/p"] == "a"


def test_a_hundred_thousand_rows():
    count = 100_000
    frame = build([Row(i, id=i, output="x", ttft_s=i / 8) for i in range(count)], FACTS)
    assert len(frame) == count
    assert frame["ttft_s"].iloc[-1] == (count - 1) / 8


def test_nan_text_is_na_and_a_models_name_may_be_no_text():
    frame = build([Row(0, id=0, prompt="p", output=math.nan)], {**FACTS, "model": "m\udcff"})
    assert pd.isna(frame.loc[0, "output"])
    assert frame.loc[0, "model"] == "m\ufffd"


def test_an_id_beyond_64_bits_is_kept():
    frame = build([Row(0, id=2**70), Row(1, id=1)], FACTS)
    assert frame["id"].tolist() == [2**70, 1]
    assert str(frame["id"].dtype) == "object"


def test_numbers_of_numpy_stay_numbers_in_the_facts():
    facts = jsonable({"a": np.int64(5), "b": np.float32(1.5), "c": np.float64("nan"), "d": True})
    assert facts == {"a": 5, "b": 1.5, "c": None, "d": True}
    assert json.loads(json.dumps(facts)) == facts


def test_sample_and_optional_names_collide_only_where_they_are_ours():
    inputs = pd.DataFrame({"sample": [9], "messages": ["m"]})
    rows = [Row(0, s, id=0, messages=[]) for s in (0, 1)]
    kept = build(rows[:1], FACTS, inputs=inputs)
    assert list(kept.columns[:2]) == ["sample", "messages"]
    renamed = build(rows, FACTS, inputs=inputs, samples=True, optional=("messages",))
    assert list(renamed.columns[:2]) == ["input_sample", "input_messages"]
    assert renamed["sample"].tolist() == [0, 1]
    assert renamed["input_sample"].tolist() == [9, 9]
