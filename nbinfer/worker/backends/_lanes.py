"""Rows join a running batch and leave it, between two forward passes.

One thread computes for all runs. A row that is admitted has its prompt read (with others of its
run that are of like length, a chunk at a time, from what ``Prefixes`` has of it), and then
joins a lane: rows that decode together, their keys and values side by side in one cache, padded
on the left. A row whose length would pad a lane more than a pass of its own costs gets another.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections import Counter

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from nbinfer.worker.backends import _prefixes
from nbinfer.worker.backends._memory import end_thread_team, out_of_memory
from nbinfer.worker.backends._passes import Abandoned, Pass
from nbinfer.worker.backends._sampling import Sampler

ROW_CHUNK = 512  # tokens of a row in one pass: bounds attention
IDLE_CHUNK, BUSY_CHUNK = 2048, 512  # of all rows in one pass; the second while others decode
WAIT_FOR = 32  # tokens that another row is about to read: worth waiting for it
# A pass reads the weights; a padded token's keys and values are read and copied, a few times each.
PADDING_READS = 6


class Seat:
    """A row on its way, with whom to tell."""

    def __init__(self, row, emit, cancelled):
        self.row = row
        self.emit = emit
        self.pairs = None  # keys and values that are known of it
        self.waited = False  # for a row that begins alike
        self.left = False
        self._cancelled = cancelled

    @property
    def run(self):
        return self.row.request.run

    @property
    def over(self):
        return self.row.done or self._cancelled(self.row.request)


def nobody(seats):
    """Whether nobody waits for any of them."""
    return all(seat.over for seat in seats)


class Prefill:
    """Rows of one run and adapter whose prompts are read together."""

    def __init__(self, seats, pad_id, device):
        self.seats = seats
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
        self.cache = self._known(seats)
        self._read = 0

    def _known(self, seats):
        if not self._past:
            return DynamicCache()
        like = next(seat.pairs for seat in seats if seat.pairs)
        none = [(k[:, :0], v[:, :0]) for k, v in like]
        return _prefixes.stacked([seat.pairs or none for seat in seats], self._past)[0]

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


class Lane:
    """Rows that decode together; ``mask`` is ``[rows, width]`` as the cache is."""

    def __init__(self, adapter):
        self.adapter = adapter
        self.seats = []
        self.cache = self.mask = self.sampler = None

    @property
    def width(self):
        return 0 if self.mask is None else self.mask.shape[1]

    def padding(self, tokens):
        """How many padded tokens a row of so many brings."""
        more = tokens - self.width
        return -more if more < 0 else more * len(self.seats)

    def join(self, seats):
        width = max(self.width, *(_prefixes.length(seat.pairs) for seat in seats))
        cache, mask = _prefixes.stacked([seat.pairs for seat in seats], width)
        if self.seats:
            more = width - self.width
            mask = torch.cat([pad(self.mask, (more, 0)), mask])
            layers = []
            for own, new in zip(self.cache.layers, cache.layers, strict=True):
                both = ((own.keys, new.keys), (own.values, new.values))
                layers.append([torch.cat([pad(o, (0, 0, more, 0)), n]) for o, n in both])
            cache = _prefixes.cache_of(layers)
        for seat in seats:
            seat.pairs = None
        self._set([*self.seats, *seats], cache, mask)

    def part(self, leaving):
        """Rows leave, and with the longest its padding of the others."""
        places = [i for i, seat in enumerate(self.seats) if seat not in leaving]
        if not places:
            self._set([], None, None)
            return
        where = torch.tensor(places, device=self.mask.device)
        mask = self.mask[where]
        first = int(mask.any(0).int().argmax())
        layers = [
            (layer.keys[where, :, first:], layer.values[where, :, first:])
            for layer in self.cache.layers
        ]
        seats = [self.seats[i] for i in places]
        self._set(seats, _prefixes.cache_of(layers), mask[:, first:])

    def _set(self, seats, cache, mask):
        """All at once, so that memory that runs out leaves the lane as it was."""
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


class Lanes:
    """The rows of all runs, and the thread that computes for them.

    Parameters
    ----------
    model : PreTrainedModel
    passes : Passes
        Whose hooks end a pass that nobody waits for, and take turns with other threads'.
    room : Room
    prefixes : Prefixes
    pad_id : int
    """

    def __init__(self, model, passes, room, prefixes, pad_id):
        self._model = model
        self._passes = passes
        self._room = room
        self._prefixes = prefixes
        self._pad = pad_id
        self._changed = threading.Condition()
        self._waiting = []  # seats, those of a run longest first
        self._prefill = None
        self._lanes = []
        self._most_now = None  # rows at once, since memory ran out
        weights = model.get_memory_footprint(return_buffers=False)
        self._most_padding = weights // (PADDING_READS * room.token_bytes)
        self._thread = threading.Thread(target=self._run, name="lanes", daemon=True)
        self._thread.start()

    def answer(self, rows, emit, cancelled):
        """Take the rows in, and return when each is answered, failed or cancelled."""
        seats = [Seat(row, emit, cancelled) for row in rows]
        with self._changed:
            self._waiting += seats
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(seat.left for seat in seats))

    # ------------------------------------------------------------------------ the thread

    def _run(self):
        with torch.inference_mode():
            while True:
                with self._changed:
                    if not self._busy:
                        self._most_now = None
                        self._changed.wait_for(lambda: self._busy)
                self._go_on()
                if not self._busy:
                    end_thread_team()

    @property
    def _busy(self):
        return bool(self._waiting or self._prefill or self._lanes)

    def _go_on(self):
        """A chunk of a prompt, or a token for every row, or both where runs share the passes."""
        self._drop_cancelled()
        if self._prefill is None:
            self._admit()
        prefill = self._prefill
        if prefill is not None:
            run = prefill.seats[0].run
            others = any(seat.run is not run for lane in self._lanes for seat in lane.seats)
            with self._failing(prefill.seats):
                self._read(prefill, BUSY_CHUNK if others else IDLE_CHUNK)
            if not others:
                return  # its own rows go on when all have begun
        for lane in list(self._lanes):
            if lane.seats:
                with self._failing(lane.seats):
                    self._step(lane)

    @contextlib.contextmanager
    def _failing(self, seats):
        """What goes wrong in a pass is for its rows; memory that ran out is for half of them."""
        try:
            yield
        except Abandoned:
            self._take_out(seats)
        except Exception as error:  # whatever a model raises
            if out_of_memory(error):
                self._halve(list(seats), str(error).splitlines()[0])
            else:
                self._fail(seats, f"{type(error).__name__}: {error}")

    def _fail(self, seats, message):
        for seat in seats:
            if not seat.over:
                seat.emit.failed(seat.row.request, message)
        self._take_out(seats)

    def _read(self, prefill, most):
        inputs, tokens = prefill.next(most)
        whose = Pass(lambda: nobody(prefill.seats), prefill.adapter)
        scores = self._passes.scores(whose, **inputs)
        request = prefill.seats[0].row.request
        prefill.seats[0].emit.prefill(request, tokens, 0)
        if not prefill.complete:
            return
        seats = prefill.seats
        for place, seat in enumerate(seats):
            seat.pairs = _prefixes.cut(prefill.cache, prefill.mask, place)
            self._prefixes.keep(prefill.adapter, seat.row.tokens, seat.pairs)
        self._prefill = None
        self._choose(seats, scores, Sampler([seat.row for seat in seats]))
        self._take_out([seat for seat in seats if seat.over])
        going_on = [seat for seat in seats if not seat.left]
        for seat in sorted(going_on, key=lambda s: _prefixes.length(s.pairs), reverse=True):
            self._lane(prefill.adapter, seat).join([seat])

    def _lane(self, adapter, seat):
        """The lane that the row pads least, or a new one."""
        tokens = _prefixes.length(seat.pairs)
        alike = [lane for lane in self._lanes if lane.adapter == adapter]
        best = min(alike, key=lambda lane: lane.padding(tokens), default=None)
        if best is None or best.padding(tokens) > self._most_padding:
            best = Lane(adapter)
            self._lanes.append(best)
        return best

    def _step(self, lane):
        width = lane.width
        try:
            whose = Pass(lambda: nobody(lane.seats), lane.adapter)
            scores = self._passes.scores(whose, **lane.next())
        except BaseException:
            lane.back(width)
            raise
        self._choose(lane.seats, scores, lane.sampler)
        leaving = [seat for seat in lane.seats if seat.over]
        for seat in leaving:
            place = lane.seats.index(seat)
            pairs = _prefixes.cut(lane.cache, lane.mask, place)
            self._prefixes.keep(lane.adapter, seat.row.tokens[: _prefixes.length(pairs)], pairs)
        if leaving:
            self._take_out(leaving)

    @staticmethod
    def _choose(seats, scores, sampler):
        for seat, token in zip(seats, sampler(None, scores).argmax(-1).tolist(), strict=True):
            if not seat.over:
                seat.row.take(token, seat.emit)
                if seat.row.done:
                    seat.row.finish(seat.emit)

    # ------------------------------------------------------------------- who comes and goes

    def _admit(self):
        """The next rows whose prompts are read: of the run that has the fewest under way."""
        with self._changed:
            waiting = list(self._waiting)
        if not waiting:
            return
        active = [seat for lane in self._lanes for seat in lane.seats]
        counts = Counter(seat.run.name for seat in active)
        first = min(waiting, key=lambda seat: counts[seat.run.name])
        most = self._room.most - counts[first.run.name]
        if self._most_now is not None:
            most = min(most, self._most_now - len(active))
        room = self._room.bytes - sum(self._room.row(seat.row) for seat in active)
        seats = self._group(first, waiting, most, room, alone=not active)
        if not seats:
            return
        with self._changed:
            self._waiting = [seat for seat in self._waiting if seat not in seats]
        self._prefixes.shrink(room - sum(self._room.row(seat.row) for seat in seats))
        unread = 0
        for seat in seats:
            seat.emit.dispatched(seat.row.request)
            known = _prefixes.length(seat.pairs)
            if not seat.row.made:
                seat.row.cached = known
            unread += len(seat.row.tokens) - known
        seats[0].emit.prefill(seats[0].row.request, 0, unread)
        self._prefill = Prefill(seats, self._pad, self._model.device)

    def _group(self, first, waiting, most, room, alone):
        """Waiting rows of one run and adapter that fit, and whose rest is of like length."""
        seats, rests = [], []
        for seat in waiting:
            row = seat.row
            if seat.run is not first.run or row.adapter != first.row.adapter:
                continue
            size = self._room.row(row)
            # One row alone may try, whatever it takes.
            if (seats or not alone) and (len(seats) >= most or size > room):
                break
            pairs, known = self._prefixes.longest(row.adapter, row.tokens)
            if not seat.waited and any(
                _prefixes.shared(other.row.tokens, row.tokens, WAIT_FOR) - known >= WAIT_FOR
                for other in seats
            ):
                seat.waited = True  # what the other reads is there for the next group
                continue
            rests.append(len(row.tokens) - known)
            if max(rests) * len(rests) - sum(rests) > self._room.pass_tokens:
                break
            seat.pairs = pairs
            seats.append(seat)
            room -= size
        return seats

    def _drop_cancelled(self):
        with self._changed:
            seats = list(self._waiting)
        seats += [seat for lane in self._lanes for seat in lane.seats]
        if self._prefill is not None and nobody(self._prefill.seats):
            seats += self._prefill.seats
        gone = [seat for seat in seats if seat.over]
        if gone:
            self._take_out(gone)

    def _take_out(self, seats):
        """These rows are over; whoever waits for them is told."""
        if not seats:
            return
        seats = list(seats)
        self._set_down(seats)
        with self._changed:
            for seat in seats:
                seat.left = True
                seat.pairs = None
            self._waiting = [seat for seat in self._waiting if not seat.left]
            self._changed.notify_all()

    def _set_down(self, seats):
        """Out of lanes and prefill."""
        chosen = set(seats)
        if self._prefill is not None and chosen.issuperset(self._prefill.seats):
            self._prefill = None
        for lane in self._lanes:
            if not chosen.isdisjoint(lane.seats):
                lane.part(chosen)
        self._lanes = [lane for lane in self._lanes if lane.seats]

    def _halve(self, seats, problem):
        """Half of the rows wait until others have ended, and go on from the tokens they have."""
        self._prefixes.shrink(0)
        decoding = [seat for lane in self._lanes for seat in lane.seats]
        reading = [seat for seat in seats if seat not in decoding]
        active = len(decoding) + len(reading)
        if active == 1:
            self._fail(seats, f"this row does not fit in memory: {problem}")
        else:
            self._most_now = max(1, active // 2)
            back = reading or seats[len(seats) // 2 :]
            self._set_down(back)
            with self._changed:
                for seat in back:
                    seat.pairs = None
                self._waiting = [*back, *self._waiting]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
