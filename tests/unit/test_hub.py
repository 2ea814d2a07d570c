"""Hub ids, through the real client of the hub and a tiny hub of our own."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
import time

import pytest

from nbinfer import LlamaCppInferenceEngine, hub, hubcache, hubclient, models, settings
from nbinfer.errors import ConfigurationError, DownloadError, LoadError, ModelNotFound

from .hubserver import Hub, serving

BOTH = ("safetensors", "gguf")


def gguf(size: int = 4096, file_type: int = 15) -> bytes:
    """A GGUF header with a file type, and so many bytes in all."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    pairs += text("general.file_type") + struct.pack("<II", 4, file_type)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pairs
    return header.ljust(size, b"\0")


def safetensors(kind: str = "BF16", count: int = 64) -> bytes:
    width = {"F32": 4, "BF16": 2, "F16": 2}[kind]
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": kind, "shape": [count], "data_offsets": [0, count * width]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(count * width)


CONFIG = json.dumps({"model_type": "llama", "dtype": "bfloat16"}).encode()
TENSORS = {
    "README.md": b"read me",
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "tokenizer.model": b"spm",
    "chat_template.jinja": b"{{ x }}",
    "modeling_x.py": b"x = 1",
    "onnx/model.onnx": b"onnx",
    "model.safetensors": safetensors(),
    "consolidated.safetensors": safetensors(),
    "original/params.json": b"{}",
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    # Read when they are needed, so it does not matter when the client was imported.
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    settings.reset()
    with serving(Hub()) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        yield made
    settings.reset()
    deadline = time.monotonic() + 10
    while any(t.name == "nbinfer-hub" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread of a download was left"
        time.sleep(0.02)


def got(server: Hub, what: str) -> list[str]:
    return [line for line in server.asked if line.startswith("GET") and what in line]


# ------------------------------------------------------------------------- the name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Qwen/Qwen3-8B", ("Qwen/Qwen3-8B", None, None)),
        ("Qwen/Qwen3-8B@main", ("Qwen/Qwen3-8B", "main", None)),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1", None)),
        ("a/b:Q4_K_M", ("a/b", None, "Q4_K_M")),
        ("a/b@v1:q4_k_m", ("a/b", "v1", "q4_k_m")),
        ("a/b:sub/x.gguf", ("a/b", None, "sub/x.gguf")),
    ],
)
def test_a_name(name, parts):
    assert hub.parse(name) == hub.HubName(*parts)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "a/b/c", "./a/b", "/a/b", "~/a", "a/b.gguf", "../b", "a/b@../x", "a/b@/etc", "a b/c"],
)
def test_what_is_no_hub_id(name):
    assert hub.parse(name) is None


def test_the_parts_have_one_order():
    with pytest.raises(ConfigurationError) as caught:
        models.resolve("a/b:Q4_K_M@v1")
    assert caught.value.hint == "write a/b@v1:Q4_K_M"


# ----------------------------------------------------------------------- the choice


def several(*labels: str) -> dict[str, bytes]:
    return {f"model-{q}.gguf": gguf(1000 + n) for n, q in enumerate(labels)}


@pytest.mark.parametrize(
    ("files", "asked", "taken"),
    [
        (("Q8_0", "Q4_K_M", "Q2_K"), "", "Q4_K_M"),
        (("Q8_0", "Q4_0", "Q5_K_M"), "", "Q4_0"),
        (("Q8_0", "Q5_K_M"), "", "Q5_K_M"),
        (("F16", "Q8_0", "Q2_K"), "", "Q8_0"),
        (("IQ2_M", "Q3_K_L", "BF16"), "", "IQ2_M"),
        (("Q4_K_S", "Q4_K_M"), ":q4_k_s", "Q4_K_S"),
        (("UD-Q4_K_XL", "Q4_K_M"), ":Q4_K_XL", "UD-Q4_K_XL"),
        (("UD-Q4_K_XL", "Q4_K_XL"), ":UD-Q4_K_XL", "UD-Q4_K_XL"),
        (("Q4_K_M", "Q8_0"), ":model-Q8_0.gguf", "Q8_0"),
    ],
)
def test_which_quantization(server, files, asked, taken):
    server.repos["a/b-GGUF"] = {"mmproj-F16.gguf": gguf(10), "README.md": b"", **several(*files)}
    lines: list[str] = []
    found = models.resolve(f"a/b-GGUF{asked}", progress=lines.append)
    assert found.path.name == f"model-{taken}.gguf"
    assert found.path.read_bytes() == server.repos["a/b-GGUF"][found.path.name]
    assert (found.format, found.source, found.precision) == ("gguf", "hub", "Q4_K_M")
    assert found.revision == server.commit("a/b-GGUF", "main")
    assert found.size_bytes == found.path.stat().st_size
    assert json.loads(json.dumps(found.to_dict()))["path"] == str(found.path)
    assert len(got(server, "/resolve/")) == 1
    said = [line for line in lines if ": taking " in line]
    assert len(said) == (0 if asked else 1)


@pytest.mark.parametrize(
    ("files", "asked", "message", "hint"),
    [
        (("Q8_0", "Q4_K_M"), "Q5_K_M", "a/b has no 'Q5_K_M'", "it has: Q4_K_M, Q8_0"),
        (("Q8_0", "Q4_K_M"), "Q4_K", "a/b has no 'Q4_K'", "it has: Q4_K_M, Q8_0"),
        (("1B-Q8_0", "3B-Q8_0"), "Q8_0", "a/b has 2 models in Q8_0", "a/b:model-1B-Q8_0.gguf"),
        (("1B-Q8_0", "3B-Q8_0"), None, "a/b has 2 models in Q8_0", "a/b:model-3B-Q8_0.gguf"),
    ],
)
def test_no_such_quantization_or_two(server, files, asked, message, hint):
    server.repos["a/b"] = several(*files)
    with pytest.raises(ModelNotFound) as caught:
        models.resolve("a/b" + (f":{asked}" if asked else ""))
    assert caught.value.message == message
    assert hint in caught.value.hint
    assert got(server, "/resolve/") == []


def test_names_that_lead_elsewhere_are_left_out(server):
    names = ("../x-Q8_0.gguf", "/etc/x-Q8_0.gguf", "\x1b[31mx-Q8_0.gguf", "x\u202e-Q8_0.gguf")
    server.repos["a/b"] = {name: gguf() for name in (*names, "good-Q8_0.gguf")}
    assert models.resolve("a/b").path.name == "good-Q8_0.gguf"


def test_a_sharded_model(server):
    parts = [f"Q4_K_M/big-Q4_K_M-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    server.repos["a/big"] = {name: gguf(2000 + n) for n, name in enumerate(parts)}
    found = models.resolve("a/big:Q4_K_M")
    assert str(found.path).endswith(parts[0])
    assert found.size_bytes == 6003
    assert all((found.path.parent / p.rpartition("/")[2]).is_file() for p in parts)
    del server.repos["a/big"][parts[1]]
    with pytest.raises(ModelNotFound, match=r"3 parts, and .*00002-of-00003\.gguf is missing"):
        models.resolve("a/big:Q4_K_M")


def test_a_revision(server):
    server.repos["a/b"] = several("Q8_0")
    commit = server.commit("a/b", "main")
    for name in ("a/b@v1", "a/b@refs/pr/1", f"a/b@{commit}", "a/b@v1:Q8_0"):
        assert models.resolve(name).revision == commit
    assert models.resolve("a/b", revision="v1").revision == commit
    assert models.resolve("a/b@v1", revision="v1").revision == commit
    assert any("revision/v1" in line for line in server.asked)
    with pytest.raises(ModelNotFound, match="a/b has no revision 'v2'"):
        models.resolve("a/b@v2")
    with pytest.raises(ConfigurationError, match="name two revisions"):
        models.resolve("a/b@v1", revision="main")
    for name in ("smollm2-135m", str(models.resolve("a/b").path)):
        with pytest.raises(ConfigurationError, match="is for a hub id"):
            models.resolve(name, revision="main")


# ----------------------------------------------------------------------- safetensors


def test_a_repository_of_safetensors(server):
    server.repos["a/b"] = TENSORS
    found = models.resolve("a/b", forms=BOTH)
    assert (found.format, found.precision, found.source) == ("safetensors", "bfloat16", "hub")
    assert found.size_bytes == len(TENSORS["model.safetensors"])
    assert sorted(p.name for p in found.path.rglob("*") if p.is_file()) == [
        *("chat_template.jinja", "config.json", "model.safetensors", "modeling_x.py"),
        *("tokenizer.json", "tokenizer.model"),
    ]
    # The weights come last: with them the model is whole.
    assert got(server, "/resolve/")[-1].endswith("model.safetensors")


def test_sharded_safetensors(server):
    parts = [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    index = {"metadata": {}, "weight_map": {"a": parts[0], "b": parts[1]}}
    server.repos["a/b"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{p: safetensors("F16") for p in parts},
    }
    found = models.resolve("a/b", forms=BOTH)
    assert found.precision == "float16"
    assert found.size_bytes == 2 * len(safetensors("F16"))
    # With one of them gone, the cache knows it by the index.
    (found.path / parts[1]).unlink()
    server.status = 503
    with pytest.raises(DownloadError, match=re.escape(f"the cache lacks {parts[1]}")):
        models.resolve("a/b", forms=BOTH)


def test_one_name_in_both_forms(server):
    server.repos["a/b"] = {**TENSORS, **several("Q4_K_M", "Q8_0")}
    assert models.resolve("a/b", forms=BOTH).format == "safetensors"
    assert models.resolve("a/b", forms=BOTH[::-1]).format == "gguf"
    assert models.resolve("a/b:Q8_0", forms=BOTH).path.name == "model-Q8_0.gguf"
    server.repos["a/c"] = several("Q8_0")
    assert models.resolve("a/c", forms=BOTH).format == "gguf"


def test_another_form_than_the_engine_needs(server):
    server.repos["a/b"] = TENSORS
    with pytest.raises(ModelNotFound) as caught:
        models.resolve("a/b", engine="llamacpp")
    assert caught.value.message == "a/b has no GGUF file"
    assert caught.value.hint.startswith("llamacpp needs a .gguf file")
    server.repos["a/c"] = several("Q8_0")
    with pytest.raises(ModelNotFound) as caught:
        models.resolve("a/c", forms=("safetensors",), engine="vllm")
    assert caught.value.message == "a/c has GGUF files"
    assert "vllm needs a folder of safetensors" in caught.value.hint
    assert "llamacpp" in caught.value.hint
    with pytest.raises(ModelNotFound, match="no GGUF file, so none called 'Q4_K_M'"):
        models.resolve("a/b:Q4_K_M", forms=BOTH)
    server.repos["a/d"] = {"adapter_model.safetensors": b"", "adapter_config.json": b"{}"}
    with pytest.raises(ModelNotFound, match="a/d holds no model"):
        models.resolve("a/d", forms=BOTH)


# ------------------------------------------------------------------------- refusals


def test_no_such_repository(server):
    with pytest.raises(ModelNotFound, match=r"no such model at http://127\.0\.0\.1") as caught:
        models.resolve("no/such")
    assert "hf auth login" in caught.value.hint


def test_a_gated_repository(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repos["a/b"], server.gated = several("Q8_0"), {"a/b"}
    with pytest.raises(DownloadError, match="a/b is gated") as caught:
        models.resolve("a/b")
    assert f"{server.address}/a/b" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint
    assert "Bearer hf_secret" in server.tokens
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "does not accept your token"), (403, "does not let you download")]
)
def test_a_refused_token(server, monkeypatch, status, message):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repos["a/b"] = several("Q8_0")
    server.status = status
    server.message = "Invalid credentials in Authorization header"
    with pytest.raises(DownloadError, match=message) as caught:
        models.resolve("a/b")
    assert "hf auth login" in caught.value.hint
    assert "hf_secret" not in str(caught.value)


# -------------------------------------------------------------------- without a hub


def test_offline_from_the_cache(server, monkeypatch):
    server.repos["a/b"] = several("Q8_0", "Q4_K_M")
    online = models.resolve("a/b:Q8_0")
    server.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines: list[str] = []
    assert models.resolve("a/b:Q8_0", progress=lines.append) == online
    assert lines == ["a/b is taken from the cache: HF_HUB_OFFLINE is set"]
    assert models.resolve("a/b").path == online.path  # of those that are there
    assert models.resolve(f"a/b@{online.revision}").path == online.path
    assert server.asked == []
    for name in ("a/b@v1", "a/c"):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set; the cache does not"):
            models.resolve(name)
    with pytest.raises(ModelNotFound, match="a/b has no 'Q4_K_M'"):
        models.resolve("a/b:Q4_K_M")


@pytest.mark.parametrize("failure", ["503", "refused"])
def test_a_hub_that_is_down(server, monkeypatch, failure):
    server.repos["a/b"] = several("Q8_0")
    online = models.resolve("a/b")
    if failure == "503":
        server.status = 503
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://user:sk-secret@127.0.0.1:9")
    began = time.monotonic()
    assert models.resolve("a/b") == online
    with pytest.raises(DownloadError, match="the cache does not hold it") as caught:
        models.resolve("a/c")
    assert time.monotonic() - began < 15
    assert "sk-secret" not in str(caught.value)
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_name_server_that_does_not_answer(server, monkeypatch):
    import huggingface_hub

    stop = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: stop.wait(20))
    monkeypatch.setattr(hubclient, "_LONGEST_LOOKUP_S", 0.6)
    lines: list[str] = []
    with pytest.raises(DownloadError, match="no answer in 1 s"):
        models.resolve("a/b", progress=lines.append)
    stop.set()
    assert lines[0] == "looking a/b up on the hub"


# ----------------------------------------------------------------------- a download


def test_what_a_download_says(server, monkeypatch):
    monkeypatch.setattr(hubclient, "_POLL_S", 0.05)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    server.repos["a/b"] = {"model-Q8_0.gguf": gguf(8_000_000)}
    server.pause = threading.Event()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "4 of 8 MB" in line:
            server.pause.set()

    models.resolve("a/b", progress=say)
    assert lines[-1] == "a/b is fetched (8 MB)"
    steps = [line for line in lines if line.startswith("fetching ")]
    assert all(re.fullmatch(r"fetching a/b: \d of 8 MB, \d+ s", line) for line in steps)
    assert any("4 of 8 MB" in line for line in steps)
    lines.clear()
    models.resolve("a/b", progress=lines.append)
    assert not any("fetch" in line for line in lines)  # looking up may be told: it takes its time


def test_an_interrupted_download_goes_on(server, monkeypatch, capfd):
    monkeypatch.setattr(hubclient, "_POLL_S", 0.05)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    content = gguf(8_000_000)
    server.repos["a/b"] = {"model-Q8_0.gguf": content}
    server.pause = threading.Event()

    def interrupt(line: str) -> None:
        if "4 of 8 MB" in line:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        models.resolve("a/b", progress=interrupt)
    assert time.monotonic() - began < 5
    server.pause.set()
    for _ in range(200):
        if not any(t.name == "nbinfer-hub" for t in threading.enumerate()):
            break
        time.sleep(0.02)
    server.pause = None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError):
        models.resolve("a/b")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert models.resolve("a/b").path.read_bytes() == content
    assert capfd.readouterr().out == ""  # no bar is drawn


def test_unloading_ends_a_download(server, clean, monkeypatch):
    monkeypatch.setattr(hubclient, "_POLL_S", 0.05)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    server.repos["a/b"] = {"model-Q8_0.gguf": gguf(8_000_000)}
    server.pause = threading.Event()
    engine = LlamaCppInferenceEngine("a/b")
    failure: list[BaseException] = []

    def load() -> None:
        with pytest.raises(LoadError) as caught:
            engine.load()
        failure.append(caught.value)

    thread = threading.Thread(target=load)
    thread.start()
    while engine.resident is None or "4 of 8 MB" not in engine.resident.stage:
        assert thread.is_alive()
        time.sleep(0.01)
    assert engine.unload() == 0
    thread.join(5)
    assert "was unloaded while it was loading" in str(failure[0])
    server.pause.set()


def test_a_connection_that_breaks(server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda s: None)
    server.repos["a/b"] = {"model-Q8_0.gguf": gguf(50_000)}
    server.drop_after = 0
    with pytest.raises(DownloadError, match="a/b could not be fetched") as caught:
        models.resolve("a/b")
    assert "goes on from there" in caught.value.hint
    server.drop_after = None
    assert models.resolve("a/b").size_bytes == 50_000


def test_a_disk_that_is_too_small(server, monkeypatch):
    import shutil

    usage = shutil.disk_usage(".")._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    server.repos["a/b"] = several("Q8_0")
    with pytest.raises(DownloadError, match="not enough disk space") as caught:
        models.resolve("a/b")
    assert "HF_HOME" in caught.value.hint
    assert got(server, "/resolve/") == []


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "hf").write_text("a file")
    server.repos["a/b"] = several("Q8_0")
    with pytest.raises(DownloadError, match="cannot be stored") as caught:
        models.resolve("a/b")
    assert "HF_HOME" in caught.value.hint


# --------------------------------------------------------------------- around it all


def test_a_path_comes_before_a_hub_id(server, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "config.json").write_bytes(CONFIG)
    (tmp_path / "a" / "b" / "model.safetensors").write_bytes(safetensors())
    found = models.resolve("a/b", forms=BOTH)
    assert (found.path, found.source) == (tmp_path / "a" / "b", "path")
    assert server.asked == []


def test_an_alias_to_a_hub_id(server):
    server.repos["a/b"] = several("Q8_0", "Q4_K_M")
    settings.configure(aliases={"mine": {"gguf": "a/b:Q8_0", "native": "a/b-full"}})
    found = models.resolve("mine", engine="llamacpp")
    assert (found.name, found.path.name) == ("mine", "model-Q8_0.gguf")


def test_cached_repositories(server):
    assert hubcache.cached_repositories() == []
    server.repos["a/b"] = server.repos["c/d-GGUF"] = several("Q8_0")
    models.resolve("c/d-GGUF")
    models.resolve("a/b")
    assert hubcache.cached_repositories() == ["a/b", "c/d-GGUF"]


def test_the_cache_is_where_the_client_says(tmp_path):
    """The variables are read without an import; the client reads them in the same way."""
    code = (
        "from nbinfer import hubcache; mine = str(hubcache.cache_folder())\n"
        "import sys; assert 'huggingface_hub' not in sys.modules\n"
        "from huggingface_hub import constants; assert mine == constants.HF_HUB_CACHE, mine\n"
    )
    for variables in (
        {},
        {"HF_HOME": str(tmp_path / "x")},
        {"XDG_CACHE_HOME": str(tmp_path / "y")},
        {"HF_HOME": "$HOME/h", "HF_HUB_CACHE": str(tmp_path / "z")},
    ):
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **variables}
        environment["PYTHONPATH"] = ":".join(p for p in sys.path if p)
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
