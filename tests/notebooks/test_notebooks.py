"""The notebooks, under strict nbval; and proof that nbval would notice a changed output."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = ROOT / "notebooks" / "nbval_sanitize.cfg"


def nbval(*notebooks: Path, **environment: str) -> tuple[set[int], str]:
    """Cells that strict nbval fails, by their number among the code cells, and its report."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-sanitize-with", str(SANITIZE)]
    command += ["--nbval-current-env", "--nbval-cell-timeout", "300", "-q"]
    command += ["-rA", "-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, notebooks)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )
    report = done.stdout + done.stderr
    failed = {int(n) for n in re.findall(r"^FAILED \S*::Cell (\d+)", report, re.MULTILINE)}
    passed = re.findall(r"^PASSED \S*::Cell (\d+)", report, re.MULTILINE)
    assert failed or passed, report
    assert (done.returncode == 0) == (not failed), report
    return failed, report


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_every_cell_was_executed_and_none_failed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert "0%|" not in str(output)
            if output.output_type == "display_data":
                # Progress leaves nothing behind; what is displayed is a table or a picture.
                assert not output.data or {"text/html", "image/png"} & set(output.data)


@pytest.mark.needs("native", "vllm", "sglang")
@pytest.mark.timeout(900)
def test_strict_nbval_passes_whether_or_not_progress_is_shown():
    """With no delay every run draws its status line, and the cells are still the same."""
    assert nbval(*NOTEBOOKS, NBINFER_STATUS_DELAY_S="0")[0] == set()


def replace(cell: nbformat.NotebookNode, old: str, new: str) -> None:
    """Change a cell's stored output, in each of its forms."""
    found = 0
    for output in cell.outputs:
        if output.output_type == "stream":
            found += output.text.count(old)
            output.text = output.text.replace(old, new)
        for kind, text in output.get("data", {}).items():
            found += text.count(old)
            output.data[kind] = text.replace(old, new)
    assert found, (old, cell.outputs)


MUTATIONS = {
    "a count": ('df[["id", "prompt"', lambda c: replace(c, "8", "9")),
    "a word": ('answers[["animal"', lambda c: replace(c, "owl", "cow")),
    "a boolean": ('samples["output"]', lambda c: replace(c, "True", "False")),
    "a type": ("value = people", lambda c: replace(c, "'int'", "'str'")),
    "a unit": ("df.infer.summary()", lambda c: replace(c, " MB", " apples")),
    "an output that is gone": ("len(nbinfer.engines())", lambda c: c.outputs.clear()),
    "an output too many": (
        "%load_ext nbinfer",
        lambda c: c.outputs.append(nbformat.v4.new_output("stream", text="hello\n")),
    ),
    "a message": ("%engine unload", lambda c: replace(c, "unloaded", "loaded")),
}


@pytest.mark.timeout(600)
def test_nbval_notices_each_changed_output(tmp_path):
    """One copy with every mutation: each mutated cell fails, and no other does."""
    notebook = copy.deepcopy(nbformat.read(NOTEBOOKS[0], as_version=4))
    expected = {}
    for name, (start, mutate) in MUTATIONS.items():
        (number,) = (i for i, c in enumerate(code_cells(notebook)) if c.source.startswith(start))
        mutate(code_cells(notebook)[number])
        expected[number] = name
    path = tmp_path / "mutated.ipynb"
    nbformat.write(notebook, path)
    failed, report = nbval(path)
    assert failed == set(expected), (expected, report[-3000:])
