"""What the guide's magics do: thin over the Python functions of the same names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .arguments import PARSERS

if TYPE_CHECKING:
    import pandas as pd

    from .recommender import Recommender

__all__ = ["GuideCommands", "listed", "run_features", "run_memory", "run_recommend"]


class GuideCommands:
    """The guide's commands, each a method of its name."""

    def features(self, line: str) -> pd.DataFrame:
        """Run ``%features``."""
        return run_features(PARSERS["features"]().parse_line(line))

    def memory(self, line: str) -> pd.DataFrame:
        """Run ``%memory``."""
        return run_memory(PARSERS["memory"]().parse_line(line))

    def recommend(self, line: str) -> pd.DataFrame | Recommender:
        """Run ``%recommend``: with widgets where nothing is said."""
        if not line.strip():
            from .recommender import Recommender

            return Recommender()
        return run_recommend(PARSERS["recommend"]().parse_line(line))


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


def run_memory(options: argparse.Namespace) -> pd.DataFrame:
    """The table of ``%memory`` and ``nbinfer memory``."""
    from ..guide.memory import memory

    return memory(
        options.model,
        engines=listed(options.engine),
        precisions=listed(options.precision),
        context=options.context,
        batch=options.batch,
        tensor_parallel_size=options.tensor_parallel_size,
        kv_dtype=options.kv_dtype,
        device=options.device,
    )


def run_recommend(options: argparse.Namespace) -> pd.DataFrame:
    """The table of ``%recommend`` and ``nbinfer recommend``, its first row in full before it."""
    from ..guide.flowchart import QUESTIONS
    from ..guide.recommend import recommend, summary
    from .text import visible

    frame = recommend(
        options.model,
        features=listed(options.feature) or (),
        context=options.context,
        batch=options.batch,
        device=options.device,
        **{question.name: getattr(options, question.name) for question in QUESTIONS},
    )
    print("\n".join(visible(line) for line in summary(frame).splitlines()))
    return frame


def listed(text: str | None) -> list[str] | None:
    """``"a,b"`` as a list; ``None`` stays."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
