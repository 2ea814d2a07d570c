"""Pages of the documentation that are generated: ``python -m nbinfer.guide.pages NAME``.

Each prints one; it is committed as ``docs/NAME.md`` and never edited.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from .features import ENGINES, FEATURES, STATES, Cell, cells
from .memory_page import memory_page

__all__ = ["PAGES", "features_page"]

_FEATURES = """# Features

What each engine can do, as probes proved it on a machine with two cores and no GPU. `%features`
shows this table for your machine, and `%features --probe` proves it there. This page is generated
(`python -m nbinfer.guide.pages features`), never edited.
"""


def features_page() -> str:
    """The feature table of this machine, and a line for each cell: what was seen, or why not."""
    found = {name: cells(name) for name in FEATURES}
    lines = [_FEATURES, f"| feature | {' | '.join(f'`{e}`' for e in ENGINES)} |"]
    lines.append("|---|" + "---|" * len(ENGINES))
    for name, line in found.items():
        states = " | ".join(STATES[cell.state] for cell in line)
        lines.append(f"| {FEATURES[name]} | {states} |")
    for name, line in found.items():
        lines += ["", f"## {FEATURES[name]}", "", *(_said(cell) for cell in line)]
    return "\n".join(lines) + "\n"


def _said(cell: Cell) -> str:
    where = f" ({_linked(cell.source)})" if cell.source else ""
    on = f" [{cell.version}, {cell.date}]" if cell.date else ""
    detail = cell.detail.replace("|", "\\|").replace("\n", " ")
    return f"- `{cell.engine}` {STATES[cell.state]}: {_code(detail)}{where}{on}"


def _linked(source: str) -> str:
    return f"<{source}>" if source.startswith("http") else f"`{source}`"


def _code(text: str) -> str:
    """A model's own words must not be read as Markdown or HTML."""
    return "".join(f"\\{c}" if c in "`*_[]<>#" else c for c in text)


PAGES: Mapping[str, Callable[[], str]] = {"features": features_page, "memory": memory_page}


if __name__ == "__main__":
    print(PAGES[sys.argv[1]](), end="")
