"""``nbinfer migrate PATH``: files rewritten, a diff first, nothing else touched."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nbformat
import pytest

from nbinfer import ConfigurationError, GenerationParams, ModelParams, cli
from nbinfer.guide.convert import convert, diff, write

PYTHON = (
    "from oumi.inference import VLLMInferenceEngine  # mine\r\ne = VLLMInferenceEngine('x')\r\n"
)
CONFIG = """\
# Inference config for SmolLM 135M Instruct.
#
# Usage:
#   oumi infer -i -c <config_path>

model:
  model_name: "HuggingFaceTB/SmolLM2-135M-Instruct"
  adapter_model: null # Update for LoRA-tuned models.
  model_max_length: 2048
  # Half of it.
  torch_dtype_str: "bfloat16"
  load_pretrained_weights: True
  trust_remote_code: True
  model_kwargs:
    low_cpu_mem_usage: true  # inside

generation:
  max_new_tokens: 100 # many
  batch_size: 4

engine: NATIVE
# The end.
"""


def notebook(path: Path, *cells: str, indent: int | None = 1) -> str:
    book = nbformat.v4.new_notebook(metadata={"note": "é"})
    book.cells = [nbformat.v4.new_markdown_cell("# oumi.inference")]
    for text in cells:
        cell = nbformat.v4.new_code_cell(text, execution_count=3)
        cell.outputs = [nbformat.v4.new_output("stream", text="from oumi.inference import X\n")]
        book.cells.append(cell)
    # As Jupyter writes it: a source is a list of lines.
    text = nbformat.writes(book)
    text = json.dumps(json.loads(text), indent=indent, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return text


def test_a_file_of_python_and_its_diff(tmp_path):
    path = tmp_path / "a.py"
    path.write_bytes(PYTHON.encode())
    (found,) = convert([path])
    assert found.after == PYTHON.replace("oumi.inference", "nbinfer")
    assert path.read_bytes() == PYTHON.encode()
    told = diff([found])
    assert "-from oumi.inference import VLLMInferenceEngine  # mine" in told
    assert "+from nbinfer import VLLMInferenceEngine  # mine" in told
    path.chmod(0o755)
    (said,) = write([found])
    assert path.read_bytes() == PYTHON.replace("oumi.inference", "nbinfer").encode()
    assert path.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a.py.bak").read_bytes() == PYTHON.encode()
    assert "a.py.bak" in said
    assert convert([path]) == []  # again there is nothing to do


@pytest.mark.parametrize("indent", [1, 2, 4, None])
def test_of_a_notebook_only_the_cells_lines_change(tmp_path, indent):
    path = tmp_path / "n.ipynb"
    cells = (
        "%load_ext nbinfer\nfrom oumi.inference import NativeTextInferenceEngine\n!ls\n",
        "%%infer -e native -k batch_size=4\nfrom oumi.inference import a prompt",
        "this is (no python",
    )
    before = notebook(path, *cells, indent=indent)
    (found,) = convert([path])
    old, new = "from oumi.inference import Native", "from nbinfer import Native"
    assert found.after == before.replace(old, new)
    (found,) = convert([path], "native", "vllm")
    assert found.after == (
        before.replace(old, new)
        .replace("import NativeTextInferenceEngine", "import VLLMInferenceEngine")
        .replace("-e native -k batch_size=4", "-e vllm -k max_num_seqs=4")
    )
    nbformat.validate(nbformat.reads(found.after, as_version=4))


def test_a_configuration_becomes_python_with_its_comments(tmp_path):
    path = tmp_path / "infer.yaml"
    path.write_text(CONFIG)
    (found,) = convert([path])
    assert found.written == tmp_path / "infer.py"
    for comment in (
        "# Inference config",
        "# Update for",
        "# Half",
        "# inside",
        "# many",
        "# The end",
    ):
        assert comment in found.after
    names: dict[str, object] = {}
    exec(compile(found.after, "infer.py", "exec"), names)
    engine = names["engine"]
    assert engine.name == "native"
    assert engine.model_params == ModelParams(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        model_max_length=2048,
        torch_dtype_str="bfloat16",
        trust_remote_code=True,
        model_kwargs={"low_cpu_mem_usage": True},
    )
    assert engine.generation_params == GenerationParams(max_new_tokens=100)
    assert [f.line for f in found.findings] == [12, 19]
    write([found])
    assert path.read_text() == CONFIG
    assert convert([path])[0].after == (tmp_path / "infer.py").read_text()
    (tmp_path / "infer.py").write_text("mine = 1\n")
    with pytest.raises(ConfigurationError, match="another file of this name"):
        convert([path])


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        (
            "model: {model_name: m}\nengine: REMOTE_VLLM\nremote_params: {api_url: 'http://h:1'}\n",
            "remote-vllm",
        ),
        (
            "model:\n  model_name: a.gguf\n  model_kwargs: {n_ctx: 9}\nengine: llamacpp\n",
            "llamacpp",
        ),
        ("model: {model_name: m}\ngeneration: {stop: [x]}\n", "native"),
        ("model: {model_name: claude}\nengine: ANTHROPIC\n", "anthropic"),
    ],
)
def test_configurations_of_other_engines(tmp_path, text, engine):
    path = tmp_path / "c.yml"
    path.write_text(text)
    (found,) = convert([path])
    names: dict[str, object] = {}
    exec(compile(found.after, "c.py", "exec"), names)
    assert names["engine"].name == engine


def test_markdown(tmp_path):
    path = tmp_path / "guide.md"
    path.write_text(
        "Text of oumi.inference.\n\n```python\n"
        "from oumi.inference import VLLMInferenceEngine\n```\n"
        "\n```yaml\nfrom oumi.inference\n```\n"
    )
    (found,) = convert([path])
    changed = [line for line in diff([found]).splitlines() if line.startswith(("+f", "-f"))]
    assert len(changed) == 2


def test_a_folder_is_looked_through(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.py", "deep/b.py", ".hidden/c.py", "d.txt"):
        (tmp_path / name).write_text(PYTHON)
    (tmp_path / "other.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("import oumi (\n")
    (tmp_path / "compose.yaml").write_text("services:\n  web: {image: x}\n")
    (tmp_path / "train.yaml").write_text("model: {model_name: x}\ntraining: {lr: 1}\n")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe oumi")
    assert [f.path.name for f in convert([tmp_path])] == ["a.py", "b.py"]


def test_git_keeps_what_was_there(tmp_path):
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        subprocess.run(command, check=True, capture_output=True)

    path = tmp_path / "a.py"
    path.write_text(PYTHON)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    path.write_text(PYTHON + "# more\n")
    found = convert([path])
    with pytest.raises(ConfigurationError, match="not committed"):
        write(found)
    assert path.read_text() == PYTHON.replace("\r\n", "\n") + "# more\n"
    write(found, force=True)
    assert "from nbinfer" in path.read_text()
    assert not (tmp_path / "a.py.bak").exists()
    new = tmp_path / "new.py"
    new.write_text(PYTHON)
    write(convert([new]))
    assert (tmp_path / "new.py.bak").exists()  # git does not have it


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.py", "def (", "no Python"),
        ("a.ipynb", "{}", "no notebook"),
        ("a.ipynb", "[", "no notebook"),
        ("a.yaml", "a: [", "no YAML"),
        ("a.yaml", "model: {model_name: x}\nengine: BEDROCK\n", "BEDROCK"),
        ("a.txt", "", "no file that can be migrated"),
    ],
)
def test_files_that_make_no_sense(tmp_path, name, text, problem):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        convert([path])


def test_other_bad_input(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing at"):
        convert([tmp_path / "none.py"])
    with pytest.raises(ConfigurationError, match="go together"):
        convert([tmp_path], "native")
    with pytest.raises(ConfigurationError, match="no engine is called"):
        convert([tmp_path], "native", "nowhere")


def test_the_command(tmp_path, capsys):
    path = tmp_path / "a.py"
    path.write_text(PYTHON)
    assert cli.main(["migrate", str(path)]) == 0
    shown = capsys.readouterr()
    assert "+from nbinfer" in shown.out
    assert "--write does it" in shown.err
    assert path.read_text() == PYTHON.replace("\r\n", "\n")
    assert cli.main(["migrate", str(path), "--from", "vllm", "--to", "native", "--write"]) == 0
    assert "NativeTextInferenceEngine" in path.read_text()
    assert cli.main(["migrate", str(path)]) == 0
    assert "nothing to change" in capsys.readouterr().err
    assert cli.main(["migrate", "native", "vllm", "-k", "load_in_4bit=true"]) == 0
    shown = capsys.readouterr().out
    assert "bitsandbytes" in shown
    assert "engine = VLLMInferenceEngine(" in shown
    assert cli.main(["migrate", str(tmp_path / "none.py")]) == 1
