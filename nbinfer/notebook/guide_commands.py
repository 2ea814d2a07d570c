"""What the guide's magics do: thin over the Python functions of the same names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .arguments import PARSERS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GuideCommands", "listed", "run_features"]


class GuideCommands:
    """The guide's commands, each a method of its name."""

    def features(self, line: str) -> pd.DataFrame:
        """Run ``%features``."""
        return run_features(PARSERS["features"]().parse_line(line))


# What the command line runs too, of the same options.


def run_features(options: argparse.Namespace, **more: Any) -> pd.DataFrame:
    """The table of ``%features`` and ``nbinfer features``."""
    from ..guide.features import features

    return features(
        probe=options.probe,
        engines=listed(options.engine),
        only=listed(options.feature),
        details=options.details,
        **more,
    )


def listed(text: str | None) -> list[str] | None:
    """``"a,b"`` as a list; ``None`` stays."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
