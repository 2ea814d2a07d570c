"""Where the Chromium of these tests is; as a script, it sees to it that there is one.

    python tests/browser/chromium.py

The system's own is taken, or Playwright's. Where there is neither, Debian's package is installed
(as root, or with a ``sudo`` that asks nothing), or else Playwright's download. One line says what
was done; without a Chromium it says what to do, and the tests in a browser are skipped with it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["WANTED", "find"]

WANTED = "no Chromium: apt-get install chromium, or: playwright install --with-deps chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL_S = 900


@functools.cache
def find() -> str | None:
    """The path of a Chromium that starts, the system's own first."""
    return next((path for path in _places() if _starts(path)), None)


def _places() -> Iterator[str]:
    yield from filter(None, map(shutil.which, NAMES))
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return
    with sync_playwright() as driver:
        path = driver.chromium.executable_path
    if Path(path).exists():
        yield path


def _starts(path: str) -> bool:
    """Whether it runs: Ubuntu's package is a note about its snap, and libraries may be missing."""
    return _run(path, "--version") is None


def _run(*command: str) -> str | None:
    """Run a command in silence; ``None`` where it went well, else what it said of its failure."""
    quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        ended = subprocess.run(
            command,
            env=quietly,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if ended.returncode == 0:
        return None
    lines = ended.stdout.decode("utf-8", "replace").strip().splitlines()
    if not lines:
        return f"{command[0]} ended with {ended.returncode}"
    # Node prints its stack below the error.
    return next((line for line in lines if "Error: " in line), lines[-1])


def _apt() -> str | None:
    """Debian's package; why not, where that fails."""
    if shutil.which("apt-get") is None:
        return "no apt-get"
    root = () if os.geteuid() == 0 else ("sudo", "-n", "DEBIAN_FRONTEND=noninteractive")
    # Old lists name packages that are no more; new ones may be out of reach, and the old do.
    _run(*root, "apt-get", "update")
    return _run(*root, "apt-get", "install", "-y", "--no-install-recommends", "chromium")


def _playwright() -> str | None:
    """Playwright's own download; why not, where that fails."""
    return _run(sys.executable, "-m", "playwright", "install", "chromium")


def main() -> None:
    if path := find():
        print(f"Chromium is here: {path}")
        return
    failures = []
    for name, install in (("apt-get", _apt), ("playwright", _playwright)):
        failed = install()
        find.cache_clear()
        if path := find():
            print(f"Chromium was installed by {name}: {path}")
            return
        failures.append(f"{name}: {failed or 'what it installed does not start'}")
    print(f"{WANTED} ({'; '.join(failures)})")


if __name__ == "__main__":
    main()
