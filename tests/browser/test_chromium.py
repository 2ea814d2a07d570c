"""How a Chromium is found, and what is said where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import chromium
from .book import NEEDS

pytest.importorskip("playwright", reason=NEEDS)


def test_where_nothing_works_one_line_says_what_to_do(tmp_path: Path):
    """No Chromium, no apt-get, and a download that nobody answers: that is no failure."""
    nowhere = {
        **os.environ,
        "PATH": str(tmp_path),
        "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "browsers"),
        "PLAYWRIGHT_DOWNLOAD_HOST": "http://127.0.0.1:9",
    }
    ended = subprocess.run(
        [sys.executable, chromium.__file__], env=nowhere, capture_output=True, text=True, check=True
    )
    (line,) = ended.stdout.splitlines()
    assert line.startswith(f"{chromium.WANTED} (apt-get: no apt-get; playwright: ")
    assert ended.stderr == ""


def test_what_does_not_start_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ubuntu's package is a script that only says where the snap is."""
    for name, code in (("chromium", 1), ("google-chrome", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium.find.__wrapped__() == str(tmp_path / "google-chrome")
