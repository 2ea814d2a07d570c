"""Choosing each row's next token, for rows of one batch that have parameters of their own.

``generate`` runs greedily; this processor, the last to see the scores, makes its ``argmax``
the sample. Gumbel's trick: with G drawn from the standard Gumbel distribution,
``argmax(log p + G)`` is a draw from p (Gumbel 1954; Maddison et al. 2014). Every row draws
from its own generator, so its seed means the same in any batch.
"""

from __future__ import annotations

import os

import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class Sampler(LogitsProcessor):
    """Penalties, bias, grammars, warpers and the draw, row by row or for groups of rows."""

    def __init__(self, rows, *, guessed=False):
        self._rows = rows
        self._guessed = guessed
        self._by_position = {}
        self._groups = {}
        for number, row in enumerate(rows):
            if row.params["temperature"] > 0:
                key = tuple(row.params.get(k) for k in ("temperature", "top_k", "top_p", "min_p"))
                self._groups.setdefault(key, []).append(number)
        self._warpers = {key: _warpers(*key) for key in self._groups}

    def __call__(self, input_ids, scores):
        for number, row in enumerate(self._rows):
            if not row.done:
                try:
                    self._keep_logprobs(row, scores[number])
                    _penalise(row, scores[number])
                    if row.grammar is not None:
                        row.grammar.mask(scores[number])
                except Exception as error:  # of one row, not of its batch
                    row.problem = error
        for key, numbers in self._groups.items():
            part = scores[numbers]
            for warper in self._warpers[key]:
                part = warper(None, part)
            for place, number in enumerate(numbers):
                part[place] += self._noise(self._rows[number], input_ids, part[place])
            scores[numbers] = part
        return scores

    def _noise(self, row, input_ids, scores):
        """The row's next noise; where tokens are only guessed, the one of their position."""
        if not self._guessed:
            return _gumbel(row, scores)
        # A guess that was wrong comes again: its position's noise must be the same.
        position = input_ids.shape[1]
        if position not in self._by_position:
            self._by_position = {k: v for k, v in self._by_position.items() if k > position - 64}
            self._by_position[position] = _gumbel(row, scores)
        return self._by_position[position]

    @staticmethod
    def _keep_logprobs(row, scores):
        """The likeliest tokens by the model's own distribution, before any parameter's change."""
        if row.top_logprobs is not None:
            row.last_logprobs = torch.log_softmax(scores, -1)


def _warpers(temperature, top_k, top_p, min_p):
    warpers = [TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    return warpers


def _gumbel(row, scores):
    if row.generator is None:
        row.generator = torch.Generator(device=scores.device)
        seed = row.params.get("seed")
        row.generator.manual_seed(int.from_bytes(os.urandom(7)) if seed is None else seed)
    noise = torch.empty_like(scores).exponential_(generator=row.generator)
    return -torch.log(noise.clamp_min_(torch.finfo(noise.dtype).tiny))


def _penalise(row, scores):
    """Bias and penalties, in place.

    ``repetition_penalty`` divides positive scores and multiplies negative ones of every token
    of prompt and answer (Keskar et al. 2019, section 4.1). Frequency and presence penalties
    count the answer's tokens alone, as the OpenAI API defines them.
    """
    params = row.params
    for token, bias in (params.get("logit_bias") or {}).items():
        if int(token) < len(scores):
            scores[int(token)] += bias
    penalty = params.get("repetition_penalty", 1.0)
    if penalty != 1.0:
        seen = torch.tensor(sorted({*row.ids, *row.made}), device=scores.device)
        values = scores[seen]
        scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
    frequency, presence = params.get("frequency_penalty", 0), params.get("presence_penalty", 0)
    if (frequency or presence) and row.made:
        made, counts = torch.tensor(row.made, device=scores.device).unique(return_counts=True)
        scores[made] -= frequency * counts + presence
