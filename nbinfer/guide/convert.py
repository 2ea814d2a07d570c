"""``nbinfer migrate PATH``: files that use Oumi, or an engine of ours, and their diff.

Python, notebooks, Markdown's Python blocks, and Oumi's inference configurations in YAML, of which
a Python file beside them is made. Nothing is written unless it is asked for.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines import registry
from ..errors import ConfigurationError, NbinferError
from .cells import rewritten_cell
from .rewrite import Finding, rewrite

__all__ = ["Conversion", "convert", "diff", "write"]

SUFFIXES = (".py", ".ipynb", ".md", ".yaml", ".yml")
MOST_BYTES = 20_000_000
_FENCE = re.compile(r"(^[ \t]*```(?:python|py|ipython3?)[^\n]*\n)(.*?)(^[ \t]*```)", re.M | re.S)


@dataclass
class Conversion:
    """A file and what becomes of it.

    Attributes
    ----------
    path, written : Path
        What was read and what is written: the same, but for YAML.
    before, after : str
        ``before`` is ``""`` where a file is made.
    """

    path: Path
    written: Path
    before: str
    after: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.before != self.after


def convert(
    paths: Sequence[str | os.PathLike[str]],
    source: str | None = None,
    target: str | None = None,
) -> list[Conversion]:
    """Work out what becomes of files, without writing any.

    Parameters
    ----------
    paths : sequence of path
        Files, or folders whose files are looked through; hidden ones are left out.
    source, target : str, optional
        Engines: where the first is used, the second takes its place.

    Returns
    -------
    list of Conversion
        Of the files that change, or of which something is to be said.

    Raises
    ------
    ConfigurationError
        For a path that is not there, a file of another kind, or one that cannot be read as what
        its name says; for unknown engines, or one of the two alone.
    """
    if (source is None) != (target is None):
        raise ConfigurationError("--from and --to go together", hint="--from native --to vllm")
    for name in filter(None, (source, target)):
        registry.spec(name)
    found = []
    for path, named in _files(paths):
        try:
            text = _text(path)
            if named or _concerns(text, source):
                one = _one(path, text, source, target)
                if one.changed or one.findings:
                    found.append(one)
        except ConfigurationError:
            if named:
                raise
    return found


def _files(paths: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[Path, bool]]:
    """Every file, and whether it was named by itself."""
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(
                    n for n in folders if not n.startswith(".") and n != "__pycache__"
                )
                for name in sorted(names):
                    if not name.startswith(".") and Path(name).suffix in SUFFIXES:
                        yield Path(folder, name), False
        elif not path.exists():
            raise ConfigurationError(f"there is nothing at {str(path)!r}")
        elif path.suffix not in SUFFIXES:
            raise ConfigurationError(
                f"{str(path)!r} is no file that can be migrated",
                hint=f"kinds: {', '.join(SUFFIXES)}",
            )
        else:
            yield path, True


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigurationError(f"{str(path)!r} has more than {MOST_BYTES:,} bytes")
        # newline="": a file keeps the line ends that it has.
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise ConfigurationError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{str(path)!r} is no UTF-8 text") from None


def _concerns(text: str, source: str | None) -> bool:
    """Whether there is anything to do: a folder has many files that use neither."""
    if "oumi" in text or re.search(r"^(?:model|engine):", text, re.M):
        return True
    return source is not None and (registry.engine_class(source).__name__ in text or "%" in text)


def _one(path: Path, text: str, source: str | None, target: str | None) -> Conversion:
    try:
        if path.suffix == ".py":
            found = rewrite(text, source, target)
            return Conversion(path, path, text, found.result(), found.findings)
        if path.suffix == ".ipynb":
            return _notebook(path, text, source, target)
        if path.suffix == ".md":
            return _markdown(path, text, source, target)
    except SyntaxError as error:
        raise ConfigurationError(
            f"{str(path)!r} is no Python: {error.msg}, line {error.lineno}"
        ) from None
    from .oumi_config import to_python

    made = path.with_suffix(".py")
    code, findings = to_python(path, text, target)
    if not code:
        return Conversion(path, path, text, text, findings)
    if made.exists() and _text(made) != code:
        raise ConfigurationError(
            f"{str(path)!r} becomes {made.name!r}, and there is another file of this name"
        )
    return Conversion(path, made, "", code, findings)


# ----------------------------------------------------------------- notebooks, Markdown


def _notebook(path: Path, text: str, source: str | None, target: str | None) -> Conversion:
    """Code cells; the rest of the JSON stays as it is written, outputs and counts included."""
    try:
        book = json.loads(text)
        cells = book["cells"]
        language = book.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigurationError(f"{str(path)!r} is no notebook of version 4") from None
    findings: list[Finding] = []
    for number, cell in enumerate(cells, 1):
        if cell.get("cell_type") != "code" or language != "python":
            continue
        given = cell["source"]
        code = given if isinstance(given, str) else "".join(given)
        after, told = rewritten_cell(code, source, target)
        findings += [Finding(f.line, f"cell {number}: {f.what}") for f in told]
        if after != code:
            cell["source"] = after if isinstance(given, str) else after.splitlines(keepends=True)
    return Conversion(path, path, text, _dumped(book, text), findings)


def _dumped(book: Any, text: str) -> str:
    """The notebook as it was written: its indentation, its escapes, its last line end."""
    end = text[len(text.rstrip()) :]
    before = json.loads(text)
    for indent in (1, 2, 4, None, 0, "\t"):
        for ascii_only in (False, True):
            dumps = functools.partial(json.dumps, indent=indent, ensure_ascii=ascii_only)
            if dumps(before) + end == text:
                return dumps(book) + end
    if book == before:
        return text
    return json.dumps(book, indent=1, ensure_ascii=False) + end


def _markdown(path: Path, text: str, source: str | None, target: str | None) -> Conversion:
    findings: list[Finding] = []

    def block(match: re.Match[str]) -> str:
        head, code, close = match.groups()
        first = text.count("\n", 0, match.start(2))
        after, told = rewritten_cell(code, source, target)
        findings.extend(Finding(f.line + first, f.what) for f in told)
        return head + after + close

    return Conversion(path, path, text, _FENCE.sub(block, text), findings)


# --------------------------------------------------------------------- diff and write


def diff(found: Sequence[Conversion]) -> str:
    """A unified diff of all that changes; of a notebook, of its JSON."""
    parts: list[str] = []
    for one in found:
        if one.changed:
            old = str(one.path) if one.before else "/dev/null"
            parts += difflib.unified_diff(
                one.before.splitlines(keepends=True),
                one.after.splitlines(keepends=True),
                old,
                str(one.written),
            )
    lines = (
        part if part.endswith("\n") else f"{part}\n\\ No newline at end of file\n" for part in parts
    )
    return "".join(lines)


def write(found: Sequence[Conversion], *, force: bool = False) -> list[str]:
    """Write what has changed, all or nothing as far as can be told before.

    A file of a git repository must have no changes that are not committed; one elsewhere is kept
    beside itself as ``NAME.bak``.

    Returns
    -------
    list of str
        A line for each file.

    Raises
    ------
    ConfigurationError
        Before anything is written: for a file that git has changes of, unless ``force``.
    NbinferError
        If a file cannot be written.
    """
    changed = [one for one in found if one.changed]
    tracked = {one.path: _in_git(one.path) for one in changed if one.before}
    dirty = [str(path) for path, state in tracked.items() if state == "changed"]
    if dirty and not force:
        raise ConfigurationError(
            f"git has changes of {', '.join(dirty)} that are not committed",
            hint="commit them first, or --force writes over them",
        )
    said = []
    for one in changed:
        backup = None
        if one.before and tracked[one.path] is None:
            backup = _free(one.path.with_name(one.path.name + ".bak"))
            shutil.copy2(one.path, backup)
        _replace(one.written, one.after)
        said.append(f"{one.written}" + (f" (before: {backup})" if backup else ""))
    return said


def _in_git(path: Path) -> str | None:
    """``"clean"`` or ``"changed"``; ``None`` for a file that git does not keep."""
    command = ["git", "-C", str(path.parent), "status", "--porcelain", "--ignored", "--", path.name]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            state = done.stdout[:2]
            if state in ("??", "!!"):
                return None
            return "changed" if state.strip() else "clean"
    return None


def _free(path: Path) -> Path:
    number = 1
    free = path
    while free.exists():
        free = path.with_name(f"{path.name}{number}")
        number += 1
    return free


def _replace(path: Path, text: str) -> None:
    """The file as a whole or not at all, with the mode that it had."""
    path = path.resolve()  # a link stays one
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            mode = path.stat().st_mode if path.exists() else 0o644
            Path(name).chmod(mode & 0o7777)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise NbinferError(f"{str(path)!r} cannot be written: {error.strerror}") from None
