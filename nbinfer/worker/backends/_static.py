"""Static batches: rows of like length, left-padded, through one call of ``model.generate``."""

from __future__ import annotations

import contextlib
import gc

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from nbinfer.worker.backends import _growing, _vision
from nbinfer.worker.backends._batch import Batch
from nbinfer.worker.backends._memory import end_thread_team, out_of_memory, trim
from nbinfer.worker.backends._passes import Abandoned
from nbinfer.worker.backends._sampling import Sampler

# Beyond any vocabulary. None would be filled in with what the model's own configuration has.
NEVER_MADE = [2**31 - 1]
PREFILL_CHUNK = 512  # tokens of a row in one forward pass: bounds activations and attention


class Static:
    """Answers rows in batches of like ones.

    Parameters
    ----------
    model : PreTrainedModel
        Whose ``generation_config`` has nothing but its padding and its last tokens.
    passes : Passes
    room : Room
    assistant : Assistant
    ranks : Ranks or None
        Of a model that is split.
    pad_id : int
    """

    def __init__(self, model, passes, room, assistant, ranks, pad_id):
        self._model = model
        self._passes = passes
        self._room = room
        self._assistant = assistant
        self._ranks = ranks
        self._pad = pad_id

    def answer(self, rows, emit, cancelled):
        """Answer the rows, which are sorted by length, the longest first."""
        while rows:
            size = self._alike(rows)
            batch, rows = rows[:size], rows[size:]
            for row in batch:
                emit.dispatched(row.request)
            self._complete(batch, emit, cancelled)

    def _alike(self, rows):
        """How many of the rows, longest first, make one batch: those that fit and are alike.

        A shorter row costs a prefill of its padding and saves the decode passes of a batch of
        its own, so it belongs here while all padding costs less than those passes.
        """
        beams, longest = rows[0].params.get("num_beams", 1), len(rows[0].ids)
        size = self._room.fitting(longest + rows[0].limit, beams)
        worth = rows[0].limit * self._room.pass_tokens
        padding = 0
        for number, row in enumerate(rows[:size]):
            padding += longest - len(row.ids)
            if padding > worth or not _fit_together(row, rows[0]):
                return number
        return size

    def _complete(self, rows, emit, cancelled):
        """One batch to its end; one that does not fit in memory goes on in halves."""
        try:
            self._generate(rows, emit, cancelled)
        except Abandoned:
            pass
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            problem = str(error).splitlines()[0]
        else:
            return
        left = [row for row in rows if not row.done]
        for row in left:
            if cancelled(row.request):
                row.finish(emit, "cancelled")
        left = [row for row in left if not cancelled(row.request)]
        if not left:
            return
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(left) == 1 and len(rows) == 1:
            emit.failed(left[0].request, f"this row does not fit in memory: {problem}")
            return
        half = max(1, len(left) // 2)
        self._complete(left[:half], emit, cancelled)
        if left[half:]:
            self._complete(left[half:], emit, cancelled)

    def _generate(self, rows, emit, cancelled):
        ids, mask = self._padded(rows)
        batch = Batch(rows, emit, cancelled, mask)
        beams = rows[0].params.get("num_beams", 1)
        assisted = rows[0].assisted
        images = _vision.together(rows, ids.shape[1], self._model)
        ends = self._model.generation_config.eos_token_id
        if any(row.params["ignore_eos"] for row in rows):
            ends = NEVER_MADE  # who does not ignore it is stopped by the row itself
        config = {
            "max_new_tokens": max(row.limit - len(row.made) for row in rows),
            "do_sample": False,
            "num_beams": beams,
            "pad_token_id": self._pad,
            "eos_token_id": ends,
            # An image is read in one pass.
            "prefill_chunk_size": None if assisted or images else _chunk(ids.shape[1]),
            **(self._assistant.config if assisted else {}),
        }
        own = beams == 1 and not assisted and not images and self._ranks is None
        cache = self._cache(ids.shape[1] + config["max_new_tokens"]) if own else {}
        choose = [] if beams > 1 else [Sampler(rows, guessed=assisted)]
        watch = batch.watch_beams if beams > 1 else batch.watch
        if self._ranks is not None:
            choose, watch = self._ranks.begin(ids, mask, config, choose, watch)
        try:
            with self._passes.of(batch), self._ranks or contextlib.nullcontext():
                out = self._model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=GenerationConfig(**config),
                    logits_processor=LogitsProcessorList(choose),
                    stopping_criteria=StoppingCriteriaList([watch]),
                    **(self._assistant.arguments if assisted else {}),
                    **images,
                    **cache,
                )
        finally:
            end_thread_team()
            trim()
        if beams > 1:
            batch.finish_beams(out[:, ids.shape[1] :].tolist())

    def _cache(self, most):
        """``generate``'s argument: the cache that it writes to, if not one of its own."""
        model = self._model
        if model.config.is_encoder_decoder or not model._supports_default_dynamic_cache():
            return {}
        cache = _growing.empty_like(model.config, most)
        return {} if cache is None else {"cache": cache}

    def _padded(self, rows):
        width = max(len(row.tokens) for row in rows)
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(row.tokens) :] = torch.tensor(row.tokens)
            mask[place, width - len(row.tokens) :] = 1
        return ids.to(self._model.device), mask.to(self._model.device)


def _fit_together(row, other):
    """Whether one ``generate`` can answer both."""
    return row.adapter == other.adapter and _vision.alike(row) == _vision.alike(other)


def _chunk(width):
    """Equal chunks of at most ``PREFILL_CHUNK``; ``None`` where one will do."""
    chunks = -(-width // PREFILL_CHUNK)
    return -(-width // chunks) if chunks > 1 else None
