"""``%load_ext nbinfer``: register, and take everything back on ``%unload_ext``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import PARSERS
from .completion import install as install_completion
from .completion import uninstall as uninstall_completion
from .formatters import install_formatters, uninstall_formatters
from .magics import NbinferMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load", "unload"]


def load(ip: InteractiveShell) -> None:
    """Register magics, completion and formatters; loading twice does no harm."""
    manager = ip.magics_manager
    taken = {
        (kind, name): manager.magics[kind][name]
        for kind in ("line", "cell")
        for name in (*PARSERS, "nbinfer")
        if name in manager.magics[kind] and not _ours(manager.magics[kind][name])
    }
    magics = NbinferMagics(shell=ip)
    ip.register_magics(magics)
    for (kind, name), other in taken.items():
        if name == "nbinfer":
            continue  # our own full name is what the others fall back to
        manager.magics[kind][name] = other
        sign = "%" if kind == "line" else "%%"
        print(f"nbinfer: {sign}{name} belongs to another extension; use {sign}nbinfer {name}")
    _document()
    install_formatters(ip)
    install_completion(ip)


def unload(ip: InteractiveShell) -> None:
    """Take back what ``load`` registered, and unload every engine."""
    from ..residents import shutdown

    manager = ip.magics_manager
    for kind in ("line", "cell"):
        for name in (*PARSERS, "nbinfer"):
            if _ours(manager.magics[kind].get(name)):
                del manager.magics[kind][name]
    manager.registry.pop(NbinferMagics.__name__, None)
    uninstall_formatters(ip)
    uninstall_completion(ip)
    shutdown()


def _ours(magic: Any) -> bool:
    return isinstance(getattr(magic, "__self__", None), NbinferMagics)


def _document() -> None:
    """``%%infer?`` shows the options, from the parser that reads them."""
    for name, parser in PARSERS.items():
        getattr(NbinferMagics, name).__doc__ = parser().format_help()
