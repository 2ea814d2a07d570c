"""Keys and values of rows: cut out of a batch, and kept for rows that begin alike.

A row's are a list of pairs by layer, each ``[heads, tokens, width]``, without padding.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

LEAST = 16  # a shorter prefix is computed again: looking after it costs as much


def cut(cache, mask, place):
    """A row's keys and values out of a batch's cache, copied; ``mask`` is ``[rows, tokens]``."""
    where = mask[place].nonzero().squeeze(-1)
    return [_cut(layer, place, where) for layer in cache.layers]


def cut_all(cache, mask):
    """Every row's, out of a cache that is empty then: a layer at a time, so none is there twice."""
    places = [row.nonzero().squeeze(-1) for row in mask]
    found = [[] for _ in places]
    while cache.layers:
        layer = cache.layers.pop(0)
        for place, where in enumerate(places):
            found[place].append(_cut(layer, place, where))
    return found


def _cut(layer, place, where):
    here = where.to(layer.keys.device)  # layers may be on several devices
    return tuple(side[place].index_select(1, here) for side in (layer.keys, layer.values))


def length(pairs):
    return pairs[0][0].shape[1] if pairs else 0


def plain_cache(model):
    """Whether its cache is keys and values of every token for every layer, and no more."""
    wanted = {"cache", "attention_mask", "position_ids"}
    if not wanted.issubset(inspect.signature(model.forward).parameters):
        return False
    layers = DynamicCache(config=model.config).layers
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    return len(layers) == count and all(type(layer) is DynamicLayer for layer in layers)


def shared(one, other, least=0):
    """How many tokens two lists begin with alike, 0 where fewer than ``least``."""
    most = min(len(one), len(other))
    if most < least or one[:least] != other[:least]:
        return 0
    if one[:most] == other[:most]:
        return most
    low = least  # that many are alike; ``most`` are not
    while most - low > 1:
        middle = (low + most) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            most = middle
    return low


class Prefixes:
    """The keys and values of rows that ended, the most recently used up to ``most_bytes``.

    What an adapter made is for rows of that adapter alone.
    """

    def __init__(self, token_bytes, most_bytes):
        self._token_bytes = token_bytes
        self._most_bytes = most_bytes
        self._kept = OrderedDict()  # (adapter, number): tokens, pairs
        self._numbers = 0
        self.bytes = 0

    def longest(self, adapter, tokens):
        """The longest kept prefix of ``tokens``: its keys and values, and how many tokens.

        The last token is never among them: its pass gives the first scores.
        """
        best, count = None, LEAST - 1
        for key, (kept, _) in reversed(self._kept.items()):
            if key[0] == adapter:
                alike = min(shared(kept, tokens, LEAST), len(tokens) - 1)
                if alike > count:
                    best, count = key, alike
        if best is None:
            return None, 0
        self._kept.move_to_end(best)
        return [(k[:, :count], v[:, :count]) for k, v in self._kept[best][1]], count

    def keep(self, adapter, tokens, pairs):
        """Keep a row's; what it goes on from needs no place of its own any more."""
        size = len(tokens) * self._token_bytes
        if len(tokens) < LEAST or size > self._most_bytes:
            return
        for key, (kept, _) in list(self._kept.items()):
            if key[0] == adapter:
                alike = shared(kept, tokens, LEAST)
                if alike == len(tokens):  # all of it is there
                    self._kept.move_to_end(key)
                    return
                if alike == len(kept):
                    self._drop(key)
        self.shrink(self._most_bytes - size)
        self._numbers += 1
        self._kept[adapter, self._numbers] = (list(tokens), pairs)
        self.bytes += size

    def shrink(self, most_bytes):
        """Let go of the least recently used until so many bytes are left at most."""
        while self._kept and self.bytes > max(0, most_bytes):
            self._drop(next(iter(self._kept)))

    def _drop(self, key):
        tokens, _ = self._kept.pop(key)
        self.bytes -= len(tokens) * self._token_bytes
