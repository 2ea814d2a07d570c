"""What can go wrong with a request, and whether it is sent again.

===========================================  =======================================
sent again, after a wait                     the row fails at once
===========================================  =======================================
no connection, a connection that is lost     a certificate that is not trusted
no byte for ``read_timeout_s``               a redirect (a key must not follow it)
a stream that ends before its answer does    400, 401, 403, 404, 413, 422 and other 4xx
a stream with an event that is no JSON       429 because the account has no credit
408, 409, 425, 429, 5xx but 501 and 505      501, 505
an error that a stream tells, of those       an error that a stream tells, of those
an answer without a choice                   a page where JSON or a stream is expected
===========================================  =======================================
"""

from __future__ import annotations

import email.utils
import json
import random
import re
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx

__all__ = ["Failure", "backoff", "from_body", "from_exception", "from_response", "retry_after"]

_MOST_TEXT = 600
_BUSY = {429, 503, 529}
_AGAIN = {408, 409, 425, 429}
_NEVER = {501, 505}
# A status for the errors that a stream tells by name alone.
_BY_NAME = {
    "overloaded": 529,
    "rate_limit": 429,
    "server_error": 500,
    "internal": 500,
    "api_error": 500,
    "unavailable": 503,
    "timeout": 504,
    "authentication": 401,
    "permission": 403,
    "not_found": 404,
}


class Failure(Exception):
    """A request without an answer.

    Attributes
    ----------
    again : bool
        Whether it may be sent again.
    busy : bool
        Whether the server asks for fewer requests.
    down : bool
        Whether there was no connection at all: the request was not begun.
    wait_s : float or None
        How long the server asks to wait, in seconds.
    status : int or None
        The HTTP status, where there was one.
    """

    def __init__(
        self,
        message: str,
        *,
        again: bool = False,
        busy: bool = False,
        down: bool = False,
        wait_s: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.again = again
        self.busy = busy
        self.down = down
        self.wait_s = wait_s
        self.status = status


def backoff(attempt: int, base_s: float, most_s: float) -> float:
    """Seconds before attempt 1, 2, ...: doubled each time, and between a half and all of it.

    Half of it is random so that rows that failed together do not come back together ("equal
    jitter" of M. Brooker, "Exponential Backoff And Jitter", 2015).
    """
    ceiling = min(most_s, base_s * 2.0 ** min(attempt - 1, 60))
    return ceiling * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: ``Retry-After``, as a number or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
            return float(text) / unit
        if text and name == "retry-after":
            try:
                return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
            except (ValueError, TypeError, OverflowError):
                return None
    return None


def from_response(response: httpx.Response, body: bytes) -> Failure:
    """The failure that a status other than 200 tells."""
    status = response.status_code
    if 300 <= status < 400:
        place = httpx.URL(response.headers.get("location", "")).copy_with(query=None, userinfo=b"")
        return Failure(
            f"{status}: the server redirects to {str(place)[:200]!r}, and a key must not follow; "
            "give that address as api_url",
            status=status,
        )
    text, code = _said(body)
    failure = _of_status(status, text or response.reason_phrase, code)
    failure.wait_s = retry_after(response.headers)
    return failure


def from_body(value: Mapping[str, Any]) -> Failure | None:
    """The failure that a body tells although its status was 200; ``None`` if it is none."""
    error = value.get("error")
    if not error and value.get("object") != "error" and value.get("type") != "error":
        return None
    text, code = _words(value)
    if isinstance(error, Mapping):
        named = f"{error.get('type', '')} {error.get('code', '')}".lower()
    else:
        named = f"{value.get('type', '')} {value.get('code', '')}".lower()
    found = re.search(r"\b[45][0-9]{2}\b", named)
    guesses = [status for name, status in _BY_NAME.items() if name in named]
    return _of_status(int(found[0]) if found else next(iter(guesses), 400), text, code)


def _of_status(status: int, text: str, code: str) -> Failure:
    spent = "insufficient_quota" in code or "billing" in code
    again = (status in _AGAIN or status >= 500) and status not in _NEVER and not spent
    busy = status in _BUSY and not spent
    return Failure(f"{status}: {text}", again=again, busy=busy, status=status)


def _said(body: bytes) -> tuple[str, str]:
    """An error body's words, and its code."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        text = re.sub(r"<[^>]*>|\s+", " ", body[:4000].decode("utf-8", "replace"))
        return re.sub(r" +", " ", text).strip()[:_MOST_TEXT], ""
    return _words(value)


def _words(value: Any) -> tuple[str, str]:
    """Of ``{"error": {"message", "code"}}``, ``{"message"}``, ``{"detail"}`` or a bare text."""
    code = ""
    for name in ("error", "message", "detail"):
        if isinstance(value, Mapping) and value.get(name):
            code = str(value.get("code") or value.get("type") or code)
            value = value[name]
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_MOST_TEXT], code


def from_exception(error: Exception) -> Failure:
    """The failure that an exception of httpx tells."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(
                f"its certificate is not trusted: {cause.verify_message}; "
                "RemoteParams(verify=FILE) names the authorities to trust"
            )
        cause = cause.__cause__ or cause.__context__
    words = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return Failure("no connection in time", again=True, down=True)
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return Failure(f"no connection: {words[:200]}", again=True, down=True)
    if isinstance(error, httpx.ReadTimeout):
        return Failure("it sent nothing for read_timeout_s", again=True)
    if isinstance(error, httpx.TransportError | httpx.StreamError | httpx.DecodingError):
        return Failure(f"the connection was lost: {words[:200]}", again=True)
    return Failure(f"{type(error).__name__}: {words[:200]}")
