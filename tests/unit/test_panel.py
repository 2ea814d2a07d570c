"""The panel: through a real shell, with real echo workers, its buttons clicked."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest

import nbinfer
from nbinfer import ConfigurationError, ModelParams, UnsupportedParameter, selection, settings
from nbinfer.notebook import switcher as switchers
from nbinfer.notebook.engine_rows import Row, as_text, command
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.notebook.switcher import switcher
from nbinfer.residents import pool
from nbinfer.selection import Selection

from ..conftest import eventually, our_threads, workers
from ..kernel import Kernel
from .panels import fresh, living  # noqa: F401

E = "%%infer --no-stream"


def shown(panel):
    """The panel's rows as its widgets show them: what a user reads, without the tags."""
    refresher.draw()
    return {key.split(" ", 1)[0]: line._text.value for key, line in panel.engines._lines.items()}


def line_of(panel, engine, model=None):
    refresher.draw()
    (found,) = (
        line
        for line in panel.engines._lines.values()
        if line.row.selection.engine == engine
        and model in (None, line.row.selection.model.model_name)
    )
    return found


def click(panel, action, engine, model=None):
    line = line_of(panel, engine, model)
    assert action in line.row.actions
    assert not line.buttons[action].disabled
    line.buttons[action].click()


def state_of(panel, engine, model=None):
    return line_of(panel, engine, model).row.state


# ------------------------------------------------------------------------ switching


def test_a_click_switches_what_a_plain_infer_uses(shell):
    panel = shell.line("%panel")
    assert "llamacpp · smollm2-135m" in panel.engines._head.value
    shell.cell("%engine load echo -m mine")
    click(panel, "use", "echo")
    frame = shell.cell(f"{E}\na b").value
    assert (frame["engine"][0], frame["model"][0]) == ("echo", "mine")
    assert "echo · mine" in panel.engines._head.value
    assert line_of(panel, "echo").buttons["use"].description == "✓ In use"
    assert line_of(panel, "llamacpp").buttons["use"].description == "Use"
    click(panel, "use", "llamacpp")
    assert selection.current().engine == "llamacpp"


def test_the_same_resident_is_used_and_the_line_said_does_the_same(shell):
    panel = shell.line("%nbinfer panel")
    shell.cell("%engine load echo -m 'my model' -k token_s=0 -k clock=virtual")
    click(panel, "use", "echo")
    assert shell.cell(f"{E}\na").value["model"][0] == "my model"
    assert len(workers()) == 1
    said = switcher.said.command
    assert said == "%engine use echo -m 'my model' -k token_s=0 -k clock=virtual"
    assert "my model" in panel.engines._foot.value
    before = selection.current()
    selection.reset()
    shell.cell(said)
    assert selection.current() == before
    assert line_of(panel, "echo").buttons["use"].tooltip == said


def test_engine_use_in_a_cell_shows(shell):
    panel = nbinfer.panel()
    shell.cell("%engine use native -m org/name")
    refresher.draw()
    assert "native · org/name" in panel.engines._head.value
    assert line_of(panel, "native").row.chosen
    assert not line_of(panel, "llamacpp").row.chosen


def test_hidden_engines_show_only_when_they_are_used(shell):
    panel = nbinfer.panel()
    listed = [row.selection.engine for row in switcher.state().rows]
    assert listed == nbinfer.engines.registry.names()
    assert "echo" not in shown(panel)
    shell.cell("%engine use echo -m mine")
    assert "not loaded" in shown(panel)["echo"]


def test_use_checks_as_the_magic_does(clean):
    wrong = Selection("llamacpp", ModelParams("x", tokenizer_name="y"))
    with pytest.raises(UnsupportedParameter, match="tokenizer_name"):
        selection.use(wrong)
    assert selection.current().engine == "llamacpp"
    row = switcher.state().rows[0]
    switcher.use(Row(row.key, False, "not loaded", wrong))
    assert switcher.said.failed
    assert "tokenizer_name" in switcher.said.text
    assert selection.current().engine == "llamacpp"


# ------------------------------------------------------------------ loading, unloading


def test_load_and_unload(shell):
    panel = nbinfer.panel()
    shell.cell("%engine use echo -m mine -k load_s=0.4")
    began = time.monotonic()
    click(panel, "load", "echo")
    assert time.monotonic() - began < 0.3  # the load goes on without the kernel
    assert state_of(panel, "echo") == "loading"
    assert line_of(panel, "echo").buttons["load"].disabled
    assert eventually(lambda: state_of(panel, "echo") == "ready")
    assert eventually(lambda: "is loaded" in switcher.said.text)
    assert "MB" in line_of(panel, "echo")._text.value
    assert switcher.said.command == "%engine load echo -m mine -k load_s=0.4"
    click(panel, "unload", "echo")
    assert panel.wait(10)
    assert workers() == []
    assert "came back" in panel.engines._foot.value
    assert state_of(panel, "echo") == "not loaded"
    assert line_of(panel, "echo").buttons["unload"].disabled


def test_a_load_can_be_ended(shell):
    panel = nbinfer.panel()
    shell.cell("%engine use echo -k load_s=60")
    click(panel, "load", "echo")
    assert eventually(lambda: workers())
    click(panel, "unload", "echo")
    assert panel.wait(10)
    assert eventually(lambda: not [n for n in our_threads() if "load" in n])
    assert workers() == []
    assert not switcher.said.failed


def test_a_row_keeps_its_widgets_while_its_state_changes(shell):
    panel = nbinfer.panel()
    shell.cell("%engine use echo")
    before = line_of(panel, "echo")
    click(panel, "load", "echo")
    assert eventually(lambda: state_of(panel, "echo") == "ready")
    assert line_of(panel, "echo") is before
    assert before.box in panel.engines._table.children


def test_a_load_that_fails_is_told_in_escaped_text(shell):
    panel = nbinfer.panel()
    shell.cell("%engine use echo -k load_fails='<img src=x onerror=alert(1)> \x1b[31m'")
    click(panel, "load", "echo")
    assert eventually(lambda: switcher.said.failed)
    refresher.draw()
    assert "LoadError" in panel.engines._foot.value
    assert "<img" not in panel.engines._foot.value
    assert "&lt;img" in panel.engines._foot.value
    assert "\x1b" not in panel.engines._foot.value


def test_what_is_not_installed_says_what_installs_it(shell, monkeypatch):
    monkeypatch.setattr(switchers.environments, "available", lambda name: None)
    panel = nbinfer.panel()
    assert "not installed" in shown(panel)["native"]
    assert "%engine install native" in shown(panel)["native"]
    assert "load" not in line_of(panel, "native").buttons


def test_a_crash_shows(shell):
    panel = nbinfer.panel()
    shell.cell("%engine load echo -m mine")
    assert state_of(panel, "echo") == "ready"
    (worker,) = workers()
    os.kill(worker.pid, signal.SIGKILL)
    assert eventually(lambda: state_of(panel, "echo") == "crashed")
    assert "SIGKILL; %engine logs echo" in shown(panel)["echo"]
    click(panel, "load", "echo")
    assert eventually(lambda: state_of(panel, "echo") == "ready")


def test_a_run_shows_as_busy_and_its_memory_is_not_read(shell, monkeypatch):
    panel = nbinfer.panel()
    engine = nbinfer.EchoInferenceEngine(ModelParams("x", model_kwargs={"token_s": 0.05}))
    engine.load()
    assert state_of(panel, "echo") == "ready"
    monkeypatch.setattr(switchers, "seen", None)
    stream = engine.stream("a b c d e f g h i j")
    next(stream)
    assert state_of(panel, "echo") == "busy"
    stream.close()
    assert eventually(lambda: state_of(panel, "echo") == "ready")


# ----------------------------------------------------------------------- many, alike


def test_two_panels_agree(shell):
    one, two = nbinfer.panel(), nbinfer.panel()
    shell.cell("%engine use echo -m mine")
    click(one, "load", "echo")
    assert eventually(lambda: state_of(two, "echo") == "ready")
    click(two, "use", "llamacpp")
    for get in (lambda p: p.engines._head.value, lambda p: p.engines._foot.value, shown):
        assert get(one) == get(two)
    assert "llamacpp" in one.engines._head.value


def test_model_names_are_escaped(shell):
    panel = nbinfer.panel()
    name = "<script>alert(1)</script>&\x1b[31m\u202e\nnext"
    selection.use(Selection("echo", ModelParams(name)))
    click(panel, "load", "echo")
    assert eventually(lambda: state_of(panel, "echo") == "ready")
    drawn = panel.engines._head.value + panel.engines._foot.value + "".join(shown(panel).values())
    drawn += line_of(panel, "echo").buttons["use"].tooltip
    assert "&lt;script&gt;" in drawn
    assert "<script" not in drawn.replace(line_of(panel, "echo").buttons["use"].tooltip, "")
    for harmful in "\x1b\u202e":
        assert harmful not in drawn + repr(panel)


def test_a_long_name_is_cut(shell):
    selection.use(Selection("echo", ModelParams("x" * 5000)))
    panel = nbinfer.panel()
    assert len(panel.engines._head.value) < 1000
    assert len(repr(panel)) < 2000


# ------------------------------------------------------------------------ refreshing


def appear(panel):
    """The front end says that it shows the panel, as it does through the comm."""
    panel.set_state({"_view_count": panel._view_count + 1})


def test_it_refreshes_itself_while_it_is_shown(shell):
    panel = nbinfer.panel()
    assert our_threads() == []
    appear(panel)
    assert our_threads() == ["nbinfer-panel"]
    shell.cell("%engine use echo -m mine")
    assert eventually(lambda: "echo · mine" in panel.engines._head.value, 2)
    panel.set_state({"_view_count": 0})
    assert eventually(lambda: our_threads() == [], 2)
    shell.cell("%engine use llamacpp")
    appear(panel)
    assert eventually(lambda: "llamacpp" in panel.engines._head.value, 2)


def test_one_thread_draws_all_panels(shell):
    one, two = nbinfer.panel(), nbinfer.panel()
    appear(one)
    appear(two)
    assert our_threads() == ["nbinfer-panel"]
    one.close()
    assert our_threads() == ["nbinfer-panel"]
    two.close()
    assert our_threads() == []


def test_an_idle_second_costs_next_to_nothing(shell):
    panel = nbinfer.panel()
    shell.cell("%engine load echo")
    refresher.draw()
    sent = []
    panel.engines._head.observe(sent.append)
    panel.engines._table.observe(sent.append)
    line_of(panel, "echo")._text.observe(sent.append)
    began = time.thread_time()
    for _ in range(20):
        refresher.draw()
    assert (time.thread_time() - began) / 20 < 0.02
    assert sent == []


@pytest.mark.parametrize("end", ["%unload_ext nbinfer", "import nbinfer; nbinfer.shutdown()"])
def test_the_thread_ends_with_the_extension(shell, end):
    panel = nbinfer.panel()
    appear(panel)
    shell.cell("%engine load echo")
    shell.cell(end)
    assert our_threads() == []
    assert "echo" not in {key.split()[0] for key in panel.engines._lines}
    switcher.use(switcher.state().rows[0])
    line_of(panel, "llamacpp").buttons["use"].click()
    assert our_threads() == ["nbinfer-panel"]  # it is still there, and used again


def test_nothing_is_left_of_a_closed_panel(shell):
    gc.collect()
    widgets, threads = living(), threading.active_count()
    panel = shell.line("%panel")
    appear(panel)
    shell.cell("%engine use echo -m a")
    assert eventually(lambda: "echo" in panel.engines._head.value, 2)
    shell.cell("%engine use llamacpp")
    assert eventually(lambda: "llamacpp" in panel.engines._head.value, 2)
    panel.close()
    assert living() == widgets
    assert threading.active_count() == threads
    panel.close()
    refresher.draw()


def test_broken_settings_are_shown_and_got_over(shell, monkeypatch):
    panel = nbinfer.panel()
    monkeypatch.setenv("NBINFER_MEMORY_BUDGET", "<much>")
    with pytest.raises(ConfigurationError):
        switcher.state()
    refresher.draw()
    assert "NBINFER_MEMORY_BUDGET" in panel.engines._foot.value
    assert "<much>" not in panel.engines._foot.value
    assert "NBINFER_MEMORY_BUDGET" in repr(panel)
    monkeypatch.delenv("NBINFER_MEMORY_BUDGET")
    refresher.draw()
    assert panel.engines._foot.value == ""


# ------------------------------------------------------------------------------- text


def test_its_text_is_a_table_and_a_hint(shell):
    settings.configure(memory_budget_bytes="8GB")
    shell.cell("%engine load echo -m mine")
    shell.cell("%engine use echo -m mine")
    cell = shell.cell("%panel")
    _out, first, *rows, hint = cell.stdout.rstrip().splitlines()
    assert first.startswith("%%infer uses echo · mine · memory ")
    assert first.endswith(" of 8.00 GB")
    (mine,) = (row for row in rows if "mine" in row)
    assert mine.split()[:4] == ["→", "echo", "mine", "ready"]
    assert "%engine use NAME" in hint
    assert as_text(switcher.state()) in repr(cell.value)


def test_the_budget_and_the_memory_are_shown(shell):
    settings.configure(memory_budget_bytes="8GB")
    panel = nbinfer.panel()
    shell.cell("%engine load echo")
    refresher.draw()
    used = pool._bytes(pool.residents()[0])
    assert "8.00 GB" in panel.engines._head.value
    assert switcher.state().used_bytes == pytest.approx(used, rel=0.2)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({}, ""),
        ({"binding": "llama-cpp-python"}, " -k binding=llama-cpp-python"),
        ({"n_ctx": 2048, "flash_attn": True}, " -k n_ctx=2048 -k flash_attn=True"),
        ({"split": "1,2"}, " -k 'split='\"'\"'1,2'\"'\"''"),
        ({"rope": {"type": "yarn"}}, " -k 'rope={'\"'\"'type'\"'\"': '\"'\"'yarn'\"'\"'}'"),
    ],
)
def test_the_command_means_the_same(kwargs, words):
    wanted = Selection("llamacpp", ModelParams("a b.gguf", model_kwargs=kwargs))
    assert command("use", wanted) == f"%engine use llamacpp -m 'a b.gguf'{words}"


def test_what_no_option_sets_is_named():
    wanted = Selection("native", ModelParams("x", torch_dtype_str="bfloat16"))
    said = command("load", wanted)
    assert said == "%engine load native -m x (and from Python: torch_dtype_str)"


def test_panel_takes_no_words(shell):
    with pytest.raises(ConfigurationError, match="one word too many"):
        shell.cell("%panel now")


# -------------------------------------------------------------------------- in Jupyter


def test_in_a_kernel_a_click_changes_the_next_cell():
    with Kernel() as kernel:

        def wait(true, seconds=10.0):
            deadline = time.monotonic() + seconds
            while not true() and time.monotonic() < deadline:
                kernel.pump(0.05)
            assert true(), kernel.widgets

        def seen(text):
            return any(text in str(w.get("value")) for w in kernel.widgets.values())

        kernel.run("%engine load echo -m mine").ok()
        (view,) = kernel.run("panel = %panel\npanel").ok().results
        assert "echo" in view["text/plain"]
        assert "here:" not in view["text/plain"]  # the hint for terminals
        top = view["application/vnd.jupyter.widget-view+json"]["model_id"]
        assert seen("<strong>llamacpp · smollm2-135m</strong>")
        (use,) = (
            name
            for name, state in kernel.widgets.items()
            if state.get("tooltip") == "%engine use echo -m mine"
        )
        kernel.tell(top, method="update", state={"_view_count": 1}, buffer_paths=[])
        kernel.click(use)
        wait(lambda: seen("<strong>echo · mine</strong>"))
        wait(lambda: kernel.widgets[use]["description"] == "✓ In use")
        kernel.run("%%infer --no-stream -o rows\na b").ok()
        assert [row["engine"] for row in kernel.rows("rows")] == ["echo"]
        # While a cell runs, too: what it changes is drawn by a thread.
        cell = kernel.send("%engine use llamacpp\nimport time; time.sleep(4)")
        began = kernel.began(cell)
        wait(lambda: seen("<strong>llamacpp · smollm2-135m</strong>"), 3.5)
        assert kernel.wait(cell).ok().ended - began > 3.5
        kernel.run("panel.close()").ok()
        wait(lambda: top not in kernel.widgets)
        assert kernel.widgets == {}
        threads = kernel.value("[t.name for t in __import__('threading').enumerate()]")
        assert "nbinfer-panel" not in threads


# -------------------------------------------------------------------------- choosing


def test_another_engine_and_model_by_name(shell):
    panel = nbinfer.panel()
    shell.cell("%engine load echo -m mine")
    refresher.draw()
    chooser = panel.engines.chooser
    assert "echo" in chooser.engine.options
    chooser.engine.value = "echo"
    chooser.model.set_state({"value": "mi"})
    assert "mine" in chooser.model.options  # what -m completes
    chooser.model.value = "other"
    chooser.use.click()
    assert selection.current() == Selection("echo", ModelParams("other"))
    assert "echo · other" in panel.engines._head.value
    assert switcher.said.command == "%engine use echo -m other"
    chooser.load.click()
    assert eventually(lambda: state_of(panel, "echo", "other") == "ready")
    chooser.model.value = ""
    chooser.engine.value = "native"
    chooser.use.click()
    assert selection.current().engine == "native"


def test_a_row_is_clicked_from_python(shell):
    panel = nbinfer.panel()
    shell.cell("%engine load echo -m mine")
    refresher.draw()
    panel.engines.press("use", "echo", "mine")
    assert selection.current().model.model_name == "mine"
    panel.engines.press("unload", "echo")
    assert panel.wait(10)
    assert workers() == []
    refresher.draw()
    with pytest.raises(ConfigurationError, match="not loaded: no unload"):
        panel.engines.press("unload", "echo")
    with pytest.raises(ConfigurationError, match="no row of vllm x"):
        panel.engines.press("use", "vllm", "x")
