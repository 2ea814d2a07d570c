"""What test_native_caches.py has a native worker check, where Transformers is: cheap and exact.

Not covered: a cache on a GPU, a model whose layers are on several devices, a compiled model.
"""

from __future__ import annotations

import errno
import mmap
import random
import types

import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nbinfer.worker.backends import _growing
from nbinfer.worker.backends._growing import Growing, GrowingWindow


def _same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b)


def layers(seed):
    """Whatever comes in whatever steps: what Transformers' own layers give."""
    rng = random.Random(seed)
    rows, heads, width = rng.randint(1, 3), rng.randint(1, 2), rng.choice((1, 4))
    window, most = rng.randint(2, 12), rng.choice((0, 5, 40))
    sliding = rng.random() < 0.5
    own = GrowingWindow(window, most) if sliding else Growing(most)
    theirs = DynamicSlidingWindowLayer(window) if sliding else DynamicLayer()
    for _ in range(rng.randint(1, 12)):
        keys = torch.randn(rows, heads, rng.choice((1, 1, 1, 7)), width)
        new = keys, torch.randn_like(keys)
        assert own.get_mask_sizes(new[0].shape[2]) == theirs.get_mask_sizes(new[0].shape[2])
        _same(own.update(*new), theirs.update(*new))
        assert own.get_seq_length() == theirs.get_seq_length()
        if rng.random() < 0.2:  # what a beam search does
            chosen = torch.tensor([rng.randrange(rows) for _ in range(rows)])
            own.reorder_cache(chosen)
            theirs.reorder_cache(chosen)
        elif rng.random() < 0.2:
            rows = rng.randint(1, rows)
            own.batch_select_indices(torch.arange(rows))
            theirs.batch_select_indices(torch.arange(rows))
        elif not sliding and rng.random() < 0.2:
            own.crop(-1)
            theirs.crop(-1)


def fills(seed):
    """Rows of any length side by side, and tokens after them."""
    rng = random.Random(seed)
    lengths = [rng.randint(0, 6) for _ in range(rng.randint(1, 4))]
    width = max(lengths) + rng.randint(0, 2)
    rows = [[(torch.randn(2, n, 4), torch.randn(2, n, 3)) for _ in range(2)] for n in lengths]
    cache, mask = _growing.stacked(rows, width, width + rng.choice((0, 1, 9)))
    assert mask.sum(1).tolist() == lengths
    more = torch.randn(len(rows), 2, 3, 4), torch.randn(len(rows), 2, 3, 3)
    for number, layer in enumerate(cache.layers):
        found = layer.update(*more)
        for side, whole in enumerate(found):
            for row, length, pairs in zip(whole, lengths, rows, strict=True):
                assert not row[:, : width - length].any()
                assert torch.equal(row[:, width - length : width], pairs[number][side])
            assert torch.equal(whole[:, :, width:], more[side])


def windows(window=8, tokens=60, prompt=21):
    """``generate`` of a model with windows: chunks, shifts, more tokens than a buffer has."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    model = Gemma3ForCausalLM(config).eval()
    ids = torch.randint(3, 200, (3, prompt))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        prefill_chunk_size=5, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    cache = _growing.empty_like(config, prompt + tokens)
    kinds = [type(layer) for layer in cache.layers]
    assert kinds == [GrowingWindow, Growing] * 2
    found = [
        model.generate(ids, attention_mask=mask, generation_config=settings, cache=used)
        for used in (DynamicCache(config=config), cache)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    for one, other in zip(found[0].scores, found[1].scores, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert cache.layers[1].keys.shape[2] == prompt + tokens - 1


def check():
    """All of it."""
    ahead, own_pages = _growing.AHEAD, _growing.OWN_PAGES
    try:
        _growing.AHEAD = 3  # so that room ends often
        for _growing.OWN_PAGES in (1, 1 << 20):  # on pages of their own, and on the heap
            for seed in range(100):
                layers(seed)
                fills(seed)
            windows()
        _growing.mmap = types.SimpleNamespace(mmap=_no_pages, MAP_PRIVATE=0, MAP_ANONYMOUS=0)
        _growing.OWN_PAGES = 1
        layers(0)
    finally:
        _growing.AHEAD, _growing.OWN_PAGES, _growing.mmap = ahead, own_pages, mmap


def _no_pages(*_):
    raise OSError(errno.ENOMEM, "Cannot allocate memory")
