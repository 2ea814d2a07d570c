"""Every table and figure of the guide has a command that computes it, line by line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nbinfer
from nbinfer import selection
from nbinfer.guide import flowchart, memory_page, recommend, results
from nbinfer.notebook.arguments import PARSERS

GUIDE = (Path(__file__).parent / "guide_tables.md").read_text(encoding="utf-8")
# The guide's names of engines, and those of nbinfer.
ENGINES = {
    "vLLM": "vllm",
    "Native": "native",
    "LlamaCPP": "llamacpp",
    "Remote vLLM": "remote-vllm",
    "SGLang": "sglang",
}


def table(title: str) -> list[list[str]]:
    """Head and rows of the table below a heading, without its marks."""
    text = re.split(rf"^#+ {re.escape(title)}$", GUIDE, flags=re.M)[1].split("\n#")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip().strip("*") for cell in line] for line in lines]
    return [rows[0], *rows[2:]]


def test_every_table_and_figure_is_held_here():
    """A table that the guide gains is missed by none of the tests below."""
    held = {
        *("Quick Comparison", "BF16 (Full Precision)", "Quantized (4-bit)"),
        *("Feature Comparison", "Performance Benchmarks", "Decision Flowchart"),
    }
    parts = re.split(r"^#+ (.+)$", GUIDE, flags=re.M)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert {title for title, text in named.items() if "\n|" in text or "```" in text} == held


def test_quick_comparison(monkeypatch, tmp_path):
    """What each is best for is %recommend; the GPU %features; the stars are %benchmark's."""
    head, *rows = table("Quick Comparison")
    assert head[1:5] == ["Best For", "GPU Required", "Throughput", "Latency"]
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    engines = [ENGINES[row[0]] for row in rows]
    advised = nbinfer.recommend("Llama-3.2-1B", gpu=True, device="24GB")
    assert set(advised["engine"]) == set(engines)
    assert advised["reasons"].str.len().all()
    needs = nbinfer.features(only=["cpu"])
    assert needs["feature"].tolist() == ["CPU support"]
    assert list(needs) == ["feature", *engines]
    assert {"output_tokens_per_s", "ttft_s_p50", "latency_s_p50"} <= set(results.COLUMNS)


def test_feature_comparison(monkeypatch, tmp_path):
    head, *rows = table("Feature Comparison")
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    frame = nbinfer.features()
    assert list(frame) == ["feature", *(ENGINES[name] for name in head[1:])]
    named = [row[0] for row in rows]
    assert [title for title in frame["feature"] if title in named] == named
    assert frame.notna().all().all()


@pytest.mark.parametrize(
    ("title", "engines"),
    [
        ("BF16 (Full Precision)", [("vllm", "bf16"), ("native", "bf16")]),
        ("Quantized (4-bit)", [("llamacpp", "Q4_K_M"), ("native", "4-bit")]),
    ],
)
def test_memory_requirements(title, engines):
    """The page has the guide's own figures, and beside them those of %memory."""
    page = memory_page.memory_page()
    head, *rows = table(title)
    (part,) = (p for p in page.split("\n## ") if p.casefold().startswith(title.casefold()))
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines()[4:]]
    made = [line for line in cells if len(line) == 7]
    assert len(made) == len(rows)
    for (size, *guide, note), (own_size, model, *figures, own_note) in zip(rows, made, strict=True):
        assert own_size == size
        assert [figure.removesuffix(" ⚠️") for figure in figures[::2]] == guide
        assert own_note.split(" ⚠️")[0] == note
        (repo,) = (name for name in memory_page.families() if name.endswith(f"/{model}"))
        for (engine, precision), figure in zip(engines, figures[1::2], strict=True):
            (row,) = nbinfer.memory(
                repo, engines=engine, precisions=precision, context=4096, device="1TB"
            ).to_dict("records")
            assert f"{row['total_bytes'] / 1e9:.1f} GB" == figure
    assert head[0] == "Model Size"


def test_performance_benchmarks():
    """Tokens a second and the time to the first token, of every engine that is named."""
    head, *rows = table("Performance Benchmarks")
    assert [head[1].split(" (")[0], head[2]] == ["Tokens/sec", "Time to First Token"]
    for row in rows:
        engine = selection.for_engine(ENGINES[row[0].split(" (")[0]]).make()
        assert "max_new_tokens" in engine.capabilities.generation  # what a benchmark asks for
    assert {"output_tokens_per_s", "ttft_s_p50", "ttft_s_p99"} <= results.FIRST


def test_decision_flowchart():
    """The figure's questions, in its words and order, and what each branch leads to."""
    figure = GUIDE.split("```text")[1].split("```")[0]
    asked = re.findall(r"─ ((?:Do|Is) .+\?)", figure)
    assert asked == [question.text for question in flowchart.QUESTIONS]
    ends = dict(zip(asked, re.split(r"─ (?:Do|Is) .+\?", figure)[1:], strict=True))
    for question in flowchart.QUESTIONS:
        said = dict(re.findall(r"(Yes|No) → Use (.+)", ends[question.text]))
        for answer, engines in (("Yes", question.yes), ("No", question.no)):
            if "Cloud API" in said.get(answer, ""):
                assert engines == flowchart.CLOUD
                continue
            words = re.sub(r" \(local\)| for prototyping", "", said.get(answer, ""))
            named = [ENGINES[word] for word in words.split(" or ") if word]
            assert list(engines) == named, (question.name, answer)
    options = {a.dest for a in PARSERS["recommend"]()._actions}
    assert {question.name for question in flowchart.QUESTIONS} <= options
    (default,) = re.findall(r"Default: Start with (\w+)", figure)
    assert flowchart.DEFAULT[0] == ENGINES[default]
    assert recommend.recommend("Llama-3.2-1B", gpu=True, device="24GB")["engine"][0] == "native"
