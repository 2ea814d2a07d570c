"""What the kernel and a worker say to each other.

A message is a JSON object behind its length, a 4-byte big-endian unsigned integer.
JSON rather than pickle: a worker is another Python, perhaps of another version, and
what it sends is not to be trusted with code. ``ensure_ascii`` lets lone surrogates
through, which people do paste into prompts.

Kernel to worker, by ``op``:

========== ==========================================================================
``load``   ``model`` (what the backend's ``load`` takes)
``begin``  ``run``: from now on this run's rows wait (the stamp *submitted*)
``rows``   ``run``, ``rows``: requests, see below
``cancel`` ``run``: drop what waits, stop what runs, answer ``cancelled``
``end``    ``run``: the kernel has all it wants; forget the run
``call``   ``call``, ``method``, ``arguments``: a backend's extra method
``close``  free everything and exit
========== ==========================================================================

Worker to kernel, by ``ev``; events of one flush travel as ``{"events": [...]}``:

============= =======================================================================
``hello``     ``pid``, ``python``, ``protocol``
``stage``     ``text``: what a load is doing
``loaded``    ``report``: library, versions, slots, context ...
``refused``   ``message``, ``kind``: the load failed, and the process ends
``delta``     ``run``, ``row``, ``text``, ``tokens``: pieces of text, coalesced
``progress``  ``run``, ``tokens``, ``prefill``: totals of the run so far
``finished``  ``run``, ``row``, ``output``, ``finish_reason``, token counts, timings
``failed``    ``run``, ``row``, ``error``
``cancelled`` ``run``: none of its rows runs or waits any more
``answer``    ``call``, ``value`` or ``error``
============= =======================================================================

A request: ``row`` (an integer, the run's own), ``messages`` or ``prompt``, ``params``
(what the backend's whitelist lets through), ``stream`` (whether deltas are wanted).
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

PROTOCOL = 1
_LENGTH = struct.Struct(">I")
# A frame is rows of text. What is larger than this is a broken stream, not a message.
MAX_FRAME = 512 * 1024 * 1024

# The one encoder, made once: json.dumps with arguments builds a new one for each call.
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


class StreamClosed(EOFError):
    """The other side closed the stream between two messages."""


class ProtocolError(ValueError):
    """What arrived is no message."""


def pack(message: dict[str, Any]) -> bytes:
    """Encode one message as bytes, length first."""
    body = _encode(message).encode("ascii")
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def read(stream: IO[bytes]) -> dict[str, Any]:
    """Read one message from a buffered binary stream.

    Raises
    ------
    StreamClosed
        At the end of the stream, also in the middle of a message (the other side died).
    ProtocolError
        For a length or a body that cannot be a message.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise StreamClosed
    (size,) = _LENGTH.unpack(head)
    if size > MAX_FRAME:
        raise ProtocolError(f"a frame of {size} bytes")
    body = stream.read(size)
    if len(body) < size:
        raise StreamClosed
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(str(error)) from None
    if not isinstance(message, dict):
        raise ProtocolError(f"a message must be an object, not {type(message).__name__}")
    return message
