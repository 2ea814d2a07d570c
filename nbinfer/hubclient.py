"""The hub's client: looking up, downloading, and what a refusal means.

``huggingface_hub`` is imported when the first hub id is resolved. Its progress bars draw
nothing here, and its errors are told with what to do, without tokens or signed addresses.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .checks import Address, shown
from .errors import DownloadError, ModelNotFound, NbinferError
from .hubcache import cache_folder, storage

__all__ = [
    "LOOKUP_S",
    "Failed",
    "aside",
    "download",
    "endpoint",
    "lookup",
    "offline",
    "refusal",
    "said",
    "search",
    "unreachable",
]

Progress = Callable[[str], None]
_T = TypeVar("_T")

_POLL_S = 0.5
LOOKUP_S = 10.0
SEARCH_S = 5.0
# Beyond the look-up's own limit: a resolver that does not answer knows none.
_LONGEST_LOOKUP_S = 30.0
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


# ------------------------------------------------------------------------- the network


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set, now or when the client was imported."""
    from huggingface_hub import constants

    now = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return now or constants.HF_HUB_OFFLINE


def endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def lookup(repo: str, revision: str | None, say: Progress) -> tuple[str, dict[str, int]] | str:
    """The commit and the files with their sizes; or, as one string, why the hub cannot say.

    Raises
    ------
    ModelNotFound, DownloadError
        Where the hub answers, and refuses.
    """
    from huggingface_hub import HfApi

    def ask() -> tuple[str, dict[str, int]]:
        info = HfApi(endpoint=endpoint()).model_info(
            repo, revision=revision, files_metadata=True, timeout=LOOKUP_S
        )
        return str(info.sha), {s.rfilename: s.size or 0 for s in info.siblings or ()}

    try:
        return aside(ask, lambda: f"looking {repo} up on the hub", say, _LONGEST_LOOKUP_S)
    except Failed as failed:
        refused = refusal(repo, revision, failed.error)
        if refused is not None:
            raise refused from None
        return said(failed.error)


def search(text: str, form: str, say: Progress, most: int = 20) -> list[str]:
    """Models of the hub with such names, the most downloaded first.

    Parameters
    ----------
    text : str
        A part of the name.
    form : str
        ``"gguf"`` or ``"safetensors"``: what they must hold.
    say : callable
        Called twice a second; an exception from it ends the search.
    most : int, default 20
        So many of them.

    Raises
    ------
    DownloadError
        Where the hub cannot be reached, or refuses.
    """
    # Not by the client's own listing: it tries five times, for half a minute, and says so.
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if offline():
        raise DownloadError("HF_HUB_OFFLINE is set")

    def ask() -> list[str]:
        response = get_session().get(
            f"{endpoint()}/api/models",
            params={"search": text, "filter": form, "sort": "downloads", "limit": most},
            headers=build_hf_headers(),
            follow_redirects=True,
            timeout=SEARCH_S,
        )
        hf_raise_for_status(response)
        return [str(found["id"]) for found in response.json()][:most]

    try:
        return aside(ask, lambda: "searching the hub", say, _LONGEST_LOOKUP_S)
    except Failed as failed:
        raise DownloadError(said(failed.error)) from None


class _Bar:
    """What the hub's client takes for tqdm: it counts, draws nothing, and can end a download."""

    done: ClassVar[int] = 0
    stopped: ClassVar[threading.Event]

    def __init__(self, *_: Any, initial: float | None = 0, **__: Any) -> None:
        self.n = self.total = 0
        self.update(initial)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        if self.stopped.is_set():
            raise InterruptedError("the download was stopped")
        type(self).done += int(n or 0)

    def update_transfer(self, n: float | None = 1) -> None:
        """Bytes on the wire; those written are what counts."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **__: None  # refresh, close, set_description, set_postfix_str ...


def download(repo: str, commit: str, files: Mapping[str, int], say: Progress) -> None:
    """Fetch a repository's files, given with their sizes, into the hub's cache.

    An exception of ``say`` ends it; what has come is kept, and the next one goes on from there.

    Raises
    ------
    DownloadError, ModelNotFound
        Where the hub refuses, the network fails, or the disk is full or closed.
    """
    from huggingface_hub import hf_hub_download

    cache, address, total = cache_folder(), endpoint(), sum(files.values())
    place = next((p for p in (cache, *cache.parents) if p.is_dir()), cache)
    with contextlib.suppress(OSError):
        if shutil.disk_usage(place).free < total:
            raise _disk_full(repo, cache, total)

    class Bar(_Bar):
        stopped = threading.Event()

    def get() -> None:
        for file in files:
            if Bar.stopped.is_set():
                return
            hf_hub_download(
                repo,
                file,
                revision=commit,
                cache_dir=cache,
                endpoint=address,
                tqdm_class=Bar,  # type: ignore[arg-type]
            )

    began = time.monotonic()

    def line() -> str:
        done = min(Bar.done, total) / 1e6
        return f"fetching {repo}: {done:,.0f} of {total / 1e6:,.0f} MB, {_since(began)}"

    try:
        say(line())
        aside(get, line, say)
    except Failed as failed:
        error = failed.error
        refused = refusal(repo, commit, error)
        raise refused or _fetch_failed(repo, error, cache, total) from None
    finally:
        Bar.stopped.set()
    say(f"{repo} is fetched ({total / 1e6:,.0f} MB)")


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"


class Failed(Exception):
    """What the other thread's work ended with."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def aside(
    work: Callable[[], _T], line: Callable[[], str], say: Progress, longest_s: float | None = None
) -> _T:
    """Do blocking work in a thread, and say twice a second how far it is.

    So an exception of ``say`` ends the waiting at once, whatever the network does.
    """
    result: list[_T] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="nbinfer-hub", daemon=True)
    began = time.monotonic()
    thread.start()
    while True:
        thread.join(_POLL_S)
        if not thread.is_alive():
            break
        if longest_s is not None and time.monotonic() - began > longest_s:
            raise Failed(TimeoutError(f"no answer in {longest_s:.0f} s"))
        say(line())
    if failure:
        raise Failed(failure[0])
    return result[0]


# -------------------------------------------------------------------------- the errors


def refusal(repo: str, revision: str | None, error: Exception) -> NbinferError | None:
    """What the hub itself has refused, or ``None`` where it did not answer."""
    from huggingface_hub import errors

    at = Address(endpoint()).masked
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo} is gated: its authors decide who may download it",
            hint=f"Ask for access at {at}/{repo}, then {_LOG_IN} of that account.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(
            f"{repo} has no revision {shown(revision or 'main')}",
            hint=f"a revision is a branch, a tag or a commit of {at}/{repo}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"there is no file or folder {repo!r} here, and no such model at {at}, "
            "or it is private",
            hint=f"Look for a mistake in its name; for a private one {_LOG_IN}.",
        )
    if isinstance(error, errors.HFValidationError):
        return ModelNotFound(f"{shown(repo)} cannot be a hub id: {said(error)}")
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if status == 401:
        return DownloadError(
            f"{at} does not accept your token", hint=f"It may have expired: {_LOG_IN}."
        )
    if status == 403:
        return DownloadError(
            f"{at} does not let you download {repo} (403)",
            hint=f"Your token may lack the right to read it: {_LOG_IN}.",
        )
    return None


def unreachable(repo: str, why: str, lacks: str) -> DownloadError:
    """The error for a repository that neither the hub nor its cache can give."""
    return DownloadError(
        f"{repo} cannot be fetched from {Address(endpoint()).masked}: {why}; {lacks}",
        hint="Give a path instead, set HF_ENDPOINT to a mirror, or copy the model from a machine "
        f"that has it to {storage(repo)}.",
    )


def _fetch_failed(repo: str, error: Exception, cache: Path, total: int) -> DownloadError:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return _disk_full(repo, cache, total)
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return DownloadError(
            f"{repo} cannot be stored in {cache}: {said(error)}",
            hint="Set HF_HOME to a folder that can be written.",
        )
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return DownloadError(
        f"{repo} could not be fetched: {said(cause)}",
        hint="What came is kept: ask again, and the download goes on from there.",
    )


def _disk_full(repo: str, cache: Path, total: int) -> DownloadError:
    return DownloadError(
        f"not enough disk space in {cache} for {repo}: it takes {total / 1e6:,.0f} MB",
        hint="Free some there, or set HF_HOME to a folder on another disk.",
    )


def said(error: Exception) -> str:
    """An error's first line, without passwords and signatures in its addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"://[^/@\s]+@", "://***@", lines[0] if lines else type(error).__name__)
    return re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "?***", text)[:300]
