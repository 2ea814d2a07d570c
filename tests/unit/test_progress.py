"""What a run shows while it works."""

from __future__ import annotations

import io

import pytest

from nbinfer import ConfigurationError, settings
from nbinfer.frame import Row
from nbinfer.notebook.status import CellStream, NotebookStatus
from nbinfer.progress import Silent, StatusLine, Terminal, reporter
from nbinfer.records import Delta, Finished, Progress, Stage

from .conftest import echo


class Recorded(StatusLine):
    """Keeps what it would draw."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[str] = []

    def draw(self, text: str) -> None:
        self.drawn.append(text)


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when the test says so."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr("nbinfer.progress.time", made)
    return made


def progress(done, rows, tokens, prefilled=0, prompt_tokens=0, seconds=1.0):
    return Progress(done, rows, tokens, prefilled, prompt_tokens, seconds)


def test_a_stage_with_its_seconds(clock):
    line = StatusLine()
    assert line.text(Stage("loading echo"), clock.now + 3) == "loading echo · 3 s"


def test_prefill(clock):
    line = StatusLine()
    record = progress(0, 1, 0, 256, 4800)
    line(record)
    assert line.text(record, clock.now + 2) == "prefill 256 of 4,800 tokens · 2 s"
    record = progress(0, 8, 0)
    line(record)
    assert line.text(record, clock.now + 2) == "prefill · 0 of 8 rows · 2 s"


def test_rows_speed_and_time_left(clock):
    line = StatusLine()
    line(progress(0, 8, 10, seconds=1))
    clock.now += 2
    record = progress(2, 8, 50, seconds=30)
    line(record)
    # 40 tokens in 2 s; 2 rows took 30 s, so 6 take 90.
    assert line.text(record, clock.now) == "2 of 8 rows · 20 tok/s · 1 min 30 s left"


def test_the_speed_is_of_the_last_seconds(clock):
    line = StatusLine()
    line(progress(0, 2, 0))
    clock.now += 60
    line(progress(1, 2, 1000))
    clock.now += 1
    record = progress(1, 2, 1004, seconds=4)
    line(record)
    assert line.text(record, clock.now) == "1 of 2 rows · 4 tok/s · 4 s left"


def test_one_row_shows_no_count(clock):
    line = StatusLine()
    record = progress(0, 1, 5)
    line(record)
    assert line.text(record, clock.now + 7) == "7 s"


def test_rows_before_any_progress(clock):
    line = StatusLine()
    line(Finished(0, Row(index=0)))
    assert line.text(Finished(0, Row(index=0)), clock.now) == "1 rows"


def test_nothing_is_drawn_before_the_delay(clean, clock):
    line = Recorded()
    for _ in range(4):
        line(Stage("loading"))
        clock.now += 0.12
    assert line.drawn == []
    clock.now += 0.1
    line(Stage("loading"))
    assert line.drawn == ["loading · 1 s"]


def test_the_delay_is_a_setting(clean, clock):
    settings.configure(status_delay_s=0)
    line = Recorded()
    line(Stage("loading"))
    assert line.drawn == ["loading · 0 s"]


def test_it_is_drawn_five_times_a_second_at_most(clean, clock):
    line = Recorded()
    clock.now += 10
    for _ in range(1000):
        line(Stage("loading"))
        clock.now += 0.002
    assert 9 <= len(line.drawn) <= 11


def test_deltas_draw_nothing(clean, clock):
    line = Recorded()
    clock.now += 10
    line(Delta(0, "x", 1))
    assert line.drawn == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "62 min 05 s")]
)
def test_clocks(clock, seconds, text):
    line = StatusLine()
    record = progress(1, 2, 0, seconds=seconds)
    line(record)
    assert line.text(record, clock.now).endswith(f"{text} left")


def test_choices(monkeypatch):
    assert type(reporter(False)) is Silent
    assert type(reporter(True)) is Terminal
    assert type(reporter(None)) is Silent  # pytest's standard error is no terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert type(reporter(None)) is Terminal
    own = Silent()
    assert reporter(own) is own
    with pytest.raises(ConfigurationError, match="progress"):
        reporter(3)


def test_in_a_kernel_it_is_the_cells_own(monkeypatch):
    monkeypatch.setattr("nbinfer.progress.in_kernel", lambda: True)
    assert type(reporter(None)) is NotebookStatus
    assert type(reporter(True)) is NotebookStatus
    assert type(reporter(False)) is Silent


def test_a_bar_in_a_terminal(clean, clock, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    settings.configure(status_delay_s=0)
    with Terminal() as bar:
        bar(Stage("loading echo"))
        clock.now += 1
        bar(progress(0, 3, 0))
        clock.now += 1
        bar(Finished(0, Row(index=0)))
        clock.now += 1
        bar(progress(1, 3, 20, seconds=1))
    text = written.getvalue()
    assert "loading echo" in text
    assert "1/3" in text
    assert text.endswith("\r")  # nothing is left of it


def test_a_reporter_of_ones_own_gets_every_record(clean):
    seen = []

    class Mine(Silent):
        def __call__(self, record):
            seen.append(type(record))

    echo().infer(["a b", "c"], progress=Mine(), stream=True)
    assert set(seen) >= {Stage, Delta, Finished}
    assert seen.count(Finished) == 2


# --------------------------------------------------------------------- notebooks


def bundles(cell):
    return [output.data for output in cell.outputs]


def test_the_cells_line_begins_and_ends_empty(shell):
    shell.push({"echo": echo, "NotebookStatus": NotebookStatus})
    shell.cell("import nbinfer; nbinfer.configure(status_delay_s=0)")
    cell = shell.cell("f = echo(load_s=0.7).infer(['a', 'b'], progress=NotebookStatus())")
    first, *between, last = bundles(cell)
    assert first == {}
    assert last == {}
    assert any("loading echo" in b["text/plain"] for b in between)
    assert all(set(b) == {"text/plain", "text/html"} for b in between)
    assert len({output.transient["display_id"] for output in cell.outputs if output.transient}) == 1
    assert cell.stdout == ""


def test_a_quick_cell_shows_nothing(shell):
    shell.push({"echo": echo, "NotebookStatus": NotebookStatus})
    shell.cell("echo().load()")
    cell = shell.cell("f = echo().infer('a', progress=NotebookStatus())")
    assert cell.outputs == []
    assert cell.stderr == ""


def test_it_ends_empty_after_an_error(shell):
    shell.push({"NotebookStatus": NotebookStatus, "Stage": Stage})
    shell.cell("import nbinfer; nbinfer.configure(status_delay_s=0)")
    code = (
        "try:\n"
        "    with NotebookStatus() as line:\n"
        "        line(Stage('x'))\n"
        "        1 / 0\n"
        "except ZeroDivisionError:\n"
        "    pass"
    )
    first, middle, last = bundles(shell.cell(code))
    assert first == last == {}
    assert middle["text/plain"] == "x · 0 s"


def test_markup_in_it_is_text(shell):
    shell.push({"NotebookStatus": NotebookStatus, "Stage": Stage})
    shell.cell("import nbinfer; nbinfer.configure(status_delay_s=0)")
    cell = shell.cell("with NotebookStatus() as line:\n    line(Stage('<script>x</script>'))")
    html = bundles(cell)[1]["text/html"]
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_a_streamed_answer_is_one_text_and_a_newline(clean, capsys):
    with CellStream(in_kernel=False) as shown:
        shown(Stage("loading"))
        shown(Delta(0, "a", 1))
        shown(Delta(0, "", 1))
        shown(Delta(0, " b\x1b[31m", 1))
        shown(Finished(0, Row(index=0)))
    out = capsys.readouterr().out
    assert out.startswith("a b")
    assert out.endswith("\n")
    assert "\x1b" not in out


def test_a_stream_without_text_prints_nothing(clean, capsys):
    with CellStream(in_kernel=False) as shown:
        shown(Stage("loading"))
        shown(Finished(0, Row(index=0)))
    assert capsys.readouterr().out == ""
