"""The rows of one ``generate`` call: what hooks and stopping criterion do for each of them."""

from __future__ import annotations

import torch

from nbinfer.worker.backends._passes import Pass


class Batch(Pass):
    """What the hooks and the stopping criterion know of the rows of one ``generate``."""

    def __init__(self, rows, emit, cancelled, mask):
        super().__init__(
            lambda: all(row.done or cancelled(row.request) for row in rows), rows[0].adapter
        )
        self._rows = rows
        self._emit = emit
        self._cancelled = cancelled
        self._taken = mask.shape[1]  # positions whose tokens are known to the rows
        self._left = mask.sum(0).tolist()  # real tokens by position that no pass has read
        emit.prefill(rows[0].request, 0, sum(self._left))

    def read(self, positions):
        if self._left:
            self._emit.prefill(self._rows[0].request, sum(self._left[:positions]), 0)
            self._left = self._left[positions:]

    def watch(self, input_ids, _scores, **_):
        """A stopping criterion: each row's tokens, as soon as they are made."""
        new, self._taken = input_ids[:, self._taken :].tolist(), input_ids.shape[1]
        for row, tokens in zip(self._rows, new, strict=True):
            for token in tokens:
                if not row.done:
                    row.advance(token, self._emit)
        done = [row.done or self._cancelled(row.request) for row in self._rows]
        return torch.tensor(done, device=input_ids.device)

    def watch_beams(self, input_ids, _scores, **_):
        """Beams have no answer before their end, only a count of steps."""
        self.end_if_abandoned()
        for row in self._rows:
            self._emit.token(row.request, "")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def finish_beams(self, answers):
        quiet = _Quiet()
        for row, tokens in zip(self._rows, answers, strict=True):
            for token in tokens:
                row.take(token, quiet)
                if row.done:
                    break
            row.reason = row.reason or "length"
            row.request.pieces[:] = [row.request.opening, *quiet.text()]
            row.finish(self._emit)


class _Quiet:
    """Takes the pieces of an answer whose tokens were counted before."""

    def __init__(self):
        self._pieces = []

    def token(self, _request, text=""):
        self._pieces.append(text)

    def text(self):
        pieces, self._pieces = self._pieces, []
        return pieces
