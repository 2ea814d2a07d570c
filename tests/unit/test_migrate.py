"""``nbinfer.migrate``: what changes between two engines, and the guide's two migrations."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pandas as pd
import pytest

import nbinfer
from nbinfer import ConfigurationError, GenerationParams, ModelParams, RemoteParams
from nbinfer.engines import registry
from nbinfer.guide.cells import rewritten_cell, rewritten_magic
from nbinfer.guide.migrate import migrated
from nbinfer.guide.rewrite import rewrite
from nbinfer.notebook.completion import candidates

MODELS = {
    "native": {
        "model_max_length": 100,
        "torch_dtype_str": "float16",
        "device_map": "cpu",
        "attn_implementation": "sdpa",
        "trust_remote_code": True,
        "tokenizer_name": "x",
        "chat_template": "y",
        "compile": True,
        "model_kwargs": {"load_in_8bit": True, "batch_size": 3, "low_cpu_mem_usage": True},
    },
    "vllm": {
        "model_max_length": 100,
        "adapters": {"a": "/x"},
        "model_kwargs": {
            "quantization": "fp8",
            "max_num_seqs": 3,
            "kv_cache_dtype": "fp8",
            "enable_prefix_caching": False,
            "speculative_config": {"model": "m", "num_speculative_tokens": 3},
            "gpu_memory_utilization": 0.5,
        },
    },
    "llamacpp": {
        "adapter_model": "/x",
        "model_kwargs": {
            "n_ctx": 10,
            "n_gpu_layers": 5,
            "n_parallel": 3,
            "cache_type_k": "q8_0",
            "flash_attn": False,
            "use_mmap": True,
        },
    },
}


def row(frame: pd.DataFrame, parameter: str) -> dict[str, object]:
    (found,) = frame[frame["parameter"] == parameter].to_dict("records")
    return found


def test_native_to_vllm():
    frame = nbinfer.migrate(
        "native",
        "vllm",
        ModelParams(
            "meta-llama/Llama-3.1-8B-Instruct",
            model_max_length=4096,
            attn_implementation="sdpa",
            model_kwargs={"load_in_4bit": True, "batch_size": 8},
        ),
        generation_params=GenerationParams(num_beams=4, temperature=0.3, seed=1),
    )
    assert list(frame.columns) == ["parameter", "value", "status", "becomes", "why"]
    assert row(frame, "model_name")["status"] == "kept"
    assert row(frame, "model_max_length")["status"] == "kept"
    four = row(frame, "model_kwargs.load_in_4bit")
    assert four["status"] == "renamed"
    assert four["becomes"] == "model_kwargs.quantization='bitsandbytes'"
    assert row(frame, "model_kwargs.batch_size")["becomes"] == "model_kwargs.max_num_seqs=8"
    assert row(frame, "attn_implementation")["status"] == "lost"
    assert row(frame, "generation_params.num_beams")["status"] == "lost"
    assert "native" in str(row(frame, "generation_params.num_beams")["why"])
    assert row(frame, "generation_params.seed")["status"] == "approximated"
    assert "native → vllm" in frame.attrs["nbinfer"]["table"]
    assert frame.attrs["nbinfer"]["cell"].startswith("%%infer -e vllm -m meta-llama/")


@pytest.mark.parametrize(
    ("source", "target", "given", "status", "becomes"),
    [
        ("llamacpp", "vllm", {"n_ctx": 9}, "renamed", "model_max_length=9"),
        ("llamacpp", "native", {"n_gpu_layers": 0}, "renamed", "device_map='cpu'"),
        ("llamacpp", "native", {"n_gpu_layers": -1}, "renamed", "device_map='auto'"),
        ("llamacpp", "native", {"n_gpu_layers": 9}, "approximated", "device_map='auto'"),
        ("llamacpp", "vllm", {"n_gpu_layers": 9}, "lost", None),
        ("llamacpp", "native", {"n_threads": 2}, "kept", "model_kwargs.n_threads=2"),
        ("llamacpp", "native", {"use_mlock": True}, "lost", None),
        ("llamacpp", "vllm", {"cache_type_k": "q8_0"}, "approximated", None),
        ("native", "llamacpp", {"load_in_4bit": True}, "approximated", None),
        ("native", "llamacpp", {"load_in_4bit": False}, "kept", None),
        ("native", "llamacpp", {"batch_size": 4}, "renamed", "model_kwargs.n_parallel=4"),
        (
            "vllm",
            "native",
            {"quantization": "bitsandbytes"},
            "renamed",
            "model_kwargs.load_in_4bit=True",
        ),
        ("vllm", "llamacpp", {"max_num_seqs": 4}, "renamed", "model_kwargs.n_parallel=4"),
        ("vllm", "remote-vllm", {"gpu_memory_utilization": 0.5}, "lost", None),
        ("vllm", "sglang", {"tensor_parallel_size": 2}, "lost", None),
    ],
)
def test_options_of_the_libraries(source, target, given, status, becomes):
    frame = nbinfer.migrate(source, target, ModelParams(model_kwargs=given))
    found = row(frame, f"model_kwargs.{next(iter(given))}")
    assert found["status"] == status
    if becomes is not None:
        assert found["becomes"] == becomes
    if status in ("lost", "approximated"):
        assert len(str(found["why"])) > 10


def test_adapters_and_guessing_ahead():
    def outcome(source, target, **model):
        frame = nbinfer.migrate(source, target, ModelParams("smollm2-135m", **model))
        return frame["status"].tolist()[1:]

    assert outcome("llamacpp", "vllm", adapter_model="a.gguf") == ["lost"]
    assert outcome("llamacpp", "remote-vllm", adapters={"x": "a.gguf"}) == ["lost"]
    assert outcome("vllm", "remote-vllm", adapters={"x": "/folder"}) == ["kept"]
    guessing = {"assistant_model": "x", "num_assistant_tokens": 3}
    assert outcome("native", "vllm", model_kwargs=guessing) == ["approximated"] * 2
    config = {"speculative_config": {"model": "x", "num_speculative_tokens": 3}}
    assert outcome("vllm", "native", model_kwargs=config) == ["renamed"]


def test_what_a_server_is_started_with_is_said():
    frame = nbinfer.migrate("vllm", "remote-vllm", ModelParams("a/b", model_max_length=4096))
    assert "--max-model-len 4096" in row(frame, "model_max_length")["why"]
    frame = nbinfer.migrate("native", "sglang", ModelParams("a/b", model_max_length=4096))
    assert "--context-length 4096" in row(frame, "model_max_length")["why"]


def test_a_models_form():
    of = {"g": "model.gguf", "h": "org/name", "q": "org/name:Q4_K_M", "e": "smollm2-135m"}

    def status(source, target, name):
        return row(nbinfer.migrate(source, target, ModelParams(of[name])), "model_name")["status"]

    assert status("llamacpp", "vllm", "g") == "lost"
    assert status("llamacpp", "native", "g") == "approximated"
    assert status("llamacpp", "vllm", "q") == "lost"
    assert status("native", "llamacpp", "h") == "lost"
    assert status("native", "vllm", "h") == "kept"
    assert {status(a, b, "e") for a, b in (("native", "llamacpp"), ("llamacpp", "vllm"))} == {
        "kept"
    }


@pytest.mark.parametrize(("source", "target"), [*itertools.permutations(registry.names(), 2)])
def test_the_target_takes_all_that_it_is_told(source, target):
    remote = None
    if "server" in registry.spec(source).capabilities.features:
        remote = RemoteParams(api_url="http://h:1", max_retries=1)
    generation = GenerationParams(
        temperature=0.5,
        seed=3,
        top_k=3,
        min_p=0.1,
        logprobs=2,
        num_beams=1 if target == "native" else 2,  # there it takes no temperature
        guided_decoding={"regex": "a"},
        stop_strings=["x"],
        raw=True,
        priority=2,
        ignore_eos=True,
    )
    found = migrated(source, target, ModelParams(**MODELS.get(source, {})), generation, remote)
    engine = registry.engine_class(target)(found.model_params, remote_params=found.remote_params)
    engine._params(found.generation_params)
    for one in found.changes:
        assert one.status in ("kept", "renamed", "approximated", "lost")
        assert one.why or one.status in ("kept", "renamed")
    # The code that is shown makes the same.
    code = nbinfer.migrate(
        source,
        target,
        ModelParams(**MODELS.get(source, {})),
        generation_params=generation,
        remote_params=remote,
    ).attrs["nbinfer"]["code"]
    names: dict[str, object] = {}
    exec(compile(code, "<migrated>", "exec"), names)
    assert names["engine"].model_params == found.model_params
    assert names["engine"].generation_params == found.generation_params


def test_a_key_is_nowhere():
    remote = RemoteParams(api_url="http://u:planted-pw@h:1", api_key="planted-key")
    frame = nbinfer.migrate("remote-vllm", "sglang", ModelParams("x"), remote_params=remote)
    assert "planted" not in frame.to_string() + str(frame.attrs)


def test_engines_that_make_no_sense():
    with pytest.raises(ConfigurationError, match="did you mean 'vllm'"):
        nbinfer.migrate("native", "vlm")
    with pytest.raises(ConfigurationError, match="no migration"):
        nbinfer.migrate("native", "native")


# ------------------------------------------------------------------------- the guide

GUIDE = (
    """
# Before (Native)
from oumi.inference import NativeTextInferenceEngine
engine = NativeTextInferenceEngine(model_params)
""",
    """
# Before (Local vLLM)
from oumi.inference import VLLMInferenceEngine
engine = VLLMInferenceEngine(model_params)
""",
)


def made(code: str) -> object:
    names: dict[str, object] = {"model_params": ModelParams("a/b")}
    exec(compile(code, "<guide>", "exec"), names)
    return names["engine"]


def test_the_guides_migration_from_native_to_vllm():
    after = rewrite(GUIDE[0], "native", "vllm").result()
    assert after.splitlines()[1:] == [
        "# Before (Native)",
        "from nbinfer import VLLMInferenceEngine",
        "engine = VLLMInferenceEngine(model_params)",
    ]
    assert made(after).name == "vllm"
    assert made(after).model_params == ModelParams("a/b")


def test_the_guides_migration_from_local_to_remote():
    after = rewrite(GUIDE[1], "vllm", "remote-vllm").result()
    engine = made(after)
    assert engine.name == "remote-vllm"
    assert engine.model_params == ModelParams("a/b")
    assert engine.urls == ["http://server:8000"]


# ---------------------------------------------------------------------- the rewriting


def test_comments_quotes_and_lines_stay():
    text = (
        "# é oumi.inference\n"
        "from oumi.inference import (  # all of them\n"
        "    VLLMInferenceEngine as V,  # mine\n"
        ")\n"
        "s = 'VLLMInferenceEngine in a string'\n"
        "e = V('x')\n"
    )
    after = rewrite(text).result()
    assert after == text.replace("from oumi.inference import (", "from nbinfer import (")
    # Under the name that it was given, another class is made.
    after = rewrite(text, "vllm", "native").result()
    assert "    NativeTextInferenceEngine as V,  # mine" in after
    assert "s = 'VLLMInferenceEngine in a string'" in after


def test_names_that_have_no_counterpart_stay_where_they_are():
    found = rewrite("from oumi.core.configs import InferenceConfig, ModelParams as M\n")
    assert found.result() == (
        "from nbinfer import ModelParams as M\nfrom oumi.core.configs import InferenceConfig\n"
    )
    assert [f.line for f in found.findings] == [1]
    text = "from oumi.inference import TogetherInferenceEngine\n"
    assert rewrite(text).result() == text
    assert rewrite("import numpy\nx = 1\n").findings == []


def test_modules_and_dotted_names():
    after = rewrite(
        "import oumi.inference, os\nimport oumi.core.configs as c\n"
        "e = oumi.inference.VLLMInferenceEngine(c.ModelParams('x'))\n"
    ).result()
    assert after.splitlines()[0] == "import nbinfer, os"
    assert "nbinfer.VLLMInferenceEngine(c.ModelParams('x'))" in after


def test_fields_of_oumi_that_are_called_otherwise_or_are_gone():
    found = rewrite(
        "from oumi.core.configs import GenerationParams, ModelParams, RemoteParams\n"
        "m = ModelParams(\n    'x',\n    load_pretrained_weights=True,\n"
        "    compile=False,  # no\n)\n"
        "g = GenerationParams(batch_size=2, max_new_tokens=3)\n"
        "r = RemoteParams(api_url='http://h', connection_timeout=4, politeness_policy=1)\n"
    )
    names: dict[str, object] = {}
    exec(found.result(), names)
    assert names["m"] == ModelParams("x")
    assert names["g"] == GenerationParams(max_new_tokens=3)
    assert names["r"].read_timeout_s == 4
    assert "    compile=False,  # no\n" in found.result()
    assert [f.line for f in found.findings] == [4, 7, 8]


@pytest.mark.parametrize(
    "call",
    [
        'ModelParams("x", model_kwargs={"n_ctx": 5, "n_gpu_layers": 0})',
        'ModelParams("x", model_kwargs={"n_gpu_layers": 0, "n_ctx": 5, })',
        'ModelParams(\n    model_name="x",\n    model_kwargs={\n        "n_ctx": 5,\n    }\n)',
        'ModelParams(\n    "x",\n    model_kwargs={"n_gpu_layers": -1, "n_threads": n},\n)',
        'ModelParams("x", model_kwargs={"use_mmap": True})',
        'ModelParams("x", model_kwargs={"use_mmap": True, "use_mlock": False}, chat_template="t")',
        "ModelParams(model_kwargs=dict(n_ctx=5))",
    ],
)
def test_what_is_moved_is_still_python(call):
    text = (
        "from nbinfer import LlamaCppInferenceEngine, ModelParams\n"
        f"e = LlamaCppInferenceEngine({call})\n"
    )
    after = rewrite(text, "llamacpp", "native").result()
    ast.parse(after)
    assert "NativeTextInferenceEngine(" in after
    assert ",," not in after.replace(" ", "")
    if "dict(" not in call:
        names: dict[str, object] = {"n": 2}
        exec(after, names)
        engine = names["e"]
        wanted = {"n_ctx": "model_max_length", "n_gpu_layers": "device_map"}
        for old, new in wanted.items():
            assert (getattr(engine.model_params, new) is not None) == (f'"{old}"' in call)


def test_a_cell_with_a_magic():
    cell = "%%infer -e native -m org/x -k load_in_4bit=true --set num_beams=2 -o df\nSay native."
    after, told = rewritten_magic(cell, "native", "vllm")
    assert after == "%%infer -e vllm -m org/x -k quantization=bitsandbytes -o df\nSay native."
    assert len(told) == 1
    assert rewritten_magic(cell, "vllm", "native") == (cell, [])
    line = "%%compare -e native,llamacpp -k native:batch_size=4 -k llamacpp:n_ctx=9\nHi"
    after, _ = rewritten_magic(line, "native", "vllm")
    assert after.splitlines()[
        0
    ] == "%%compare -e vllm,llamacpp -k max_num_seqs=4 -k llamacpp:n_ctx=9" or (
        "vllm:max_num_seqs=4" in after
    )
    assert rewritten_cell("not python at all", "native", "vllm") == ("not python at all", [])


def test_the_magic(shell):
    shown = shell.cell("%migrate native vllm -k load_in_8bit=true -p model_max_length=64")
    assert set(shown.value["status"]) == {"kept", "approximated"}
    # What to run is printed: the cell, and the Python that says all of it.
    assert shown.stdout.startswith("%%infer -e vllm -k quantization=")
    assert "engine = VLLMInferenceEngine(" in shown.stdout
    shown = shell.cell("%%migrate native vllm\n%%infer -e native -k batch_size=2\nHello")
    assert "%%infer -e vllm -k max_num_seqs=2\nHello" in shown.stdout
    table = shown.value.set_index("parameter")  # of what the cell itself has
    assert table["status"]["model_kwargs.batch_size"] == "renamed"
    assert table["becomes"]["model_kwargs.batch_size"] == "model_kwargs.max_num_seqs=2"
    shown = shell.cell(
        "%%migrate vllm native\nfrom nbinfer import VLLMInferenceEngine\nVLLMInferenceEngine('x')"
    )
    assert "from nbinfer import NativeTextInferenceEngine" in shown.stdout
    assert shown.value is None
    other = "%%infer -e llamacpp -k n_ctx=64\nHello"
    shown = shell.cell(f"%%migrate native vllm\n{other}")
    assert (shown.stdout, shown.value) == (f"{other}\n", None)
    for line, problem in {
        "": "required",
        "native": "required",
        "native nowhere": "no engine is called",
        "native vllm -p colour=red": "colour",
    }.items():
        with pytest.raises(ConfigurationError, match=problem):
            shell.cell(f"%migrate {line}")


def test_the_magic_of_oumis_code(shell, tmp_path, monkeypatch):
    """A cell of it without engines, and files, whose diff comes first."""
    code = "from oumi.inference import VLLMInferenceEngine\n"
    shown = shell.cell(f"%%migrate\n{code}")
    assert shown.value is None
    assert shown.stdout == "from nbinfer import VLLMInferenceEngine\n"
    with pytest.raises(ConfigurationError, match="required"):
        shell.cell(f"%%migrate native\n{code}")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ask.py"
    path.write_text(code)
    shown = shell.cell("%migrate ask.py")
    assert shown.stdout.splitlines()[-3:] == [
        "-from oumi.inference import VLLMInferenceEngine",
        "+from nbinfer import VLLMInferenceEngine",
        "nothing is written yet: --write does it",
    ]
    assert path.read_text() == code
    shown = shell.cell("%migrate ask.py --from vllm --to native --write")
    assert "written: ask.py" in shown.stdout
    assert path.read_text() == "from nbinfer import NativeTextInferenceEngine\n"
    assert shell.cell("%migrate ask.py").stdout == "there is nothing to change\n"
    with pytest.raises(ConfigurationError, match="there is nothing at"):
        shell.cell("%migrate nowhere.py")


def test_completion_of_the_two_engines():
    assert "native" in candidates("%migrate na", {})
    assert candidates("%migrate native v", {}) == ["vllm"]
    assert "vllm" in candidates("%migrate x.py --from native --to ", {})
    assert not {"native", "vllm"} & set(candidates("%migrate native vllm ", {}))


def test_every_code_block_of_the_guide():
    guide = Path(__file__).parent / "guide_blocks.md"
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 7
    for block in blocks[:5]:
        names: dict[str, object] = {}
        after = rewrite(block).result()
        assert "oumi" not in after
        exec(compile(after, "<guide>", "exec"), names)
        assert names["engine"].model_params.model_name in (
            "meta-llama/Llama-3.1-8B-Instruct",
            "model.gguf",
        )
    given = {"model_params": ModelParams("x"), "RemoteParams": RemoteParams}
    for block in blocks[5:]:  # the migrations: both halves make the engines that they say
        exec(compile(rewrite(block).result(), "<guide>", "exec"), given)
    assert given["engine"].name == "remote-vllm"
