"""A real InteractiveShell that raises what a cell raises, so that tests can see it."""

from __future__ import annotations

from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

__all__ = ["Cell", "TestingShell"]


class Cell:
    """What a cell gave: its value, what it printed, what it displayed."""

    def __init__(self, value: Any, stdout: str, stderr: str, outputs: list[Any]) -> None:
        self.value = value
        self.stdout = stdout
        self.stderr = stderr
        self.outputs = outputs


class TestingShell(InteractiveShell):
    """Runs cells as a notebook does; an error in a cell is raised again in the test."""

    __test__ = False

    def cell(self, code: str) -> Cell:
        with capture_output() as captured:
            result = self.run_cell(code, store_history=True)
        result.raise_error()
        return Cell(result.result, captured.stdout, captured.stderr, captured.outputs)

    def line(self, code: str) -> Any:
        return self.cell(code).value
