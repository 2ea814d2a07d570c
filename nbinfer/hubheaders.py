"""A hub model's headers, by HTTP ranges: what it is, without its weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from . import gguf, hub, hubcache, hubclient, weights
from .errors import DownloadError, ModelNotFound
from .hubclient import Progress

__all__ = ["Header", "joined", "peek"]

_RANGE_BYTES = 4 * 1024 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True)
class Header:
    """What a repository says of its model, of which no weight was fetched.

    Attributes
    ----------
    form : str
        ``"safetensors"`` or ``"gguf"``.
    commit : str
        The commit that was read.
    config : mapping
        Its ``config.json``; empty beside GGUF.
    tensors : mapping
        Type, shape and bytes of the tensors of safetensors, by name.
    gguf : mapping
        A GGUF file's header (of a sharded one, its parts' tensors together).
    """

    form: str
    commit: str
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]]
    gguf: Mapping[str, Any]


def peek(name: hub.HubName, progress: Progress | None = None) -> Header:
    """The headers of the files that a hub id means, read by HTTP ranges.

    Raises
    ------
    ModelNotFound, DownloadError
        As of :func:`fetch`.
    """
    say = progress or (lambda _: None)
    listing = hub.listed(name, say)
    form, files = hub.choose(name, listing, ("safetensors", "gguf"), None, say)
    folder = hubcache.snapshot(name.repo, listing.commit)
    if all((folder / file).is_file() for file in files):
        return _peeked_here(form, listing.commit, folder, files)
    if listing.offline is not None:
        raise hubclient.unreachable(name.repo, listing.offline, "the cache does not hold it whole")
    if form == "gguf":
        headers = [
            _read_gguf(name.repo, listing.commit, file, listing.files[file], say) for file in files
        ]
        return Header(form, listing.commit, {}, {}, joined(headers))
    config = _config(_read_text(name.repo, listing.commit, "config.json", say), name.repo)
    tensors = [file for file in files if file.endswith(".safetensors")]
    found = _read_tensors(name.repo, listing.commit, tensors, say)
    return Header(form, listing.commit, config, found, {})


def _peeked_here(form: str, commit: str, folder: Path, files: Sequence[str]) -> Header:
    if form == "gguf":
        headers = [gguf.read_header(folder / file) for file in files]
        return Header(form, commit, {}, {}, joined(headers))
    config = _config((folder / "config.json").read_text(encoding="utf-8"), str(folder))
    found: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for file in files:
        if file.endswith(".safetensors"):
            found.update(weights.safetensors_header(folder / file))
    return Header(form, commit, config, found, {})


def joined(headers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The headers of a GGUF model's parts as one."""
    every = [tensor for header in headers for tensor in header["tensors"]]
    return {**headers[0], "tensors": every}


def _config(text: str, repo: str) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    raise ModelNotFound(f"the config.json of {repo} is damaged: it is no JSON object")


# --------------------------------------------------------------------- by ranges


def _read_text(repo: str, commit: str, file: str, say: Progress) -> str:
    """A small text file of a repository, read and not stored.

    Raises
    ------
    DownloadError, ModelNotFound
        Where the hub refuses, or the network fails.
    """

    def ask() -> str:
        response = _get(repo, commit, file, None)
        return str(response.text)

    return _reading(repo, commit, file, ask, say)


def _read_tensors(
    repo: str, commit: str, files: Sequence[str], say: Progress
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """The tensors of a repository's safetensors files, of which only the headers are fetched.

    Returns
    -------
    dict
        Type, shape and bytes by name, as of ``weights.safetensors_header``.

    Raises
    ------
    DownloadError, ModelNotFound
        Where the hub refuses, the network fails, or a file has no header.
    """
    from huggingface_hub import HfApi

    def ask() -> dict[str, tuple[str, tuple[int, ...], int]]:
        found = {}
        for file in files:
            header = HfApi(endpoint=hubclient.endpoint()).parse_safetensors_file_metadata(
                repo, file, revision=commit
            )
            for name, tensor in header.tensors.items():
                begin, end = tensor.data_offsets
                found[name] = str(tensor.dtype), tuple(tensor.shape), end - begin
        return found

    return _reading(repo, commit, ", ".join(files[:2]), ask, say)


def _read_gguf(repo: str, commit: str, file: str, size: int, say: Progress) -> dict[str, Any]:
    """The header of a repository's GGUF file, of which no more is fetched than it takes.

    Raises
    ------
    DownloadError, ModelNotFound
        Where the hub refuses, the network fails, or the file is no GGUF file.
    """

    def ask() -> dict[str, Any]:
        return gguf.read_stream(cast(BinaryIO, _Ranges(repo, commit, file)), size)

    return _reading(repo, commit, file, ask, say)


class _Ranges:
    """A file of the hub, read forward by HTTP ranges."""

    def __init__(self, repo: str, commit: str, file: str) -> None:
        self._place, self._at = (repo, commit, file), 0

    def read(self, count: int) -> bytes:
        """The next bytes: at least one, unless the file ends."""
        # Most of a header is its tokenizer, megabytes of it: fewer and larger requests.
        end = self._at + max(count, _RANGE_BYTES) - 1
        content: bytes = _get(*self._place, f"bytes={self._at}-{end}").content
        self._at += len(content)
        return content


def _get(repo: str, commit: str, file: str, range_: str | None) -> Any:
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file, revision=commit, endpoint=hubclient.endpoint())
    headers = build_hf_headers() | ({"Range": range_} if range_ else {})
    response = get_session().get(
        url, headers=headers, follow_redirects=True, timeout=hubclient.LOOKUP_S
    )
    hf_raise_for_status(response)
    if range_ and response.status_code != 206:
        raise OSError(f"the server sends {file} whole and not in part")
    return response


def _reading(repo: str, commit: str, what: str, ask: Callable[[], _T], say: Progress) -> _T:
    from huggingface_hub import errors

    try:
        return hubclient.aside(ask, lambda: f"reading {what} of {repo}", say)
    except hubclient.Failed as failed:
        error = failed.error
        if isinstance(error, errors.NotASafetensorsRepoError | errors.SafetensorsParsingError):
            why = f"{what} of {repo} has no header of tensors"
            raise DownloadError(why, hint="The file may be damaged.") from None
        if isinstance(error, gguf.GGUFError):
            raise DownloadError(f"{what} of {repo}: {error}") from None
        refused = hubclient.refusal(repo, commit, error)
        raise refused or DownloadError(
            f"{what} of {repo} could not be read: {hubclient.said(error)}",
            hint="Give a path instead, or set HF_ENDPOINT to a mirror.",
        ) from None
