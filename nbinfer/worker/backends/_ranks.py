"""Tensor parallelism: a process for each rank beside the worker, which is rank 0.

Each rank holds its part of every weight and of the cache, and computes the same passes. Ranks
that have nothing to do wait on a pipe, for a batch; within one they are in lock-step by two small
broadcasts of rank 0 a step: whether the pass is abandoned, and which tokens it chose and which
rows are done. So whatever rank 0 decides, by a row's parameters or by a cancel, all ranks do.

They talk over loopback alone (gloo; on GPUs NCCL) and find each other through a file.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import torch
import torch.distributed as dist
from transformers import (
    AutoConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.distributed import DistributedConfig

from nbinfer.worker import protocol
from nbinfer.worker.backends import _vision
from nbinfer.worker.backends._passes import Abandoned

EXIT_RANK_DEAD = 71
PATIENCE_S = 5.0  # while loading, for rank 0 to say itself what is wrong with the model
FAILED = -1


class StepFailed(Exception):
    """Choosing tokens failed on rank 0, and all ranks have ended the batch."""


def check(model):
    """Refuse a model that Transformers cannot split; sizes are checked in the kernel.

    Raises
    ------
    ValueError
        With the reason.
    """
    trust = bool(model.get("trust_remote_code"))
    whole = AutoConfig.from_pretrained(model["path"], trust_remote_code=trust)
    if _vision.sees(whole):
        raise ValueError(
            "tensor_parallel_size is for models that read text alone: load this one without it"
        )
    config = whole.get_text_config()
    if not getattr(config, "base_model_tp_plan", None):
        raise ValueError(
            f"Transformers has no plan to split {config.model_type!r} over ranks: load it without "
            "tensor_parallel_size"
        )


class Ranks:
    """Rank 0's side: starts the others, and says what they do.

    Parameters
    ----------
    size : int
        How many ranks, this one included.
    model : dict
        The load message.
    options : dict
        For ``from_pretrained``.
    """

    def __init__(self, size, model, options):
        check(model)
        self._loaded = False
        self._folder = tempfile.TemporaryDirectory(prefix="nbinfer-ranks-")
        threads = max(1, torch.get_num_threads() // size)
        torch.set_num_threads(threads)
        script = os.path.join(os.path.dirname(os.path.dirname(__file__)), "rank.py")
        message = protocol.pack({"model": model, "options": options, "threads": threads})
        self._others = []
        for rank in range(1, size):
            words = [str(os.getpid()), str(rank), str(size), self._folder.name]
            command = [sys.executable, "-u", "-X", "faulthandler", script, *words]
            other = subprocess.Popen(command, stdin=subprocess.PIPE)
            self._others.append(other)
            watcher = threading.Thread(target=self._watch, args=(rank, other), daemon=True)
            watcher.start()
            self._send(other, message)
        join(0, size, self._folder.name)
        self.config = DistributedConfig(tp_size=size)

    def loaded(self):
        """All ranks have their part of the model."""
        self._loaded = True
        self._folder.cleanup()

    def _watch(self, rank, process):
        status = process.wait()
        if not self._loaded:
            time.sleep(PATIENCE_S)
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._end(f"rank {rank} of the tensor-parallel model has ended ({how})")

    def _lost(self):
        """A pass failed on this rank: the others are in the middle of theirs."""
        time.sleep(1.0)  # if another rank's end was the cause, its watcher says so
        traceback.print_exc()
        self._end("a pass of the tensor-parallel model failed on rank 0")

    @staticmethod
    def _end(why):
        from nbinfer.worker.engine import leave

        print(f"{why}; this process ends with it", file=sys.stderr, flush=True)
        leave(EXIT_RANK_DEAD)

    def _send(self, other, message):
        with contextlib.suppress(OSError):  # its watcher says that it has ended
            other.stdin.write(message)
            other.stdin.flush()

    def begin(self, ids, mask, config, choose, watch):
        """The others begin this batch; what chooses and watches here, as told to all.

        ``config`` has arguments of ``GenerationConfig``.
        """
        message = {"ids": ids.tolist(), "mask": mask.tolist(), "config": config}
        for other in self._others:
            self._send(other, protocol.pack(message))
        (own,) = choose or (None,)
        return [Chooser(own, beams=own is None)], Stopper(watch)

    def __enter__(self):
        """All ranks compute the batch."""

    def __exit__(self, _kind, error, _traceback):
        """What went wrong is for the batch's rows, where all ranks have ended it together."""
        if isinstance(error, StepFailed):
            raise error.__cause__
        if error is not None and not isinstance(error, Abandoned):
            self._lost()

    @staticmethod
    def agree(abandoned):
        """Tell all ranks whether the pass that they are about to begin is abandoned."""
        tell(torch.tensor([int(abandoned)]))
        return abandoned


class Chooser(LogitsProcessor):
    """Rank 0's choice for all. For beams it is the scores: the search is each rank's own.

    Parameters
    ----------
    own : callable or None
        What chooses, on rank 0.
    beams : bool
    """

    def __init__(self, own=None, beams=False):
        self._own = own
        self._beams = beams

    def __call__(self, input_ids, scores):
        if self._beams:
            return tell(scores.contiguous())
        if self._own is None:
            tokens = tell(torch.zeros(len(scores), dtype=torch.long, device=scores.device))
            if (tokens == FAILED).any():
                raise Abandoned
            return torch.full_like(scores, -math.inf).scatter_(1, tokens.unsqueeze(1), 0.0)
        try:
            scores = self._own(input_ids, scores)
        except Exception as error:
            tell(torch.full((len(scores),), FAILED, device=scores.device))
            raise StepFailed from error
        tell(scores.argmax(-1))
        return scores


class Stopper:
    """Rank 0's stopping criterion for all."""

    def __init__(self, own=None):
        self._own = own

    def __call__(self, input_ids, scores, **more):
        if self._own is None:
            done = tell(torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device))
            if (done == FAILED).any():
                raise Abandoned
            return done.bool()
        try:
            done = self._own(input_ids, scores, **more)
        except BaseException as error:
            tell(torch.full((len(input_ids),), FAILED, device=input_ids.device))
            if isinstance(error, Abandoned):
                raise
            raise StepFailed from error
        tell(done.long())
        return done


def tell(tensor):
    """Rank 0's tensor, on every rank."""
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.broadcast(tensor, src=0)
    return tensor


def join(rank, size, folder):
    """Become a rank. The sockets between them are on loopback alone."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, loopback)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    device = None
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
    dist.init_process_group(
        "gloo" if device is None else "nccl",
        store=dist.FileStore(os.path.join(folder, "ranks"), size),
        rank=rank,
        world_size=size,
        device_id=device,
        # A rank that ends closes its sockets, and the others know at once: this is for the
        # longest pass and for reading the weights.
        timeout=datetime.timedelta(hours=2),
    )


def follow(rank, size, folder, requests):
    """What another rank does, from its start to the end of its input."""
    from nbinfer.worker.backends._loading import load_model

    message = protocol.read(requests)
    torch.set_num_threads(message["threads"])
    join(rank, size, folder)
    options = {**message["options"], "distributed_config": DistributedConfig(tp_size=size)}
    model = load_model(message["model"], options)
    model.register_forward_pre_hook(_begin_pass)
    with torch.inference_mode(), contextlib.suppress(Abandoned):  # rank 0 tries it too
        model(input_ids=torch.tensor([[0]], device=model.device))
    while True:
        try:
            batch = protocol.read(requests)
        except protocol.StreamClosed:
            os._exit(0)
        with torch.inference_mode(), contextlib.suppress(Abandoned):
            _take_part(model, batch)


def _begin_pass(module, _arguments):
    if tell(torch.zeros(1, dtype=torch.long, device=module.device)).item():
        raise Abandoned


def _take_part(model, batch):
    config = GenerationConfig(**batch["config"])
    # The model's own sampling defaults would fill in for whatever rank 0 leaves out.
    model.generation_config = GenerationConfig(
        pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id
    )
    model.generate(
        input_ids=torch.tensor(batch["ids"], device=model.device),
        attention_mask=torch.tensor(batch["mask"], device=model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([Chooser(beams=config.num_beams > 1)]),
        stopping_criteria=StoppingCriteriaList([Stopper()]),
    )
