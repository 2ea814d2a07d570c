"""Models of the Hugging Face hub: which of a repository's files a name means.

What is chosen goes into the hub's own cache. Where the hub cannot be reached, what the cache
holds is used.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import hubcache, hubclient, projector, weights
from .checks import shown
from .errors import ConfigurationError, ModelNotFound
from .hubclient import Progress

__all__ = ["HubName", "choose", "fetch", "listed", "parse"]

# org/name, then @revision, then :QUANTIZATION or :file.gguf, in this order only.
_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>\w[\w./-]*))?(?::(?P<file>\w[\w./-]*))?"
)
_TURNED = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[\w./-]+)@(?P<revision>[\w./-]+)")
_PREFERRED = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0")
# What Transformers, vLLM and SGLang read beside the weights. The *.py among them run only
# where trust_remote_code is set.
_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "tokenizer*", "*.py")
_FOLDERS = ("", "additional_chat_templates")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class HubName:
    """``org/name@revision:file`` in its parts; ``file`` is a quantization or a ``.gguf`` file."""

    repo: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class _Listing:
    """A repository's files with their sizes, as the hub has them or as its cache does."""

    commit: str
    files: Mapping[str, int]
    offline: str | None = None  # why the cache was asked


def parse(name: str) -> HubName | None:
    """The parts of a hub id, or ``None`` where the text is none.

    Raises
    ------
    ConfigurationError
        For the parts in another order.
    """
    if ".." in name:
        return None
    match = _NAME.fullmatch(name)
    if match is not None:
        is_file = match["file"] is None and match["repo"].lower().endswith(".gguf")
        return None if is_file else HubName(match["repo"], match["revision"], match["file"])
    turned = _TURNED.fullmatch(name)
    if turned is not None:
        raise ConfigurationError(
            f"the revision stands before the quantization, not after it: {shown(name)}",
            hint=f"write {turned['repo']}@{turned['revision']}:{turned['file']}",
        )
    return None


def fetch(
    name: HubName, forms: Sequence[str], engine: str | None, progress: Progress | None = None
) -> tuple[Path, str]:
    """The file or folder that a hub id means, fetched where it is not there yet.

    Parameters
    ----------
    name : HubName
        The id, with its revision.
    forms : sequence of str
        What the engine loads, the preferred first.
    engine : str or None
        Its name, for messages.
    progress : callable, optional
        Called with a line of text about twice a second. An exception from it ends the fetch;
        what has come is kept, and the next fetch goes on from there.

    Returns
    -------
    tuple of (pathlib.Path, str)
        In the hub's cache; and the commit.

    Raises
    ------
    ModelNotFound
        Where there is no such repository, revision or file.
    DownloadError
        Where it may not be read, cannot be reached, or does not fit on the disk.
    """
    say = progress or (lambda _: None)
    listing = listed(name, say)
    form, files = choose(name, listing, forms, engine, say)
    folder = hubcache.snapshot(name.repo, listing.commit)
    missing = {f: listing.files.get(f, 0) for f in files if not (folder / f).is_file()}
    if missing and listing.offline is not None:
        lacks = f"the cache lacks {', '.join(list(missing)[:3])}"
        raise hubclient.unreachable(name.repo, listing.offline, lacks)
    if missing:
        hubclient.download(name.repo, listing.commit, missing, say)
    if listing.offline is None:
        hubcache.remember(name.repo, name.revision, listing.commit)
    return (folder / files[0] if form == "gguf" else folder), listing.commit


# ------------------------------------------------------------------------- the listing


def listed(name: HubName, say: Progress) -> _Listing:
    """A repository's files, as the hub has them or, where it cannot be reached, its cache."""
    if hubclient.offline():
        why = "HF_HUB_OFFLINE is set"
    else:
        answer = hubclient.lookup(name.repo, name.revision, say)
        if not isinstance(answer, str):
            commit, files = answer
            return _Listing(commit, {f: n for f, n in files.items() if _is_plain(f)})
        why = answer
    found = _cached(name, why)
    if found is None:
        raise hubclient.unreachable(name.repo, why, "the cache does not hold it")
    say(f"{name.repo} is taken from the cache: {why}")
    return found


def _is_plain(file: str) -> bool:
    """Whether a name from outside stays in its folder, and prints as it is in a message."""
    return file.isprintable() and not file.startswith("/") and ".." not in file.split("/")


def _cached(name: HubName, why: str) -> _Listing | None:
    commit = name.revision or "main"
    if not hubcache.COMMIT.fullmatch(commit):
        try:
            ref = hubcache.storage(name.repo) / "refs" / commit
            commit = ref.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    if not hubcache.COMMIT.fullmatch(commit):
        return None
    folder = hubcache.snapshot(name.repo, commit)
    files: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = path.stat().st_size
    # An index names every part: those that did not come are missing, not unknown.
    for index in _INDEXES:
        with contextlib.suppress(OSError, ValueError, RecursionError, LookupError, AttributeError):
            parts = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            files.update({str(part): 0 for part in parts if part not in files})
    return _Listing(commit, files, why) if files else None


# -------------------------------------------------------------------------- the choice


def choose(
    name: HubName, listing: _Listing, forms: Sequence[str], engine: str | None, say: Progress
) -> tuple[str, list[str]]:
    """The form, and the files to have: the weights last, so that with them the model is whole."""
    tensors = weights.weight_files(listing.files) if "config.json" in listing.files else []
    groups = weights.gguf_groups(listing.files)
    if name.file and not groups:
        raise ModelNotFound(
            f"{name.repo} has no GGUF file, so none called {shown(name.file)}",
            hint=f"{name.repo} without :{name.file} is its safetensors" if tensors else None,
        )
    for form in forms:
        if form == "gguf" and groups:
            chosen = _choose_gguf(name, listing, groups, say)
            return form, [*chosen, *_projector(listing.files, chosen[0], engine)]
        if form == "safetensors" and tensors and not name.file:
            return form, [*_beside(listing.files, tensors), *tensors]
    if groups:
        raise weights.mismatch(f"{name.repo} has GGUF files", "gguf", forms, engine)
    if tensors:
        raise weights.mismatch(f"{name.repo} has no GGUF file", "safetensors", forms, engine)
    raise ModelNotFound(
        f"{name.repo} holds no model: no GGUF file, and no config.json with *.safetensors",
        hint="it may be a LoRA adapter, a data set or code",
    )


def _beside(files: Iterable[str], tensors: Sequence[str]) -> list[str]:
    found = []
    for file in files:
        folder, _, base = file.rpartition("/")
        if folder in _FOLDERS and any(fnmatch.fnmatch(base, p) for p in _BESIDE):
            found.append(file)
    return sorted(set(found) - set(tensors))


def _projector(files: Iterable[str], model: str, engine: str | None) -> list[str]:
    """What the model reads images through, where the engine takes it from a file beside."""
    folder = model.rpartition("/")[0]
    beside = [file for file in files if file.rpartition("/")[0] == folder]
    found = projector.choose(beside) if engine == "llamacpp" else None
    return [found] if found is not None else []


def _choose_gguf(
    name: HubName, listing: _Listing, groups: Mapping[str, list[str]], say: Progress
) -> list[str]:
    labels = {first: _label(first) for first in groups}
    listed = ", ".join(sorted({label or first for first, label in labels.items()})[:20])
    place = name.repo + (f"@{name.revision}" if name.revision else "")
    found = _called(labels, name.file) if name.file else _default(groups, labels, listing.files)
    if not found:
        raise ModelNotFound(f"{place} has no {shown(name.file)}", hint=f"it has: {listed}")
    first = found[0]
    if len(found) > 1:
        raise ModelNotFound(
            f"{place} has {len(found)} models in {labels[first] or shown(name.file)}",
            hint="name one: " + " or ".join(f"{place}:{f}" for f in found[:3]),
        )
    if not name.file and len(groups) > 1:
        say(f"{place} has {listed}: taking {labels[first] or first}")
    if listing.offline is None:
        weights.check_parts(groups[first], listing.files)
    return groups[first]


def _called(labels: Mapping[str, str], wanted: str) -> list[str]:
    """Those of that file name, or else those of that quantization."""
    wanted = wanted.upper()
    found = [f for f in labels if wanted in (f.upper(), f.rpartition("/")[2].upper())]
    return found or [f for f, label in labels.items() if _is_called(f, label, wanted)]


def _is_called(file: str, label: str, wanted: str) -> bool:
    # The longer names too, that some publish: UD-Q4_K_XL.
    stem = re.sub(r"-\d{5}-OF-\d{5}", "", file.upper()).removesuffix(".GGUF")
    return label == wanted or re.search(rf"(?:^|[-._/]){re.escape(wanted)}$", stem) is not None


def _default(
    groups: Mapping[str, list[str]], labels: Mapping[str, str], sizes: Mapping[str, int]
) -> list[str]:
    """Those of the preferred quantization, or else the smallest model."""
    for label in _PREFERRED:
        found = [f for f in groups if labels[f] == label]
        if found:
            return found
    return sorted(groups, key=lambda f: (sum(sizes.get(p, 0) for p in groups[f]), f))[:1]


def _label(file: str) -> str:
    found = weights.QUANTIZATION.findall(re.sub(r"-\d{5}-of-\d{5}", "", file))
    return found[-1].upper() if found else ""
