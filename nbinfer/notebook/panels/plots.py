"""Latency and throughput of a comparison as they come: two small pictures, drawn as SVG.

No library is needed for them, their colours are the theme's own, and engines differ by the shape of
their lines and points too.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from ...records import Finished, Progress, Record
from ..engine_rows import short
from ..text import format_seconds, unknown
from .live import Status
from .parts import TEXT, Shown

__all__ = ["Curve", "Run", "Watch", "drawn"]

# A picture is sent whole each time: not so often, and with so many points.
REDRAW_S = 0.25
MOST_POINTS = 200
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 340, 150, 46, 8, 18
LINES = ("", "6 3", "2 3", "8 3 2 3")
COLOURS = (
    "var(--jp-info-color1,#1976d2)",
    "var(--jp-warn-color1,#e68a00)",
    "var(--jp-success-color1,#388e3c)",
    "var(--jp-error-color1,#d32f2f)",
)


@dataclass
class Curve:
    """Points, the newest last; where there are too many, every second is left out."""

    points: list[tuple[float, float]] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add(self, x: float, y: float) -> None:
        """Add a point."""
        self._seen += 1
        if self._seen % self._every:
            return
        self.points.append((x, y))
        if len(self.points) > MOST_POINTS:
            self.points = self.points[1::2]
            self._every *= 2


@dataclass
class Run:
    """What is known of a run so far."""

    name: str
    latency: Curve = field(default_factory=Curve)  # row by row
    speed: Curve = field(default_factory=Curve)  # second by second
    rows: int = 0


class Watch(Status):
    """A reporter that draws the runs of a comparison while they go on.

    Parameters
    ----------
    told : Shown
        The line of the run that is under way.
    names : sequence of str
        Of the runs to come.
    picture : Shown
    """

    def __init__(self, told: Shown, names: Sequence[str], picture: Shown) -> None:
        super().__init__(told, names)
        self._picture = picture
        self._due = 0.0
        self.runs: list[Run] = []

    def __enter__(self) -> Self:
        super().__enter__()
        self.runs.append(Run(self._name))
        return self

    def __exit__(self, *error: object) -> None:
        self._picture.now(drawn(self.runs))

    def __call__(self, record: Record) -> None:
        super().__call__(record)
        if not self.runs:
            return
        run = self.runs[-1]
        if isinstance(record, Finished):
            run.rows += 1
            if not unknown(record.row.latency_s):
                run.latency.add(run.rows, float(record.row.latency_s or 0.0))
        elif isinstance(record, Progress) and record.tokens and record.seconds > 0:
            run.speed.add(record.seconds, record.tokens / record.seconds)
        now = time.monotonic()
        if now >= self._due and isinstance(record, Finished | Progress):
            self._due = now + REDRAW_S
            self._picture.now(drawn(self.runs))


def drawn(runs: Sequence[Run]) -> str:
    """Both pictures, and which line is whose; nothing where nothing is known yet."""
    if not any(run.latency.points or run.speed.points for run in runs):
        return ""
    latency = _chart(
        "Latency of each row",
        [run.latency for run in runs],
        (lambda row: f"row {row:,.0f}", format_seconds),
        points=True,
    )
    speed = _chart(
        "Tokens a second so far",
        [run.speed for run in runs],
        (format_seconds, lambda value: f"{value:,.4g}"),
        points=False,
    )
    names = "".join(
        f'<span style="display:inline-flex;align-items:center;gap:.4em;margin-right:1em">'
        f'<svg width="34" height="10" aria-hidden="true">{_line(place, "M2 5H32")}'
        f"{_point(place, 17, 5)}</svg>{html.escape(short(run.name))}</span>"
        for place, run in enumerate(runs)
    )
    return (
        f'<div style="{TEXT};font-size:90%"><div style="display:flex;flex-wrap:wrap;gap:1em">'
        f"{latency}{speed}</div>{names}</div>"
    )


def _chart(
    title: str,
    curves: Sequence[Curve],
    units: tuple[Callable[[float], str], Callable[[float], str]],
    *,
    points: bool,
) -> str:
    below, unit = units
    every = [point for curve in curves for point in curve.points]
    right = max((x for x, _ in every), default=1.0) or 1.0
    top = max((y for _, y in every), default=1.0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - 8, HEIGHT - TOP - BOTTOM
        return LEFT + across * x / right, TOP + down * (1 - y / top)

    drawn = "".join(_curve(number, curve, place, points) for number, curve in enumerate(curves))
    floor = HEIGHT - BOTTOM
    last = ", ".join(unit(curve.points[-1][1]) for curve in curves if curve.points)
    said = html.escape(f"{title}; the last of each: {last}" if last else title)
    axes = f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH - 8}" fill="none" stroke="currentColor"/>'
    words = (
        _word(LEFT - 4, TOP + 8, unit(top), "end"),
        _word(LEFT - 4, floor, "0", "end"),
        _word(WIDTH - 8, HEIGHT - 5, below(right), "end"),
    )
    return (
        f'<div style="flex:1 1 16em;max-width:30em"><div>{html.escape(title)}</div>'
        f'<svg role="img" aria-label="{said}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'style="width:100%;display:block">{axes}{"".join(words)}{drawn}</svg></div>'
    )


def _curve(
    number: int,
    curve: Curve,
    place: Callable[[float, float], tuple[float, float]],
    points: bool,
) -> str:
    places = [place(x, y) for x, y in curve.points]
    if points or len(places) == 1:
        return "".join(_point(number, x, y) for x, y in places)
    return _line(number, _path(places)) if places else ""


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _line(number: int, path: str) -> str:
    dash = LINES[number % len(LINES)]
    style = f"fill:none;stroke:{COLOURS[number % len(COLOURS)]};stroke-width:2"
    return f'<path d="{path}" style="{style};stroke-dasharray:{dash or "none"}"/>'


def _point(number: int, x: float, y: float) -> str:
    """A dot, a square, a triangle or a cross."""
    shapes = (
        f"M{x - 3:.1f} {y:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
        f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8z",
        f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6",
    )
    colour = COLOURS[number % len(COLOURS)]
    style = f"fill:{colour};stroke:{colour};fill-opacity:.5"
    return f'<path d="{shapes[number % len(shapes)]}" style="{style}"/>'


def _word(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x}" y="{y}" style="text-anchor:{anchor};font-size:10px;fill:currentColor">'
        f"{html.escape(text)}</text>"
    )
