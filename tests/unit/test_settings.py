from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbinfer import settings, sizes
from nbinfer.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("NBINFER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")  # nothing above it counts
    settings.reset()
    yield
    settings.reset()


def file(text: str) -> None:
    Path("pyproject.toml").write_text(text)


def test_defaults():
    now = settings.current()
    assert now.memory_budget_bytes is None
    assert now.to_dict(changed_only=True) == {}
    assert (now.cancel_grace_s, now.escalation_s) == (1.0, (10.0, 20.0, 30.0))
    assert (now.default_engine, now.default_model) == ("llamacpp", "smollm2-135m")


def test_the_default_budget_is_a_share_of_the_machine(monkeypatch, tmp_path):
    import psutil

    monkeypatch.setattr(sizes, "_limit_files", list)
    assert settings.current().budget_bytes() == int(psutil.virtual_memory().total * 0.9)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(sizes, "_limit_files", lambda: [tmp_path / "none", limit])
    limit.write_text("max\n")
    assert settings.current().budget_bytes() == int(psutil.virtual_memory().total * 0.9)
    limit.write_text("1000000\n")
    assert settings.current().budget_bytes() == 900_000
    assert settings.configure(memory_budget_bytes="50%").budget_bytes() == 500_000


@pytest.mark.parametrize(
    ("given", "bytes_of_80_gb"),
    [("90%", 72 * 10**9), (" 12.5 %", 10**10), ("20GB", 2 * 10**10), (10**9, 10**9)],
)
def test_the_budget_of_a_device(given, bytes_of_80_gb, monkeypatch):
    assert settings.current().device_budget_bytes(80 * 10**9) == 72 * 10**9
    assert settings.configure(device_memory_budget="999GB").device_budget_bytes(8) == 8
    found = settings.configure(device_memory_budget=given)
    assert found.device_budget_bytes(80 * 10**9) == bytes_of_80_gb
    settings.reset()
    monkeypatch.setenv("NBINFER_DEVICE_MEMORY_BUDGET", str(given))
    assert settings.current() == found


@pytest.mark.parametrize("given", ["0%", "101%", "nan%", "-1GB", "0", "much", True, None])
def test_what_is_no_budget_of_a_device(given):
    with pytest.raises(ConfigurationError, match="device_memory_budget must be a size above 0"):
        settings.configure(device_memory_budget=given)


def test_home(monkeypatch, tmp_path):
    assert settings.home() == Path("~/.cache/nbinfer").expanduser()
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "not there"))
    assert settings.home() == tmp_path / "not there"
    assert not settings.home().exists()
    monkeypatch.setenv("NBINFER_HOME", "here")
    assert settings.home() == tmp_path / "here"
    monkeypatch.setenv("NBINFER_HOME", "~no such user/x")
    with pytest.raises(ConfigurationError, match="no such user"):
        settings.home()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7GB", 7 * 10**9),
        ("7g", 7 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5KiB", 1536),
        ("0", 0),
        (" 12 B ", 12),
        (123, 123),
        (1e3, 1000),
    ],
)
def test_parse_size(text, size):
    assert sizes.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "GB", "-1", "7XB", "7iB", "1e5", "inf", "nan", "99999PB", "٣", "7 G B", "50%"),
        *(-1, float("nan"), float("inf"), True, None, 10**400),
    ],
)
def test_parse_size_refuses_nonsense(text):
    with pytest.raises(ConfigurationError, match="is no size"):
        sizes.parse_size(text)


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_configuration_error(text):
    with contextlib.suppress(ConfigurationError):
        assert sizes.parse_size(text) >= 0


def test_the_environment_wins_over_the_file_and_configure_over_both(monkeypatch):
    file('[tool.nbinfer]\nmemory_budget = "1GB"\nescalation_s = [1, 2, 3]\ncancel_grace_s = 2')
    assert settings.current().memory_budget_bytes == 10**9
    assert settings.current().escalation_s == (1.0, 2.0, 3.0)
    monkeypatch.setenv("NBINFER_MEMORY_BUDGET", "500MiB")
    monkeypatch.setenv("NBINFER_ESCALATION", "1,2,4")
    assert settings.current().memory_budget_bytes == 500 * 2**20
    assert settings.current().escalation_s == (1.0, 2.0, 4.0)
    now = settings.configure(memory_budget_bytes="3GB", escalation_s=(0, 0, 1))
    assert now == settings.current()
    assert (now.memory_budget_bytes, now.escalation_s) == (3 * 10**9, (0.0, 0.0, 1.0))
    assert now.cancel_grace_s == 2.0
    assert settings.configure(memory_budget_bytes=None).memory_budget_bytes is None
    settings.reset()
    assert settings.current().memory_budget_bytes == 500 * 2**20


def test_a_changed_file_is_read_again():
    file("[tool.nbinfer]\ncancel_grace_s = 2")
    assert settings.current().cancel_grace_s == 2.0
    file("[tool.nbinfer]\ncancel_grace_s = 3.5")
    assert settings.current().cancel_grace_s == 3.5


def test_the_nearest_file_above_counts(tmp_path, monkeypatch):
    file('[tool.nbinfer]\ndefault_model = "a.gguf"')
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert settings.current().default_model == "a.gguf"


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert settings.current() == settings.Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.nbinfer]\nmemory_budget = 'lots'", "memory_budget in .*pyproject.toml"),
        ("[tool.nbinfer]\nmemory_bugdet = '1GB'", "pyproject.toml"),
        ("[tool.nbinfer]\nescalation_s = [3, 2, 1]", "escalation_s in .*pyproject.toml"),
        ("[tool]\nnbinfer = 3", "must be a table"),
        ("[tool.nbinfer", "pyproject.toml"),
    ],
)
def test_a_broken_file_is_named(text, message):
    file(text)
    with pytest.raises(ConfigurationError, match=message):
        settings.current()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NBINFER_MEMORY_BUDGET", "lots"),
        ("NBINFER_MEMORY_BUDGET", "0"),
        ("NBINFER_MEMORY_BUDGET", "0%"),
        ("NBINFER_MEMORY_BUDGET", "101%"),
        ("NBINFER_MEMORY_BUDGET", "nan%"),
        ("NBINFER_MEMORY_BUDGET", "x%"),
        ("NBINFER_ESCALATION", "1,2"),
        ("NBINFER_ESCALATION", "3,2,1"),
        ("NBINFER_ESCALATION", "a,b,c"),
        ("NBINFER_CANCEL_GRACE_S", "-1"),
        ("NBINFER_STATUS_DELAY_S", "1e999"),
    ],
)
def test_a_broken_variable_is_named(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{variable} must be "):
        settings.current()


def test_aliases():
    assert settings.aliases() == {}
    file('[tool.nbinfer.aliases]\na = "x.gguf"\nb = { gguf = "y.gguf", vllm = "org/y" }')
    assert settings.aliases() == {"a": "x.gguf", "b": {"gguf": "y.gguf", "vllm": "org/y"}}
    settings.configure(aliases={"a": "z.gguf"})
    assert settings.aliases() == {"a": "z.gguf"}


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ("aliases = 3", "aliases in .*pyproject.toml"),
        ("aliases = { a = 3 }", "aliases in .*pyproject.toml"),
        ("aliases = { a = '' }", "aliases in .*pyproject.toml"),
        ("aliases = { 'a/b' = 'x' }", "aliases in .*pyproject.toml"),
        ("aliases = { a = { gguf = 3 } }", "aliases in .*pyproject.toml"),
        ("aliases = { 'smollm2-135m' = 'x' }", "has the name of an embedded model"),
    ],
)
def test_broken_aliases(aliases, message):
    file(f"[tool.nbinfer]\n{aliases}")
    with pytest.raises(ConfigurationError, match=message):
        settings.aliases()


def test_configure_refuses_and_changes_nothing():
    with pytest.raises(ConfigurationError) as caught:
        settings.configure(cancel_grace=1)
    assert caught.value.hint == "did you mean 'cancel_grace_s'?"
    with pytest.raises(ConfigurationError, match=r"^status_delay_s must be "):
        settings.configure(cancel_grace_s=5, status_delay_s="x")
    assert settings.current() == settings.Settings()


def test_psutil_is_imported_only_for_the_budget():
    code = "import sys, nbinfer.settings as s; s.current(); sys.exit('psutil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
