"""nbinfer's view of its own frames, as the shell's formatter for DataFrames, and its plots.

The view itself is imported when the first of our frames is shown.
"""

from __future__ import annotations

import io
from typing import Any

__all__ = ["install_formatters", "uninstall_formatters"]


def _ours(df: Any) -> bool:
    """A run's rows, one of our tables of units (``%engine``, a summary), or a whole benchmark.

    A part that somebody took of a frame is theirs: of its columns none may be hidden.
    """
    about = df.attrs.get("nbinfer")
    if not isinstance(about, dict):
        return False
    from .display import MARKS

    whole = "caption" in about and set(about["hidden"]) <= set(df.columns)
    return "table" in about or whole or all(name in df.columns for name in MARKS)


class _Html:
    """Replaces the formatter for DataFrames, and knows the one before."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, df: Any) -> Any:
        if _ours(df):
            from .display import frame_html

            return frame_html(df)
        return self.before(df) if self.before is not None else df._repr_html_()


class _Plain(_Html):
    def __call__(self, df: Any, printer: Any = None, cycle: bool = False) -> Any:
        if _ours(df):
            from .display import frame_text

            printer.text(frame_text(df))
        elif self.before is not None:
            self.before(df, printer, cycle)
        else:
            printer.text(repr(df))


def _png(figure: Any) -> bytes:
    """A plot as a picture, whether or not ``%matplotlib inline`` was run."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


FORMATTERS: tuple[tuple[str, type[_Html]], ...] = (("text/html", _Html), ("text/plain", _Plain))
# pandas 3 says "pandas", earlier releases where the class is defined.
MODULES = ("pandas", "pandas.core.frame")
FIGURE = ("matplotlib.figure", "Figure")


def install_formatters(ip: Any) -> None:
    """Show nbinfer's frames our way in this shell; every other frame as before."""
    uninstall_formatters(ip)
    for mime, kind in FORMATTERS:
        formatter = ip.display_formatter.formatters[mime]
        for known in [k for k in formatter.type_printers if _is_frame_class(k)]:
            formatter.for_type(known, kind(formatter.type_printers[known]))
        for module in MODULES:  # by name, so that pandas need not be imported yet
            before = formatter.deferred_printers.get((module, "DataFrame"))
            formatter.for_type_by_name(module, "DataFrame", kind(before))
    # Where nobody shows figures yet; %matplotlib inline, if it is run later, takes our place.
    kinds = ip.display_formatter.formatters
    if not any(formatter.for_type_by_name(*FIGURE) for formatter in kinds.values()):
        kinds["image/png"].for_type_by_name(*FIGURE, _png)


def uninstall_formatters(ip: Any) -> None:
    """Give back what was there before."""
    for mime, _ in FORMATTERS:
        formatter = ip.display_formatter.formatters[mime]
        for printers in (formatter.deferred_printers, formatter.type_printers):
            for key, value in list(printers.items()):
                if isinstance(value, _Html):
                    if value.before is None:
                        del printers[key]
                    else:
                        printers[key] = value.before
    pictures = ip.display_formatter.formatters["image/png"]
    if pictures.for_type_by_name(*FIGURE) is _png:
        pictures.pop(".".join(FIGURE))


def _is_frame_class(kind: type) -> bool:
    return kind.__name__ == "DataFrame" and kind.__module__ in MODULES
