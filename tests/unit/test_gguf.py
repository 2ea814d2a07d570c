from __future__ import annotations

import ast
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nbinfer import gguf, models

HEAD = 4096


@pytest.fixture(scope="module")
def real():
    """The embedded model's file, from the user's own cache where it is there."""
    return models.resolve("smollm2-135m").path


@pytest.fixture(scope="module")
def beginning(real):
    with real.open("rb") as stream:
        return stream.read(2 * 2**20)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def build(pairs=(), tensors=(), version=3, tensor_count=None, pair_count=None) -> bytes:
    """A small GGUF file's header, with pairs as (key, type, packed value)."""
    data = b"GGUF" + struct.pack("<I", version)
    data += struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count)
    data += struct.pack("<Q", len(pairs) if pair_count is None else pair_count)
    for key, kind, value in pairs:
        data += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        data += text(name) + struct.pack("<I", len(shape))
        data += struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)
    return data


@pytest.fixture
def write(tmp_path):
    def write(data: bytes) -> Path:
        path = tmp_path / "some.gguf"
        path.write_bytes(data)
        return path

    return write


def test_the_real_file(real):
    header = gguf.read_header(real)
    assert header["general.architecture"] == "llama"
    assert header["tokenizer.ggml.tokens"] == 49152  # its length, not the tokens
    assert header["general.languages"] == ["en"]
    assert header["gguf.version"] == 3
    assert len(header["tensors"]) == 272
    assert header["tensors"][0] == ("token_embd.weight", (576, 49152), 8, 0)
    assert gguf.precision(header) == "Q4_1"
    assert gguf.context_length(header) == 8192
    assert gguf.kv_bytes_per_token(header) == 30 * 3 * (64 + 64) * 2
    gguf.check_complete(header)
    # The last tensor ends where the file does: the table of block sizes is right.
    header["gguf.file_bytes"] -= 1
    with pytest.raises(gguf.GGUFError, match="truncated: needs 98362432 bytes, has 98362431"):
        gguf.check_complete(header)


def test_a_file_cut_in_its_weights(beginning, write):
    header = gguf.read_header(write(beginning))
    with pytest.raises(gguf.GGUFError, match=r"^truncated: needs 98362432 bytes, has 2097152$"):
        gguf.check_complete(header)


@pytest.mark.parametrize("length", [5, 20, 24, 100, 5000, 1_000_000])
def test_a_file_cut_in_its_header(length, beginning, write):
    with pytest.raises(gguf.GGUFError, match="ends in the middle of the metadata"):
        gguf.read_header(write(beginning[:length]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a GGUF file"),
        (b"GG", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (build(version=1), "version 1 is not supported"),
        (build(version=3 << 24), "is not supported"),
        (build(pair_count=2**63), "ends in the middle"),
        (build(tensor_count=2**63), "ends in the middle"),
        (build([("a", 8, struct.pack("<Q", 2**62))]), "ends in the middle"),
        (build([("a", 9, struct.pack("<IQ", 5, 2**61))]), "ends in the middle"),
        (build([("a", 9, struct.pack("<IQ", 8, 2**61))]), "ends in the middle"),
        (build([("a", 9, struct.pack("<IQ", 9, 1))]), "array of unknown type 9"),
        (build([("a", 77, b"")]), "unknown type 77"),
        (build([("a" * 70_000, 4, bytes(4))]), "name of 70000 bytes"),
        (build([("general.alignment", 4, struct.pack("<I", 0))]), "alignment is 0"),
        (build([("general.alignment", 4, struct.pack("<I", 33))]), "alignment is 33"),
        (build(tensors=[("t", (1,) * 9, 0, 0)]), "9 dimensions"),
    ],
)
def test_damaged_files(data, message, write):
    with pytest.raises(gguf.GGUFError, match=message):
        gguf.read_header(write(data))


def test_metadata_beyond_the_limit(beginning, write):
    with pytest.raises(gguf.GGUFError, match="larger than 100000 bytes"):
        gguf.read_header(write(beginning), max_bytes=100_000)


def test_hostile_sizes_take_no_memory(write):
    path = write(build([("a", 8, struct.pack("<Q", 2**40))]))
    with path.open("r+b") as stream:
        stream.truncate(2**41)  # a sparse file that is as long as it says
    tracemalloc.start()
    try:
        with pytest.raises(gguf.GGUFError, match="larger than"):
            gguf.read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_hostile_tensor_is_truncated(write):
    header = gguf.read_header(write(build(tensors=[("t", (2**63,) * 4, 0, 2**63)])))
    with pytest.raises(gguf.GGUFError, match="truncated"):
        gguf.check_complete(header)


def test_a_tensor_of_unknown_type_is_not_checked(write):
    header = gguf.read_header(write(build(tensors=[("t", (2**40,), 200, 0)])))
    gguf.check_complete(header)


def test_a_file_cannot_name_our_own_keys(write):
    data = build([("tensors", 4, bytes(4)), ("gguf.file_bytes", 4, bytes(4))])
    header = gguf.read_header(write(data))
    assert header["tensors"] == []
    assert header["gguf.file_bytes"] == len(data)


def facts(**values):
    named = {"general.architecture": "a"}
    return named | {f"a.{k.replace('__', '.')}": v for k, v in values.items()}


def test_kv_bytes():
    base = {"block_count": 2, "attention__head_count": 4, "embedding_length": 32}
    assert gguf.kv_bytes_per_token(facts(**base)) == 2 * 4 * (8 + 8) * 2
    assert gguf.kv_bytes_per_token(facts(**base, attention__head_count_kv=1)) == 2 * 16 * 2
    lengths = {"attention__key_length": 16, "attention__value_length": 4}
    assert gguf.kv_bytes_per_token(facts(**base, **lengths)) == 2 * 4 * 20 * 2
    per_layer = facts(**base, attention__head_count_kv=[0, 3])
    assert gguf.kv_bytes_per_token(per_layer) == 3 * 16 * 2
    for hostile in (0, -1, "x", True, None, ["x"], [-1], [0, 0]):
        odd = facts(**base, attention__head_count_kv=hostile)
        assert gguf.kv_bytes_per_token(odd) is None
    assert gguf.kv_bytes_per_token({}) is None
    assert gguf.context_length(facts(context_length="x")) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [(0, "F32"), (15, "Q4_K_M"), (1024 + 7, "Q8_0"), (32, "BF16"), (999, None), ("x", None)],
)
def test_precision(kind, name):
    assert gguf.precision({"general.file_type": kind}) == name


def survives(path: Path) -> None:
    try:
        header = gguf.read_header(path)
        gguf.kv_bytes_per_token(header)
        gguf.context_length(header)
        gguf.precision(header)
        gguf.check_complete(header)
    except gguf.GGUFError as error:
        assert len(str(error)) < 300


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.booleans())
@example(b"\x03\0\0\0" + bytes(200), True)
def test_random_bytes(tmp_path, data, magic):
    path = tmp_path / "random.gguf"
    path.write_bytes((b"GGUF" if magic else b"") + data)
    survives(path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, HEAD), st.binary(min_size=1, max_size=8)), min_size=1),
    st.booleans(),
)
def test_a_mutated_real_header(tmp_path, beginning, changes, at_the_end):
    data = bytearray(beginning)
    for place, new in changes:
        # The keys stand at the beginning; the tensor list just before the tensors' data.
        start = place + (1_785_600 - HEAD if at_the_end else 4)
        data[start : start + len(new)] = new
    path = tmp_path / "mutated.gguf"
    path.write_bytes(data)
    survives(path)


def test_it_runs_in_a_bare_python(real, tmp_path):
    """Alone, isolated and without site-packages, as in a worker's environment."""
    source = Path(gguf.__file__)
    ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 9))
    shutil.copy(source, tmp_path / "alone.py")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import alone; "
        f"print(alone.precision(alone.read_header({str(real)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "Q4_1"
