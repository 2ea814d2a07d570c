"""Memory of models that are not here: from configs, headers on disk and headers on a hub."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

import nbinfer
from nbinfer import gguf, settings
from nbinfer.engines.vllm import OVERHEAD_BYTES, _overhead_bytes
from nbinfer.errors import (
    ConfigurationError,
    DownloadError,
    ModelNotFound,
    UnsupportedParameter,
)
from nbinfer.guide import memory_page, peaks
from nbinfer.guide.asking import ENGINES, tokens
from nbinfer.guide.costs import TOKEN, Job
from nbinfer.guide.estimates import estimate
from nbinfer.guide.kvcache import kv_bytes
from nbinfer.guide.quantization import GGUF_TYPES, gguf_type, weights_bytes
from nbinfer.guide.shapes import from_config
from nbinfer.guide.sources import describe, families
from nbinfer.guide.tensors import parameters, tensors

from .test_hub import server  # noqa: F401

DOCS = Path(__file__).parents[2] / "docs"
# Published GGUF files, in bytes with their metadata: ollama's llama3.1:8b, bartowski's
# Meta-Llama-3.1-8B-Instruct, ggml-org's gemma-3-1b-it.
GGUF_FILES = {
    ("meta-llama/Llama-3.1-8B", "Q4_K_M"): 4_920_738_944,
    ("meta-llama/Llama-3.1-8B", "Q8_0"): 8_540_775_840,
    ("meta-llama/Llama-3.1-8B", "Q6_K"): 6_596_011_424,
    ("meta-llama/Llama-3.1-8B", "Q5_K_M"): 5_732_992_416,
    ("google/gemma-3-1b-pt", "Q4_K_M"): 806_058_240,
}


@pytest.fixture
def embedded(tmp_path):
    """A GGUF of SmolLM2's shape, whose weights are a hole in the file."""
    entry = families()["HuggingFaceTB/SmolLM2-135M-Instruct"]
    shape = from_config(entry["config"], "x")
    every = tensors(shape)
    kinds = gguf_type(shape, every, "Q4_1")
    numbers = {gguf.type_name(n): n for n in range(64)}

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    sizes = {
        "block_count": 30, "context_length": 8192, "embedding_length": 576,
        "feed_forward_length": 1536, "attention.head_count": 9, "attention.head_count_kv": 3,
    }  # fmt: skip
    pairs = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    pairs += text("general.file_type") + struct.pack("<II", 4, 3)
    for key, value in sizes.items():
        pairs += text(f"llama.{key}") + struct.pack("<II", 4, value)
    infos, at = b"", 0
    for tensor in every:
        kind = kinds[tensor.name]
        elements, size = gguf.block(kind)
        infos += text(tensor.name) + struct.pack("<I", len(tensor.sizes))
        infos += struct.pack(f"<{len(tensor.sizes)}Q", *tensor.sizes)
        infos += struct.pack("<IQ", numbers[kind], at)
        at += -(-tensor.count // elements) * size
    path = tmp_path / "smollm2.gguf"
    with path.open("wb") as stream:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(every), 2 + len(sizes))
        stream.write(head + pairs + infos)
        stream.truncate(-(-(len(head + pairs + infos)) // 32) * 32 + at)
    return path


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "home"))


# ------------------------------------------------------------------- weights


@pytest.mark.parametrize("repo", [r for r, e in families().items() if "bytes" in e])
def test_weights_of_a_known_model_are_the_published_files(repo):
    entry, found = families()[repo], describe(repo)
    size = estimate(found, "vllm", found.precision, Job(1, 1)).weights
    if repo == "deepseek-ai/DeepSeek-V3":  # its files also hold a layer that predicts further
        shape = found.shape
        layer = [t for t in found.tensors if t.layer == shape.layers - 1]
        again = 2 * shape.hidden * shape.vocab + 2 * shape.hidden**2
        size += weights_bytes(shape, layer, "fp8") + 2 * again
    assert size == pytest.approx(entry["bytes"], rel=0.01)
    assert entry["source"].startswith("https://")
    assert entry["bytes_source"]


@pytest.mark.parametrize(("repo", "precision"), GGUF_FILES)
def test_weights_of_a_gguf_type_are_the_published_file(repo, precision):
    found = describe(repo)
    size = weights_bytes(found.shape, found.tensors, precision)
    assert size == pytest.approx(GGUF_FILES[repo, precision], rel=0.01)


# llama.cpp's tools/quantize/README.md: bits of a weight of meta-llama/Llama-3.1-8B. Its IQ4 files
# were made without an importance matrix, which costs them 0.7 %.
BITS = {
    "IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403,
    "IQ2_M": 2.9294, "IQ3_XXS": 3.2548, "IQ3_XS": 3.4977, "IQ3_S": 3.6606, "IQ3_M": 3.7628,
    "IQ4_XS": 4.4597, "IQ4_NL": 4.6818, "Q2_K_S": 2.9697, "Q2_K": 3.1593, "Q3_K_S": 3.6429,
    "Q3_K_L": 4.2979, "Q4_K_S": 4.6672, "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036,
    "Q6_K": 6.5633, "Q8_0": 8.5008, "F16": 16.0005,
}  # fmt: skip


@pytest.mark.parametrize("kind", BITS)
def test_bits_of_a_weight_are_llama_cpps_own(kind):
    found = describe("Llama-3.1-8B")
    bits = 8 * weights_bytes(found.shape, found.tensors, kind) / parameters(found.shape)
    assert bits == pytest.approx(BITS[kind], rel=0.01 if kind.startswith("IQ4") else 1e-4)


def test_bits_and_bytes_leave_embeddings_and_output_alone():
    found = describe("Llama-3.1-8B")
    apart = 2 * 128_256 * 4096
    inside = parameters(found.shape) - apart
    four = weights_bytes(found.shape, found.tensors, "4-bit")
    assert four == pytest.approx(2 * apart + inside * (0.5 + 4 / 64), rel=0.001)
    eight = weights_bytes(found.shape, found.tensors, "8-bit")
    assert eight == pytest.approx(2 * apart + inside, rel=0.001)


def test_experts_stay_in_16_bits_with_bitsandbytes():
    found = describe("Mixtral-8x7B-v0.1")
    experts = sum(t.count for t in found.tensors if "_exps" in t.name)
    assert weights_bytes(found.shape, found.tensors, "4-bit", "native") > 2 * experts
    awq = weights_bytes(found.shape, found.tensors, "4-bit", "vllm")
    assert awq == pytest.approx(0.52 * parameters(found.shape), rel=0.02)


# ------------------------------------------------------------------ the cache


def cache(name: str, engine: str, context: int, batch: int = 1, **options) -> int:
    return kv_bytes(describe(name).shape, engine, context, batch, 16, **options)


def test_grouped_queries_share_keys_and_values():
    assert cache("Llama-3.1-8B", "native", 1000) == 1000 * 2 * 2 * 8 * 128 * 32
    assert cache("Llama-2-7b-hf", "native", 1000) == 1000 * 2 * 2 * 32 * 128 * 32


def test_deepseek_keeps_one_small_vector():
    assert cache("DeepSeek-V3", "vllm", 1600, gpu=True) == (1600 + 16) * 2 * (512 + 64) * 61
    assert cache("DeepSeek-V3", "native", 1000) == 1000 * 2 * (512 + 64) * 61


def test_a_sliding_window_bounds_its_layers():
    token = 2 * 2 * 1 * 256  # of a layer
    assert cache("gemma-3-270m", "native", 4096) == token * (3 * 4096 + 15 * 1023)
    # llama.cpp: a window for each slot and a batch, and the slack of a batch in the others.
    assert cache("gemma-3-270m", "llamacpp", 4096, 2) == token * (
        3 * 8448 + 15 * (1280 + 2 * 2 * 512)  # two copies of each slot's window
    )
    # vLLM: a window and a step, in blocks of 16 and one more.
    blocks = 511 + 8192
    assert cache("gemma-3-270m", "vllm", 32_768, gpu=True) == token * (
        3 * (32_768 + 16) + 15 * (-(-blocks // 16) * 16 + 16 + 16)
    )
    assert cache("Mistral-7B-v0.1", "native", 32_768) == 4607 * 2 * 2 * 8 * 128 * 32
    # Qwen's configs carry a window that is switched off.
    config = {**families()["Qwen/Qwen2.5-7B"]["config"], "sliding_window": 4096}
    assert from_config(config, "x").windowed == 0


def test_tensor_parallelism_divides_heads_and_repeats_what_cannot_be():
    whole = cache("Llama-3.1-70B", "vllm", 4096, gpu=True)
    assert cache("Llama-3.1-70B", "vllm", 4096, gpu=True, parallel=8) * 8 == whole
    assert cache("Llama-3.1-70B", "vllm", 4096, gpu=True, parallel=16) * 8 == whole
    alone = cache("DeepSeek-V3", "vllm", 4096, gpu=True)
    assert cache("DeepSeek-V3", "vllm", 4096, gpu=True, parallel=8) == alone


def test_a_cache_of_fewer_bits():
    def of(kind):
        frame = nbinfer.memory("Llama-3.1-8B", precisions="Q4_K_M", kv_dtype=kind)
        return frame["kv_cache_bytes"][0]

    assert of("q8_0") == of("f16") * 8.5 / 16
    assert of("q4_0") == of("f16") * 4.5 / 16


# ------------------------------------------------------------------ the table


def test_the_table():
    frame = nbinfer.memory("Qwen/Qwen3-8B", context="8k", batch=4, device="24GB")
    assert list(frame)[:9] == [
        "engine", "precision", "weights_bytes", "kv_cache_bytes", "activations_bytes",
        "overhead_bytes", "total_bytes", "fits", "measured_peak_bytes",
    ]  # fmt: skip
    assert set(frame["engine"]) == set(ENGINES)
    assert {"bf16", "fp16", "fp8", "8-bit", "4-bit", *GGUF_TYPES} == set(frame["precision"])
    parts = frame[["weights_bytes", "kv_cache_bytes", "activations_bytes", "overhead_bytes"]]
    assert (parts.sum(axis=1) == frame["total_bytes"]).all()
    assert (frame["fits"] == (frame["total_bytes"] <= 24_000_000_000)).all()
    assert frame["measured_peak_bytes"].isna().all()
    facts = frame.attrs["nbinfer"]
    assert (facts["context"], facts["batch"], facts["parameters"]) == (8192, 4, 8_190_735_360)
    json.dumps(facts)


def test_the_largest_context_and_batch_are_the_last_that_fit():
    row = nbinfer.memory(
        "Llama-3.1-8B", engines="vllm", precisions="bf16", context="8k", device="24GB"
    ).iloc[0]

    def fits(context, batch):
        made = nbinfer.memory(
            "Llama-3.1-8B", engines="vllm", precisions="bf16",
            context=context, batch=batch, device="24GB",
        )  # fmt: skip
        return made["fits"][0]

    longest, most = int(row["largest_context"]), int(row["largest_batch"])
    assert fits(longest, 1)
    assert not fits(longest + 1, 1)
    assert fits("8k", most)
    assert not fits("8k", most + 1)


def test_what_does_not_fit_has_no_largest():
    frame = nbinfer.memory("Llama-3.1-70B", engines="vllm", precisions="bf16", device="40GB")
    assert not frame["fits"][0]
    assert frame[["largest_context", "largest_batch"]].isna().all(axis=None)


def test_devices_share_a_model():
    def total(count):
        frame = nbinfer.memory(
            "Llama-3.1-70B", engines="vllm", precisions="bf16",
            tensor_parallel_size=count, device="80GB",
        )  # fmt: skip
        return frame["weights_bytes"][0], bool(frame["fits"][0])

    alone, fits_alone = total(1)
    each, fits_together = total(4)
    assert each == pytest.approx(alone / 4, rel=0.001)
    assert (fits_alone, fits_together) == (False, True)


def test_an_instruct_model_is_its_base():
    names = ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B", "LLAMA-3.1-8b")
    frames = [nbinfer.memory(n, engines="vllm", precisions="bf16") for n in names]
    assert len({int(f["total_bytes"][0]) for f in frames}) == 1


@pytest.mark.parametrize(
    ("text", "count"), [(8192, 8192), ("8192", 8192), ("8k", 8192), ("1.5K", 1536), ("1M", 2**20)]
)
def test_numbers_of_tokens(text, count):
    assert tokens(text) == count


# --------------------------------------------------------- files and their headers


def write_model(folder: Path, config: dict, kind: str = "BF16") -> None:
    """A folder whose headers are whole and whose weights are a hole in the file."""
    shape = from_config(config, "x")
    width, at, header = {"BF16": 2, "F32": 4}[kind], 0, {}
    for tensor in tensors(shape):
        size = width * tensor.count
        name = tensor.name.replace("blk.", "model.layers.").replace("token_embd", "embed_tokens")
        header[name.replace("output.weight", "lm_head.weight")] = {
            "dtype": kind,
            "shape": list(reversed(tensor.sizes)),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + at)


SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 2048,
}  # fmt: skip


def test_a_folder_is_read_by_its_headers(tmp_path):
    write_model(tmp_path / "m", SMALL, "F32")
    found = describe(str(tmp_path / "m"))
    count = parameters(from_config(SMALL, "x"))
    assert (found.form, found.precision, found.own_bytes) == ("safetensors", "fp32", 4 * count)
    frame = nbinfer.memory(str(tmp_path / "m"), engines="native")
    weights = dict(zip(frame["precision"], frame["weights_bytes"], strict=True))
    assert weights["bf16"] == 2 * count
    assert weights["fp32"] == 4 * count


def test_vllm_has_room_for_its_processes_by_the_vocabulary(tmp_path):
    def beside(config):
        write_model(tmp_path / "m", config, "F32")
        return _overhead_bytes(SimpleNamespace(path=tmp_path / "m"))

    tied = {**SMALL, "tie_word_embeddings": True}
    more = {**tied, "vocab_size": SMALL["vocab_size"] + 1000}
    assert beside(more) - beside(tied) == 1000 * (TOKEN["vllm"] + 4 * SMALL["hidden_size"])
    assert beside(tied) - beside(SMALL) == 4 * SMALL["vocab_size"] * SMALL["hidden_size"]
    (tmp_path / "m" / "config.json").unlink()
    assert _overhead_bytes(SimpleNamespace(path=tmp_path / "m")) == OVERHEAD_BYTES


def test_an_architecture_that_is_not_known_is_read_by_its_headers(tmp_path):
    write_model(tmp_path / "m", SMALL)
    config = {**SMALL, "model_type": "brand_new"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    found = describe(str(tmp_path / "m"))
    assert found.own_bytes == 2 * parameters(from_config(SMALL, "x"))
    # Its tensors have the usual names, so GGUF's types can be told as well.
    usual = weights_bytes(from_config(SMALL, "x"), tensors(from_config(SMALL, "x")), "Q8_0")
    assert weights_bytes(found.shape, found.tensors, "Q8_0") == usual


def test_an_architecture_that_is_not_known_without_files(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**SMALL, "model_type": "brand_new"}))
    with pytest.raises(ConfigurationError, match="brand_new"):
        nbinfer.memory(str(folder))


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_config_that_lacks_a_size(tmp_path, field):
    write_model(tmp_path / "m", SMALL)
    config = {k: v for k, v in SMALL.items() if k != field}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=field):
        nbinfer.memory(str(tmp_path / "m"))


@pytest.mark.parametrize("value", [0, -1, 3.5, "64", 10**12, True])
def test_a_config_with_an_impossible_size(tmp_path, value):
    write_model(tmp_path / "m", SMALL)
    (tmp_path / "m" / "config.json").write_text(json.dumps({**SMALL, "hidden_size": value}))
    with pytest.raises(ConfigurationError, match="hidden_size"):
        nbinfer.memory(str(tmp_path / "m"))


def test_a_config_that_leaves_its_class_to_fill_in_sizes():
    """As google/gemma-3-4b-it's does."""
    whole = families()["google/gemma-3-4b-pt"]["config"]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window")
    text = {key: whole["text_config"][key] for key in kept}
    short = from_config({**whole, "text_config": {"model_type": "gemma3_text", **text}}, "x")
    assert parameters(short) == parameters(from_config(whole, "x"))
    assert (short.windowed, short.context) == (29, 131_072)


def test_a_model_in_parts_is_read_whole(tmp_path, embedded):
    content = embedded.read_bytes()
    for name in ("other.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(content)
    alone = describe(str(tmp_path / "other.gguf"))
    parts = describe(str(tmp_path / "big-00001-of-00002.gguf"))
    assert parts.own_bytes == 2 * alone.own_bytes


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelNotFound, match="no weights") as caught:
        nbinfer.memory(str(tmp_path))
    assert "config.json" in str(caught.value)


def test_a_model_that_is_stored_in_fp8(tmp_path):
    config = {**SMALL, "quantization_config": {"quant_method": "fp8"}}
    write_model(tmp_path / "m", config)
    found = describe(str(tmp_path / "m"))
    assert found.precision == "fp8"
    frame = nbinfer.memory(str(tmp_path / "m"), engines="vllm", precisions="fp8")
    assert frame["weights_bytes"][0] == found.own_bytes


def test_a_config_that_is_no_json(tmp_path):
    write_model(tmp_path / "m", SMALL)
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        nbinfer.memory(str(tmp_path / "m"))


def test_a_model_that_is_stored_quantized(tmp_path):
    config = {**SMALL, "quantization_config": {"quant_method": "awq", "bits": 4}}
    write_model(tmp_path / "m", config)
    with pytest.raises(ModelNotFound, match="awq"):
        nbinfer.memory(str(tmp_path / "m"), engines="vllm")


def test_a_gguf_is_read_by_its_header(embedded):
    frame = nbinfer.memory(str(embedded))
    by = {(r.engine, r.precision): r for r in frame.itertuples()}
    assert set(frame["engine"]) == {"llamacpp", "native"}  # vllm loads no GGUF
    assert by["llamacpp", "Q4_1"].weights_bytes == gguf.tensor_bytes(gguf.read_header(embedded))
    assert by["native", "fp32"].weights_bytes == 4 * 134_515_008
    with pytest.raises(ModelNotFound, match="GGUF"):
        nbinfer.memory(str(embedded), engines="vllm")


def test_a_gguf_that_is_cut_short(tmp_path, embedded):
    part = tmp_path / "part.gguf"
    part.write_bytes(embedded.read_bytes()[:1000])
    with pytest.raises(ModelNotFound, match="ends in the middle"):
        nbinfer.memory(str(part))


# -------------------------------------------------------------------- the hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_hub_model_is_read_by_ranges(server, tmp_path):  # noqa: F811
    big = {**SMALL, "vocab_size": 50_000}
    write_model(tmp_path / "m", big)
    server.repos["org/small"] = files_of(tmp_path / "m")
    frame = nbinfer.memory("org/small", engines="native", precisions="bf16")
    assert frame["weights_bytes"][0] == 2 * parameters(from_config(big, "x"))
    # The header alone: no range went over the weights, and no file was fetched whole.
    assert {file for file, *_ in server.ranges} == {"model.safetensors"}
    assert max(end for *_, end in server.ranges) <= 100_001
    whole = [a for a in server.asked if a.startswith("GET org/small") and "config" not in a]
    assert len(whole) == len(server.ranges)


def test_a_gguf_on_the_hub_is_read_by_ranges(server, embedded):  # noqa: F811
    content = embedded.read_bytes()
    server.repos["org/small-GGUF"] = {"small-Q4_1.gguf": content}
    frame = nbinfer.memory("org/small-GGUF:Q4_1", engines="llamacpp")
    assert frame["weights_bytes"][0] == gguf.tensor_bytes(gguf.read_header(embedded))
    assert sum(end - begin for _, begin, end in server.ranges) < len(content) / 10


def test_a_gated_model(server, tmp_path):  # noqa: F811
    write_model(tmp_path / "m", SMALL)
    server.repos["org/gated"] = files_of(tmp_path / "m")
    server.gated.add("org/gated")
    with pytest.raises(DownloadError, match="gated"):
        nbinfer.memory("org/gated")


def test_an_unknown_model(server):  # noqa: F811
    with pytest.raises(ModelNotFound, match="no such model"):
        nbinfer.memory("org/nothing")
    with pytest.raises(ModelNotFound, match="no model"):
        nbinfer.memory("nothing-at-all")


def test_an_unknown_model_without_a_network(monkeypatch):
    import huggingface_hub.constants  # noqa: F401  # it keeps what it reads on import

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE") as caught:
        nbinfer.memory("Qwen/Qwen3-8B-Nothing")
    assert "Qwen/Qwen3-8B" in str(caught.value)


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "7B"}, "is a size and no model"),
        ({"model": ""}, "no model"),
        ({"context": 0}, "no number of tokens"),
        ({"context": -8}, "no number of tokens"),
        ({"context": "8 apples"}, "no number of tokens"),
        ({"context": "40GB"}, "no number of tokens"),
        ({"context": 1.5}, "no number of tokens"),
        ({"context": True}, "no number of tokens"),
        ({"context": "1M"}, "was made for 131,072"),
        ({"batch": 0}, "batch must be"),
        ({"batch": "many"}, "batch must be"),
        ({"tensor_parallel_size": 3}, "32 attention heads"),
        ({"device": "big"}, "no size"),
        ({"device": "0GB"}, "holds nothing"),
        ({"kv_dtype": "q3_k"}, "no KV cache"),
        ({"precisions": "Q4_K_X"}, "no precision"),
        ({"precisions": []}, "empty list"),
        ({"engines": "vlm"}, "did you mean 'vllm'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    options = {"model": "Llama-3.1-8B", **options}
    with pytest.raises((ConfigurationError, ModelNotFound)) as caught:
        nbinfer.memory(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "able"),
    [
        ({"engines": "llamacpp", "precisions": "fp8"}, ("vllm",)),
        ({"engines": "vllm", "precisions": "Q4_K_M"}, ("llamacpp",)),
        ({"engines": "native", "precisions": "fp8"}, ("vllm",)),
        ({"engines": "llamacpp", "tensor_parallel_size": 2}, ("vllm", "native")),
        ({"engines": "sglang"}, ("vllm", "native", "llamacpp")),
    ],
)
def test_what_an_engine_cannot_names_those_that_can(options, able):
    with pytest.raises(UnsupportedParameter) as caught:
        nbinfer.memory("Llama-3.1-8B", **options)
    assert caught.value.engines == able


# --------------------------------------------------------------- measured peaks


def facts(peak: int, **more) -> dict:
    return {
        "engine": "vllm", "model": "Llama-3.1-8B", "peak_memory_bytes": peak,
        "model_facts": {"precision": "bfloat16"}, **more,
    }  # fmt: skip


def test_the_highest_peak_is_kept_and_shown():
    for peak in (100, 300, 200):
        peaks.remember(facts(peak))
    peaks.remember(facts(999, engine="native"))
    frame = nbinfer.memory("Llama-3.1-8B", engines="vllm", precisions=["bf16", "fp8"])
    assert frame["measured_peak_bytes"].tolist()[0] == 300
    assert frame["measured_peak_bytes"].isna().tolist() == [False, True]


def test_peaks_that_cannot_be_kept_cost_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "file"))
    peaks.remember(facts(100))
    assert peaks.measured("vllm", "Llama-3.1-8B", "bf16") is None
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    settings.home().joinpath("peaks.json").write_text('{"vllm Llama-3.1-8B bf16": "x"}')
    assert peaks.measured("vllm", "Llama-3.1-8B", "bf16") is None


# ------------------------------------------------------------------- the page


def test_the_page_is_what_the_code_makes():
    assert (DOCS / "memory.md").read_text(encoding="utf-8") == memory_page.memory_page()


# ---------------------------------------------------------------- the picture


def test_it_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    asked = {"engines": ["vllm", "native"], "precisions": ["bf16", "4-bit"], "device": "24GB"}
    frame = nbinfer.memory("Llama-3.1-8B", **asked)
    (axes,) = frame.infer.plot().axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        *("vllm · bf16", "vllm · 4-bit", "native · bf16", "native · 4-bit"),
    ]
    # Each bar's parts end where its total is, and the dashed line is the device's room.
    ends = [max(b.get_x() + b.get_width() for b in axes.patches[row::4]) for row in range(4)]
    assert ends == pytest.approx([total / 1e9 for total in frame["total_bytes"]])
    rooms = [line.get_xdata()[0] for line in axes.lines]
    assert rooms == [24.0] * 4
    peaks.remember({"engine": "vllm", "model": "Llama-3.1-8B", "peak_memory_bytes": 17 * 10**9,
                    "model_facts": {"precision": "bf16"}})  # fmt: skip
    (axes,) = nbinfer.memory("Llama-3.1-8B", **asked).infer.plot().axes
    assert axes.lines[-1].get_xdata()[0] == 17.0
    own = nbinfer.memory("Llama-3.1-8B", engines="vllm", tensor_parallel_size=2)
    assert own.infer.plot().axes[0].get_xlabel().endswith("each device")


# ---------------------------------------------------------------- the commands


def test_the_magic_and_the_command_line(shell, capsys):
    from nbinfer.cli import main

    frame = shell.cell("%memory Llama-3.1-8B -e vllm -p bf16,fp8 -c 8k -b 2 --device 24GB").value
    assert frame["precision"].tolist() == ["bf16", "fp8"]
    assert main(["memory", "Llama-3.1-8B", "-e", "vllm", "-p", "fp8", "--device", "24GB"]) == 0
    assert "fp8" in capsys.readouterr().out
    assert main(["memory", "7B"]) == 1
    assert "is a size and no model" in capsys.readouterr().err
