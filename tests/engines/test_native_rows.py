"""native's running batch: rows join it, begin from earlier prefixes, and are the same rows."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from nbinfer import GenerationParams, ModelParams, NativeTextInferenceEngine, gpu
from nbinfer.records import Progress

from ..conftest import Hears
from .conftest import GREEDY, installed
from .test_conformance import PROMPTS

pytestmark = pytest.mark.needs("native")
STORY = "Once there was a {}, and it lived in a town by the river with its friends. "


@pytest.fixture
def native(_end):
    installed("native")
    return NativeTextInferenceEngine(ModelParams(model_max_length=2048)).load()


def plain(engine, prompt, tokens=16):
    """What Transformers' own ``generate`` answers, with nothing of ours."""
    return eval(
        engine.execute(
            "from transformers import GenerationConfig\n"
            f"chat = [{{'role': 'user', 'content': {prompt!r}}}]\n"
            "ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, "
            "return_tensors='pt', return_dict=True)\n"
            "out = model.generate(**ids, generation_config=GenerationConfig("
            f"max_new_tokens={tokens}, do_sample=False, pad_token_id=2, eos_token_id=2))\n"
            "tokenizer.decode(out[0, ids['input_ids'].shape[1]:], skip_special_tokens=True)"
        )
    )


@pytest.fixture
def passes(native):
    """The shapes of the forward passes since the test began: a function that ends the count."""
    native.execute(
        "shapes = []\n"
        "h = model.register_forward_pre_hook(lambda m, a, n: shapes.append("
        "tuple(n['input_ids'].shape)), with_kwargs=True);"
    )
    ended = []

    def end():
        if not ended:
            ended.append(eval(native.execute("h.remove()\nshapes")))
        return ended[0]

    yield end
    end()


def test_a_long_prefix_is_read_once(native, passes):
    shared = STORY.format("heron") * 20
    first, second = (native.infer(shared + q, GREEDY).loc[0] for q in ("Who?", "Where was it?"))
    assert first["cached_tokens"] < 40 < 300 < second["cached_tokens"] < second["prompt_tokens"]
    assert second["ttft_s"] < first["ttft_s"]
    read = [columns for _, columns in passes() if columns > 1]
    assert max(read[1:]) < 40
    assert second["output"] == plain(native, shared + "Where was it?")


def test_rows_of_a_list_share_what_one_of_them_reads(native):
    shared = STORY.format("badger") * 20
    prompts = [f"{shared} Question {number}?" for number in range(4)]
    frame = native.infer(prompts, GREEDY)
    assert sorted(frame["cached_tokens"] > 300) == [False, True, True, True]
    assert frame["output"][2] == plain(native, prompts[2])


def test_a_conversation_goes_on_from_its_last_turn(native):
    turns = [{"role": "user", "content": STORY.format("lynx") * 5 + "Who lived there?"}]
    first = native.infer([turns], GenerationParams(max_new_tokens=24)).loc[0]
    turns += [
        {"role": "assistant", "content": first["output"]},
        {"role": "user", "content": "And where?"},
    ]
    second = native.infer([turns], GREEDY).loc[0]
    assert second["cached_tokens"] >= first["prompt_tokens"] + 8


def test_the_kept_prefixes_are_bounded_and_apart(native):
    code = (
        "from nbinfer.worker.backends._prefixes import Prefixes\n"
        "def kv(n): return [(torch.arange(n).float().view(1, n, 1),) * 2]\n"
        "kept = Prefixes(token_bytes=10, most_bytes=1000)\n"
        "kept.keep(None, list(range(60)), kv(60))\n"
        "kept.keep('a', list(range(30)), kv(30))\n"
        "found = [kept.longest(a, list(range(50)) + [7])[1] for a in (None, 'a', 'b')]\n"
        "kept.keep(None, list(range(100, 150)), kv(50))\n"  # the oldest makes room
        "after = [kept.longest(a, list(range(50)))[1] for a in (None, 'a')]\n"
        "kept.keep(None, list(range(500)), kv(500))\n"  # never fits
        "long = list(range(100, 170))\n"
        "kept.keep(None, long, kv(70))\n"  # goes on from a kept one, whose place it takes
        "[found, after, kept.bytes, kept.longest(None, long)[1]]"
    )
    found, after, kept, longest = eval(native.execute(code))
    assert found == [50, 30, 0]
    assert after[0] == 0 or after[1] == 0
    assert kept <= 1000
    assert longest == 69


def test_rows_of_two_runs_decode_in_one_pass(native, passes):
    stories = [f"Write a long story about {thing}." for thing in ("a ship", "a clock", "the sea")]
    params = GenerationParams(max_new_tokens=100)  # none of them ends before that
    frames, decoding = {}, threading.Event()

    def heard(record):
        if isinstance(record, Progress) and record.tokens > len(stories):
            decoding.set()

    long = threading.Thread(
        target=lambda: frames.update(long=native.infer(stories, params, progress=Hears(heard)))
    )
    long.start()
    assert decoding.wait(120)
    joined = native.infer("Write a long story about a fox.", GREEDY)
    was_running = long.is_alive()
    long.join()
    assert was_running, "the long run ended first: it proved nothing"
    assert frames["long"]["error"].isna().all()
    sizes = [rows for rows, columns in passes() if columns == 1]
    assert max(sizes) == len(stories) + 1
    assert any(later == earlier + 1 for earlier, later in itertools.pairwise(sizes))
    assert joined["output"][0] == plain(native, "Write a long story about a fox.")
    assert frames["long"]["output"][1] == plain(native, stories[1], 100)


def test_a_cancelled_run_leaves_the_others_alone(native):
    started = threading.Event()

    def abandon():
        stream = native.stream(PROMPTS[0], GenerationParams(max_new_tokens=1500))
        next(stream)
        started.set()
        time.sleep(0.5)
        stream.close()

    thread = threading.Thread(target=abandon)
    thread.start()
    started.wait()
    row = native.infer(PROMPTS[3], GenerationParams(max_new_tokens=40)).loc[0]
    thread.join()
    assert row["output"] == plain(native, PROMPTS[3], 40)


def test_static_batches_give_the_same_rows(native):
    frame = native.infer(PROMPTS, GREEDY)
    options = {"batching": "static"}
    with NativeTextInferenceEngine(ModelParams(model_kwargs=options)) as static:
        again = static.infer(PROMPTS, GREEDY)
        assert static.resident.report["batching"] == "static"
    assert native.resident.report["batching"] == "continuous"
    assert again["output"].tolist() == frame["output"].tolist()
    assert (again["cached_tokens"] == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"assistant_model": "smollm2-135m", "num_assistant_tokens": 5},
        {"prompt_lookup_num_tokens": 4},
    ],
    ids=["model", "prompt"],
)
def test_guessed_tokens_change_no_answer(native, options):
    """Greedy and sampled, it is the same row in fewer passes; a list and penalties go without."""
    prompt = "Repeat this: the fox and the hen, the fox and the hen, the fox and the hen."
    several = (
        GenerationParams(max_new_tokens=24),
        GenerationParams(max_new_tokens=24, temperature=0.7, seed=3),
        GenerationParams(max_new_tokens=24, repetition_penalty=1.2),
    )
    wanted = [native.infer(prompt, params)["output"][0] for params in several]
    engine = NativeTextInferenceEngine(ModelParams(model_max_length=2048, model_kwargs=options))
    with engine:
        count = "calls = []\nh = model.register_forward_pre_hook(lambda *_: calls.append(1));"
        engine.execute(count)
        row = engine.infer(prompt, several[0]).loc[0]
        used = int(engine.execute("h.remove()\nlen(calls)"))
        assert row["output"] == wanted[0]
        assert used < row["output_tokens"]
        for params, text in zip(several[1:], wanted[1:], strict=True):
            assert engine.infer(prompt, params)["output"][0] == text
        assert engine.infer([prompt, PROMPTS[1]], several[0])["output"][0] == wanted[0]
        stream = engine.stream(PROMPTS[0], GenerationParams(max_new_tokens=1500))
        next(stream)
        stream.close()
        assert engine.infer("Hi", GenerationParams(max_new_tokens=2))["error"].isna().all()


def test_layers_on_disk(native, tmp_path):
    """Some layers are read from disk whenever they compute; the answer is the same."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {f"model.layers.{n}": "disk" if n > 26 else "cpu" for n in range(30)}
    params = ModelParams(
        device_map={**places, "lm_head": "cpu"},
        model_kwargs={"offload_folder": str(tmp_path)},
    )
    with NativeTextInferenceEngine(params) as engine:
        assert engine.resident.report["devices"] == ["cpu", "disk"]
        assert engine.infer(PROMPTS[0], GREEDY)["output"][0] == plain(native, PROMPTS[0])


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.devices(), reason="no NVIDIA GPU here")
def test_layers_beside_a_gpu(native):
    """What does not fit on the GPU is on the CPU."""
    places = {"model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
    places |= {f"model.layers.{n}": "cpu" if n > 26 else 0 for n in range(30)}
    with NativeTextInferenceEngine(ModelParams(device_map=places)) as engine:
        assert "cuda:0" in engine.resident.report["devices"]
        assert engine.infer(PROMPTS[0], GREEDY)["output"][0].strip()
