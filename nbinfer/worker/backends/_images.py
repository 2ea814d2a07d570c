"""The bytes of an image part, wherever it is. Standard library only."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.error
import urllib.request
from urllib.parse import unquote_to_bytes

TIMEOUT_S = 30
MOST_BYTES = 64 * 1024**2


def image_bytes(url):
    """The encoded image behind a ``data:``, ``http:`` or ``https:`` address.

    Raises
    ------
    ValueError
        If it cannot be had. What follows the ``?`` of an address may be a key, and is not said.
    """
    if url[:5].lower() == "data:":
        return _data(url)
    where = url.partition("?")[0][:200]
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data = answer.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{where} answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        words = re.sub(r"\?\S+", "?...", str(reason)) or type(error).__name__
        raise ValueError(f"{where} cannot be fetched: {words}") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"{where} is larger than {MOST_BYTES // 1024**2} MB")
    return data


def _data(url):
    kind, comma, content = url.partition(",")
    if not comma:
        raise ValueError(f"{url[:40]!r} is no data URL: it has no comma")
    raw = unquote_to_bytes(content)
    if not kind.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its base64 is damaged ({error})") from None
