"""``%%infer``, ``%engine``, ``%%compare`` and the rest, as IPython registers them.

The work is in ``commands.py``, which is imported with the first command and not before:
``%load_ext nbinfer`` must cost next to nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.core.magic import (
    Magics,
    cell_magic,
    line_cell_magic,
    line_magic,
    magics_class,
    no_var_expand,
)

from ..errors import ConfigurationError, NbinferError, RunInterrupted, brief_traceback
from .arguments import CELLS, LINES, PARSERS

if TYPE_CHECKING:
    import pandas as pd

    from .commands import Commands
    from .guide_commands import GuideCommands
    from .panel import Panel
    from .recommender import Recommender

__all__ = ["NbinferMagics"]


def clean_errors(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Show nbinfer's errors in two lines, with no traceback through our own code.

    They are still raised: the cell fails, "Run All" stops, and nbval notices. Raised from the
    Python functions they keep their traceback, which there leads to the user's code.
    """

    @functools.wraps(magic)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return magic(*args, **kwargs)
        except (NbinferError, RunInterrupted) as error:
            from .text import visible

            lines = [visible(line) for line in brief_traceback(error)]
            error._render_traceback_ = lambda: lines  # type: ignore[union-attr]
            raise

    return wrapped


@magics_class
class NbinferMagics(Magics):  # type: ignore[misc]
    """nbinfer's magics on one shell."""

    @functools.cached_property
    def _commands(self) -> Commands:
        from .commands import Commands

        return Commands(self.shell)

    @functools.cached_property
    def _guide(self) -> GuideCommands:
        from .guide_commands import GuideCommands

        return GuideCommands(self.shell)

    @no_var_expand
    @line_cell_magic
    @clean_errors
    def infer(self, line: str, cell: str | None = None) -> pd.DataFrame | None:
        """Send prompts to an engine."""
        return self._commands.infer(line, cell)

    @line_magic
    @no_var_expand
    @clean_errors
    def engine(self, line: str) -> pd.DataFrame | None:
        """See, choose, load and unload engines."""
        return self._commands.engine(line)

    @cell_magic
    @no_var_expand
    @clean_errors
    def compare(self, line: str, cell: str) -> pd.DataFrame | None:
        """Send the same prompts to several engines."""
        return self._commands.compare(line, cell)

    @cell_magic
    @no_var_expand
    @clean_errors
    def engine_exec(self, line: str, cell: str) -> None:
        """Run a cell beside a resident model."""
        self._commands.engine_exec(line, cell)

    @line_magic
    @no_var_expand
    @clean_errors
    def panel(self, line: str) -> Panel:
        """See every engine, switch between them, ask, compare and measure them."""
        return self._commands.panel(line)

    @line_magic
    @no_var_expand
    @clean_errors
    def features(self, line: str) -> pd.DataFrame:
        """See what each engine can do here, and prove it."""
        return self._guide.features(line)

    @line_magic
    @no_var_expand
    @clean_errors
    def memory(self, line: str) -> pd.DataFrame:
        """See how much memory a model takes, and whether it fits here."""
        return self._guide.memory(line)

    @line_magic
    @no_var_expand
    @clean_errors
    def recommend(self, line: str) -> pd.DataFrame | Recommender:
        """Ask which engine to take."""
        return self._guide.recommend(line)

    @line_magic
    @no_var_expand
    @clean_errors
    def benchmark(self, line: str) -> pd.DataFrame:
        """Measure how fast engines answer under load."""
        return self._guide.benchmark(line)

    @no_var_expand
    @line_cell_magic
    @clean_errors
    def migrate(self, line: str, cell: str | None = None) -> pd.DataFrame | None:
        """See what changes between two engines, a cell rewritten, or the diff of files."""
        return self._guide.migrate(line, cell)

    @no_var_expand
    @line_cell_magic
    @clean_errors
    def nbinfer(self, line: str, cell: str | None = None) -> Any:
        """Run any of nbinfer's magics under its full name: %nbinfer infer, %nbinfer engine."""
        name, _, rest = line.strip().partition(" ")
        if name not in PARSERS:
            raise ConfigurationError(
                f"%nbinfer has no command {name!r}", hint=f"Commands: {', '.join(PARSERS)}"
            )
        magic = getattr(self, name)
        if name in LINES:
            return magic(rest)
        if name in CELLS and cell is None:
            raise ConfigurationError(
                f"%nbinfer {name} needs a cell", hint=f"begin the cell with %%nbinfer {name}"
            )
        return magic(rest, cell)
