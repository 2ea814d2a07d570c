"""One engine's memory for one precision, and where it has to fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import gpu, repack, settings, sizes
from . import quantization
from .costs import Job, activations_bytes, overhead_bytes
from .kvcache import kv_bytes
from .sources import Described

__all__ = ["Estimate", "Place", "estimate", "grown", "largest", "place_for", "room_for"]


@dataclass(frozen=True)
class Estimate:
    """One engine's memory for one precision, in bytes on each device."""

    engine: str
    precision: str
    weights: int
    kv_cache: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.activations + self.overhead


@dataclass(frozen=True)
class Place:
    """Where it has to fit: bytes that may be used, and whether every shard is in there."""

    name: str
    room: int
    shared: bool
    gpu: bool


def estimate(
    found: Described, engine: str, precision: str, job: Job, bits: float | None = None
) -> Estimate:
    """The estimate for one engine and precision.

    Parameters
    ----------
    found : Described
        The model.
    engine, precision : str
        Of ``ENGINES``.
    job : Job
        Context, batch, devices.
    bits : float, optional
        Of a value in the KV cache; default as of :func:`memory`.
    """
    fixed = Estimate(
        engine,
        precision,
        _weights(found, engine, precision, job.parallel),
        kv_cache=0,
        activations=0,
        overhead=overhead_bytes(engine, found.shape, gpu=job.gpu)
        + _held_twice(found, engine, precision, job),
    )
    return grown(fixed, found, job, bits)


def grown(made: Estimate, found: Described, job: Job, bits: float | None = None) -> Estimate:
    """The same with another context and batch: weights and overhead stay as they are."""
    engine, width = made.engine, _width(made.precision)
    if bits is None:
        bits = 16.0 if engine == "llamacpp" else 8.0 * width
    cache = kv_bytes(
        found.shape, engine, job.context, job.batch, bits, parallel=job.parallel, gpu=job.gpu
    )
    activations = activations_bytes(found.shape, engine, job, width)
    return replace(made, kv_cache=cache, activations=activations)


def _width(precision: str) -> int:
    """Bytes of a value that is computed with."""
    return 4 if precision == "fp32" else 2


def _held_twice(found: Described, engine: str, precision: str, job: Job) -> int:
    """Bytes of weights that an engine holds beside those of the file, on a CPU.

    llama.cpp's are those of :mod:`nbinfer.repack`. vLLM packs the output's matrix for oneDNN
    (``model_executor/layers/utils.py``, ``dispatch_cpu_unquantized_gemm``), and keeps the original
    where it is the input's too.
    """
    if job.gpu or engine == "native":
        return 0
    if engine == "vllm":
        output = found.shape.vocab * found.shape.hidden * _width(precision)
        return output // job.parallel if found.shape.tied else 0
    if found.form == "gguf" and precision == found.precision:
        kinds = {tensor.name: tensor.stored for tensor in found.tensors}
    else:
        kinds = {**quantization.gguf_type(found.shape, found.tensors, precision)}
    return repack.beside_file((t.name, t.sizes, kinds[t.name]) for t in found.tensors)[1]


def _weights(found: Described, engine: str, precision: str, parallel: int) -> int:
    if found.own_bytes is not None and precision == found.precision:
        whole = found.own_bytes
    else:
        whole = quantization.weights_bytes(found.shape, found.tensors, precision, engine)
        whole += found.extra * (4 if precision == "fp32" else 2)
    repeated = sum(t.count for t in found.tensors if len(t.sizes) < 2)
    repeated *= 4 if precision in ("fp32", *quantization.GGUF_TYPES) else 2
    return repeated + -(-(whole - repeated) // parallel) if parallel > 1 else whole


def largest(fits: Callable[[int], bool], most: int) -> int | None:
    """The largest number from 1 to ``most`` that fits, ``None`` if not even 1 does."""
    if not fits(1):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def room_for(engine: str, job: Job, device: int | str | None) -> Place | None:
    """Where a job has to fit; ``None`` for a GPU that this machine has not got."""
    room = None if device is None else sizes.parse_size(device)
    place = place_for(engine, job.parallel, room)
    return None if job.gpu and not place.gpu and _uses_gpu(engine) else place


def place_for(engine: str, parallel: int, room: int | None) -> Place:
    """Where an engine's share of a model has to fit: a device of ``room`` bytes, or here."""
    if room is not None:
        return Place(f"{room / 1e9:g} GB", room, shared=False, gpu=True)
    visible = gpu.visible() if _uses_gpu(engine) else []
    now = settings.current()
    if visible:
        rooms = [now.device_budget_bytes(one.total_bytes) for one in visible[:parallel]]
        least = min(rooms) if len(rooms) == parallel else 0
        return Place(f"{parallel} x {visible[0].name}", least, shared=False, gpu=True)
    return Place("main memory", now.budget_bytes(), shared=True, gpu=False)


def _uses_gpu(engine: str) -> bool:
    """Whether it computes on a GPU where there is one: llama.cpp only with a build for it."""
    from .. import environments
    from ..recipes import ACCELERATED

    builds = ACCELERATED if engine == "llamacpp" else ()
    return engine != "llamacpp" or any(environments.available(b) for b in builds)
