"""Tab inside the magics."""

from __future__ import annotations

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter

from nbinfer import GenerationParams, settings
from nbinfer.engines import registry
from nbinfer.notebook.completion import ACTIONS, candidates


class Model:
    @staticmethod
    def model_json_schema():
        return {}


SPACE = {
    "table": pd.DataFrame({"a": [1]}),
    "_hidden": pd.DataFrame({"a": [1]}),
    "schema": {"type": "object"},
    "Model": Model,
    "text": "x",
}


@pytest.mark.parametrize(
    ("text", "some"),
    [
        ("%%infer -e ", {"llamacpp"}),
        ("%%infer -e ll", {"llamacpp"}),
        ("%infer --engine ", {"llamacpp"}),
        ("  %infer -e ", {"llamacpp"}),
        ("%%nbinfer infer -e ", {"llamacpp"}),
        ("%%infer -m ", {"smollm2-135m"}),
        ("%%infer -e llamacpp -m smol", {"smollm2-135m"}),
        ("%%infer -", {"--engine", "--data", "-e", "-o"}),
        ("%%infer --", {"--max-new-tokens", "--schema"}),
        ("%%infer --max", {"--max-new-tokens"}),
        ("%%infer --set temp", {"temperature="}),
        ("%%infer -k n_c", {"n_ctx="}),
        ("%engine ", set(ACTIONS)),
        ("%engine lo", {"load", "logs"}),
        ("%nbinfer ", {"infer", "engine", "engine_exec", "panel"}),
        ("%nbinfer pan", {"panel"}),
        ("%nbinfer engine ", set(ACTIONS)),
        ("%engine load ", {"llamacpp"}),
        ("%engine load -m ", {"smollm2-135m"}),
        ("%engine use llamacpp -", {"--model", "-m"}),
        ("%recommend -f to", {"tools"}),
        ("%recommend --feature tools,ad", {"tools,adapters"}),
        ("%recommend -m Llama", {"Llama-3.1-8B"}),
        ("%memory ", {"smollm2-135m", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B"}),
        ("%memory Llama-3.1-8B -p bf16,Q4", {"bf16,Q4_K_M"}),
        ("%memory Llama-3.1-8B --kv-dtype q", {"q8_0"}),
        ("%benchmark --slo ", {"ttft_s=", "tpot_s=", "latency_s="}),
        ("%features --probe -f tool", {"tools"}),
        ("%migrate native vllm -p torch", {"torch_dtype_str="}),
    ],
)
def test_candidates(clean, text, some):
    found = candidates(text, SPACE)
    assert some <= set(found)
    word = text.rpartition(" ")[2]
    assert all(c.startswith(word) for c in found)


def test_models(clean, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / ".hub"))
    settings.configure(aliases={"mine": "x.gguf"})
    (tmp_path / "sub" / "model").mkdir(parents=True)
    (tmp_path / "sub" / "model" / "config.json").touch()
    (tmp_path / "sub" / "b.GGUF").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").touch()
    for name in ("models--org--name", "models--gpt2", "datasets--a--b", ".locks"):
        (tmp_path / ".hub" / name).mkdir(parents=True)
    assert candidates("%%infer -m ", SPACE) == ["mine", "smollm2-135m", "folder", "org/name"]
    assert candidates("%engine use -m sub/", SPACE) == ["sub/b.GGUF", "sub/model"]
    assert candidates("%%infer -m sub/mo", SPACE) == ["sub/model"]
    assert candidates("%%infer -m su", SPACE) == ["sub/"]
    assert candidates("%%infer -m llamacpp=or", SPACE) == ["llamacpp=org/name"]
    assert candidates("%%infer -m bogus=or", SPACE) == []
    assert candidates("%%infer -m nowhere/x", SPACE) == []
    (tmp_path / "pyproject.toml").write_text("[tool.nbinfer")
    assert "smollm2-135m" in candidates("%%infer -m ", SPACE)


def test_exact_candidates(clean, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "mine.gguf").touch()
    assert candidates("%%infer --data ", SPACE) == ["table"]
    assert candidates("%%infer --schema ", SPACE) == ["Model", "schema"]
    assert candidates("%%infer --tools ", {"mine": [len], "words": ["a"], "no": []}) == ["mine"]
    assert candidates("%%infer -m ", SPACE) == ["smollm2-135m", "mine.gguf"]
    assert candidates("%%infer --set ", SPACE) == [
        f"{name}=" for name in GenerationParams.__dataclass_fields__
    ]
    kwargs = candidates("%%infer -k ", SPACE)
    assert {"binding=", "n_ctx=", "load_in_4bit="} <= set(kwargs)
    assert len(kwargs) == len(set(kwargs))
    assert "native:batch_size=" in candidates("%%compare -k native:", SPACE)
    assert candidates("%%compare -e llamacpp,n", SPACE) == ["llamacpp,native"]
    assert candidates("%%engine_exec ", SPACE) == ["native"]
    assert candidates("%engine load llamacpp ", SPACE) == []
    assert candidates("%%infer --system ", SPACE) == []
    (tmp_path / "answers.db").touch()
    assert candidates("%%infer --resume ", SPACE) == ["answers.db"]
    for name in ("old.json", "ask.py"):
        (tmp_path / name).touch()
    assert candidates("%benchmark --against ", SPACE) == ["old.json"]
    assert candidates("%migrate as", SPACE) == ["ask.py"]
    assert candidates("%migrate ask.py --from nat", SPACE) == ["native"]
    assert candidates("%memory x -e ", SPACE) == ["vllm", "native", "llamacpp"]
    assert "Llama-3.1-8B" not in candidates("%%infer -m ", SPACE)  # it is not here
    assert "echo" not in candidates("%%infer -e ", SPACE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        "%time ",
        "%%inferx ",
        "%%infer -e echo\nsome text ",
        "%infer what is ",
        "print(%",
    ],
)
def test_elsewhere_there_are_none(text):
    assert candidates(text, SPACE) is None


def complete(shell, text):
    with provisionalcompleter():
        return [c.text for c in shell.Completer.completions(text, len(text))]


def test_through_the_shell(shell):
    shell.user_ns.update(SPACE)
    assert complete(shell, "%%infer -e ") == sorted(registry.names())
    assert complete(shell, "%%infer --data ") == ["table"]
    assert complete(shell, "%%infer -m smo") == ["smollm2-135m"]
    assert complete(shell, "%engine ") == sorted(ACTIONS)
    assert complete(shell, "%engine load ") == sorted(registry.names())
    assert "--max-new-tokens" in complete(shell, "%%infer --")
    assert all(c.startswith("-") for c in complete(shell, "%%infer --"))


def test_as_a_kernel_asks(shell):
    """ipykernel asks for ranges too, and needs each to lie in the text."""
    text = "%%infer -e ll"
    with provisionalcompleter():
        (found,) = shell.Completer.completions(text, len(text))
    assert (text[: found.start] + found.text + text[found.end :]) == "%%infer -e llamacpp"


def test_it_leaves_other_completion_alone(shell):
    shell.user_ns["unmistakable_name"] = 1
    assert "unmistakable_name" in complete(shell, "unmistak")
    assert "unmistakable_name" in complete(shell, "%%infer -e echo\nunmistak")


def test_a_second_line_completes_nothing_of_ours(shell):
    assert "llamacpp" not in complete(shell, "%%infer -e echo\n-e ")
    assert "llamacpp" not in complete(shell, "x = 1\n%%infer -e ")


def test_after_unload_there_is_none(shell):
    shell.cell("%unload_ext nbinfer")
    assert "llamacpp" not in complete(shell, "%%infer -e ")
