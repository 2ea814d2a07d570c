"""Images on llama.cpp: a projector beside the model, and what is none of it."""

from __future__ import annotations

import http.server
import shutil
import threading

import gguf as gguf_writer
import pytest

from nbinfer import (
    ConfigurationError,
    Conversation,
    GenerationParams,
    ImagePart,
    LlamaCppInferenceEngine,
    LoadError,
    Message,
    ModelParams,
    TextPart,
    models,
)
from nbinfer.guide import materials, pictures

from .conftest import GREEDY, installed

pytestmark = pytest.mark.needs("native")  # which builds the material
OTHER = pytest.param("llama-cpp-python", marks=pytest.mark.needs("llama-cpp-python"))
SHORT = GenerationParams(max_new_tokens=8)


@pytest.fixture(autouse=True)
def _shared(_end):
    """These tests share the session's residents and end with it."""


@pytest.fixture(scope="module")
def mmproj():
    installed("native")
    return materials.get("vision") / "mmproj.gguf"


@pytest.fixture(scope="module", params=["xllamacpp", OTHER])
def engine(request, mmproj, _end):
    """Each binding with the projector, loaded once."""
    if request.param != "xllamacpp":
        installed(request.param)
    kwargs = {"n_ctx": 1024, "binding": request.param, "mmproj": str(mmproj)}
    with LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs)) as made:
        yield made


def asking(*sources, text="Which colour is this?"):
    parts = [*(ImagePart(source) for source in sources), TextPart(text)]
    return Conversation([Message("user", parts)])


@pytest.fixture
def address(tmp_path):
    """A server of this machine that has the picture."""
    handler = http.server.SimpleHTTPRequestHandler

    class Quiet(handler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_is_the_same_however_it_is_given(engine, tmp_path, address):
    stripes, disc = pictures.png("stripes"), pictures.png("disc")
    (tmp_path / "stripes.png").write_bytes(stripes)
    sources = (stripes, tmp_path / "stripes.png", f"{address}/stripes.png", disc)
    params = GenerationParams(max_new_tokens=1, logprobs=5)
    frame = engine.infer([asking(source) for source in sources], params, batch_size=1)
    assert frame["error"].isna().all(), frame["error"].tolist()
    first, *same, other = [
        {t["id"]: t["logprob"] for t in tokens[0]["top"]} for tokens in frame["logprobs"]
    ]
    for found in same:
        assert found == pytest.approx(first, abs=0.05)
    assert other.keys() != first.keys() or max(abs(other[t] - first[t]) for t in first) > 0.2
    # The image's tokens are the prompt's, also where two are in one.
    alone = engine.infer(asking(), params).loc[0]
    two = engine.infer(asking(stripes, disc), params).loc[0]
    each = frame["prompt_tokens"][0] - alone["prompt_tokens"]
    assert each >= 16
    assert two["prompt_tokens"] == pytest.approx(alone["prompt_tokens"] + 2 * each, abs=4)


def test_text_after_an_image_is_not_answered_from_it(engine):
    """Whatever the prefix cache holds of an image, a text prompt finds none of it."""
    first = engine.infer("Name a colour.", GREEDY)["output"][0]
    engine.infer(asking(pictures.png("disc"), text="Name a colour."), SHORT)
    assert engine.infer("Name a colour.", GREEDY)["output"][0] == first


def test_what_is_no_image_fails_its_row_alone(engine, address):
    broken = "data:image/png;base64,aGVsbG8="
    frame = engine.infer(
        [asking(broken), asking(f"{address}/none.png"), asking(pictures.png("disc"))], SHORT
    )
    assert frame["error"][0], frame
    assert "image" in frame["error"][0].lower()
    assert frame["finish_reason"].tolist() == ["error", "error", frame["finish_reason"][2]]
    assert frame["error"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize("binding", ["xllamacpp", OTHER])
def test_a_model_without_a_projector_says_what_it_lacks(binding):
    if binding != "xllamacpp":
        installed(binding)
    kwargs = {"n_ctx": 2048, "binding": binding}
    plain = LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs))
    frame = plain.infer([asking(pictures.png("disc")), asking()], SHORT)
    assert "mmproj" in frame["error"][0]
    assert frame["error"].isna()[1]


def test_the_projector_beside_the_model_is_taken(mmproj, tmp_path):
    path = tmp_path / "model.gguf"
    path.symlink_to(models.resolve("smollm2-135m").path)
    shutil.copy(mmproj, tmp_path / "mmproj-model.gguf")
    params = ModelParams(str(path), model_kwargs={"n_ctx": 512})
    with LlamaCppInferenceEngine(params) as engine:
        frame = engine.infer(asking(pictures.png("disc")), SHORT)
    assert frame["error"].isna().all()
    assert frame.attrs["nbinfer"]["engine_facts"]["mmproj"] == str(tmp_path / "mmproj-model.gguf")


def test_many_images_wait_for_cells_and_do_not_overflow(mmproj):
    """A cache of one context: each row's image is counted, and all rows are answered."""
    kwargs = {"n_ctx": 256, "kv_tokens": 256, "mmproj": str(mmproj)}
    with LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs)) as engine:
        frame = engine.infer([asking(pictures.png("disc")) for _ in range(6)], SHORT)
    assert frame["error"].isna().all(), frame["error"].tolist()
    assert frame["output"].nunique() == 1


def test_a_projector_of_another_model(mmproj, tmp_path):
    """Read, with one key changed: it projects onto a model that is wider."""
    reader = gguf_writer.GGUFReader(mmproj)
    path = tmp_path / "other.gguf"
    writer = gguf_writer.GGUFWriter(path, "clip")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        if kind is gguf_writer.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name in ("mm.2.weight", "mm.2.bias"):
            data = data[: len(data) // 2]
        writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params = ModelParams(model_kwargs={"n_ctx": 256, "mmproj": str(path)})
    with pytest.raises(LoadError, match=r"n_embd = 576|mmproj"):
        LlamaCppInferenceEngine(params).load()
    (tmp_path / "notes.gguf").write_text("hello")
    params = ModelParams(model_kwargs={"n_ctx": 256, "mmproj": str(tmp_path / "notes.gguf")})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        LlamaCppInferenceEngine(params).load()
