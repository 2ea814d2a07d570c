"""What the tests of panels share: no widget is left of one."""

from __future__ import annotations

import pytest
from ipywidgets.widgets import widget

from nbinfer.notebook.engine_rows import Said
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.notebook.switcher import switcher


def living():
    """Every widget that ipywidgets keeps: it forgets none that is not closed."""
    return set(widget._instances)


def tree(made):
    """A widget and all that it contains."""
    yield made
    for child in getattr(made, "children", ()):
        yield from tree(child)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No click of an earlier test is remembered, and no widget is left."""
    monkeypatch.setattr(switcher, "said", Said())
    monkeypatch.setattr(switcher, "_known", {})
    before = living()
    yield
    for made in list(refresher._panels):
        made.close()
    assert living() <= before
