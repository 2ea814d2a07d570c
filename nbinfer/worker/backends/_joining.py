"""Rows join a running batch and leave it, between two forward passes.

One thread computes for all runs. A row that is admitted has its prompt read (with others of its
run that are of like length, a chunk at a time, from what ``Prefixes`` has of it), and then
joins a lane: rows that decode together, their keys and values side by side in one cache, padded
on the left. A row that would pad all lanes more than a pass of its own costs begins another.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import traceback
from collections import Counter

import torch

from nbinfer.worker.backends import _prefixes
from nbinfer.worker.backends._lanes import Lane, Prefill, Seat, nobody
from nbinfer.worker.backends._memory import end_thread_team, out_of_memory, trim
from nbinfer.worker.backends._passes import Abandoned, Pass
from nbinfer.worker.backends._sampling import Sampler

IDLE_CHUNK, BUSY_CHUNK = 2048, 512  # of all rows in one pass; the second while others decode
REST_S = 1.0  # without a row, after which the heap's free pages go back
CANCEL_S = 0.1  # how soon a cancel is heard while others' rows are in a pass
WAIT_FOR = 32  # tokens that another row is about to read: worth waiting for it
# Padding of a lane costs as much as another lane's pass, which reads the weights: a padded token's
# keys and values are read and copied a few times.
PADDING_READS = 6


class Joining:
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
        self._thread = threading.Thread(target=self._run, name="joining", daemon=True)
        self._thread.start()

    def answer(self, rows, emit, cancelled):
        """Take the rows in, and return when each is answered, failed or cancelled."""
        seats = [Seat(row, emit, cancelled) for row in rows]
        with self._changed:
            self._waiting += seats
            self._changed.notify_all()
            # A cancel does not wait for a pass that others compute.
            while not all(seat.left or seat.over for seat in seats):
                self._changed.wait(CANCEL_S)

    # ------------------------------------------------------------------------ the thread

    def _run(self):
        with torch.inference_mode():
            while True:
                with self._changed:
                    if not self.busy:
                        self._most_now = None
                        if not self._changed.wait_for(lambda: self.busy, REST_S):
                            trim()  # a long run leaves holes
                            self._changed.wait_for(lambda: self.busy)
                try:
                    self._go_on()
                except Exception as error:  # nobody else would answer the rows
                    traceback.print_exc()
                    self._fail(self._all(), f"{type(error).__name__}: {error}")
                if not self.busy:
                    end_thread_team()

    @property
    def busy(self):
        """Whether any row waits or is under way."""
        return bool(self._waiting or self._prefill or self._lanes)

    def _decoding(self):
        return [seat for lane in self._lanes for seat in lane.seats]

    def _all(self):
        reading = self._prefill.seats if self._prefill is not None else []
        return [*self._waiting, *reading, *self._decoding()]

    def _go_on(self):
        """A chunk of a prompt, or a token for every row, or both where runs share the passes."""
        self._drop_cancelled()
        if self._prefill is None:
            self._admit()
        prefill = self._prefill
        if prefill is not None:
            run = prefill.seats[0].run
            others = any(seat.run is not run for seat in self._decoding())
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
        del inputs  # the cache is in it
        request = prefill.seats[0].row.request
        prefill.seats[0].emit.prefill(request, tokens, 0)
        if not prefill.complete:
            return
        seats = prefill.seats
        for seat, pairs in zip(seats, _prefixes.cut_all(prefill.cache, prefill.mask), strict=True):
            seat.pairs = pairs
            self._prefixes.keep(prefill.adapter, seat.row.tokens, pairs)
        trim()
        self._prefill = None
        self._choose(seats, scores, Sampler([seat.row for seat in seats]))
        self._take_out([seat for seat in seats if seat.over])
        going_on = [seat for seat in seats if not seat.left]
        for lane, coming in self._assigned(prefill.adapter, going_on).items():
            if lane not in self._lanes:
                self._lanes.append(lane)
            try:
                lane.join(coming)
            except BaseException:
                self._scatter(lane)
                raise

    def _assigned(self, adapter, seats):
        """Each row's lane: the one that has least padding with it, or a new one."""
        found = {lane: [] for lane in self._lanes if lane.adapter == adapter}
        for seat in sorted(seats, key=lambda seat: seat.read, reverse=True):
            padding = {lane: lane.padding([seat, *coming]) for lane, coming in found.items()}
            best = min(padding, key=padding.get, default=None)
            if best is None or padding[best] > self._most_padding:
                best = Lane(adapter)
            found.setdefault(best, []).append(seat)
        return {lane: coming for lane, coming in found.items() if coming}

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
                seat.row.advance(token, seat.emit)

    # ------------------------------------------------------------------- who comes and goes

    def _admit(self):
        """The next rows whose prompts are read: of the run that has the fewest under way."""
        with self._changed:
            waiting = list(self._waiting)
        if not waiting:
            return
        active = self._decoding()
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
            known = _prefixes.length(seat.pairs)
            unread += len(seat.row.tokens) - known
            if not seat.admitted:  # and not sent back for want of memory
                seat.admitted = True
                seat.row.cached = known
                seat.emit.dispatched(seat.row.request)
        seats[0].emit.prefill(seats[0].row.request, 0, unread)
        with self._failing(seats):
            self._prefill = Prefill(seats, self._pad, self._model)

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
        seats += self._decoding()
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
                try:
                    lane.part(chosen)
                except Exception:  # no memory to leave some of them: all begin again
                    self._scatter(lane, without=chosen)
        self._lanes = [lane for lane in self._lanes if lane.seats]

    def _scatter(self, lane, without=()):
        """A lane that broke: its rows wait, and go on from the tokens they have."""
        self._send_back([seat for seat in lane.seats if seat not in without])
        lane.clear()
        self._lanes = [other for other in self._lanes if other is not lane]

    def _send_back(self, seats):
        with self._changed:
            for seat in seats:
                seat.pairs = None
            self._waiting = [*seats, *self._waiting]

    def _halve(self, seats, problem):
        """Half of the rows wait until others have ended, and go on from the tokens they have."""
        self._prefixes.shrink(0)
        decoding = self._decoding()
        reading = [seat for seat in seats if seat not in decoding and not seat.left]
        active = len(decoding) + len(reading)
        if active == 1:
            self._fail(seats, f"this row does not fit in memory: {problem}")
        else:
            self._most_now = max(1, active // 2)
            back = reading or seats[len(seats) // 2 :]
            self._set_down(back)
            self._send_back([seat for seat in back if seat not in self._waiting])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
