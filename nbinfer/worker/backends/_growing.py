"""Caches whose keys and values lie in buffers with room: a token is written into its place.

Transformers' own layers concatenate (``cache_utils.DynamicLayer.update``): each pass copies all
keys and values before it, and leaves holes on the heap that the next, one token longer, cannot use.
"""

from __future__ import annotations

import math
import mmap
import os

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nbinfer.worker.backends._prefixes import length

AHEAD = 512  # tokens of room at most that are made before they are needed
OWN_PAGES = 1 << 20  # bytes from which a buffer is not on the heap


class _Buffer:
    """One tensor ``[rows, heads, room, width]``, and views of the tokens in use."""

    def __init__(self):
        self._whole = None

    def emptied(self, like, tokens, most):
        """Room for so many tokens of tensors like this one: the view of none."""
        self._whole = _unused(like, (*like.shape[:-2], _room(tokens, most), like.shape[-1]))
        return self._whole[..., :0, :]

    def filled(self, parts, tokens, most):
        """Rows ``[heads, at most tokens, width]``, padded on the left: the view of them."""
        heads, _, width = parts[0].shape
        self._whole = _unused(parts[0], (len(parts), heads, _room(tokens, most), width))
        for row, part in zip(self._whole, parts, strict=True):
            row[:, : tokens - part.shape[1]] = 0
            row[:, tokens - part.shape[1] : tokens] = part
        return self._whole[:, :, :tokens]

    def appended(self, held, new, most):
        """The view of ``held``, and ``new`` after it, copied only where there is no room."""
        old = held.shape[-2]
        count, start = old + new.shape[-2], self._place(held, new)
        if start is None or count > self._whole.shape[-2]:
            self.emptied(new, count, most)
            if old:
                self._whole[..., :old, :] = held
            start = 0
        elif start + count > self._whole.shape[-2]:  # the tokens before them left the window
            self._whole[..., :old, :] = held.clone()
            start = 0
        self._whole[..., start + old : start + count, :] = new
        return self._whole[..., start : start + count, :]

    def _place(self, held, new):
        """Where a view begins, ``None`` for what is elsewhere: rows were chosen, say."""
        whole = self._whole
        if whole is None or held.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return None
        if any(
            part.shape[:-2] != whole.shape[:-2] or part.shape[-1] != whole.shape[-1]
            for part in (held, new)
        ):
            return None
        if held.stride() != whole.stride() or (new.dtype, new.device) != (held.dtype, held.device):
            return None
        return held.storage_offset() // whole.stride(-2)


def _room(tokens, most):
    return max(tokens, min(tokens + AHEAD, most))


def _unused(like, shape):
    """A tensor of this shape, on pages of its own where that is many: no holes, all given back."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < OWN_PAGES or os.name != "posix":
        return like.new_empty(shape)
    try:
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # no memory, or too many maps: torch knows how to say the first
        return like.new_empty(shape)
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)


class _Grows:
    """What both kinds of layer have.

    Parameters
    ----------
    most : int
        Tokens of a row that are expected in all: more is possible, and copied.
    others : list
        The cache's layers. The first that gets tokens on a CPU makes room in all: what is made
        during a pass, and stays, lies on the heap between what the pass gives back.
    """

    def _grows(self, most, others):
        self._most, self._others = most, others
        self._keys, self._values = _Buffer(), _Buffer()

    def lazy_initialization(self, key_states, value_states):
        if torch.compiler.is_compiling():
            super().lazy_initialization(key_states, value_states)
            return
        every = list(self._others) or [self]
        for layer in every:
            layer._others = ()  # or the cache would wait for a collection to go
        for layer in every if key_states.device.type == "cpu" else [self]:
            if not layer.is_initialized:
                super(_Grows, layer).lazy_initialization(key_states, value_states)
                tokens = key_states.shape[-2]
                layer.keys = layer._keys.emptied(key_states, tokens, layer._most)
                layer.values = layer._values.emptied(value_states, tokens, layer._most)

    def _append(self, key_states, value_states):
        return (
            self._keys.appended(self.keys, key_states, self._most),
            self._values.appended(self.values, value_states, self._most),
        )


class Growing(_Grows, DynamicLayer):
    """A layer that keeps all tokens."""

    def __init__(self, most=0, others=()):
        super().__init__()
        self._grows(most, others)

    def fill(self, pairs, tokens, most):
        """Keys and values of rows, each ``[heads, at most tokens, width]``, padded on the left."""
        keys, values = zip(*pairs, strict=True)
        self._most = most
        if not self.is_initialized:
            DynamicLayer.lazy_initialization(self, keys[0], values[0])
        self.keys = self._keys.filled(keys, tokens, most)
        self.values = self._values.filled(values, tokens, most)

    def update(self, key_states, value_states, *args, **kwargs):
        if torch.compiler.is_compiling():  # where a tensor lies is not known there
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._append(key_states, value_states)
        return self.keys, self.values


class GrowingWindow(_Grows, DynamicSlidingWindowLayer):
    """A layer with a sliding window."""

    def __init__(self, sliding_window, most=0, others=()):
        super().__init__(sliding_window)
        self._grows(min(most, sliding_window - 1 + AHEAD), others)

    def update(self, key_states, value_states, *args, **kwargs):
        if torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        keys, values = self._append(key_states, value_states)
        kept = self.sliding_window - 1
        self.keys, self.values = keys[..., -kept:, :], values[..., -kept:, :]
        return keys, values


def empty_like(config, most):
    """A cache for a model of this configuration; ``None`` where its layers are others."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    layers = cache.layers
    found = list(layers)
    layers.clear()
    for layer in found:
        if type(layer) is DynamicLayer:
            layers.append(Growing(most, layers))
        elif type(layer) is DynamicSlidingWindowLayer:
            layers.append(GrowingWindow(layer.sliding_window, most, layers))
    return cache if len(layers) == len(found) > 0 else None


def stacked(rows, width, most):
    """A cache of rows, padded on the left to ``width``, and its mask."""
    cache = DynamicCache()
    for pairs in zip(*rows, strict=True):
        layer = Growing()
        layer.fill(pairs, width, most)
        cache.layers.append(layer)
    return cache, mask_of(rows, width)


def mask_of(rows, width):
    """``[rows, width]``: 1 where there is a token, after the padding."""
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=rows[0][0][0].device)
    for place, pairs in enumerate(rows):
        mask[place, width - length(pairs) :] = 1
    return mask
