"""Rows that decode together, and rows whose prompts are read together: their tensors."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from nbinfer.worker.backends import _growing, _prefixes
from nbinfer.worker.backends._sampling import Sampler

ROW_CHUNK = 512  # tokens of a row in one pass: bounds attention


class Seat:
    """A row on its way, with whom to tell."""

    def __init__(self, row, emit, cancelled):
        self.row = row
        self.emit = emit
        self.pairs = None  # keys and values that are known of it
        self.waited = False  # for a row that begins alike
        self.admitted = False
        self.left = False
        self._cancelled = cancelled

    @property
    def run(self):
        return self.row.request.run

    @property
    def read(self):
        """Tokens whose keys and values are there, once it decodes: all but the last."""
        return len(self.row.ids) + len(self.row.made) - 1

    @property
    def over(self):
        return self.row.done or self._cancelled(self.row.request)


def nobody(seats):
    """Whether nobody waits for any of them."""
    return all(seat.over for seat in seats)


class Prefill:
    """Rows of one run and adapter whose prompts are read together."""

    def __init__(self, seats, pad_id, model):
        self.seats = seats
        device = model.device
        self.adapter = seats[0].row.adapter
        known = [_prefixes.length(seat.pairs) for seat in seats]
        rest = [seat.row.tokens[n:] for seat, n in zip(seats, known, strict=True)]
        width, self._past = max(map(len, rest)), max(known)
        self._ids = torch.full((len(seats), width), pad_id)
        mask = torch.zeros(len(seats), self._past + width, dtype=torch.long)
        for place, (tokens, n) in enumerate(zip(rest, known, strict=True)):
            self._ids[place, width - len(tokens) :] = torch.tensor(tokens)
            mask[place, self._past - n : self._past] = 1
            mask[place, self._past + width - len(tokens) :] = 1
        self._ids, self.mask = self._ids.to(device), mask.to(device)
        # Between what is known and the rest there can be padding: places are counted without.
        self._places = (self.mask.cumsum(-1) - 1).clamp_min_(0)
        self.cache = self._known(seats, model.config, self._past + width)
        self._read = 0

    def _known(self, seats, config, most):
        if not self._past:
            return _growing.empty_like(config, most)
        like = next(seat.pairs for seat in seats if seat.pairs)
        none = [(k[:, :0], v[:, :0]) for k, v in like]
        return _growing.stacked([seat.pairs or none for seat in seats], self._past, most)[0]

    def next(self, most):
        """Arguments of the next pass over at most so many tokens, and how many are no padding."""
        size = max(1, min(ROW_CHUNK, most // len(self.seats)))
        begin, end = self._read, min(self._read + size, self._ids.shape[1])
        columns = slice(self._past + begin, self._past + end)
        self._read = end
        return {
            "input_ids": self._ids[:, begin:end],
            "attention_mask": self.mask[:, : columns.stop],
            "position_ids": self._places[:, columns],
            "cache": self.cache,
        }, int(self.mask[:, columns].sum())

    @property
    def complete(self):
        return self._read == self._ids.shape[1]


def _most(width, seats):
    """Tokens of a row that there can be in all, where so many are there now."""
    return width + max(seat.row.limit - len(seat.row.made) for seat in seats)


class Lane:
    """Rows that decode together; ``mask`` is ``[rows, width]`` as the cache is."""

    def __init__(self, adapter):
        self.adapter = adapter
        self.seats = []
        self.cache = self.mask = self.sampler = None

    @property
    def width(self):
        return 0 if self.mask is None else self.mask.shape[1]

    def padding(self, coming):
        """How many padded tokens there are with these rows too."""
        lengths = [seat.read for seat in (*self.seats, *coming)]
        return max(lengths) * len(lengths) - sum(lengths)

    def join(self, seats):
        """Rows come to the others; layer by layer, so that memory is that of one layer more.

        An exception on the way leaves the lane useless: ``clear`` it.
        """
        width = max(self.width, *(_prefixes.length(seat.pairs) for seat in seats))
        most = _most(width, [*self.seats, *seats])
        coming = [seat.pairs for seat in seats]
        if self.seats:
            cache, mask = self.cache, _growing.mask_of(coming, width)
            mask = torch.cat([pad(self.mask, (width - self.width, 0)), mask])
            for layer, *new in zip(cache.layers, *coming, strict=True):
                layer.fill([*zip(layer.keys, layer.values, strict=True), *new], width, most)
        else:
            cache, mask = _growing.stacked(coming, width, most)
        for seat in seats:
            seat.pairs = None
        self._set([*self.seats, *seats], cache, mask)

    def part(self, leaving):
        """Rows leave, and with the longest its padding of the others; as ``join`` does."""
        places = [i for i, seat in enumerate(self.seats) if seat not in leaving]
        if not places:
            self.clear()
            return
        seats = [self.seats[i] for i in places]
        mask = self.mask[torch.tensor(places, device=self.mask.device)]
        first = int(mask.any(0).int().argmax())
        mask = mask[:, first:]
        for layer in self.cache.layers:
            rows = [(layer.keys[i][:, first:], layer.values[i][:, first:]) for i in places]
            layer.fill(rows, mask.shape[1], _most(mask.shape[1], seats))
        self._set(seats, self.cache, mask)

    def clear(self):
        self._set([], None, None)

    def _set(self, seats, cache, mask):
        self.seats, self.cache, self.mask = seats, cache, mask
        self.sampler = Sampler([seat.row for seat in seats])

    def back(self, width):
        """Forget what a pass has added that did not end."""
        self.mask = self.mask[:, :width]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]

    def next(self):
        """Arguments of the next pass."""
        last = torch.tensor([[seat.row.made[-1]] for seat in self.seats], device=self.mask.device)
        self.mask = pad(self.mask, (0, 1), value=1)
        return {
            "input_ids": last,
            "attention_mask": self.mask,
            "position_ids": self.mask.sum(-1, keepdim=True) - 1,
            "cache": self.cache,
        }
