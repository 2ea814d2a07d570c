"""How much memory a model takes, by engine and precision: ``%memory``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import sizes
from ..checks import shown
from ..errors import ConfigurationError
from . import asking, peaks, quantization
from .asking import tokens, whole
from .costs import Job
from .estimates import estimate, grown, largest, place_for
from .kvcache import kv_bits
from .sources import Described, describe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "memory"]

COLUMNS = {
    "engine": "str",
    "precision": "str",
    "weights_bytes": "Int64",
    "kv_cache_bytes": "Int64",
    "activations_bytes": "Int64",
    "overhead_bytes": "Int64",
    "total_bytes": "Int64",
    "fits": "boolean",
    "measured_peak_bytes": "Int64",
    "largest_context": "Int64",
    "largest_batch": "Int64",
    "device": "str",
}
_USUAL_CONTEXT = 4096


def memory(
    model: str,
    *,
    engines: Sequence[str] | str | None = None,
    precisions: Sequence[str] | str | None = None,
    context: int | str | None = None,
    batch: int = 1,
    tensor_parallel_size: int = 1,
    kv_dtype: str | None = None,
    device: int | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """How much memory a model takes, and whether it fits here: nothing is loaded or downloaded.

    Parameters
    ----------
    model : str
        A name as engines take it: the embedded model, a path, an alias, a hub id
        (``org/name``, ``org/name:Q4_K_M``), of which the headers alone are read; or a
        well-known model, also by the last part of its id, whose config nbinfer has.
    engines : sequence of str, optional
        Of ``vllm``, ``native``, ``llamacpp``. Default: all that can load the model.
    precisions : sequence of str, optional
        Of ``bf16``, ``fp16``, ``fp32``, ``fp8``, ``8-bit``, ``4-bit`` and GGUF's types
        (``Q4_K_M``). Default: all that an engine has, and ``fp32`` where the model is in it.
    context : int or str, optional
        Tokens of prompt and answer of one request: ``8192``, ``"8k"`` (times 1024). Default:
        the model's own, 4096 at most.
    batch : int, default 1
        Requests of that length at once.
    tensor_parallel_size : int, default 1
        Devices that share the model; the bytes are those of one of them.
    kv_dtype : str, optional
        Of the KV cache: ``fp16``, ``bf16``, ``fp8``, ``fp32``, or llama.cpp's ``q8_0``, ``q4_0``
        and their kin. Default: 16 bits on ``llamacpp``, else as the weights are computed in.
    device : int or str, optional
        Memory of the device in mind, such as ``"40GB"``. Default: this machine's GPUs, for
        engines that use them, or else its main memory, each within its budget.
    progress : callable, optional
        Called with a line of text while headers are read.

    Returns
    -------
    pandas.DataFrame
        A row for each engine and precision. In bytes, on each device: ``weights_bytes``,
        ``kv_cache_bytes``, ``activations_bytes``, ``overhead_bytes`` (the engine itself: see
        :mod:`nbinfer.guide.costs`) and their sum, ``total_bytes``; ``fits``, by memory alone;
        ``measured_peak_bytes``, the highest that this model took on this machine in a run of that
        engine and precision, whatever its context and batch; ``largest_context``, at this batch,
        and ``largest_batch``, at this context, that fit (NA if none does); ``device``. What was
        assumed is in ``attrs["nbinfer"]``; ``df.infer.plot()`` draws it.

    Raises
    ------
    ConfigurationError
        For an impossible value, a model whose config lacks a size, a size in a model's place.
    UnsupportedParameter
        For a precision that none of the engines asked for loads.
    ModelNotFound, DownloadError
        For a model that is not known here and cannot be read.

    Notes
    -----
    Weights are counted tensor by tensor: :mod:`nbinfer.guide.quantization`. The cache's
    formula and its sources are in :func:`nbinfer.guide.kvcache.kv_bytes`, those of activations
    and of the engines in :mod:`nbinfer.guide.costs`. Tensor parallelism divides matrices and
    heads and repeats norms (Megatron-LM, arXiv:1909.08053).
    """
    wanted_engines = asking.engines(engines)
    wanted = (
        None if precisions is None else [quantization.check(p) for p in asking.listed(precisions)]
    )
    count = whole("batch", batch)
    parallel = whole("tensor_parallel_size", tensor_parallel_size, 1024)
    length = None if context is None else tokens(context)
    bits = None if kv_dtype is None else kv_bits(kv_dtype)
    room = None if device is None else sizes.parse_size(device)
    if room == 0:
        raise ConfigurationError(f"a device of {shown(device)} holds nothing")

    found = describe(model, progress)
    asking.check_context(found, length)
    length = length or min(found.shape.context or _USUAL_CONTEXT, _USUAL_CONTEXT)
    asking.check_parallel(found, parallel, engines)
    chosen = asking.chosen(
        found, wanted_engines, wanted, asked=engines is not None, parallel=parallel
    )
    rows = [
        _row(found, engine, precision, Job(length, count, parallel), bits, room)
        for engine, precision in chosen
    ]
    return _frame(found, rows, length, count, parallel, kv_dtype)


def _row(
    found: Described,
    engine: str,
    precision: str,
    job: Job,
    bits: float | None,
    room: int | None,
) -> dict[str, Any]:
    place = place_for(engine, job.parallel, room)
    job = replace(job, gpu=place.gpu)

    made = estimate(found, engine, precision, job, bits)

    def total(changed: Job) -> int:
        one = grown(made, found, changed, bits).total
        return one * job.parallel if place.shared else one

    fits = total(job) <= place.room
    longest = found.shape.context or asking.MOST_TOKENS
    return {
        "engine": engine,
        "precision": precision,
        "weights_bytes": made.weights,
        "kv_cache_bytes": made.kv_cache,
        "activations_bytes": made.activations,
        "overhead_bytes": made.overhead,
        "total_bytes": made.total,
        "fits": fits,
        "measured_peak_bytes": peaks.measured(engine, found.name, precision),
        "largest_context": largest(lambda n: total(replace(job, context=n)) <= place.room, longest),
        "largest_batch": largest(
            lambda n: total(replace(job, batch=n)) <= place.room, asking.MOST_BATCH
        ),
        "device": place.name,
        "room": place.room // job.parallel if place.shared else place.room,
    }


# --------------------------------------------------------------------------- the table


def _frame(
    found: Described,
    rows: list[dict[str, Any]],
    context: int,
    batch: int,
    parallel: int,
    kv_dtype: str | None,
) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()}
    )
    each = f" on each of {parallel} devices" if parallel > 1 else ""
    notes = [
        f"{context:,} tokens x {batch}{each}",
        f"weights: {found.origin}",
    ]
    frame.attrs["nbinfer"] = {
        "table": f"{found.name} · " + " · ".join(notes),
        "model": found.name,
        "context": context,
        "batch": batch,
        "tensor_parallel_size": parallel,
        "kv_dtype": kv_dtype,
        "parameters": sum(t.count for t in found.tensors) + found.extra,
        "weights": found.origin,
        "room_bytes": {row["device"]: row["room"] for row in rows},
    }
    return frame
