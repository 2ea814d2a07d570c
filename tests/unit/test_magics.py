"""The magics, through a real shell."""

from __future__ import annotations

import gc
import os
import re
import signal
import time

import pandas as pd
import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    EngineCrashed,
    LoadError,
    ModelNotFound,
    RunInterrupted,
    TemplateError,
    UnsupportedParameter,
    selection,
    settings,
)
from nbinfer.residents import pool

from ..conftest import workers
from .conftest import interrupt_when

E = "%%infer -e echo --no-stream"


def outputs(shell, code):
    return shell.cell(code).value["output"].tolist()


# ---------------------------------------------------------------------- the value


def test_the_value_is_the_frame(shell):
    cell = shell.cell(f"{E}\na b")
    assert cell.value["output"].tolist() == ["a b"]
    assert cell.value is nbinfer.last()
    assert shell.cell("_").value is cell.value
    assert "a b" in cell.stdout  # the shell's own display of the value


def test_out_assigns_and_shows_nothing(shell):
    cell = shell.cell(f"{E} -o answers\na b\n---\nc")
    assert cell.value is None
    assert cell.stdout == ""
    assert cell.outputs == []
    assert shell.user_ns["answers"]["output"].tolist() == ["a b", "c"]


def test_out_and_show(shell):
    cell = shell.cell(f"{E} -o answers --show\na b")
    assert cell.value is None
    (shown,) = cell.outputs
    assert "a b" in shown.data["text/plain"]
    assert "a b" in shown.data["text/html"]


def test_out_with_equals_and_quotes(shell):
    shell.cell("%%infer --engine=echo --out='x'\na")
    assert shell.user_ns["x"]["output"].tolist() == ["a"]


# ------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("body", "prompts"),
    [
        ("a\n---\nb", ["a", "b"]),
        ("a\nb\n\n---\n\n\nc\n", ["a\nb", "c"]),
        ("---\na\n---\n---\n", ["a"]),
        ("a\n --- \nb", ["a", "b"]),
        ("a ---\n----\nb", ["a ---\n----\nb"]),
        ("  indented\n\ttab", ["  indented\n\ttab"]),
        ('{"a": {"b": 1}} {x} {{y}} $z %s', ['{"a": {"b": 1}} {x} {{y}} $z %s']),
        ("def f():\n    return {k: {v}}", ["def f():\n    return {k: {v}}"]),
        ("'it''s' \"quoted\" \\n", ["'it''s' \"quoted\" \\n"]),
        ("!ls\n%time x\n# no comment", ["!ls\n%time x\n# no comment"]),
        ("שלום 🙂", ["שלום 🙂"]),
    ],
)
def test_prompts_of_a_body(shell, body, prompts):
    assert shell.cell(f"{E}\n{body}").value["prompt"].tolist() == prompts


def test_a_separator_of_ones_own(shell):
    assert outputs(shell, f"{E} --sep ===\na\n---\n===\nb") == ["a ---", "b"]
    assert outputs(shell, f"{E} --sep '* *'\na\n* *\nb") == ["a", "b"]


@pytest.mark.parametrize("body", ["\n", "---", "\n---\n\n"])
def test_no_prompt(shell, body):
    with pytest.raises(ConfigurationError, match="no prompt"):
        shell.cell(f"{E}\n{body}")


def test_a_variable_in_braces_is_not_expanded(shell):
    shell.user_ns["x"] = "secret"
    assert outputs(shell, f"{E}\n{{x}} {{{{x}}}} $x") == ["{x} {{x}} $x"]
    assert outputs(shell, "%infer -e echo --no-stream {x} $x") == ["{x} $x"]


def test_vars(shell):
    shell.user_ns.update(name="Ada", n=3)
    code = f'{E} --vars\n{{{{name}}}} {{{{ n }}}} {{n}} {{"a": 1}}'
    assert outputs(shell, code) == ['Ada 3 {n} {"a": 1}']


def test_vars_with_a_name_that_is_not_there(shell):
    shell.user_ns["question"] = "x"
    with pytest.raises(TemplateError) as caught:
        shell.cell(f"{E} --vars\n{{{{qestion}}}}")
    assert "{{qestion}}" in caught.value.message
    assert "did you mean {{question}}?" in caught.value.hint


def test_data(shell):
    shell.user_ns["table"] = pd.DataFrame({"word": ["cat", "dog"], "id": ["c", "d"]})
    frame = shell.cell(f"{E} --data table\nspell {{{{word}}}} {{x}}").value
    assert list(frame.columns[:2]) == ["word", "id"]
    assert frame["output"].tolist() == ["spell cat {x}", "spell dog {x}"]
    assert frame["id"].tolist() == ["c", "d"]


def test_data_and_vars(shell):
    shell.user_ns["table"] = pd.DataFrame({"word": ["cat"]})
    shell.user_ns["lang"] = "French"
    code = f"{E} --data table --vars\n{{{{word}}}} in {{{{lang}}}}"
    assert outputs(shell, code) == ["cat in French"]
    with pytest.raises(TemplateError, match="lang"):
        shell.cell(f"{E} --data table\n{{{{word}}}} in {{{{lang}}}}")


def test_what_is_no_data(shell):
    with pytest.raises(ConfigurationError, match="no variable 'nothing'"):
        shell.cell(f"{E} --data nothing\nx")
    shell.user_ns["text"] = "x"
    with pytest.raises(ConfigurationError, match="no DataFrame but str"):
        shell.cell(f"{E} --data text\nx")
    shell.user_ns["table"] = pd.DataFrame({"a": [1]})
    with pytest.raises(ConfigurationError, match="--data fills one prompt, and the cell has 2"):
        shell.cell(f"{E} --data table\nx\n---\ny")


# ------------------------------------------------------------------------ options


def facts(shell, options, body="a b c"):
    frame = shell.cell(f"{E} {options}\n{body}").value
    return frame.attrs["nbinfer"]["generation_params"], frame


def test_generation_options(shell):
    params, frame = facts(shell, "--max-new-tokens 2 --temperature 0.5 --seed 7 -n 2")
    assert (params["max_new_tokens"], params["temperature"]) == (2, 0.5)
    assert (params["seed"], params["n"]) == (7, 2)
    assert frame["output"].tolist() == ["a b", "a b"]
    assert frame["sample"].tolist() == [0, 1]


def test_set(shell):
    params, frame = facts(shell, "--set max_new_tokens=1 --set seed=3")
    assert (params["max_new_tokens"], params["seed"]) == (1, 3)
    assert frame["output"].tolist() == ["a"]


def test_set_of_an_unknown_field(shell):
    with pytest.raises(ConfigurationError) as caught:
        shell.cell(f"{E} --set temprature=1\nx")
    assert "temprature" in caught.value.message
    assert "temperature" in str(caught.value)
    with pytest.raises(ConfigurationError, match="KEY=VALUE"):
        shell.cell(f"{E} --set temperature\nx")


def test_raw_and_system(shell):
    frame = shell.cell(f"{E} --system 'be brief'\na").value
    assert frame["messages"][0][0] == {"role": "system", "content": "be brief"}
    params, _ = facts(shell, "--raw")
    assert params["raw"] is True
    with pytest.raises(ConfigurationError, match="chat template"):
        shell.cell(f"{E} --raw --system x\na")


def test_batch_size_and_kwargs(shell):
    options = "-k clock=virtual -k token_s=1.0 --batch-size 1"
    frame = shell.cell(f"{E} {options}\na\n---\na").value
    assert frame["queue_s"].tolist() == [0, 1]
    with pytest.raises(ConfigurationError, match="batch_size"):
        shell.cell(f"{E} --batch-size 0\na")
    with pytest.raises(ConfigurationError, match="KEY=VALUE"):
        shell.cell(f"{E} -k n_ctx\na")


def test_what_the_engine_cannot_do(shell):
    shell.user_ns["schema"] = {"type": "object"}
    for options in ("--schema schema", "--top-p 0.5", "--adapter x.gguf", "--image x.png"):
        with pytest.raises(UnsupportedParameter, match="echo cannot"):
            shell.cell(f"{E} {options}\nx")
    assert pool.residents() == []


def test_what_is_no_schema(shell):
    shell.user_ns["number"] = 3
    with pytest.raises(ConfigurationError, match="no variable 'nothing'"):
        shell.cell(f"{E} --schema nothing\nx")
    with pytest.raises(ConfigurationError, match="JSON Schema"):
        shell.cell(f"{E} --schema number\nx")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--bogus", "--bogus"),
        ("--max-new", "--max-new"),  # no abbreviations
        ("--max-new-tokens x", "invalid int"),
        ("--max-new-tokens", "expected one argument"),
        ("--temperature -1", "temperature"),
        ("-n 0", "n must be"),
        ("'unclosed", "quotation"),
        ("stray", "stray"),
    ],
)
def test_bad_options(shell, options, what):
    with pytest.raises(ConfigurationError) as caught:
        shell.cell(f"{E} {options}\nx")
    assert what in str(caught.value)
    assert pool.residents() == []


def test_an_unknown_engine(shell):
    with pytest.raises(ConfigurationError) as caught:
        shell.cell("%%infer -e lamacpp\nx")
    assert "no engine is called 'lamacpp'" in caught.value.message
    assert "did you mean 'llamacpp'?" in caught.value.hint


def test_a_model_file_that_is_not_there(shell):
    with pytest.raises(ModelNotFound, match=r"nothing\.gguf"):
        shell.cell("%%infer -e llamacpp -m nothing.gguf\nx")


def test_a_load_that_fails(shell):
    with pytest.raises(LoadError, match="no such tensor"):
        shell.cell(f"{E} -k load_fails='no such tensor'\nx")


def test_help(shell):
    shell.cell("%%infer?")
    assert "--max-new-tokens" in shell.find_line_magic("infer").__doc__
    assert "unload" in shell.find_line_magic("engine").__doc__


# ------------------------------------------------------------------------ one line


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("a b", "a b"),
        ("what's \"this\"? it's", "what's \"this\"? it's"),
        ("--seed 1 say 'a  b'", "say 'a  b'"),
        ("--seed=1 -- --not an option", "--not an option"),
        ("--system 'be brief' hello -n 3", "hello -n 3"),
        ('"all quoted"', '"all quoted"'),
        ("a {x} {{y}} $z \\n", "a {x} {{y}} $z \\n"),
    ],
)
def test_one_line_keeps_its_text_to_the_letter(shell, line, prompt):
    frame = shell.line(f"%infer -e echo --no-stream {line}")
    assert frame["prompt"].tolist() == [prompt]


def test_one_line_as_an_expression(shell):
    shell.cell("answer = %infer -e echo --no-stream a b")
    assert shell.user_ns["answer"]["output"].tolist() == ["a b"]
    with pytest.raises(ConfigurationError, match="no prompt"):
        shell.line("%infer -e echo")


# ---------------------------------------------------------------------- streaming


def test_a_single_answer_is_printed_once_as_it_is_made(shell):
    cell = shell.cell("%%infer -e echo\na b c")
    text, newline, _ = cell.stdout.partition("\n")
    assert (text, newline) == ("a b c", "\n")
    assert cell.stderr == ""
    assert cell.value["output"].tolist() == ["a b c"]


def test_streamed_text_obeys_nothing(shell):
    cell = shell.cell("%%infer -e echo\n\x1b[31mred\x07 \u202egnp")
    assert "\x1b" not in cell.stdout
    assert "\x07" not in cell.stdout
    assert "\u202e" not in cell.stdout
    assert cell.stdout.startswith("␛[31mred")
    assert cell.value["output"].tolist() == ["\x1b[31mred\x07 \u202egnp"]


@pytest.mark.parametrize("options", ["--no-stream -o x", "-n 2 -o x", "-o x"])
def test_what_does_not_stream(shell, options):
    assert shell.cell(f"%%infer -e echo {options}\na b").stdout == ""


def test_several_prompts_do_not_stream(shell):
    assert not shell.cell("%%infer -e echo\na b\n---\nc").stdout.startswith("a b\n")


# ------------------------------------------------------------------------- %engine


def test_engine_shows_what_is_resident(shell):
    assert len(shell.line("%engine")) == 0
    shell.cell(f"{E}\na")
    table = shell.line("%engine")
    assert table["engine"].tolist() == ["echo"]
    assert table["state"].tolist() == ["ready"]
    assert list(table.columns) == list(nbinfer.overview.COLUMNS)


def test_engine_use_is_the_default_of_the_next_cell(shell):
    cell = shell.cell("%engine use echo -m mine -k token_s=0")
    assert cell.stdout == "%%infer now uses echo · mine\n"
    frame = shell.cell("%%infer --no-stream\na").value
    assert (frame["engine"][0], frame["model"][0]) == ("echo", "mine")
    assert selection.current().model.model_kwargs["token_s"] == 0
    assert pool.residents()[0].plan.model == "mine"


def test_the_settings_default(shell):
    settings.configure(default_engine="echo", default_model="other")
    frame = shell.cell("%%infer --no-stream\na").value
    assert (frame["engine"][0], frame["model"][0]) == ("echo", "other")


def test_engine_load_unload_restart(shell):
    cell = shell.cell("%engine load echo -m mine")
    assert re.fullmatch(r"echo · mine is loaded: \d+ MB\n", cell.stdout)
    (before,) = workers()
    cell = shell.cell("%engine restart echo -m mine")
    first, second = cell.stdout.splitlines()
    assert re.fullmatch(r"echo · mine is unloaded: \d+ MB came back", first)
    assert re.fullmatch(r"echo · mine is loaded: \d+ MB", second)
    (after,) = workers()
    assert after.pid != before.pid
    assert "came back" in shell.cell("%engine unload echo").stdout
    assert workers() == []
    assert shell.cell("%engine unload").stdout == "nothing was loaded\n"


def test_engine_unload_without_a_name_unloads_all(shell):
    shell.cell("%engine load echo -m a")
    shell.cell("%engine load echo -m b")
    assert len(shell.cell("%engine unload echo -m a").stdout.splitlines()) == 1
    shell.cell("%engine load echo -m a")
    assert len(shell.cell("%engine unload").stdout.splitlines()) == 2
    assert pool.residents() == []


def test_a_model_for_each_engine(shell):
    both = "-m llamacpp=a.gguf -m echo=mine"
    frame = shell.cell(f"%%infer -e echo --no-stream {both}\na").value
    assert frame["model"].tolist() == ["mine"]
    frame = shell.cell("%%infer -e echo --no-stream -m llamacpp=a.gguf -m rest\na").value
    assert frame["model"].tolist() == ["rest"]
    frame = shell.cell("%%infer -e echo --no-stream -m llamacpp=a.gguf\na").value
    assert frame["model"].tolist() == ["smollm2-135m"]
    frame = shell.cell("%%infer -e echo --no-stream -m nothing=x=y\na").value
    assert frame["model"].tolist() == ["nothing=x=y"]
    assert len(shell.cell("%engine unload -m echo=mine").stdout.splitlines()) == 1
    assert len(shell.cell("%engine unload echo -m rest").stdout.splitlines()) == 1
    assert "echo · two is loaded" in shell.cell("%engine load echo -m x -m echo=two").stdout
    with pytest.raises(ModelNotFound, match=r"a\.gguf"):
        shell.cell(f"%%infer -e llamacpp {both}\na")


def test_use_keeps_the_models_of_other_engines(shell):
    cell = shell.cell("%engine use llamacpp -m llamacpp=a.gguf -m echo=mine")
    assert cell.stdout == "%%infer now uses llamacpp · a.gguf\n"
    assert shell.cell("%%infer -e echo --no-stream\na").value["model"].tolist() == ["mine"]
    assert selection.current().model.model_name == "a.gguf"
    shell.cell("%engine use echo -k token_s=0")
    assert selection.current().model.model_name == "mine"
    shell.cell("%engine use llamacpp -m b.gguf")
    assert shell.cell("%%infer -e echo --no-stream\na").value["model"].tolist() == ["mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-m a -m b", "names 2 models for echo: a, b"),
        ("-m echo=a -m echo=b", "names 2 models for echo: a, b"),
        ("-m echo=", "names no model"),
    ],
)
def test_two_models_or_none_for_an_engine(shell, options, message):
    with pytest.raises(ConfigurationError, match=message):
        shell.cell(f"{E} {options}\nx")


def test_engine_logs(shell):
    shell.cell(f"{E}\n!flood 4096")
    lines = shell.cell("%engine logs echo --lines 2").stdout.splitlines()
    assert len(lines) <= 2
    assert lines[-1].endswith("x" * 100)


@pytest.mark.parametrize("line", ["destroy", "load nothing", "use nothing", "load echo extra"])
def test_engine_errors(shell, line):
    with pytest.raises(ConfigurationError):
        shell.cell(f"%engine {line}")


def test_use_tells_bad_parameters_at_once(shell):
    with pytest.raises(ConfigurationError, match="n_ctxx"):
        shell.cell("%engine use llamacpp -k n_ctxx=3")
    assert selection.current().engine == "llamacpp"
    assert not selection.current().model.model_kwargs


# ------------------------------------------------------------- full and short names


def test_full_names(shell):
    frame = shell.cell("%%nbinfer infer -e echo --no-stream\na\n---\nb").value
    assert frame["output"].tolist() == ["a", "b"]
    frame = shell.line("%nbinfer infer -e echo --no-stream it's  so")
    assert frame["prompt"].tolist() == ["it's  so"]
    assert shell.line("%nbinfer engine")["engine"].tolist() == ["echo"]
    with pytest.raises(ConfigurationError, match="no command 'bogus'"):
        shell.cell("%nbinfer bogus")
    with pytest.raises(ConfigurationError):
        shell.cell("%nbinfer")


def test_a_taken_name_is_left_alone(shell):
    shell.cell("%unload_ext nbinfer")

    def infer(line, cell=None):
        return f"theirs {line}"

    shell.register_magic_function(infer, "line_cell")
    cell = shell.cell("%load_ext nbinfer")
    assert cell.stdout.splitlines() == [
        "nbinfer: %infer belongs to another extension; use %nbinfer infer",
        "nbinfer: %%infer belongs to another extension; use %%nbinfer infer",
    ]
    assert shell.line("%infer x") == "theirs x"
    assert shell.line("%nbinfer infer -e echo --no-stream a")["output"].tolist() == ["a"]
    assert shell.line("%engine")["engine"].tolist() == ["echo"]
    shell.cell("%unload_ext nbinfer")
    assert shell.line("%infer x") == "theirs x"


def test_a_name_that_is_taken_later_is_not_taken_away(shell):
    shell.register_magic_function(lambda line: "theirs", "line", "engine")
    shell.cell("%unload_ext nbinfer")
    assert shell.line("%engine") == "theirs"


def test_unload_takes_everything_back(shell):
    shell.cell("%unload_ext nbinfer")
    formatters = shell.display_formatter.formatters

    def state():
        return (
            {kind: set(names) for kind, names in shell.magics_manager.magics.items()},
            set(shell.magics_manager.registry),
            list(shell.Completer.custom_matchers),
            {
                kind: (dict(f.type_printers), dict(f.deferred_printers))
                for kind, f in formatters.items()
            },
            signal.getsignal(signal.SIGINT),
        )

    before = state()
    shell.cell("%load_ext nbinfer")
    assert state() != before
    shell.cell(f"{E}\na")
    shell.cell("%unload_ext nbinfer")
    assert state() == before
    assert workers() == []
    assert pool.residents() == []


def test_loading_twice_is_loading_once(shell):
    shell.cell("%reload_ext nbinfer")
    nbinfer.load_ipython_extension(shell)
    matchers = [m for m in shell.Completer.custom_matchers if "nbinfer" in repr(type(m))]
    assert len(matchers) == 1
    assert outputs(shell, f"{E}\na") == ["a"]


# ------------------------------------------------------------------------- errors


def test_errors_are_two_clean_lines_and_raise(shell):
    with pytest.raises(ConfigurationError) as caught:
        shell.cell("%%infer -e lamacpp\nx")
    first, second = caught.value._render_traceback_()
    assert first == "ConfigurationError: no engine is called 'lamacpp'"
    assert second.startswith("did you mean 'llamacpp'?")


def test_what_the_cell_shows_of_an_error(shell, capsys):
    result = shell.run_cell("%%infer -e lamacpp\nx")
    assert not result.success
    shown = capsys.readouterr().out + capsys.readouterr().err
    assert shown.count("\n") <= 3
    assert "Traceback" not in shown
    assert "ConfigurationError: no engine is called 'lamacpp'" in shown


def test_a_models_text_in_an_error_obeys_nothing(shell):
    with pytest.raises(LoadError) as caught:
        shell.cell(f"{E} -k load_fails='\x1b[31mred'\nx")
    assert "\x1b" not in "".join(caught.value._render_traceback_())


def test_from_python_an_error_keeps_its_traceback(shell):
    with pytest.raises(ConfigurationError) as caught:
        shell.cell("import nbinfer; nbinfer.EchoInferenceEngine().infer([])")
    assert not hasattr(caught.value, "_render_traceback_")


def test_a_row_that_fails_raises_nothing(shell):
    frame = shell.cell(f"{E}\na\n---\n!fail too long").value
    assert frame["error"].tolist()[1] == "too long"


def test_a_crash_keeps_the_rows(shell):
    with pytest.raises(EngineCrashed) as caught:
        shell.cell(f"{E} -o rows --batch-size 1\na\n---\n!kill SIGSEGV\n---\nb")
    rows = shell.user_ns["rows"]
    assert rows["output"].tolist()[0] == "a"
    assert rows["finish_reason"].tolist() == ["stop", "error", "error"]
    assert rows is nbinfer.last() is caught.value.frame
    first, second = caught.value._render_traceback_()
    assert first.startswith("EngineCrashed: ")
    assert "SIGSEGV" in first
    assert "the next use loads the model again" in second
    assert outputs(shell, f"{E}\nnext") == ["next"]


# --------------------------------------------------------------------- interrupts


def first_row_done():
    """Whether the resident engine works, and has done so for a moment."""
    found = [r for r in pool.residents() if r.busy]
    if found and not first_row_done.since:
        first_row_done.since = time.monotonic()
    return bool(found) and time.monotonic() - first_row_done.since > 0.3


def interrupt(shell, code, capsys):
    first_row_done.since = 0.0
    with interrupt_when(first_row_done):
        result = shell.run_cell(code, store_history=True)
    return result, capsys.readouterr().out


def test_an_interrupted_cell(shell, capsys):
    shell.cell("%engine load echo -k token_s=0.05 -k slots=1")
    (worker,) = workers()
    code = f"{E} -k token_s=0.05 -k slots=1 -o rows\na\n---\n{'w ' * 2000}\n---\nb"
    result, shown = interrupt(shell, code, capsys)
    error = result.error_in_exec
    assert isinstance(error, RunInterrupted)
    assert not result.success
    rows = shell.user_ns["rows"]
    assert rows["finish_reason"].tolist() == ["stop", "cancelled", "cancelled"]
    assert rows is error.frame is nbinfer.last()
    assert "cancelled" in shown  # it is shown even with -o
    (line,) = error._render_traceback_()
    assert line.startswith("RunInterrupted: stopped with 1 of 3 rows finished")
    assert "Traceback" not in shown
    assert [w.pid for w in workers()] == [worker.pid]
    assert outputs(shell, f"{E} -k token_s=0.05 -k slots=1\nnext") == ["next"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_stream(shell, capsys):
    code = f"%%infer -e echo -k token_s=0.02\n{'w ' * 5000}"
    result, shown = interrupt(shell, code, capsys)
    assert isinstance(result.error_in_exec, RunInterrupted)
    assert shown.startswith("w w")
    assert nbinfer.last()["finish_reason"].tolist() == ["cancelled"]
    assert nbinfer.last()["output"][0].startswith("w w")
    assert outputs(shell, f"{E} -k token_s=0.02\nnext") == ["next"]


def test_an_interrupt_while_the_frame_is_shown_is_not_lost(shell, capsys):
    """It strikes inside the display of the rows: they are kept all the same."""
    formatter = shell.display_formatter.formatters["text/plain"]
    gc.collect()

    def strike(frame, printer, cycle):
        os.kill(os.getpid(), signal.SIGINT)
        printer.text("shown to its end")

    before = formatter.for_type(pd.DataFrame, strike)
    try:
        result = shell.run_cell(f"{E} -o rows --show\na")
    finally:
        formatter.pop(pd.DataFrame)
        if before is not None:
            formatter.for_type(pd.DataFrame, before)
    assert isinstance(result.error_in_exec, RunInterrupted)
    assert "shown to its end" in capsys.readouterr().out
    assert shell.user_ns["rows"]["output"].tolist() == ["a"]
