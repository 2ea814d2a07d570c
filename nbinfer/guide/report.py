"""A benchmark as a picture and as a page: throughput against latency, tables, how it was measured.

Answers and names are a model's or a user's text: escaped in HTML, and in Markdown where they could
end a cell or a block.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import re
from typing import TYPE_CHECKING, Any

from ..notebook.text import format_bytes, format_seconds, unknown, visible
from ..timeline import blank
from . import metrics
from .results import Benchmark

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["draw", "html_report", "markdown_report"]

SAMPLE = 400  # characters of an answer
_INTERVALS = {
    "output tok/s": "output_tokens_per_s",
    "requests/s": "requests_per_s",
    "goodput/s": "goodput_per_s",
    "TTFT p50": "ttft_s_p50",
    "TPOT p50": "tpot_s_p50",
    "latency p50": "latency_s_p50",
}
_PLAIN = {
    "TTFT p99": "ttft_s_p99",
    "ITL p99": "itl_s_p99",
    "latency p99": "latency_s_p99",
    "prompt tokens": "prompt_tokens",
    "output tokens": "output_tokens",
    "cached": "cached_share",
    "failed": "failed",
    "load": "load_s",
    "memory": "model_memory_bytes",
    "peak": "peak_memory_bytes",
    "J/token": "energy_j_per_token",
    "of bandwidth": "bandwidth_share",
}


def draw(frame: pd.DataFrame) -> Figure:
    """Output tokens a second against the median latency, a line for each engine.

    Each dot is a load, with its 95 % intervals where there were repeats.

    Raises
    ------
    NbinferError
        Without matplotlib.
    """
    figure = blank(7, 4.5)
    axes = figure.subplots()
    x, y = "latency_s_p50", "output_tokens_per_s"
    for (engine, model), part in frame.groupby(["engine", "model"], sort=False):
        known = part.dropna(subset=[x, y])
        if known.empty:
            continue
        places = [known[n].to_numpy(dtype=float) for n in (x, y)]
        spreads = [
            [abs(known[n] - known[f"{n}_{end}"]).fillna(0).to_numpy(dtype=float) for end in ends]
            for n, ends in ((x, ("low", "high")), (y, ("low", "high")))
        ]
        label = _quoted(f"{engine} · {model}")
        axes.errorbar(places[0], places[1], spreads[1], spreads[0], "o-", capsize=3, label=label)
        for row in known.to_dict("records"):
            load = row["concurrency"] if unknown(row["rate"]) else f"{row['rate']:g}/s"
            axes.annotate(
                str(load), (row[x], row[y]), xytext=(5, 5), textcoords="offset points", fontsize=8
            )
    axes.set_xlabel("median latency of a request, seconds")
    axes.set_ylabel("output tokens a second, all requests")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    return figure


def _quoted(text: str) -> str:
    """A name as text, also where it looks like TeX or is hidden by an underscore."""
    return text.replace("$", r"\$").lstrip("_")


# ---------------------------------------------------------------------------- tables


def _table(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and cells; columns in which nothing is known are left out."""
    rows = frame.to_dict("records")
    head = ["engine", "model", "load"]
    cells = [[str(row["engine"]), str(row["model"]), _load(row)] for row in rows]
    for title, name in {**_INTERVALS, **_PLAIN}.items():
        if all(unknown(row[name]) for row in rows):
            continue
        head.append(title)
        for line, row in zip(cells, rows, strict=True):
            line.append(_value(row, name))
    if any(not unknown(row["error"]) for row in rows):
        head.append("error")
        for line, row in zip(cells, rows, strict=True):
            line.append("" if unknown(row["error"]) else str(row["error"]))
    return head, cells


def _load(row: dict[Any, Any]) -> str:
    if unknown(row["rate"]):
        return f"{row['concurrency']} at once"
    return f"{row['rate']:g}/s"


def _value(row: dict[Any, Any], name: str) -> str:
    value = row[name]
    if unknown(value):
        return "–"
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    text = _unit(name, value)
    if low is None or high is None or unknown(low) or unknown(high):
        return text
    return f"{text} ± {_unit(name, (high - low) / 2)}"


def _unit(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.startswith(metrics.TIMES) or name == "load_s":
        return format_seconds(value)
    if name.endswith("_share"):
        return f"{100 * value:.0f} %"
    return f"{value:.4g}"


def _method(found: Benchmark, frame: pd.DataFrame) -> list[str]:
    """How it was measured, in sentences."""
    told = frame.attrs["nbinfer"]
    lines = [told["caption"]]
    for point in found.points:
        versions = ", ".join(f"{k} {v}" for k, v in (point.facts.get("versions") or {}).items())
        precision = (point.facts.get("model_facts") or {}).get("precision")
        said = " · ".join(filter(None, [point.engine, versions, precision]))
        if said not in lines:
            lines.append(said)
    lines += list(dict.fromkeys(told["notes"]))
    lines.append(
        "TTFT, TPOT, ITL and latency as vllm bench serve defines them, the wait in the engine's "
        "queue included; ± is half of the 95 % confidence interval of the mean over repeats "
        "(Student's t). A dash is what could not be seen."
    )
    lines.append(f"nbinfer benchmark {found.id}, {found.created}, on {found.machine['system']}")
    return lines


def _samples(found: Benchmark) -> list[tuple[str, str]]:
    """One answer of each engine, cut."""
    told: dict[str, str] = {}
    for point in found.points:
        if point.sample:
            text = point.sample
            told[point.engine] = text if len(text) <= SAMPLE else text[:SAMPLE] + "…"
    return list(told.items())


# ----------------------------------------------------------------------------- pages


def html_report(found: Benchmark, frame: pd.DataFrame) -> str:
    """A page of its own: no script, nothing from elsewhere."""
    head, cells = _table(frame)

    def line(tag: str, texts: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_escaped(t)}</{tag}>" for t in texts) + "</tr>"

    picture = ""
    if importlib.util.find_spec("matplotlib") is not None:
        data = io.BytesIO()
        draw(frame).savefig(data, format="png", dpi=110)
        coded = base64.b64encode(data.getvalue()).decode()
        alt = "output tokens a second against latency"
        picture = f'<p><img alt="{alt}" src="data:image/png;base64,{coded}"></p>'
    samples = "".join(
        f"<h3>{_escaped(engine)}</h3><pre>{_escaped(text)}</pre>"
        for engine, text in _samples(found)
    )
    method = "".join(f"<li>{_escaped(text)}</li>" for text in _method(found, frame))
    style = (
        "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em}"
        "table{border-collapse:collapse;font-size:90%}"
        "th,td{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}"
        "th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}pre{white-space:pre-wrap}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>nbinfer benchmark</title><style>{style}</style></head><body>"
        f"<h1>Benchmark</h1><table><thead>{line('th', head)}</thead>"
        f"<tbody>{''.join(line('td', row) for row in cells)}</tbody></table>{picture}"
        f"<h2>How it was measured</h2><ul>{method}</ul>"
        + (f"<h2>An answer of each</h2>{samples}" if samples else "")
        + "</body></html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def markdown_report(found: Benchmark, frame: pd.DataFrame) -> str:
    """The same in Markdown, without the picture."""
    head, cells = _table(frame)
    lines = ["# Benchmark", ""]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in (head, ["---"] * len(head))]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in cells]
    lines += ["", "## How it was measured", ""]
    lines += [f"- {_cell(text)}" for text in _method(found, frame)]
    samples = _samples(found)
    if samples:
        lines += ["", "## An answer of each"]
    for engine, text in samples:
        # A fence that is longer than any in the text: the answer cannot end its block.
        longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        lines += ["", f"{_cell(engine)}:", "", f"{fence}text", visible(text), fence]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text that stays in its cell and is read as text."""
    line = visible(text).replace("\n", " ")
    if line == "---":
        return line
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", line)
