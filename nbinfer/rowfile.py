"""The file of a run's rows: how it is opened, locked, recognised and written.

SQLite, with a row of JSON for each answered completion in the table ``rows``, and what the run
was in the table ``meta``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .checks import path_text
from .errors import ConfigurationError

__all__ = [
    "Stored",
    "begin",
    "busy",
    "checked",
    "connect",
    "described",
    "insert",
    "locked",
    "stored",
    "told",
]

APPLICATION = 0x6E62696E  # "nbin", in the file's header: that it is one of ours
FORMAT = 1
# How long another program that reads the file may hold up a commit before we look again; and
# how long a reader waits between the commits of a slow disk.
BUSY_S, READER_BUSY_S = 5.0, 60.0
_EXPORTS = {".csv": "df.to_csv", ".jsonl": "df.to_json", ".parquet": "df.to_parquet"}
_SCHEMA = (
    f"PRAGMA application_id={APPLICATION}",
    f"PRAGMA user_version={FORMAT}",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE rows (key TEXT, sample INTEGER, position INTEGER NOT NULL, "
    "fingerprint TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (key, sample))",
)
# key, sample, position, fingerprint, row: as the table has them.
Stored = tuple[str, int, int, str, str]


def checked(path: str | os.PathLike[str]) -> Path:
    """The place of ``output_path``, where such a file can be.

    Raises
    ------
    ConfigurationError
        For a folder, a place in no folder, or a suffix that promises another format.
    """
    # Resolved, because the lock is of the file and not of one of its names.
    place = Path(path_text()("output_path", path)).expanduser().resolve()
    export = _EXPORTS.get(place.suffix.lower())
    if export is not None:
        raise ConfigurationError(
            f"output_path={os.fspath(path)!r:.200}: a run is resumed from an SQLite file, "
            f"not from {place.suffix}",
            hint=f"name it answers.db, and write the table with {export}(...), on the command "
            "line with -o",
        )
    if place.is_dir():
        raise ConfigurationError(f"{place} is a folder", hint="output_path names a file in it")
    if not place.parent.is_dir():
        raise ConfigurationError(f"{place}: there is no folder {place.parent}")
    return place


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Keep other runs away and let readers in, which a lock of SQLite's for so long would not."""
    from filelock import FileLock, Timeout

    path = place.with_name(f".{place.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(
            f"another run is writing to {place}",
            hint=f"wait for it; nbinfer.read_rows({str(place)!r}) shows what it has",
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{place} cannot be written: {error}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows an open file cannot be removed
            path.unlink()  # while it is held: whoever waits for it sees that it is gone
        lock.release()


@contextlib.contextmanager
def told(place: Path, how: str) -> Iterator[None]:
    """What SQLite says of a file becomes an error of ours; ``how`` is "read" or "written"."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise _not_ours(place, "it is not SQLite") from None
        raise ConfigurationError(f"{place} cannot be {how}: {error}") from None


def connect(place: Path, mode: str) -> sqlite3.Connection:
    """Open it: ``"rwc"`` to write, ``"rw"`` to read.

    Reading takes ``"rw"`` because what a killed run left half written is rolled back by whoever
    comes next.
    """
    return sqlite3.connect(
        f"{place.as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_S if mode == "rwc" else READER_BUSY_S,
        isolation_level=None,
        check_same_thread=False,  # opened and closed by the run, used by its writer
    )


def described(connection: sqlite3.Connection, place: Path) -> dict[str, Any] | None:
    """What the file says of itself, ``None`` for an empty one.

    Raises
    ------
    ConfigurationError
        For a database of another program, or of another version of ours.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION:
        if application or tables:
            raise _not_ours(place, "its tables are another program's")
        return None
    if version != FORMAT:
        raise _not_ours(place, f"its format is {version}, and this nbinfer's is {FORMAT}")
    found = connection.execute("SELECT name, value FROM meta")
    return {name: json.loads(value) for name, value in found}


def stored(connection: sqlite3.Connection) -> Iterable[Stored]:
    """Its rows, in the prompts' order."""
    return connection.execute(
        "SELECT key, sample, position, fingerprint, row FROM rows ORDER BY position, sample"
    )


def begin(connection: sqlite3.Connection, meta: Mapping[str, Any], *, new: bool) -> None:
    """Make the tables where there are none, and write down which run goes on."""
    # The rollback journal and full syncs: home folders are often network file systems, and there
    # WAL, which needs memory that all processes share, corrupts a database.
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA synchronous=FULL")
    with _transaction(connection):
        for statement in _SCHEMA if new else ():
            connection.execute(statement)
        values = [(name, json.dumps(value)) for name, value in meta.items()]
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)


def insert(connection: sqlite3.Connection, rows: Iterable[Stored]) -> None:
    """Write rows; when this returns, they are on the disk."""
    with _transaction(connection):
        connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", rows)


def busy(error: Exception) -> bool:
    """Whether only another program stood in the way."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # on a full disk SQLite has rolled back by itself
            connection.execute("ROLLBACK")
        raise


def _not_ours(place: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{place} is no file of rows: {why}", hint="name another; this one is left as it is"
    )
