"""Forward passes of several threads: they take turns, each with its adapter, and can be ended.

Hooks on the model do it, so it holds for whatever calls it: ``generate``, or a lane's step.
"""

from __future__ import annotations

import contextlib
import inspect
import threading

import torch


class Abandoned(Exception):
    """Nobody waits for any row of this batch any more."""


class Turns:
    """A lock whose waiters are served in their order: threads alternate, none starves."""

    def __init__(self):
        self._changed = threading.Condition()
        self._next = self._now = 0

    def acquire(self):
        with self._changed:
            mine = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._now == mine)

    def release(self):
        with self._changed:
            self._now += 1
            self._changed.notify_all()

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.release()


class Pass:
    """One forward pass, or several in a row: whose it is.

    Attributes
    ----------
    adapter : str or None
        What applies to it.
    holds_turn : bool
        Whether the model computes it just now.
    """

    def __init__(self, over, adapter=None):
        self._over = over
        self.adapter = adapter
        self.holds_turn = False

    @property
    def abandoned(self):
        return self._over()

    def end_if_abandoned(self):
        if self.abandoned:
            raise Abandoned

    def read(self, positions):
        """It has read so many positions of every row."""


class Passes:
    """The hooks on a model.

    Parameters
    ----------
    model : PreTrainedModel
    adapters : Adapters
    by_layer : bool, default True
        Whether a pass can also end between two layers: a hook there would cut a compiled graph.
    agree : callable, optional
        Tells a model's other ranks whether a pass that they begin too is abandoned.
    """

    def __init__(self, model, adapters, *, by_layer=True, agree=None):
        self.turns = Turns()
        self._model = model
        self._adapters = adapters
        self._agree = agree
        self._local = threading.local()
        parameters = inspect.signature(model.forward).parameters
        self._keep = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after, with_kwargs=True)
        layers = max(
            (m for m in model.modules() if isinstance(m, torch.nn.ModuleList)),
            key=len,
            default=(),
        )
        if by_layer and agree is None:
            for layer in layers:
                layer.register_forward_pre_hook(self._at_layer)

    def also(self, model):
        """Another model whose passes take turns with this one's: an assistant."""
        model.register_forward_pre_hook(lambda *given: self._begin(*given) and None)
        model.register_forward_hook(self._end)

    def _end_if_abandoned(self, batch):
        if self._agree is None:
            batch.end_if_abandoned()
        elif self._agree(batch.abandoned):
            raise Abandoned

    @contextlib.contextmanager
    def of(self, batch):
        """What this thread computes meanwhile is the batch's."""
        self._local.batch = batch
        try:
            with torch.inference_mode():
                yield
        finally:
            self._local.batch = None
            if batch.holds_turn:  # it ended in the middle
                batch.holds_turn = False
                self.turns.release()

    def scores(self, batch, **inputs):
        """One pass: each row's scores of its next token, ``[rows, vocabulary]`` in float32."""
        with self.of(batch):
            logits = self._model(**inputs, use_cache=True, **self._keep).logits
        return logits[:, -1].to(copy=True, dtype=torch.float32)

    def _begin(self, _module, _arguments):
        batch = getattr(self._local, "batch", None)
        if batch is None and self._agree is not None:
            raise RuntimeError(
                "the model's other ranks know nothing of this call: load it without "
                "tensor_parallel_size to call it in a cell"
            )
        if batch is not None:
            self._end_if_abandoned(batch)
            self.turns.acquire()
            batch.holds_turn = True
        return batch

    def _end(self, _module, _arguments, _output):
        batch = getattr(self._local, "batch", None)
        if batch is not None:
            batch.holds_turn = False
            self.turns.release()

    def _before(self, module, arguments):
        batch = self._begin(module, arguments)
        if batch is not None:
            self._adapters.use(batch.adapter)

    def _after(self, module, arguments, named, output):
        self._end(module, arguments, output)
        batch = getattr(self._local, "batch", None)
        if batch is not None and named.get("input_ids") is not None:
            batch.read(named["input_ids"].shape[1])

    def _at_layer(self, _module, _arguments):
        batch = getattr(self._local, "batch", None)
        if batch is not None:
            batch.end_if_abandoned()
