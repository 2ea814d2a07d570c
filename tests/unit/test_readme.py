"""README says what the code does: its tables are the code's own, and its cells run."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from nbinfer import (
    GenerationParams,
    LlamaCppInferenceEngine,
    NativeTextInferenceEngine,
    UnsupportedParameter,
    VLLMInferenceEngine,
    cli,
    hub,
    models,
    selection,
    settings,
)
from nbinfer.engines import registry
from nbinfer.frame import COLUMNS
from nbinfer.notebook.arguments import PARSERS, engine_parser, infer_parser
from nbinfer.notebook.parser import split_line
from nbinfer.recipes import RECIPES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
PARAMETERS = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    (mark,) = re.findall(rf"^(#+) {re.escape(title)}$", README, re.M)
    text = README.split(f"\n{mark} {title}\n", 1)[1]
    return re.split(rf"^#{{1,{len(mark)}}} ", text, maxsplit=1, flags=re.M)[0]


def table(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without its head."""
    lines = re.search(r"(?:^\|.*\|\n?)+", text, re.M).group().splitlines()
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def marked(mark: str) -> list[list[str]]:
    """The table after a ``<!-- mark -->``."""
    return table(README.split(f"<!-- {mark} -->\n", 1)[1])


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [body for tongue, body in fences if tongue == language]


def named(cell: str) -> list[str]:
    """What stands in backticks."""
    return [text.replace("\\|", "|") for text in re.findall(r"`([^`]+)`", cell)]


def command(mark: str) -> str:
    """The command that continuous integration takes from the block after a mark."""
    pattern = rf"<!-- {mark} -->\n```bash\n(.+?)\n```"
    (found,) = re.findall(pattern, README, re.S)
    return found


# -------------------------------------------------------------------------- tables


def test_the_options_are_the_parsers_in_its_order():
    wanted = []
    for action in infer_parser()._actions:
        *short, last = action.option_strings
        value = f" {action.metavar}" if action.nargs != 0 else ""
        wanted.append([*short, f"{last}{value}"])
    assert [named(option) for option, _ in marked("options")] == wanted


def test_the_defaults_said_in_the_options_are_true():
    said = {named(option)[-1].split()[0]: text for option, text in marked("options")}
    defaults = {f.name: f.default for f in fields(GenerationParams)}
    assert f"({defaults['max_new_tokens']})" in said["--max-new-tokens"]
    assert defaults["temperature"] == 0
    assert "`0`" in said["--temperature"] or said["--temperature"].startswith("0")
    assert infer_parser().parse_line("").sep in said["--sep"]


def test_the_columns_are_the_frames_in_its_order():
    assert [named(name) for name, _ in marked("columns")] == [[name] for name in COLUMNS]


def test_every_name_said_for_a_model_is_read_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    said = [name for cell, _ in marked("names") for name in named(cell)]
    hub_ids = [name for name in said if hub.parse(name)]
    assert hub_ids == [name for name in said if name.startswith("org/")]
    assert [n for n in said if selection.model_for("llamacpp", [n]) != n] == ["llamacpp=a.gguf"]
    assert said[0] in models.EMBEDDED


def test_the_aliases_said_are_read():
    (block,) = blocks(section("What `-m` takes"), "toml")
    given = tomllib.loads(block)["tool"]["nbinfer"]["aliases"]
    assert settings.Settings(aliases=given).aliases == given


def test_every_column_and_option_is_explained():
    for mark in ("options", "columns", "settings", "names"):
        assert all(len(text) > 5 for *_, text in marked(mark))


def test_the_settings_are_the_ones_that_are_read():
    (home, *_), *rows = marked("settings")
    assert named(home) == ["NBINFER_HOME"]
    said = {named(variable)[0]: named(field)[0] for variable, field, _ in rows}
    assert said == {variable: field for variable, (field, _) in settings._ENVIRONMENT.items()}


def test_no_variable_is_named_that_is_not_read():
    chosen = {"NBINFER_PYTHON_" + name.upper().replace("-", "_") for name in RECIPES}
    known = {"NBINFER_HOME", *settings._ENVIRONMENT, *chosen}
    assert set(re.findall(r"NBINFER_[A-Z_]+", README)) <= known


def test_the_defaults_said_in_the_settings_are_true(monkeypatch: pytest.MonkeyPatch):
    for name in [n for n in os.environ if n.startswith("NBINFER_")]:
        monkeypatch.delenv(name)
    said = {named(variable)[0]: text for variable, _, text in marked("settings")}
    now = settings.Settings()
    assert f"({now.status_delay_s:g})" in said["NBINFER_STATUS_DELAY_S"]
    assert f"({now.cancel_grace_s:g})" in said["NBINFER_CANCEL_GRACE_S"]
    assert f"`{now.default_engine}`" in said["NBINFER_DEFAULT_ENGINE"]
    assert f"`{now.default_model}`" in said["NBINFER_DEFAULT_MODEL"]
    assert ",".join(f"{s:g}" for s in now.escalation_s) in said["NBINFER_ESCALATION"]
    home = re.search(r"`(~[^`]+)`", said["NBINFER_HOME"]).group(1)
    assert settings.home() == Path(home).expanduser()


def test_the_parameters_page_has_every_field_with_its_default():
    rows = {named(name)[0]: default for name, default, *_ in table(PARAMETERS)}
    assert set(rows) == {f.name for f in fields(GenerationParams)}
    default = GenerationParams().to_dict()
    shown = {None: "none", True: "true", False: "false"}
    for name, said in rows.items():
        value = default[name] or None if name == "logit_bias" else default[name]
        wanted = shown[value] if value is None or isinstance(value, bool) else str(value)
        assert said == wanted, name


ENGINES = {
    "local": {
        "llamacpp": LlamaCppInferenceEngine,
        "llamacpp -k binding=llama-cpp-python": lambda: LlamaCppInferenceEngine(
            binding="llama-cpp-python"
        ),
        "native": NativeTextInferenceEngine,
        "vllm": VLLMInferenceEngine,
    },
    "servers": {
        name: registry.engine_class(name)
        for name in ("remote-vllm", "sglang", "openai", "anthropic", "openai-compatible")
    },
}


def test_the_parameters_page_has_every_engine():
    assert {name.split()[0] for made in ENGINES.values() for name in made} == set(registry.names())


@pytest.mark.parametrize("mark", ENGINES)
def test_the_parameters_page_says_refused_where_an_engine_refuses(mark):
    """Each field of each engine: refused exactly where the engine's own check refuses it."""
    text = PARAMETERS.split(f"<!-- {mark} -->\n", 1)[1]
    head, rows = text.splitlines()[0], table(text)
    assert named(head) == list(ENGINES[mark])
    assert {named(row[0])[0] for row in rows} == {f.name for f in fields(GenerationParams)}
    for place, (name, make) in enumerate(ENGINES[mark].items(), 1):
        able = (make("m") if mark == "servers" else make()).capabilities.generation
        for row in rows:
            refused = re.match("refused(?! unless)", row[place]) is not None
            assert refused is (named(row[0])[0] not in able), (name, row[0])


def test_the_parameters_page_says_which_values_are_too_large():
    for mark, made in ENGINES.items():
        for row in table(PARAMETERS.split(f"<!-- {mark} -->\n")[1]):
            for place, (name, make) in enumerate(made.items(), 1):
                most = getattr(make, "most", {}).get(named(row[0])[0])
                assert ("at most" in row[place]) is (most is not None), (name, row[0])
                if most is not None:
                    params = GenerationParams(**{named(row[0])[0]: most + 0.5})
                    assert f"at most {most:g}" in row[place]
                    with pytest.raises(UnsupportedParameter, match="of at most"):
                        (make("m") if mark == "servers" else make()).infer("x", params)


def test_the_parameters_page_says_which_forms_guide_and_which_choices_there_are():
    for mark, made in ENGINES.items():
        rows = {named(row[0])[0]: row for row in table(PARAMETERS.split(f"<!-- {mark} -->\n")[1])}
        for place, (name, make) in enumerate(made.items(), 1):
            able = (make("m") if mark == "servers" else make()).capabilities
            forms = rows["guided_decoding"][place]
            said = {"json", "regex", "choice", "grammar"}
            if "all four" not in forms:
                said &= set(named(forms))
            assert said == able.guided_decoding, name
            free = "all but `auto`" not in rows["tool_choice"][place]
            assert free is ("auto" in able.tool_choice), name


# ------------------------------------------------------------------------ commands


def test_the_two_commands_are_whole_and_on_one_line():
    assert command("install") == "pip install -e . && nbinfer demo"
    assert command("tests").split(" && ")[-1] == "python -m pytest"
    assert "\n" not in command("install") + command("tests")


def test_every_nbinfer_command_is_one():
    said = [shlex.split(text) for text in named(PROSE) if text.startswith("nbinfer ")]
    assert {words[1] for words in said} == {
        "demo",
        "infer",
        "install",
        "uninstall",
        "installed",
        "serve",
        "stop",
        "memory",
        "recommend",
        "benchmark",
        "migrate",
        "features",
        "doctor",
    }
    for _, *words in said:
        assert callable(cli._parser().parse_args(words).run)


def test_every_engine_line_is_one():
    said = [t.removeprefix("%engine") for t in named(PROSE) if t.startswith("%engine ")]
    (actions,) = (a.choices for a in engine_parser()._actions if a.dest == "action")
    assert {engine_parser().parse_line(t).action for t in said} == set(actions)


def test_every_infer_line_is_one():
    said = [t.removeprefix("%infer") for t in named(PROSE) if t.startswith("%infer ")]
    assert said
    for text in said:
        options, prompt = split_line(infer_parser(), text)
        infer_parser().parse_line(options)
        assert prompt


@pytest.mark.parametrize("name", ["benchmark", "compare", "migrate"])
def test_every_line_of_the_guides_magics_is_one(name):
    code = "\n".join(blocks(README))
    lines = re.findall(rf"^%{{1,2}}{name} (.+)$", code, re.M)
    lines += [t.split(f"%{name} ", 1)[1] for t in named(PROSE) if re.match(rf"%{{1,2}}{name} ", t)]
    assert lines
    for line in lines:
        PARSERS[name]().parse_line(line)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PROSE))))
def test_every_link_leads_somewhere(name: str):
    assert (ROOT / name).is_file()


# --------------------------------------------------------------------------- cells


def test_the_cells_of_the_first_notebook_run(shell):
    cells = blocks(section("First notebook").split("\n### ")[0])
    assert cells[0] == "%load_ext nbinfer\n"
    shown = [shell.cell(code.rstrip("\n")) for code in cells]
    single, table_of_engines = shown[1].value, shown[-1].value
    assert single["output"][0].strip() in shown[1].stdout
    frame = shell.user_ns["df"]
    assert shown[2].value is None
    assert shown[2].outputs == []
    assert frame["prompt"].tolist() == ["Name a colour.", "Name an animal."]
    for rows in (single, frame):
        assert rows["error"].isna().all()
        assert list(rows.columns) == list(COLUMNS)
    assert table_of_engines["engine"].tolist() == ["llamacpp"]
    assert table_of_engines["state"].tolist() == ["ready"]


def test_the_cell_over_a_table_runs(shell):
    questions = pd.DataFrame({"question": ["Is water wet?", "Is ice hot?"], "weight": [1.5, 2.0]})
    shell.user_ns["questions"] = questions
    (code,) = blocks(section("A table of prompts"))
    shell.cell(code.rstrip("\n").replace("%%infer ", "%%infer --max-new-tokens 4 ", 1))
    answers = shell.user_ns["answers"]
    assert answers["prompt"].tolist() == [f"Answer in one word: {q}" for q in questions["question"]]
    pd.testing.assert_frame_equal(
        pd.DataFrame({n: answers[n] for n in questions}), questions, check_names=False
    )
    assert answers["error"].isna().all()


def test_the_python_block_runs(clean: None, capsys: pytest.CaptureFixture[str]):
    (code,) = blocks(section("Python"), "python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["df"]) == 2
    assert names["stream"].result["output"][0] == capsys.readouterr().out
    assert names["engine"].resident is None
