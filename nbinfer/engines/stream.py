"""One answer, piece by piece: a fold over a run's records that leaves the loop to the user."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from .. import interrupts
from ..answers import read
from ..errors import ConfigurationError, NbinferError, RunInterrupted
from ..records import Delta, Finished
from .results import conclude

if TYPE_CHECKING:
    import pandas as pd

    from ..config import GenerationParams
    from ..frame import Row
    from ..run import Run
    from .base import InferenceEngine

__all__ = ["TextStream"]


class TextStream:
    """Pieces of one answer, as they are made.

    Attributes
    ----------
    result : pandas.DataFrame
        The finished row. Reading it before the end raises ``ConfigurationError``.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        run: Run,
        params: GenerationParams,
    ) -> None:
        self._engine = engine
        self._run = run
        self._params = params
        self._started = time.monotonic()
        self._records = run.records()
        self._rows: list[Row] = []
        self._result: pd.DataFrame | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        # The guard is held only while we work: between two pieces the code is the user's.
        with interrupts.guard() as guard, guard.listening(self._run.stop):
            for record in self._records:
                if isinstance(record, Delta) and record.text:
                    return record.text
                if isinstance(record, Finished):
                    self._rows.append(read(record.row, self._params))
            if self._result is None:
                outcome = self._run.outcome
                outcome.interrupted = guard.take() or outcome.interrupted
                try:
                    self._result = conclude(
                        self._engine,
                        self._run,
                        self._rows,
                        self._params,
                        started=self._started,
                    )
                except (RunInterrupted, NbinferError) as error:
                    self._result = error.frame  # it has ended, and is concluded once
                    raise
        raise StopIteration

    def close(self) -> None:
        """Cancel what is left."""
        self._records.close()

    @property
    def result(self) -> pd.DataFrame:
        if self._result is None:
            raise ConfigurationError(
                "the stream has not ended", hint="read it to its end first: ''.join(stream)"
            )
        return self._result
