"""A run's answers in a file, written as they come: what ``output_path`` makes and resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import queue
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import frame as frames
from . import rowfile
from .answers import read
from .checks import path_text
from .config import GenerationParams
from .errors import ConfigurationError, OutputError
from .frame import ANSWERED, Row
from .records import Delta, Finished, Outcome, Progress, Record, RowRequest
from .resume import Asked, keys, other_prompt

if TYPE_CHECKING:
    import os

    import pandas as pd

    from .run import Run

__all__ = ["RowStore", "read_rows"]

# Rows that finish within this time share a commit, and with it the wait for the disk.
GATHER_S = 0.02
# The parameters that say which columns there are, and how they are read from the text.
_SHAPE = (
    *("n", "logprobs", "prompt_logprobs", "guided_decoding"),
    *("raw", "separate_reasoning", "tools", "tool_choice"),
)
_FIELDS = tuple(field.name for field in dataclasses.fields(Row))


class RowStore:
    """The file of one run.

    Attributes
    ----------
    left : list of RowRequest
        What has no answer yet, in order: all that the engine is given.
    resumed : int
        How many rows the file had.
    """

    def __init__(
        self, place: Path, requests: Sequence[RowRequest], asked: Asked, run_id: str
    ) -> None:
        self._place = place
        self._asked = asked
        self._keys = keys(requests)
        self._failure: Exception | None = None
        self._waiting: queue.SimpleQueue[rowfile.Stored | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._connection = rowfile.connect(place, "rwc")
        try:
            # All is looked at before anything is written: a file that is refused stays as it is.
            known = rowfile.described(self._connection, place)
            if known is not None:
                asked.check(place, known)
            self._done = self._answered(requests) if known is not None else {}
            meta = {**asked.meta, **_about(run_id)}
            rowfile.begin(self._connection, meta, new=known is None)
        except BaseException:
            self._connection.close()
            raise
        self.resumed = len(self._done)
        self._numbers = [n for n in range(len(requests)) if n not in self._done]
        self.left = [requests[n] for n in self._numbers]
        self._writer = threading.Thread(target=self._write, name="nbinfer-rows", daemon=True)
        self._writer.start()

    def records(self, run: Run) -> Generator[Record, None, None]:
        """The file's rows, then the run's records, each answer on its way into the file.

        When they are over, all answers are in the file, or ``run.outcome.error`` says why not.
        """
        for number, row in self._done.items():
            yield Finished(number, row)
        stopped = False
        for record in run.records():
            if isinstance(record, Finished) and record.row.finish_reason in ANSWERED:
                self._put(record)
            if self._failure is not None and not stopped:
                stopped = True  # answers that cannot be kept are not worth the hours
                run.stop()
            yield self._of_all_rows(record)
        self._finish()
        self._tell(run.outcome, stopped)

    def close(self) -> None:
        """Write what waits, and leave the file."""
        self._finish()
        self._connection.close()

    def _of_all_rows(self, record: Record) -> Record:
        """A record of the run, whose numbers count what was left, in numbers of all rows."""
        if isinstance(record, Finished):
            return Finished(self._numbers[record.number], record.row)
        if isinstance(record, Delta):
            return dataclasses.replace(record, number=self._numbers[record.number])
        if isinstance(record, Progress):
            done, rows = record.done + self.resumed, record.rows + self.resumed
            return dataclasses.replace(record, done=done, rows=rows, resumed=self.resumed)
        return record

    def _tell(self, outcome: Outcome, stopped: bool) -> None:
        if self._failure is None:
            return
        if stopped:
            outcome.interrupted = False  # that was us
        outcome.error = outcome.error or OutputError(
            f"{self._place} cannot be written: {self._failure}",
            hint="what finished is in nbinfer.last(); the rows in the file are whole, and the "
            "same run goes on from them",
        )

    # ------------------------------------------------------------------- what is there

    def _answered(self, requests: Sequence[RowRequest]) -> dict[int, Row]:
        """The file's rows by their number in this run, in order."""
        wanted = {(self._keys[r.index], r.sample): number for number, r in enumerate(requests)}
        done, strange = {}, []
        for key, sample, _, fingerprint, text in rowfile.stored(self._connection):
            number = wanted.get((key, sample))
            if number is None:
                strange.append(key)
                continue
            request, row = requests[number], _decoded(text)
            if fingerprint != self._asked.fingerprint(request):
                raise other_prompt(self._place, key, row.prompt, request.prompt)
            # As they are now: the prompt may have moved, and an id need not be JSON.
            row.index, row.id = request.index, request.id
            done[number] = row
        if strange:
            said = ", ".join(strange[:5]) + (", …" if len(strange) > 5 else "")
            raise ConfigurationError(
                f"{self._place} has {len(strange)} rows that these prompts have not, of id {said}",
                hint="pass all the prompts that it was begun with, or name another file",
            )
        return dict(sorted(done.items()))

    # ------------------------------------------------------------------------- writing

    def _put(self, record: Finished) -> None:
        # Encoded at once: whoever gets the row may change it, as answers.read does.
        row, request = record.row, self.left[record.number]
        fingerprint = self._asked.fingerprint(request)
        key = self._keys[request.index]
        self._waiting.put((key, request.sample, request.index, fingerprint, _encoded(row)))

    def _write(self) -> None:
        """The writer's thread: all rows that wait are one transaction."""
        going = True
        while going:
            batch = [self._waiting.get()]
            self._ending.wait(GATHER_S)
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._waiting.get_nowait())
            going = None not in batch
            rows = [row for row in batch if row is not None]
            if rows and self._failure is None:
                self._commit(rows)

    def _commit(self, rows: Sequence[rowfile.Stored]) -> None:
        while self._failure is None:
            try:
                rowfile.insert(self._connection, rows)
                return
            except Exception as error:  # of any kind: a writer must not end in silence
                # Another program that reads for long must not end a run of hours: rows can wait.
                if self._ending.is_set() or not rowfile.busy(error):
                    self._failure = error

    def _finish(self) -> None:
        self._ending.set()
        self._waiting.put(None)
        self._writer.join()


def read_rows(path: str | os.PathLike[str]) -> pd.DataFrame:
    """What a file of ``output_path`` has so far, also while a run writes to it.

    Parameters
    ----------
    path : str or path
        What ``infer(..., output_path=...)`` or ``%%infer --resume`` was given.

    Returns
    -------
    pandas.DataFrame
        A row for each answer, in the prompts' order and the columns of ``engine.infer``. The
        run is the last that wrote to the file; its memory is unknown. The columns of a table
        that was passed in are not in the file: ``id`` leads back to it.

    Raises
    ------
    ConfigurationError
        Without such a file, or for one of another kind.
    """
    place = Path(path_text()("path", path)).expanduser().resolve()
    with (
        rowfile.told(place, "read"),
        contextlib.closing(rowfile.connect(place, "rw")) as connection,
    ):
        known = rowfile.described(connection, place)
        texts = [text for *_, text in rowfile.stored(connection)] if known is not None else []
    if known is None:
        raise ConfigurationError(f"{place} is empty: no run has begun to write to it")
    asked = known["generation_params"]
    params = GenerationParams(**{n: asked[n] for n in _SHAPE if asked.get(n) is not None})
    rows = [read(_decoded(text), params) for text in texts]
    facts = {**known, "model": known["model_params"]["model_name"], "rows": len(rows)}
    optional = frames.optional_columns(rows, params)
    return frames.build(rows, facts, samples=params.n > 1, optional=optional)


def _about(run_id: str) -> dict[str, str]:
    from . import __version__

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"run_id": run_id, "created": now, "nbinfer_version": __version__}


def _encoded(row: Row) -> str:
    values = {name: value for name in _FIELDS if (value := getattr(row, name)) is not None}
    return json.dumps({**values, "id": frames.jsonable(row.id)})


def _decoded(text: str) -> Row:
    return Row(**json.loads(text))
