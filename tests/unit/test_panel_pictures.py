"""Images in the panel's prompt, and what its script in the browser may say to the kernel."""

from __future__ import annotations

import base64
import shutil
import subprocess

import pytest

import nbinfer
from nbinfer import ModelParams, selection
from nbinfer.notebook.panels import cells, front, pictures
from nbinfer.notebook.panels.pictures import Picture
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.selection import Selection

from .apiserver import Server, stream
from .panels import fresh, living, tree  # noqa: F401
from .test_panel_prompt import send, use
from .test_panel_tabs import ALLOWED, tags

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 100
SMALL = "data:image/jpeg;base64,aGVsbG8="


@pytest.fixture
def seeing(shell):
    """A panel that asks a server which reads images."""

    async def answer(call):
        await stream(call, "a fox")

    with Server(answer) as server:
        nbinfer.configure(remote={"openai-compatible": {"api_url": server.url}})
        selection.use(Selection("openai-compatible", ModelParams("m")))
        panel = nbinfer.panel()
        yield panel, server
        nbinfer.shutdown()


def dropped(panel, said, data=None):
    """A browser's message, as the comm hands it over."""
    (script,) = (part for part in panel.children if isinstance(part, front.Front))
    message = {"method": "custom", "content": said}
    buffers = [] if data is None else [memoryview(data)]
    script._handle_msg({"content": {"data": message}, "buffers": buffers})


def sent(server):
    """The content of the messages of the last request."""
    return [message["content"] for message in server.calls[-1].body["messages"]]


# ------------------------------------------------------------------------------ asking


def test_a_dropped_image_is_part_of_the_message_and_of_the_next_turn(seeing):
    panel, server = seeing
    dropped(panel, {"name": "fox.png", "thumbnail": SMALL}, PNG)
    (picture,) = panel.prompt.pictures.pictures
    assert (picture.name, picture.source, picture.thumbnail) == ("fox.png", PNG, SMALL)
    send(panel, "what is it?")
    assert panel.prompt.pictures.pictures == ()  # they belong to one prompt
    coded = base64.b64encode(PNG).decode()
    seen = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}"}},
        {"type": "text", "text": "what is it?"},
    ]
    assert sent(server) == [seen]
    assert "with fox.png" in panel.prompt.history.value
    assert panel.df["output"].tolist() == ["a fox"]
    cell = "%%infer -e openai-compatible -m m --image=fox.png\nwhat is it?"
    assert panel.prompt.cell.value == cell
    send(panel, "and its colour?")
    assert sent(server) == [seen, "a fox", "and its colour?"]
    assert "nbinfer.ImagePart('fox.png'), nbinfer.TextPart('what is it?')" in panel.prompt.same


def test_the_cell_reads_the_file_that_it_names(seeing, shell, tmp_path):
    panel, server = seeing
    file = tmp_path / "a b.png"
    file.write_bytes(PNG)
    panel.prompt.pictures.add(file)
    send(panel, "what?")
    first = sent(server)
    shell.cell(panel.prompt.same.replace("%%infer", "%%infer --no-stream", 1))
    assert sent(server) == first
    assert len(server.calls) == 2


def test_two_images_are_python(seeing, tmp_path):
    panel, server = seeing
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
        panel.prompt.pictures.add(tmp_path / name)
    send(panel, "which?")
    assert [part["type"] for part in sent(server)[0]] == ["image_url", "image_url", "text"]
    assert panel.prompt.same.startswith("import nbinfer")
    space = {}
    exec(panel.prompt.same, space)
    assert len(server.calls) == 2
    assert sent(server)[0] == server.calls[0].body["messages"][0]["content"]


@pytest.mark.parametrize("name", ["a.png", "it's.png", "-x.png", "<b>.png", "a\nb.png"])
def test_any_name_stays_in_its_place(name):
    asked = cells.Asked(
        (Selection("llamacpp", ModelParams("m")),), ("x",), pictures=(Picture(name, PNG),)
    )
    cell = cells.infer_cell(asked)
    if "\n" in name:
        assert cell.startswith("import nbinfer")
        compile(cell, "cell", "exec")
    else:
        assert cells._reads(cell) == ("infer", *cells._meaning(asked))


def test_an_image_can_be_removed(seeing):
    panel, _ = seeing
    for name in ("a.png", "b.png"):
        dropped(panel, {"name": name}, PNG)
    first, _second = panel.prompt.pictures.shown.children
    remove = first.children[-1]
    assert remove.tooltip == "remove a.png"
    remove.click()
    assert [p.name for p in panel.prompt.pictures.pictures] == ["b.png"]


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("said", "data", "words"),
    [
        ({"name": "a<b>.txt", "type": "text/plain"}, None, "a&lt;b&gt;.txt is no image but text"),
        ({"name": "a.png"}, b"<svg onload=alert(1)>", "a.png: ConfigurationError"),
        ({"name": "a.png", "type": "image/png", "size": 9_000_000}, None, "9.00 MB"),
        ({}, None, "is no image"),
        ({"name": 3, "type": ["x"], "size": "big"}, None, "is no image"),
    ],
)
def test_a_wrong_file_is_said_at_the_field(seeing, said, data, words):
    panel, _ = seeing
    dropped(panel, said, data)
    assert words in panel.prompt.pictures.wrong.value
    assert tags(panel.prompt.pictures.wrong.value) <= ALLOWED
    assert panel.prompt.pictures.pictures == ()
    dropped(panel, {"name": "a.png"}, PNG)
    assert panel.prompt.pictures.wrong.value == ""


def test_a_message_that_is_none_of_ours_does_nothing(seeing):
    panel, _ = seeing
    for said in (None, [], "x", 3):
        dropped(panel, said)
    assert panel.prompt.pictures.pictures == ()


@pytest.mark.parametrize(
    "small", ["javascript:alert(1)", SMALL + '" onload="alert(1)', "data:image/svg+xml;base64,AA=="]
)
def test_a_thumbnail_is_one_or_is_not_shown(seeing, small):
    panel, _ = seeing
    dropped(panel, {"name": "<i>.png", "thumbnail": small}, PNG)
    (picture,) = panel.prompt.pictures.pictures
    assert picture.thumbnail == ""
    drawn = panel.prompt.pictures.shown.children[0].children[0].value
    assert tags(drawn) <= ALLOWED
    assert "&lt;i&gt;.png" in drawn


def test_there_is_an_end_to_them(seeing):
    panel, _ = seeing
    for place in range(pictures.MOST + 1):
        dropped(panel, {"name": f"{place}.png"}, PNG)
    assert len(panel.prompt.pictures.pictures) == pictures.MOST
    assert "at most" in panel.prompt.pictures.wrong.value


def test_an_engine_without_eyes_says_so_and_sends_nothing(seeing):
    panel, _ = seeing
    dropped(panel, {"name": "a.png"}, PNG)
    assert not panel.prompt.pictures.upload.disabled
    use()  # echo
    refresher.draw()
    for one in (panel.prompt.pictures.upload, panel.prompt.pictures.choose):
        assert one.disabled
        assert "echo cannot honour images" in one.tooltip
    send(panel, "what?")
    assert "remove them, or choose another engine" in panel.prompt.status.value
    assert panel.prompt.text.value == "what?"
    assert len(panel.df) == 0
    panel.prompt.pictures.clear()
    send(panel, "what?")
    assert len(panel.df) == 1


def test_the_button_works_without_a_script(seeing):
    panel, _ = seeing
    upload = panel.prompt.pictures.upload
    file = {"name": "../a.png", "type": "image/png", "size": len(PNG), "last_modified": 0}
    upload.set_state({"value": [{**file, "content": memoryview(PNG)}]})
    assert [p.name for p in panel.prompt.pictures.pictures] == ["a.png"]
    assert upload.value == ()  # the same file can be chosen again


def test_nothing_is_left_of_images_when_the_panel_is_closed(seeing):
    panel, _ = seeing
    before = living()
    dropped(panel, {"name": "a.png"}, PNG)
    assert living() > before
    panel.prompt.pictures.clear()
    assert living() == before


# ------------------------------------------------------------------------------ script


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_is_a_module():
    done = subprocess.run(
        ["node", "--input-type=module", "--check", "-"],
        input=front.Front._esm.encode(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def classes(part):
    """Those of a widget and of all that it contains."""
    return {name for one in tree(part) for name in one._dom_classes}


def test_the_last_line_of_the_engines_can_be_copied_where_there_is_one(shell):
    panel = nbinfer.panel()
    foot = panel.engines.children[-1]
    assert "nbinfer-cell" in foot._dom_classes
    assert {"nbinfer-copy", "nbinfer-insert"} <= classes(foot)
    shown, buttons = foot.children
    assert buttons.layout.display == "none"
    panel.engines.press("use", "native")
    assert buttons.layout.display is None
    assert "<code" in shown.value
    panel.engines.fail("broken")
    assert buttons.layout.display == "none"
    assert "<code" not in shown.value


def test_what_the_script_looks_for_is_there(shell):
    """Classes and titles that the script and the style sheet go by."""
    panel = nbinfer.panel()
    script = front.Front._esm
    style, tabs, listener = panel.children
    assert isinstance(listener, front.Front)
    assert "nbinfer-panel" in panel._dom_classes
    assert "nbinfer-images" in panel.prompt.pictures.choose._dom_classes
    for part in (panel.prompt, panel.compare, panel.benchmark):
        assert "nbinfer-cell" in part.same_box._dom_classes
        assert part.cell in part.same_box.children
        assert {"nbinfer-copy", "nbinfer-insert"} <= classes(part.same_box)
    for name in ("nbinfer-panel", "nbinfer-prompt", "nbinfer-cell", "nbinfer-copy"):
        assert f".{name}" in script
    assert "nbinfer-gone" in style.value
    assert tabs is panel._tabs


def test_a_panel_says_in_its_style_sheet_that_its_kernel_is_gone(shell):
    """ipywidgets gives what has lost its kernel a class; the words are shown by that alone."""
    value = nbinfer.panel().children[0].value
    hidden, _, shown = value.partition(":is(.jupyter-widgets-disconnected, .nbinfer-ended)")
    assert (
        ".nbinfer-gone, .nbinfer-images, .nbinfer-copy, .nbinfer-insert {display: none}" in hidden
    )
    assert shown.startswith(" .nbinfer-gone {display: block}")
    assert 'role="alert"' in value
    assert "Disconnected" in value
