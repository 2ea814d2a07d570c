"""Memory of a Transformers worker: what fits, what is given back, and when it ran out."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import glob
import os
import sys

import torch

# Measured on two cores with SmolLM2-135M; for a GPU a guess, from arithmetic to bandwidth.
CPU_PADDING, GPU_PADDING = 17, 256


class Room:
    """How many rows fit in the memory that is left for their caches.

    Attributes
    ----------
    token_bytes : int
        Keys and values of one token in all layers.
    row_bytes : int
        What a row's scores take while its next token is chosen.
    most : int
        Most rows of a run in one batch.
    bytes : int
        For all caches together.
    pass_tokens : int
        Tokens of prefill that cost as much as one decode pass does whatever its batch.
    """

    def __init__(self, model, cache_bytes, most_rows=None):
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        size = torch.finfo(model.dtype).bits // 8
        self.token_bytes = 2 * config.num_hidden_layers * heads * width * size
        # Scores in float32: the model's, the copy, and what the warpers make of it.
        self.row_bytes = 6 * 4 * config.vocab_size
        self._device = model.device
        self.most = most_rows or (64 if model.device.type != "cpu" else 32)
        self.bytes = self._free() if model.device.type == "cuda" else cache_bytes
        self.pass_tokens = CPU_PADDING if model.device.type == "cpu" else GPU_PADDING

    def _free(self):
        return int(0.8 * torch.cuda.mem_get_info(self._device)[0])

    def row(self, row):
        """What a row takes at its end, in bytes."""
        return (len(row.ids) + row.limit) * self.token_bytes + self.row_bytes

    def fitting(self, tokens, beams=1):
        """How many rows of so many tokens fit, at least one."""
        room = self._free() if self._device.type == "cuda" else self.bytes
        fit = room // (beams * (tokens * self.token_bytes + self.row_bytes))
        return max(1, min(self.most, fit))


def end_thread_team():
    """End this thread's OpenMP team; the next computation makes a new one in no time.

    Each thread that has computed keeps one, and while a process has more of their threads
    than cores, GNU's OpenMP sleeps at its barriers instead of spinning: a batch in a slot's
    thread, after a load in the main thread, ran at three quarters of its speed.
    """
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*")):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(path).omp_pause_resource_all(1)  # omp_pause_soft


def give_back_freed_memory():
    """What quantizing and reading left on the heap is no part of the model's memory."""
    gc.collect()
    trim()


def trim():
    """What is free on the heap goes back to the system: milliseconds, and no collection."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error):
    """Whether an error says that memory ran out, on any device."""
    with contextlib.suppress(AttributeError):
        if isinstance(error, torch.OutOfMemoryError):
            return True
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "not enough memory", "can't allocate memory")
    )
