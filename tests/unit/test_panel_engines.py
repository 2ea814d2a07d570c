"""The panel's engines: in each state the buttons that fit it, and what they do."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import nbinfer
from nbinfer import EchoInferenceEngine, ModelParams, environments, selection, server_records
from nbinfer.notebook.engine_rows import Row
from nbinfer.notebook.panels import engines
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.notebook.switcher import switcher
from nbinfer.selection import Selection

from ..conftest import eventually, our_threads, workers
from .panels import fresh, living  # noqa: F401
from .test_panel import click, line_of, state_of
from .test_panel_tabs import ALLOWED, tags


def fitting(panel, engine="echo"):
    """The words on the buttons of a row that can be seen; the others cannot be pressed."""
    seen = []
    for one in line_of(panel, engine)._buttons.children:
        assert (one.layout.display == "none") == one.disabled
        if not one.disabled:
            assert one.tooltip
            seen.append(one.description)
    return seen


# ------------------------------------------------------------------- what fits a state


def test_each_state_has_the_buttons_that_fit(shell):
    panel = nbinfer.panel()
    shell.cell("%engine use echo -m mine -k load_s=0.3")
    assert fitting(panel) == ["✓ In use", "Load"]
    click(panel, "load", "echo")
    assert state_of(panel, "echo") == "loading"
    assert fitting(panel) == ["✓ In use", "Unload", "Logs"]
    assert eventually(lambda: state_of(panel, "echo") == "ready")
    assert fitting(panel) == ["✓ In use", "Unload", "Restart", "Logs"]
    (worker,) = workers()
    os.kill(worker.pid, signal.SIGKILL)
    assert eventually(lambda: state_of(panel, "echo") == "crashed")
    assert fitting(panel) == ["✓ In use", "Restart", "Unload", "Logs"]
    click(panel, "load", "echo")
    assert eventually(lambda: state_of(panel, "echo") == "ready")
    assert fitting(panel, "openai") == ["Use"]  # a server is not loaded here


def test_every_state_has_its_actions():
    for state in engines.SIGNS:
        row = Row("", False, state, Selection("echo", ModelParams("m")), recipe="r")
        assert row.actions[0] == "use"
        assert set(row.actions) <= set(engines.ACTIONS)


def test_restart_ends_the_process_and_loads_it_again(shell):
    panel = nbinfer.panel()
    shell.cell("%engine load echo -m mine -k load_s=0.2")
    (before,) = workers()
    began = time.monotonic()
    click(panel, "restart", "echo")
    assert time.monotonic() - began < 0.15  # the kernel goes on meanwhile
    assert panel.wait(10)
    assert eventually(lambda: "is loaded" in switcher.said.text)
    (after,) = workers()
    assert after.pid != before.pid
    said = switcher.said.command
    assert said == "%engine restart echo -m mine -k load_s=0.2"
    shell.cell(said)  # and the line does the same
    assert [w.pid for w in workers()] != [after.pid]
    assert len(workers()) == 1


def test_unload_does_not_wait_for_an_answer_and_ends_it(shell):
    panel = nbinfer.panel()
    selection.use(Selection("echo", ModelParams("mine", model_kwargs={"token_s": 0.05})))
    panel.prompt.text.value = "word " * 400
    panel.prompt.go.click()
    assert eventually(lambda: "word" in panel.prompt.answer.value)
    click(panel, "unload", "echo")
    assert panel.wait(10)
    assert workers() == []
    assert "came back" in panel.engines._foot.value or "came back" in switcher.said.text
    assert not panel.prompt.busy


# ------------------------------------------------------------------------ installation


@pytest.fixture
def tiny(home, shell, monkeypatch):
    """The echo engine as one that needs a library, which a folder of wheels has."""
    monkeypatch.setattr(EchoInferenceEngine, "recipe", "tiny")
    shell.cell("%engine use echo -m mine")


def test_an_engine_is_installed_beside_the_kernel_and_can_then_be_loaded(tiny, shell, monkeypatch):
    one, two = nbinfer.panel(), nbinfer.panel()
    assert fitting(one) == ["✓ In use", "Install"]
    assert line_of(one, "echo").buttons["install"].tooltip == "%engine install tiny"
    began, gate = threading.Event(), threading.Event()
    install = environments.install

    def slow(name, **options):
        options["progress"]("installing tiny: resolving · 0 s")
        began.set()
        assert gate.wait(20)
        return install(name, **options)

    monkeypatch.setattr(environments, "install", slow)
    click(one, "install", "echo")
    assert began.wait(20)
    assert eventually(lambda: "installing tiny: resolving" in line_of(two, "echo")._text.value)
    assert state_of(two, "echo") == "installing"  # every panel knows
    assert fitting(two) == ["✓ In use", "Stop"]
    shell.cell("1 + 1")
    gate.set()
    assert one.wait(60)
    assert environments.find("tiny") is not None
    assert "tiny is installed: tinylib 1.0" in switcher.said.text
    assert switcher.said.command == "%engine install tiny"
    assert fitting(one) == ["✓ In use", "Load"]
    assert our_threads() == []
    click(one, "load", "echo")
    assert eventually(lambda: state_of(one, "echo") == "ready")


def test_an_installation_that_fails_is_said_and_can_be_tried_again(tiny, shell, tmp_path):
    panel = nbinfer.panel()
    (tmp_path / "wheels" / "tinylib-1.0-py3-none-any.whl").unlink()
    click(panel, "install", "echo")
    assert panel.wait(60)
    assert switcher.said.failed
    refresher.draw()
    assert "Failed." in panel.engines._foot.value
    assert fitting(panel) == ["✓ In use", "Install"]


@pytest.mark.parametrize("how", ["stop", "close"])
def test_an_installation_can_be_stopped_and_ends_with_its_panel(tiny, shell, monkeypatch, how):
    one, two = nbinfer.panel(), nbinfer.panel()

    def endless(name, *, progress, **options):
        while True:
            progress("installing · 1 s")
            time.sleep(0.01)

    monkeypatch.setattr(environments, "install", endless)
    click(one, "install", "echo")
    assert eventually(lambda: state_of(two, "echo") == "installing")
    if how == "stop":
        click(two, "stop", "echo")  # from any panel
        assert one.wait(10)
    else:
        one.close()
    assert "was stopped; nothing is left" in switcher.said.text
    assert not switcher.said.failed
    assert state_of(two, "echo") == "not installed"
    assert our_threads() == []


def test_what_waits_to_be_installed_can_be_stopped_and_is_not_asked_twice(tiny, shell, monkeypatch):
    panel = nbinfer.panel()
    gate = threading.Event()
    asked = []
    panel._installing.put(engines.Job(lambda: gate.wait(20), asked.append, lambda: None))
    monkeypatch.setattr(environments, "install", lambda name, **options: asked.append(name))
    row = line_of(panel, "echo").row
    switcher.install(row, panel._installing)
    switcher.install(row, panel._installing)
    assert "waiting for its turn" in switcher.installs.stage("tiny")
    click(panel, "stop", "echo")
    assert switcher.installs.stage("tiny") == ""
    gate.set()
    assert panel.wait(10)
    assert asked == []


# -------------------------------------------------------------------------------- logs


def test_a_log_is_shown_as_text_and_grows(shell):
    panel = nbinfer.panel()
    shell.cell("%engine load echo -m mine")
    refresher.draw()
    resident = line_of(panel, "echo").row.resident
    with resident.worker.log.open("a") as log:
        log.write("<img src=x onerror=alert(1)>\x1b[31m\n")
    click(panel, "logs", "echo")
    drawn = panel.engines.logs.value
    assert "&lt;img src=x" in drawn
    assert "\x1b" not in drawn
    assert tags(drawn) <= ALLOWED
    assert 'tabindex="0"' in drawn  # it can be scrolled by keys
    assert "Hide logs" in fitting(panel)
    with resident.worker.log.open("a") as log:
        log.write("more\n" * 10_000)
    refresher.draw()
    assert "more" in panel.engines.logs.value
    assert panel.engines.logs.value.count("more") <= 201  # the last lines
    click(panel, "logs", "echo")
    assert panel.engines.logs.value == ""
    assert "Logs" in fitting(panel)


def test_one_log_is_open_and_goes_with_its_engine(shell):
    panel = nbinfer.panel()
    shell.cell("%engine load echo -m one")
    shell.cell("%engine load echo -m two")
    click(panel, "logs", "echo", "one")
    click(panel, "logs", "echo", "two")
    assert "echo · two" in panel.engines.logs.value
    words = [line_of(panel, "echo", m).buttons["logs"].description for m in ("one", "two")]
    assert words == ["Logs", "Hide logs"]
    shell.cell("%engine unload echo")
    refresher.draw()
    assert panel.engines.logs.value == ""


def test_a_server_that_was_started_here_has_a_log(shell, monkeypatch, tmp_path):
    log = tmp_path / "server.log"
    log.write_text("it <b>serves</b>\n")
    server = server_records.Server(
        "llamacpp", "m", "http://127.0.0.1:9", os.getpid(), time.time(), False, "python", str(log)
    )
    monkeypatch.setattr(server_records, "find", lambda url: server if ":9" in url else None)
    nbinfer.configure(remote={"openai-compatible": {"api_url": "http://127.0.0.1:9"}})
    panel = nbinfer.panel()
    assert fitting(panel, "openai-compatible") == ["Use", "Logs"]
    click(panel, "logs", "openai-compatible")
    assert "it &lt;b&gt;serves" in panel.engines.logs.value
