"""The comparison's pictures: what they show of runs while they go on."""

from __future__ import annotations

import re
import time
from xml.etree import ElementTree

import pytest

import nbinfer
from nbinfer.frame import Row
from nbinfer.notebook.panels import plots
from nbinfer.notebook.panels.parts import Shown
from nbinfer.notebook.panels.plots import Curve, Run, Watch
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.records import Delta, Finished, Progress, Stage

from ..conftest import eventually
from .panels import fresh  # noqa: F401
from .test_panel_tabs import ALLOWED, load, tags


def finished(latency, number=0):
    return Finished(number, Row(number, id=number, prompt="p", output="o", latency_s=latency))


def pictures(text):
    """The SVG elements of a picture: they are well formed, or this raises."""
    return [
        ElementTree.fromstring(svg)
        for svg in re.findall(r'<svg role="img".*?</svg>', text, re.DOTALL)
    ]


def places(svg):
    """Where a picture's points are: the first coordinates of each shape of a run's colour."""
    found = []
    for path in svg.findall("path"):
        if "var(--jp" in path.get("style", ""):
            x, y = re.findall(r"-?\d+\.?\d*", path.get("d"))[:2]
            found.append((float(x), float(y)))
    return found


@pytest.fixture
def shown(shell):
    panel = nbinfer.panel()
    return panel.compare._picture


def test_points_are_where_their_numbers_are():
    run = Run("a")
    for row, latency in enumerate((1.0, 2.0, 4.0), 1):
        run.latency.add(row, latency)
    for second in (1.0, 2.0):
        run.speed.add(second, 10 * second)
    latency, speed = pictures(plots.drawn([run]))
    (x1, y1), (x2, y2), (x3, y3) = places(latency)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)  # row by row
    floor = plots.HEIGHT - plots.BOTTOM
    heights = [floor - y for y in (y1, y2, y3)]
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.05)
    assert heights[2] / heights[0] == pytest.approx(4, rel=0.05)
    assert "4.000 s" in "".join(latency.itertext())  # the scale
    assert "the last of each: 4.000 s" in latency.get("aria-label")
    assert "the last of each: 20" in speed.get("aria-label")
    assert len(places(speed)) == 1  # one line


def test_runs_differ_without_colour():
    runs = [Run(f"engine {n}") for n in range(4)]
    for run in runs:
        run.latency.add(1, 1.0)
        run.speed.add(1, 1.0)
        run.speed.add(2, 1.0)
    latency, speed = pictures(plots.drawn(runs))
    shapes = {re.sub(r"^M\S+ \S+?(?=[a-z])", "", p.get("d")) for p in latency if p.tag == "path"}
    assert len(shapes) == 5  # and the axes
    dashes = {re.search("dasharray:(.*)", p.get("style"))[1] for p in speed if p.get("style")
              and "dasharray" in p.get("style")}  # fmt: skip
    assert len(dashes) == 4
    assert all(f"engine {n}" in plots.drawn(runs) for n in range(4))


def test_names_are_text_and_nothing_is_drawn_of_nothing():
    assert plots.drawn([]) == ""
    assert plots.drawn([Run("a")]) == ""
    run = Run("<img src=x onerror=alert(1)>\x1b\n")
    run.latency.add(1, 0.0)  # no division by it
    drawn = plots.drawn([run])
    assert tags(drawn) <= ALLOWED
    assert "&lt;img" in drawn
    assert "\x1b" not in drawn


def test_a_long_run_has_as_many_points_as_can_be_sent():
    curve = Curve()
    for place in range(100_000):
        curve.add(place, 1.0)
    assert plots.MOST_POINTS / 2 <= len(curve.points) <= plots.MOST_POINTS
    assert curve.points[0][0] < 1_000
    assert curve.points[-1][0] > 99_000
    run = Run("a", latency=curve)
    assert len(plots.drawn([run])) < 50_000


def test_they_grow_with_each_record_but_not_more_often_than_that(shell, shown):
    told = Shown(nbinfer.panel().compare.status)
    watch = Watch(told, ["one", "two"], shown)
    with watch:
        watch(Stage("loading"))
        watch(finished(0.5))
        assert "one" in shown.widget.value  # at once
        before = shown.updates
        began = time.monotonic()
        number = 1
        while time.monotonic() - began < 0.6:
            watch(finished(0.5, number))
            watch(Delta(number, "x", 1))
            watch(Progress(number, 1000, number * 3, 1, 1, time.monotonic() - began + 0.01))
            number += 1
        assert shown.updates - before <= 0.6 / plots.REDRAW_S + 1
    assert watch.runs[0].rows == number
    with watch:
        watch(Finished(0, Row(0, id=0, prompt="p", output=None, error="no")))
    assert [run.name for run in watch.runs] == ["one", "two"]
    assert watch.runs[1].latency.points == []  # a row that failed has no latency


def test_a_comparison_draws_both_engines_while_they_run(shell):
    panel = nbinfer.panel()
    load("one", "two", token_s=0.02)
    tab = panel.compare
    refresher.draw()
    for key, row in tab.picker._rows.items():
        tab.picker._boxes[key].value = row.selection.model.model_name in ("one", "two")
    tab.text.value = "\n---\n".join(["a b c d e f g h"] * 6)
    tab.go.click()
    assert eventually(lambda: "echo · one" in tab.plots.value)
    assert "echo · two" not in tab.plots.value  # it has not begun
    assert tab.busy
    assert panel.wait(20)
    assert "echo · two" in tab.plots.value
    latency, speed = pictures(tab.plots.value)
    assert len(places(latency)) == 12
    assert len(places(speed)) == 2
    assert "<svg" in panel.snapshot()
    assert tags(panel.snapshot()) <= ALLOWED
