"""From rows to a DataFrame (stand-in)."""
from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any

COLUMNS = ("id","prompt","output","finish_reason","prompt_tokens","output_tokens","cached_tokens","queue_s","ttft_s","tpot_s","latency_s","model_memory_bytes","peak_memory_bytes","error","engine","model","run_id")

@dataclass(slots=True)
class Row:
    index: int
    sample: int = 0
    id: Any = None
    prompt: str = ""
    output: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None
    error: str | None = None
    messages: list | None = None
    logprobs: list | None = None
    parsed: Any = None

def jsonable(v):
    if isinstance(v, dict): return {str(k): jsonable(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)): return [jsonable(x) for x in v]
    if v is None or isinstance(v, (str, int, bool)): return v
    if isinstance(v, float): return v if math.isfinite(v) else None
    return str(v)

def build(rows, facts, *, inputs=None, samples=False, optional=()):
    import pandas as pd
    rows = sorted(rows, key=lambda r: (r.index, r.sample))
    d = {}
    if inputs is not None:
        for c in inputs.columns: d[c] = inputs[c].iloc[[r.index for r in rows]].reset_index(drop=True)
    for c in COLUMNS:
        if c in d: continue
        if c in ("engine","model","run_id"): d[c] = pd.Series([facts.get(c)]*len(rows), dtype="str")
        elif c in ("model_memory_bytes","peak_memory_bytes"): d[c]=pd.Series([facts.get(c)]*len(rows), dtype="Int64")
        else:
            v=[getattr(r,c) for r in rows]
            k = "Int64" if c.endswith("_tokens") else "Float64" if c.endswith("_s") else None if c=="id" else "str"
            if k=="str": v=[x.encode("utf-8","replace").decode() if isinstance(x,str) else x for x in v]
            d[c]=pd.Series(v, dtype=k)
        if c=="id" and samples: d["sample"]=pd.Series([r.sample for r in rows], dtype="int64")
    for c in optional: d[c]=pd.Series([getattr(r,c) for r in rows], dtype=object)
    f = pd.DataFrame(d); f.attrs["nbinfer"]=jsonable(facts); return f
