"""``docs/memory.md``: the guide's memory tables beside what nbinfer computes."""

from __future__ import annotations

from dataclasses import dataclass

from .costs import Job
from .estimates import estimate
from .kvcache import kv_bytes
from .sources import describe, families

__all__ = ["memory_page"]

CONTEXT = 4096
# The guide rounds, and says "approximate": what is further off than this is marked.
TOLERANCE = 0.15


_HEAD = f"""# Memory

This page is generated (`python -m nbinfer.guide.pages memory`), never edited.

`%memory MODEL` computes this for any model, context and batch. Below are the two tables of the
guide with nbinfer's own figures beside them, for one request of {CONTEXT:,} tokens on a GPU:
weights, KV cache, activations, and an allowance of 1 GB for the CUDA context, which was not
measured. A figure of the guide that is more than {TOLERANCE:.0%} off is marked ⚠️, and so is a
card that does not hold what it is named for. Sizes are in GB of 10⁹ bytes."""


@dataclass(frozen=True)
class _Line:
    """A line of one of the guide's tables: gigabytes of two engines, and a card that holds it."""

    size: str
    model: str
    guide: tuple[float, float]
    note: str
    card_gb: float | None  # of the smallest card that the note names, None if it names none


# The guide's tables, and the model that stands here for each size.
_BF16 = (
    _Line("1B", "meta-llama/Llama-3.2-1B", (4, 4), "Fits on most GPUs", None),
    _Line("7B", "meta-llama/Llama-2-7b-hf", (16, 16), "RTX 3090/4090", 24),
    _Line("13B", "meta-llama/Llama-2-13b-hf", (28, 30), "A100 40GB", 40),
    _Line("70B", "meta-llama/Llama-3.1-70B", (150, 150), "Multiple A100s", None),
)
_FOUR_BITS = (
    _Line("1B", "meta-llama/Llama-3.2-1B", (1, 2), "Any GPU", None),
    _Line("7B", "meta-llama/Llama-2-7b-hf", (4, 6), "RTX 3060+", 12),
    _Line("13B", "meta-llama/Llama-2-13b-hf", (8, 10), "RTX 3080+", 10),
    _Line("70B", "meta-llama/Llama-3.1-70B", (40, 45), "A100 40GB", 40),
)
_TABLES = (
    ("BF16 (full precision)", _BF16, (("vllm", "bf16", "vLLM"), ("native", "bf16", "Native"))),
    (
        "Quantized (4-bit)",
        _FOUR_BITS,
        (("llamacpp", "Q4_K_M", "LlamaCPP (Q4)"), ("native", "4-bit", "Native (4-bit)")),
    ),
)


def memory_page() -> str:
    """``docs/memory.md``: the guide's memory tables beside what nbinfer computes."""
    lines = [_HEAD]
    for title, table, columns in _TABLES:
        lines += ["", f"## {title}", "", *_table(table, columns)]
    lines += ["", "## Known models", "", *_known()]
    return "\n".join(lines) + "\n"


def _table(table: tuple[_Line, ...], columns: tuple[tuple[str, str, str], ...]) -> list[str]:
    heads = [f"{title}: guide | {title}: nbinfer" for *_, title in columns]
    lines = [
        f"| size | model | {' | '.join(heads)} | the guide's note |",
        f"|---|---|{'--:|--:|' * len(columns)}---|",
    ]
    for line in table:
        cells, worst = [], 0.0
        for (engine, precision, _), guide in zip(columns, line.guide, strict=True):
            made = estimate(describe(line.model), engine, precision, Job(CONTEXT, 1, gpu=True))
            total = made.total / 1e9
            worst = max(worst, total)
            off = abs(guide / total - 1) > TOLERANCE
            cells += [f"~{guide:g} GB{' ⚠️' if off else ''}", f"{total:.1f} GB"]
        note = line.note
        if line.card_gb is not None and worst > line.card_gb:
            note += f" ⚠️ {worst:.1f} GB do not fit in {line.card_gb:g} GB"
        name = line.model.rpartition("/")[2]
        lines.append(f"| {line.size} | {name} | {' | '.join(cells)} | {note} |")
    return lines


def _known() -> list[str]:
    lines = [
        "Their configs come with nbinfer, so that their memory is known without a network. The",
        "published size is of the repository's files; what nbinfer computes from the config alone",
        "is within 1 % of it; DeepSeek-V3's files also hold a layer for the prediction of further",
        "tokens, which no engine loads unasked. The KV cache is in 16 bits, and no window is full.",
        "",
        "| model | parameters | published size | computed | KV cache of a token | config |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for repo, entry in families().items():
        found = describe(repo)
        count = sum(t.count for t in found.tensors) + found.extra
        made = estimate(found, "vllm", found.precision or "bf16", Job(1, 1))
        token = kv_bytes(found.shape, "vllm", 16, 1, 16, gpu=True) // 16
        size = f"{entry['bytes'] / 1e9:,.2f} GB" if "bytes" in entry else "–"
        lines.append(
            f"| {repo} | {count / 1e9:,.3f} B | {size} | {made.weights / 1e9:,.2f} GB | "
            f"{token:,} B | [source]({entry['source']}) |"
        )
    return lines
