"""The feature table: what is said of an engine that is proven, not probed, not there."""

from __future__ import annotations

import json
import struct
import zlib

import pandas as pd
import pytest

import nbinfer
from nbinfer import ConfigurationError, environments, settings
from nbinfer.guide import features as table
from nbinfer.guide import materials, pages, pictures, probing, proofs, reasons
from nbinfer.guide.probes import PROBES, Probe
from nbinfer.guide.showing import Unproven, need


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    settings.reset()
    return tmp_path


def state(feature="streaming", engine="llamacpp"):
    (cell,) = table.cells(feature, [engine])
    return cell


def test_the_table_is_the_guides_and_more():
    frame = nbinfer.features()
    assert list(frame.columns) == ["feature", *table.ENGINES]
    assert frame["feature"].tolist()[:3] == [
        "Continuous batching",
        "Tensor parallelism",
        "LoRA adapters",
    ]
    assert len(frame) == len(table.FEATURES)
    assert "proven here" in frame.attrs["nbinfer"]["table"]
    assert json.loads(json.dumps(frame.attrs)) == frame.attrs


def test_every_cell_has_a_probe_or_a_reason_with_its_source():
    for feature in table.FEATURES:
        for engine in table.ENGINES:
            reason = reasons.REASONS.get((feature, engine))
            assert feature in PROBES or reason is not None, (feature, engine)
            if reason is not None:
                assert reason.text and reason.source
                assert reason.state in table.STATES


def test_a_proof_is_of_a_version(monkeypatch):
    assert state().state == "not probed"
    proofs.keep("llamacpp", "streaming", "proven", "12 pieces", 1.25)
    cell = state()
    assert (cell.state, cell.detail) == ("proven", "12 pieces")
    assert cell.version.startswith("xllamacpp ")
    assert len(cell.date) == 10
    monkeypatch.setattr(proofs, "installed_version", lambda _: "xllamacpp 9999")
    later = state()
    assert later.state == "not probed"
    assert later.detail.startswith("proven with xllamacpp ")


def test_what_is_not_installed_says_how():
    assert environments.find("sglang") is None  # an empty home
    cell = state("streaming", "sglang")
    assert (cell.state, cell.detail) == ("not installed", "%engine install sglang")
    assert state("streaming", "remote-vllm").detail == "%engine install vllm"


def test_details_have_a_row_for_each_cell():
    frame = nbinfer.features(details=True, engines=["llamacpp"], only=["streaming", "embeddings"])
    assert frame["state"].tolist() == ["not probed", "unsupported"]
    assert frame["source"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engines": ["lamacpp"]}, "llamacpp"),
        ({"only": ["visoin"]}, "vision"),
        ({"engines": []}, "no engine is named"),
    ],
)
def test_unknown_names(asked, said):
    with pytest.raises(ConfigurationError) as caught:
        nbinfer.features(**asked)
    assert said in f"{caught.value} {caught.value.hint}"


def test_damaged_and_foreign_files_prove_nothing(home):
    (home / "features.json").write_text("{not json")
    assert state().state == "not probed"
    (home / "features.json").write_text('{"llamacpp": {"streaming": {"state": "proven"}}}')
    assert state().state == "not probed"
    proofs.keep("llamacpp", "logprobs", "failed", "why", 0.1)
    assert state("logprobs").state == "failed"


def test_a_probe_that_sees_otherwise_fails_the_cell_and_not_the_rest(monkeypatch):
    def sees_otherwise(_):
        need(False, "it saw otherwise")

    def refuses(_):
        raise ConfigurationError("it cannot")

    probes = {
        "streaming": Probe(lambda _: "seen"),
        "logprobs": Probe(sees_otherwise),
        "seeds": Probe(refuses),
    }
    monkeypatch.setattr(probing, "PROBES", probes)
    frame = nbinfer.features(probe=True, engines=["llamacpp"], details=True, progress=False)
    found = frame.set_index("feature")
    assert found.loc["streaming", "state"] == "proven"
    assert found.loc["logprobs", ["state", "detail"]].tolist() == ["failed", "it saw otherwise"]
    assert "it cannot" in found.loc["seeds", "detail"]
    assert found.loc["vision", "state"] == "not probed"


def test_an_engine_that_is_not_there_is_passed_over(monkeypatch, capsys):
    def never(_):
        raise AssertionError("nothing can be probed")

    monkeypatch.setattr(probing, "PROBES", {"streaming": Probe(never)})
    frame = nbinfer.features(probe=True, engines=["sglang"], only=["streaming"], details=True)
    assert frame["state"].tolist() == ["not installed"]


def test_need():
    need(1, "no")
    with pytest.raises(Unproven, match="no"):
        need([], "no")


def test_the_page_escapes_what_a_model_said(home):
    proofs.keep("llamacpp", "streaming", "proven", "<b>|*x*", 1)
    page = pages.features_page()
    assert "<b>" not in page
    assert "\\<b\\>\\|\\*x\\*" in page
    assert page.count("\n## ") == len(table.FEATURES)


def test_pictures_are_png():
    made = pictures.png("stripes", 8)
    assert made.startswith(b"\x89PNG\r\n\x1a\n")
    place, kinds = 8, []
    while place < len(made):
        (size,) = struct.unpack(">I", made[place : place + 4])
        kind, data = made[place + 4 : place + 8], made[place + 8 : place + 8 + size]
        (crc,) = struct.unpack(">I", made[place + 8 + size : place + 12 + size])
        assert crc == zlib.crc32(kind + data)
        kinds.append(kind)
        if kind == b"IDAT":
            assert len(zlib.decompress(data)) == 8 * (1 + 3 * 8)
        place += 12 + size
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    assert pictures.png("disc") != pictures.png("stripes")


def test_a_material_needs_native_and_a_name():
    with pytest.raises(ConfigurationError, match="no material 'x'"):
        materials.get("x")


def test_frames_are_text():
    frame = nbinfer.features(details=True)
    assert isinstance(frame["state"].dtype, pd.StringDtype)
