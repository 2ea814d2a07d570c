"""``df.infer`` and the functions behind it."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

import nbinfer
from nbinfer import ConfigurationError, runstore
from nbinfer.frame import Row, build


def run(name: str, *outputs: str, engine: str = "echo", **facts: object) -> pd.DataFrame:
    rows = [
        Row(
            i,
            id=i,
            prompt="p",
            output=o,
            finish_reason="stop",
            output_tokens=2,
            prompt_tokens=3,
            queue_s=0.0,
            ttft_s=0.5 * (i + 1),
            latency_s=1.0 * (i + 1),
        )
        for i, o in enumerate(outputs)
    ]
    facts = {"run_id": name, "engine": engine, "model": "m", "wall_s": 2.0, **facts}
    runstore.remember(facts)
    return build(rows, facts)


@pytest.fixture(autouse=True)
def _store():
    runstore.clear()
    yield
    runstore.clear()


def test_summary_of_one_run():
    line = run("r", "a", "b", output_tokens_per_s=2.0, load_s=None).infer.summary().loc[0]
    assert (line["rows"], line["failed"], line["output_tokens"]) == (2, 0, 4)
    assert (line["wall_s"], line["output_tokens_per_s"]) == (2.0, 2.0)
    assert line["ttft_s_p50"] == 0.75
    assert line["latency_s_p90"] == pytest.approx(1.9)
    assert pd.isna(line["load_s"])
    assert pd.isna(line["tpot_s_p50"])


def test_summary_after_concat_and_merge_comes_from_the_run_store():
    both = pd.concat([run("r1", "a"), run("r2", "b", wall_s=3.0)], ignore_index=True)
    assert "nbinfer" not in both.attrs
    assert both.infer.summary()["wall_s"].tolist() == [2.0, 3.0]
    merged = both.merge(pd.DataFrame({"id": [0], "score": [1]}), on="id")
    assert merged.infer.summary()["run_id"].tolist() == ["r1", "r2"]


def test_another_kernels_run_has_na_where_its_facts_are_unknown():
    both = pd.concat([run("r1", "a"), run("r2", "b")], ignore_index=True)
    runstore.clear()
    summary = both.infer.summary()
    assert summary["wall_s"].isna().all()
    assert summary["rows"].tolist() == [1, 1]
    assert both.infer.manifest() == {"r1": {}, "r2": {}}


def test_attributes_win_over_the_store():
    frame = run("r", "a")
    runstore.clear()
    assert frame.infer.manifest()["r"]["wall_s"] == 2.0


def test_compare_says_where_outputs_first_differ():
    both = pd.concat([run("r1", "abc", "same", "ab"), run("r2", "abd", "same", "abc", engine="x")])
    table = both.infer.compare()
    assert list(table.columns) == ["echo · m", "x · m", "same", "first_difference"]
    assert table["same"].tolist() == [False, True, False]
    assert table["first_difference"].tolist() == [2, pd.NA, 2]


def test_compare_keeps_two_runs_of_one_engine_apart():
    table = pd.concat([run("r1-aaaaaa", "a"), run("r2-bbbbbb", "b")]).infer.compare()
    assert list(table.columns[:2]) == ["echo · m", "echo · m · bbbbbb"]


def test_conversations():
    talks = run("r", "answer").infer.conversations()
    assert talks[0].to_list() == [
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": "answer"},
    ]
    assert talks[0].conversation_id == "0"


def test_plot_draws_every_row_and_leaves_nothing_behind():
    figure = nbinfer.plot(pd.concat([run("r1", "a", "b"), run("r2", *"c" * 70)]))
    first, second = figure.axes
    assert len(first.patches) == 3 * 2
    assert len(second.patches) == 3 * 60
    assert "10 more rows left out" in second.get_title(loc="left")
    assert first.patches[2].get_x() == 0.0  # prefill of row 0 begins where its queue ended
    assert first.patches[2].get_width() == 0.5
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_another_frame_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="run_id"):
        pd.DataFrame({"a": [1]}).infer.summary()


def test_the_store_is_bounded():
    for i in range(300):
        runstore.remember({"run_id": str(i)})
    assert runstore.recall("0") is None
    assert runstore.recall("299") == {"run_id": "299"}


@pytest.mark.parametrize(
    "code",
    [
        "import nbinfer, sys; assert 'pandas' not in sys.modules; import pandas",
        "import pandas, nbinfer",
        "import nbinfer; import pandas.api.types; import pandas",
        "import nbinfer, importlib.util as u; assert u.find_spec('pandas').origin; import pandas",
        "import nbinfer, importlib; importlib.reload(nbinfer); import pandas",
        "import nbinfer, importlib, pandas; importlib.reload(nbinfer)",
        "import nbinfer.accessor as a; a.install(); a.install(); import pandas",
    ],
)
def test_whichever_is_imported_first(code):
    check = (
        "; import sys; from nbinfer.accessor import InferAccessor"
        "; assert pandas.DataFrame.infer is InferAccessor or pandas.DataFrame({}).infer"
        "; assert not [f for f in sys.meta_path if type(f).__name__ == '_WhenPandasArrives']"
        "; assert type(pandas.__spec__.loader).__name__ == 'SourceFileLoader'"
        "; assert pandas.__loader__ is pandas.__spec__.loader"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + check], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_missing_columns_are_all_named():
    with pytest.raises(ConfigurationError, match="columns 'prompt_tokens', 'output_tokens'"):
        run("r", "a").drop(columns=["prompt_tokens", "output_tokens"]).infer.summary()


def test_the_sum_of_unknown_counts_is_unknown():
    frame = build([Row(0, id=0, output="a")], {"run_id": "r", "engine": "echo", "model": "m"})
    line = frame.infer.summary().loc[0]
    assert pd.isna(line["prompt_tokens"])
    assert pd.isna(line["output_tokens"])
    assert line["rows"] == 1


def test_compare_keeps_rows_that_share_an_id_and_the_order_of_ids():
    def of(name: str, *outputs: str) -> pd.DataFrame:
        rows = [Row(i, id=k, output=o) for i, (k, o) in enumerate(zip("zaz", outputs, strict=True))]
        return build(rows, {"run_id": name, "engine": name, "model": "m"})

    table = pd.concat([of("x", "1", "2", "3"), of("y", "1", "2", "4")]).infer.compare()
    assert table.index.tolist() == ["z", "a", "z"]
    assert table["x · m"].tolist() == ["1", "2", "3"]
    assert table["same"].tolist() == [True, True, False]


def test_compare_no_output_is_not_an_empty_output():
    failed = build([Row(0, id=0)], {"run_id": "q", "engine": "other", "model": "m"})
    table = pd.concat([run("r", ""), failed]).infer.compare()
    assert table["same"].tolist() == [False]
    assert table["first_difference"].tolist() == [0]


def test_compare_one_sample_with_several():
    rows = [Row(0, s, id=0, output="o0") for s in (0, 1)]
    several = build(rows, {"run_id": "q", "engine": "other", "model": "m"}, samples=True)
    table = pd.concat([run("r", "o0"), several]).infer.compare()
    assert table.index.tolist() == [(0, 0), (0, 1)]
    assert table["same"].tolist() == [True, False]


def test_conversations_come_back_from_parquet(tmp_path):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    row = Row(0, id=0, prompt="u", output="a", messages=messages)
    facts = {"run_id": "r", "engine": "echo", "model": "m"}
    build([row], facts, optional=("messages",)).to_parquet(tmp_path / "f.parquet")
    talk = pd.read_parquet(tmp_path / "f.parquet").infer.conversations()[0]
    assert talk.to_list() == [*messages, {"role": "assistant", "content": "a"}]


def test_a_manifest_is_a_copy():
    frame = run("r", "a", nested={"k": 1})
    frame.infer.manifest()["r"]["nested"]["k"] = 2
    assert frame.infer.manifest()["r"]["nested"] == {"k": 1}
    assert runstore.recall("r")["nested"] == {"k": 1}


def test_an_import_that_fails_may_be_tried_again(tmp_path):
    (tmp_path / "pandas.py").write_text("raise ImportError('broken')")
    code = f"""
import sys, nbinfer
sys.path.insert(0, {str(tmp_path)!r})
try:
    import pandas
except ImportError as error:
    assert "broken" in str(error)
sys.path.pop(0)
import pandas
assert pandas.DataFrame({{}}).infer
"""
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
