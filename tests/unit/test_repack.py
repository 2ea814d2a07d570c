"""Which weights llama.cpp holds beside their file."""

from __future__ import annotations

import platform
import sys

import pytest

from nbinfer import gguf
from nbinfer.repack import beside_file

WIDE = (256, 64)


def size(kind, sizes=WIDE):
    elements, block = gguf.block(kind)
    return sizes[0] * sizes[1] // elements * block


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def file(kind, *, head=True, embedded="F16"):
    found = [("token_embd.weight", WIDE, embedded), ("blk.0.attn_norm.weight", (256,), "F32")]
    found += [(f"blk.{layer}.ffn_up.weight", WIDE, kind) for layer in range(8)]
    return found + [("output.weight", WIDE, "F16")] * head


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "IQ4_NL"])
def test_a_file_that_would_be_there_twice_is_read_and_not_mapped(kind):
    assert beside_file(file(kind)) == (False, 0)
    assert beside_file(file(kind), mapped=True) == (True, 8 * size(kind))


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize("kind", ["Q4_1", "Q5_K", "Q6_K", "Q8_0", "F16", None])
def test_what_is_multiplied_as_it_is_stays_mapped(kind):
    assert beside_file(file(kind)) == (True, 0)
    assert beside_file(file(kind), mapped=False) == (False, 0)


@pytest.mark.usefixtures("x86")
def test_a_small_part_is_copied_beside_the_map():
    found = [*file("F16"), ("blk.8.ffn_up.weight", WIDE, "Q4_0")]
    assert beside_file(found) == (True, size("Q4_0"))


@pytest.mark.usefixtures("x86")
def test_embeddings_that_are_the_output_too_are_there_for_both():
    assert beside_file(file("Q4_0", head=False, embedded="Q4_0")) == (False, size("Q4_0"))
    assert beside_file(file("Q4_0", embedded="Q4_0")) == (False, 0)


@pytest.mark.usefixtures("x86")
def test_rows_that_are_no_eights_are_not_copied():
    found = [(name, (256, 60), kind) for name, _, kind in file("Q4_0")]
    assert beside_file(found) == (True, 0)


@pytest.mark.parametrize(
    ("system", "machine", "kinds"),
    [
        ("linux", "aarch64", {"Q4_0", "Q8_0", "Q6_K"}),
        ("win32", "AMD64", {"Q4_0"}),
        ("darwin", "arm64", set()),
        ("linux", "s390x", set()),
    ],
)
def test_it_is_the_cpus_affair(monkeypatch, system, machine, kinds):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for kind in ("Q4_0", "Q6_K", "Q8_0"):
        assert beside_file(file(kind), mapped=True)[1] == 8 * size(kind) * (kind in kinds)


def test_no_header_says_nothing():
    assert beside_file(()) == (True, 0)
