"""JSON Schemas that no answer can fit, told before llama.cpp is asked.

Its grammars leave out what they do not know, and some then hold nothing at all: the answer
would be empty, or of another form. What is found here is a contradiction that stands in one
place; whether a schema as a whole can be fitted is not decided.
"""

from __future__ import annotations

import threading
import time

from nbinfer.worker.backends._logtail import log_size, said_since

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Least and most of the same thing, and of which types: they say nothing of others.
_BOUNDS = (
    ("minLength", "maxLength", {"string"}),
    ("minItems", "maxItems", {"array"}),
    ("minProperties", "maxProperties", {"object"}),
    ("minimum", "maximum", {"integer", "number"}),
)
_DEEPEST = 64


def impossible(schema):
    """Why no answer fits a schema, or ``None``."""
    why = _why(schema, schema, "", frozenset())
    return None if why is None else f"no answer fits the schema: {why}"


def _why(schema, root, place, seen):
    if schema is False:
        return f"{place or 'it'} allows nothing"
    if not isinstance(schema, dict) or len(seen) > _DEEPEST:
        return None
    where = f" at {place}" if place else ""
    if "$ref" in schema:
        return _reference(schema["$ref"], root, place, seen)
    kinds = _types(schema)
    for kind in sorted(kinds - set(TYPES)):
        return f"{kind!r}{where} is no type of JSON ({', '.join(TYPES)})"
    for name in ("enum", "anyOf", "oneOf"):
        if schema.get(name) == []:
            return f"{name}{where} is empty"
    for least, most, of in _BOUNDS:
        low, high = schema.get(least), schema.get(most)
        if _number(low) and _number(high) and low > high and kinds and kinds <= of:
            return f"{least} is {low} and {most} is {high}{where}"
    return (
        _choices(schema, root, place, seen)
        or (kinds == {"object"} and _required(schema, root, place, seen))
        or (kinds == {"array"} and _items(schema, root, place, seen))
        or None
    )


def _types(schema):
    kinds = schema.get("type")
    return {kinds} if isinstance(kinds, str) else set(map(str, kinds or ()))


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reference(ref, root, place, seen):
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None  # another document: the library says what it makes of it
    if ref in seen:
        return None
    target = root
    for part in ref[1:].strip("/").split("/") if ref != "#" else ():
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        elif isinstance(target, dict) and part in target:
            target = target[part]
        else:
            return f"{ref!r}, which it refers to, is not in it"
    return _why(target, root, place, seen | {ref})


def _choices(schema, root, place, seen):
    for name in ("anyOf", "oneOf"):
        reasons = [_why(one, root, place, seen) for one in schema.get(name) or ()]
        if reasons and all(reasons):
            return reasons[0]
    allowed = None
    for one in schema.get("allOf") or ():
        why = _why(one, root, place, seen)
        if why:
            return why
        kinds = _types(one) if isinstance(one, dict) else set()
        if kinds:
            kinds |= {"integer"} if "number" in kinds else set()
            allowed = kinds if allowed is None else allowed & kinds
    if allowed == set():
        return f"allOf{' at ' + place if place else ''} asks for several types at once"
    return None


def _required(schema, root, place, seen):
    """What an object must have."""
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    for name in schema.get("required") or ():
        if name in properties:
            inside = f"{place}.{name}" if place else str(name)
            why = _why(properties[name], root, inside, seen)
            if why:
                return why
        elif closed:
            return f"{name!r} is required and not allowed" + (f" at {place}" if place else "")
    return None


def _items(schema, root, place, seen):
    """What an array must hold."""
    if _number(schema.get("minItems")) and schema["minItems"] > 0:
        return _why(schema.get("items"), root, f"{place}[]", seen)
    return None


class Compiling:
    """Whether llama.cpp took a form for what it is, which it tells to its log alone.

    A schema that its grammar library cannot compile is left out there, and the answer would
    have any form. One request at a time begins, so that what is said is said of it.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._begin = 0

    def begin(self):
        self._lock.acquire()
        self._begin = log_size()

    def end(self):
        """After the first sign of the request: what was said against its form, or ``None``."""
        try:
            time.sleep(0.02)  # the library's log is written by a thread of its own
            said = said_since(self._begin, b"llg error: ")
        finally:
            self._lock.release()
        if said is None:
            return None
        return f"llama.cpp cannot hold the answer to this form: {said.rpartition('): ')[2]}"
