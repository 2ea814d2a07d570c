"""The panel's model picker: what is found here, on servers and on the hub, and what is typed."""

from __future__ import annotations

import html
import json
import os
import threading
import time

import psutil
import pytest

import nbinfer
from nbinfer import ModelParams, hubclient, recent, selection, server_records
from nbinfer.errors import DownloadError
from nbinfer.notebook.panels import models
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.notebook.switcher import switcher
from nbinfer.selection import Selection

from ..conftest import eventually, our_threads
from .panels import fresh, living  # noqa: F401
from .test_hub import server  # noqa: F401
from .test_panel_tabs import ALLOWED, tags


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A home and a working folder of the test's own."""
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    monkeypatch.undo()


def offered(panel):
    """The list's words, without the first, which is a heading."""
    refresher.draw()
    return [label for label, _ in panel.engines.chooser.found.options][1:]


def pick(panel, label):
    chooser = panel.engines.chooser
    (one,) = (value for name, value in chooser.found.options if name == label)
    chooser.found.value = one


# ---------------------------------------------------------------------------- on disk


def test_the_embedded_model_comes_first_then_what_was_used_then_files(here, shell):
    (here / "b.gguf").write_bytes(b"GGUF")
    (here / "folder").mkdir()
    (here / "folder" / "config.json").write_text("{}")
    recent.remember("vllm", "org/old")
    recent.remember("llamacpp", "/somewhere/a.gguf")
    kinds = [(one.kind, one.model, one.engine) for one in models.found()]
    assert kinds[:5] == [
        ("embedded", "smollm2-135m", ""),
        ("recent", "/somewhere/a.gguf", "llamacpp"),
        ("recent", "org/old", "vllm"),
        ("here", "b.gguf", ""),
        ("here", "folder", ""),
    ]


def test_a_choice_fills_the_fields_and_the_list_is_there_again(here, shell):
    recent.remember("vllm", "org/old")
    panel = nbinfer.panel()
    chooser = panel.engines.chooser
    assert "recent · org/old · vllm" in offered(panel)
    pick(panel, "recent · org/old · vllm")
    assert (chooser.engine.value, chooser.model.value) == ("vllm", "org/old")
    assert chooser.found.value is None
    chooser.use.click()
    assert selection.current() == Selection("vllm", ModelParams("org/old"))
    chooser.engine.value = "native"
    pick(panel, "embedded · smollm2-135m")  # goes with any
    assert (chooser.engine.value, chooser.model.value) == ("native", "smollm2-135m")


def test_what_is_typed_leads_to_what_is_below_it(here, shell):
    panel = nbinfer.panel()
    (here / "models").mkdir()
    (here / "models" / "x.gguf").write_bytes(b"GGUF")
    panel.engines.chooser.model.set_state({"value": "models/"})
    assert "here · models/x.gguf" in offered(panel)


def test_hostile_names_are_one_line(here, shell):
    recent.remember("llamacpp", "<img src=x>\x1b\n" + "x" * 1000)
    panel = nbinfer.panel()
    (label,) = (label for label in offered(panel) if "<img" in label)
    assert "\n" not in label
    assert "\x1b" not in label
    assert len(label) < 200


def test_what_is_found_is_not_sent_again_while_it_is_the_same(here, shell):
    panel = nbinfer.panel()
    sent = []
    panel.engines.chooser.found.observe(sent.append, "_options_labels")
    panel.engines.chooser._looked = -100.0
    refresher.draw()
    assert sent == []
    recent.remember("vllm", "org/new")
    panel.engines.chooser._looked = -100.0
    refresher.draw()
    assert sent


# ------------------------------------------------------------------------------ recent


def test_what_is_remembered_is_the_last_first_once_and_bounded(here):
    for place in range(recent.MOST + 5):
        recent.remember("vllm", f"m{place}")
    recent.remember("vllm", "m7")
    found = recent.models()
    assert len(found) == recent.MOST
    assert found[0] == ("vllm", "m7")
    assert len(set(found)) == len(found)
    assert (here / "home" / "recent.json").stat().st_mode & 0o077 == 0
    assert [p.name for p in (here / "home").iterdir()] == ["recent.json"]


@pytest.mark.parametrize("text", ["", "{", "3", "[1]", '["a"]', '{"a": 1}'])
def test_a_broken_file_is_none(here, text):
    (here / "home" / "recent.json").write_text(text)
    assert recent.models() == []
    recent.remember("vllm", "m")
    assert recent.models() == [("vllm", "m")]


def test_a_home_that_cannot_be_written_is_no_error(here, monkeypatch):
    monkeypatch.setenv("NBINFER_HOME", str(here / "none" / "at all"))
    recent.remember("vllm", "m")
    assert recent.models() == []


def test_a_load_is_remembered_and_one_of_the_test_engine_is_not(here, shell, monkeypatch):
    shell.cell("%engine load echo -m mine")
    assert recent.models() == []
    from nbinfer.engines import registry

    spec = registry.spec("echo")
    monkeypatch.setitem(
        registry._SPECS, "echo", registry.EngineSpec(**{**vars(spec), "library": "lib"})
    )
    shell.cell("%engine load echo -m other")
    assert recent.models() == [("echo", "other")]
    assert json.loads((here / "home" / "recent.json").read_text()) == [["echo", "other"]]


# ----------------------------------------------------------------------------- servers


def test_a_server_that_was_started_here_can_be_chosen(here, shell):
    url = "http://127.0.0.1:9"
    started = psutil.Process().create_time()
    server_records.record(
        server_records.Server("vllm", "m", url, os.getpid(), started, True, "python", "log", "key")
    )
    panel = nbinfer.panel()
    label = f"server · m · remote-vllm · {url}"
    assert label in offered(panel)
    pick(panel, label)
    chooser = panel.engines.chooser
    chooser.use.click()
    chosen = selection.current()
    assert (chosen.engine, chosen.model.model_name) == ("remote-vllm", "m")
    assert chosen.remote.api_url == url
    assert url in switcher.said.command
    assert "key" not in switcher.said.command
    selection.reset()
    chooser.model.value = "other"  # that is another, and not known to be there
    assert chooser._row().selection.remote is None


# --------------------------------------------------------------------------------- hub


GGUF = {"a-Q4_K_M.gguf": b"GGUF"}
TENSORS = {"model.safetensors": b"x"}


def search(panel, text, engine="llamacpp"):
    chooser = panel.engines.chooser
    chooser.engine.value, chooser.model.value = engine, text
    chooser.search.click()
    return chooser


def test_the_hub_is_searched_beside_the_kernel(server, shell):  # noqa: F811
    server.repos = {"org/Fox-GGUF": GGUF, "org/fox": TENSORS, "org/bear": TENSORS}
    server.pause = threading.Event()
    panel = nbinfer.panel()
    began = time.monotonic()
    chooser = search(panel, "fox")
    assert time.monotonic() - began < 0.3
    assert chooser.search.disabled
    assert "asking the hub" in chooser.told.value
    server.pause.set()
    assert panel.wait(20)
    assert not chooser.search.disabled
    assert [label for label in offered(panel) if label.startswith("hub ·")] == [
        "hub · org/Fox-GGUF"
    ]
    assert "1 found on the hub" in chooser.told.value
    pick(panel, "hub · org/Fox-GGUF")
    assert chooser.model.value == "org/Fox-GGUF"
    server.pause = None
    search(panel, "FOX", "vllm")
    assert panel.wait(20)
    assert [label for label in offered(panel) if label.startswith("hub ·")] == ["hub · org/fox"]
    search(panel, "<b>none")
    assert panel.wait(20)
    assert "none found on the hub" in chooser.told.value
    assert tags(chooser.told.value) <= ALLOWED
    assert eventually(lambda: our_threads() == [])


def test_without_the_hub_there_is_a_line_and_what_is_here(server, shell, monkeypatch):  # noqa: F811
    panel = nbinfer.panel()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chooser = search(panel, "fox")
    assert panel.wait(20)
    assert "the hub cannot be asked: HF_HUB_OFFLINE is set" in chooser.told.value
    assert server.asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    search(panel, "fox")
    assert panel.wait(30)
    assert "the hub cannot be asked" in chooser.told.value
    assert "Traceback" not in html.unescape(chooser.told.value)
    assert "embedded · smollm2-135m" in offered(panel)
    assert not switcher.said.failed


def test_an_empty_search_asks_nobody(server, shell):  # noqa: F811
    panel = nbinfer.panel()
    chooser = search(panel, "  ")
    assert "write a part" in chooser.told.value
    assert panel.wait(1)
    assert server.asked == []


def test_a_search_ends_with_its_panel(server, shell):  # noqa: F811
    server.repos = {"org/fox": GGUF}
    server.pause = threading.Event()
    panel = nbinfer.panel()
    search(panel, "fox")
    assert eventually(lambda: server.asked)
    began = time.monotonic()
    panel.close()
    assert time.monotonic() - began < 3
    assert not [name for name in our_threads() if "panel" in name]
    server.pause.set()


def test_a_hub_that_refuses_is_told(server):  # noqa: F811
    server.status = 403
    with pytest.raises(DownloadError, match="403"):
        hubclient.search("fox", "gguf", lambda _: None)
