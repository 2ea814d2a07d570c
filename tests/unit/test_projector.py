"""The projector beside a model: which file is taken, and which is not."""

from __future__ import annotations

import gguf as gguf_writer
import pytest

from nbinfer import ConfigurationError, ModelNotFound, hub, projector

HEADER = {"general.architecture": "llama", "llama.embedding_length": 576}


def write(path, width=576, architecture="clip", image=336, patch=14):
    """A projector's header, without a tensor."""
    writer = gguf_writer.GGUFWriter(path, architecture)
    writer.add_uint32("clip.vision.projection_dim", width)
    writer.add_uint32("clip.vision.image_size", image)
    writer.add_uint32("clip.vision.patch_size", patch)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def find(folder, given=None, model="model-Q4_K_M.gguf", header=None):
    (folder / model).touch()
    return projector.find(given, folder / model, header or HEADER)


def test_the_one_beside_the_model_is_found(tmp_path):
    assert find(tmp_path) is None
    path = write(tmp_path / "mmproj-model-F32.gguf")
    assert find(tmp_path).path == path
    better = write(tmp_path / "mmproj-model-f16.gguf")
    found = find(tmp_path)
    assert found.path == better
    assert found.image_tokens == 24 * 24 + 1
    assert found.size_bytes == better.stat().st_size
    assert find(tmp_path, False) is None
    assert find(tmp_path, True).path == better
    # Other quantizations of the same model do not make it another's.
    (tmp_path / "model-Q8_0.gguf").touch()
    assert find(tmp_path).path == better


def test_one_of_another_model_is_not_taken(tmp_path):
    write(tmp_path / "mmproj-F16.gguf", width=4096)
    assert find(tmp_path) is None
    with pytest.raises(ModelNotFound, match="that fits"):
        find(tmp_path, True)
    write(tmp_path / "mmproj-F16.gguf")
    (tmp_path / "another-Q4_0.gguf").touch()
    assert find(tmp_path) is None  # of which of the two?
    own = write(tmp_path / "mmproj-Model-F16.gguf")
    assert find(tmp_path).path == own


def test_a_path_is_taken_as_it_is_or_refused(tmp_path):
    path = write(tmp_path / "any.gguf", image=0)
    assert find(tmp_path, str(path)).image_tokens == 1024  # unknown: as many as is usual
    with pytest.raises(ModelNotFound, match=r"no projector at .*none\.gguf"):
        find(tmp_path, str(tmp_path / "none.gguf"))
    with pytest.raises(ConfigurationError, match="is no projector: it is 'llama'"):
        find(tmp_path, str(write(tmp_path / "llm.gguf", architecture="llama")))
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        find(tmp_path, str(tmp_path / "text.gguf"))


def test_of_a_repository_it_comes_with_the_model_to_llamacpp_alone():
    files = {
        "q/m-Q4_K_M.gguf": 1,
        "q/mmproj-BF16.gguf": 1,
        "q/mmproj-F16.gguf": 1,
        "mmproj.gguf": 1,
    }
    assert hub._projector(files, "q/m-Q4_K_M.gguf", "llamacpp") == ["q/mmproj-F16.gguf"]
    assert hub._projector(files, "q/m-Q4_K_M.gguf", "native") == []
    assert hub._projector({"m.gguf": 1}, "m.gguf", "llamacpp") == []
