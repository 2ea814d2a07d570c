"""Which engine to take: every path of the guide's flowchart, and what it leaves out."""

from __future__ import annotations

import itertools

import pytest

import nbinfer
from nbinfer.cli import main
from nbinfer.errors import ConfigurationError, DownloadError, ModelNotFound
from nbinfer.guide import flowchart, proofs, recommend
from nbinfer.guide.reasons import REASONS, Reason
from nbinfer.notebook.arguments import engine_parser, infer_parser
from nbinfer.notebook.choosing import chosen

MODEL = "Llama-3.2-1B"
CLOUD = ["openai", "anthropic", "openai-compatible"]
# The guide's "Decision Flowchart", path by path: cloud, GPU, production, distributed, throughput.
PATHS = [
    # Do you need a cloud API? Yes -> Use Cloud API engines, whatever else.
    *((True, *rest, CLOUD) for rest in itertools.product((True, False, None), repeat=4)),
    # Do you have a GPU? No -> Use LlamaCPP, whatever else.
    *((c, False, *rest, ["llamacpp"])
      for c in (False, None) for rest in itertools.product((True, False, None), repeat=3)),
    # Is this for production? Yes -> Use vLLM (local) or Remote vLLM
    (False, True, True, False, False, ["vllm", "remote-vllm"]),
    # ... No -> Use Native for prototyping
    (False, True, False, False, False, ["native"]),
    # Do you need distributed serving? Yes -> Use Remote vLLM or SGLang
    (False, True, False, True, False, ["remote-vllm", "sglang"]),
    (False, True, None, True, None, ["remote-vllm", "sglang"]),
    # Is throughput critical? Yes -> Use vLLM or SGLang
    (False, True, False, False, True, ["vllm", "sglang"]),
    (False, True, None, None, True, ["vllm", "sglang"]),
    # Several yes: what more of them name comes first, and distributed serving is a need.
    (False, True, True, True, False, ["remote-vllm", "sglang"]),
    (False, True, True, False, True, ["vllm", "remote-vllm", "sglang"]),
    (False, True, False, True, True, ["sglang", "remote-vllm"]),
    (False, True, True, True, True, ["remote-vllm", "sglang"]),
    # Default: Start with Native, upgrade to vLLM for production
    (False, True, None, None, None, ["native"]),
    (None, None, None, None, None, ["native"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    """Everything is installed, nothing was probed, and the embedded model's size is known."""
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    monkeypatch.setattr(proofs, "installed_version", lambda engine: f"{engine} 1.0")


@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_the_flowchart(path):
    *answers, engines = path
    names = [question.name for question in flowchart.QUESTIONS]
    walked = flowchart.walk(dict(zip(names, answers, strict=True)))
    assert [engine for engine, _ in walked] == engines
    assert all(reasons and all(reasons) for _, reasons in walked)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_recommends_what_it_leads_to(path):
    """Through the public function, with a model and a device that stand in nobody's way."""
    *answers, engines = path
    names = [question.name for question in flowchart.QUESTIONS]
    given = dict(zip(names, answers, strict=True))
    if given["gpu"] is None:
        given["gpu"] = True
    model = "gpt" if given["cloud"] else MODEL
    frame = nbinfer.recommend(model, device="500GB", **given)
    if engines == ["llamacpp"]:  # it loads no safetensors: the next that runs without a GPU
        engines = ["native"]
        row = frame[frame["engine"] == "llamacpp"].iloc[0]
        assert row["verdict"] == "out"
        assert "GGUF" in row["reasons"]
    assert frame["engine"].tolist()[: len(engines)] == engines
    assert frame["verdict"][0] == "recommended"
    assert (frame["verdict"][1:] != "recommended").all()
    assert frame.attrs["nbinfer"]["recommended"] == engines[0]


def test_the_table():
    frame = nbinfer.recommend(MODEL, gpu=True, production=True, device="24GB")
    assert list(frame) == list(recommend.COLUMNS)
    first = frame.iloc[0]
    assert first["engine"] == "vllm"
    assert first["precision"] == "bf16"
    assert first["fits"]
    assert first["reasons"].splitlines()[0] == "for production on a GPU"
    assert first["cell"] == "%%infer -e vllm -m meta-llama/Llama-3.2-1B\nHello!"
    assert frame["engine"].is_unique


@pytest.mark.parametrize(
    ("model", "device"), [(MODEL, "24GB"), ("Llama-3.1-8B", "12GB"), ("Llama-3.1-70B", "48GB")]
)
def test_every_cell_is_one_that_the_magics_take(model, device):
    """Parsed by the magics' own parsers, and made into an engine, which checks every option."""
    frame = nbinfer.recommend(model, gpu=True, production=True, device=device)
    cells = frame[frame["verdict"] != "out"]
    assert len(cells)
    for row in cells.itertuples():
        line, _, body = row.cell.partition("\n")
        options = infer_parser().parse_line(line.removeprefix("%%infer"))
        assert body
        assert options.engine == row.engine
        if row.engine in ("native", "vllm"):
            made = chosen(options.engine, options).make()
            assert made.model_params.model_name == f"meta-llama/{model}"
        for command in row.setup.splitlines() if isinstance(row.setup, str) else ():
            engine_parser().parse_line(command.removeprefix("%engine"))


def test_what_does_not_fit_is_out_or_in_fewer_bits():
    frame = nbinfer.recommend("Llama-3.1-70B", gpu=True, production=False, device="48GB")
    native = frame[frame["engine"] == "native"].iloc[0]
    assert (native["precision"], bool(native["fits"])) == ("4-bit", True)
    assert "-k load_in_4bit=true" in native["cell"]
    frame = nbinfer.recommend("DeepSeek-V3", gpu=True, production=True, device="80GB")
    assert (frame["verdict"] == "out").all()
    assert frame["cell"].isna().all()
    assert "does not fit" in frame["reasons"][0]
    assert frame.attrs["nbinfer"]["recommended"] is None
    assert "No engine can do it here" in recommend.summary(frame)


def test_a_feature_that_is_not_to_be_had_puts_an_engine_out(monkeypatch):
    monkeypatch.setitem(REASONS, ("beam_search", "vllm"), Reason("dropped in V1", "https://x"))
    frame = nbinfer.recommend(
        MODEL, gpu=True, production=True, device="24GB", features=["beam_search"]
    )
    vllm = frame[frame["engine"] == "vllm"].iloc[0]
    assert vllm["verdict"] == "out"
    assert "dropped in V1" in vllm["reasons"]
    assert frame["engine"][0] != "vllm"


def test_what_is_not_installed_is_installed_before(monkeypatch):
    monkeypatch.setattr(proofs, "installed_version", lambda _: None)
    frame = nbinfer.recommend(MODEL, gpu=True, distributed=True, device="24GB")
    assert frame["engine"][0] == "remote-vllm"
    assert not frame["installed"].any()
    assert frame["setup"][0].splitlines() == [
        "%engine install vllm",
        "%engine serve vllm -m meta-llama/Llama-3.2-1B",
    ]
    assert frame["cell"][0] == "%%infer -e remote-vllm\nHello!"


def test_a_gpu_that_is_elsewhere_says_nothing_of_what_fits():
    frame = nbinfer.recommend(MODEL, gpu=True, production=True)
    assert frame["fits"].isna()[0]
    assert "give its memory" in frame["reasons"][0]


def test_a_cloud_has_a_cell_once_its_model_is_named():
    assert nbinfer.recommend(cloud=True)["cell"].isna().all()
    assert nbinfer.recommend("some-model", cloud=True)["cell"][0].startswith(
        "%%infer -e openai -m some-model"
    )


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"features": ["telepathy"]}, ConfigurationError, "telepathy"),
        ({"features": ["tool"]}, ConfigurationError, "did you mean 'tools'?"),
        ({"production": "maybe"}, ConfigurationError, "production"),
        ({"context": "long"}, ConfigurationError, "no number of tokens"),
        ({"batch": 0}, ConfigurationError, "batch"),
        ({"device": "big"}, ConfigurationError, "no size"),
        ({"model": "7B"}, ConfigurationError, "is a size and no model"),
        ({"model": "nothing-at-all"}, ModelNotFound, "no model"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, said):
    with pytest.raises(error) as caught:
        nbinfer.recommend(**{"model": MODEL, **options})
    assert said in str(caught.value)


def test_an_unknown_model_without_a_network(monkeypatch):
    import huggingface_hub.constants  # noqa: F401  # it keeps what it reads on import

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError):
        nbinfer.recommend("org/nothing")


def test_the_command_line_and_the_magic(shell, capsys):
    words = ["-m", MODEL, "--gpu", "--production", "--device", "24GB"]
    assert main(["recommend", *words]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Take vllm:")
    assert "%%infer -e vllm -m meta-llama/Llama-3.2-1B" in shown
    assert main(["recommend", "-m", "DeepSeek-V3", "--gpu", "--device", "24GB"]) == 1
    cell = shell.cell("%recommend " + " ".join(words))
    assert cell.value["engine"][0] == "vllm"
    capsys.readouterr()
    assert main(["recommend", "-m", MODEL, "--no-gpu"]) == 0
    assert capsys.readouterr().out.startswith("Take native:")


def test_without_flags_the_questions_are_widgets(shell, monkeypatch):
    from nbinfer.notebook import recommender

    made = shell.cell("%recommend").value
    assert isinstance(made, recommender.Recommender)
    monkeypatch.setattr(recommender, "recommend", lambda *a, **k: nbinfer.recommend(
        *a, **{**k, "device": "24GB"}))  # fmt: skip
    made._model.value = MODEL
    made._questions["gpu"].value = "yes"
    made._questions["production"].value = "yes"
    assert made.frame["engine"][0] == "vllm"
    assert "Take vllm" in made._answer.value
    assert "%%infer -e vllm" in made._answer.value
    shown, _ = shell.display_formatter.format(made)
    assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == made.model_id
    assert "Take vllm" in shown["text/html"]  # what a saved notebook shows without a kernel
    made._questions["distributed"].value = "yes"
    assert made.frame["engine"][0] == "remote-vllm"
    made._questions["gpu"].value = "no"
    assert made._questions["production"].disabled
    made._questions["cloud"].value = "yes"
    assert made.frame["engine"][0] == "openai"
    made._questions["cloud"].value = "–"
    made._model.value = "<b>7B</b>"
    assert made.frame is None
    assert "<b>" not in made._answer.value
    assert "no model" in made._answer.value
    made.close()
