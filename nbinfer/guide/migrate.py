"""``nbinfer.migrate``: what changes between two engines, and the same cell for the other one."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .. import selection
from ..config import GenerationParams, ModelParams, RemoteParams
from ..engines import registry
from ..errors import ConfigurationError
from .correspondence import change
from .rules import Change

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Migration", "migrate", "migrated", "parameters"]

URL = "http://server:8000"


@dataclasses.dataclass(frozen=True)
class Migration:
    """A migration worked out.

    Attributes
    ----------
    changes : list of Change
        One for each parameter that is not at its default, and one for the model's name.
    model_params, generation_params, remote_params
        What the target engine takes. ``remote_params`` is ``None`` for an engine of this machine.
    """

    source: str
    target: str
    changes: list[Change]
    model_params: ModelParams
    generation_params: GenerationParams
    remote_params: RemoteParams | None


def migrate(
    source: str,
    target: str,
    model_params: ModelParams | str | None = None,
    *,
    generation_params: GenerationParams | None = None,
    remote_params: RemoteParams | None = None,
) -> pd.DataFrame:
    """What changes when an engine takes another's place.

    Parameters
    ----------
    source, target : str
        Names of engines: the one now and the one to come.
    model_params : ModelParams or str, optional
        What the source is loaded with. Default: what is chosen for it by ``%engine use``.
    generation_params : GenerationParams, optional
        How it generates. Default: ``GenerationParams()``.
    remote_params : RemoteParams, optional
        Where the source is, of an engine that is a server.

    Returns
    -------
    pandas.DataFrame
        ``parameter, value, status, becomes, why``: a row for each parameter that is not at its
        default. ``status`` is ``"kept"``, ``"renamed"``, ``"approximated"`` or ``"lost"``;
        ``becomes`` is what the target is told, NA for nothing. ``attrs["nbinfer"]["code"]`` is the
        Python that makes the target engine, ``attrs["nbinfer"]["cell"]`` the line of a cell.

    Raises
    ------
    ConfigurationError
        For an engine of another name, or the same twice.

    Examples
    --------
    >>> nbinfer.migrate("native", "vllm", ModelParams(model_kwargs={"load_in_4bit": True}))
    """
    import pandas as pd

    found = migrated(source, target, model_params, generation_params, remote_params)
    rows = [_row(c) for c in found.changes]
    names = ("parameter", "value", "status", "becomes", "why")
    frame = pd.DataFrame({n: pd.Series([r[n] for r in rows], dtype="str") for n in names})
    counts = {s: sum(c.status == s for c in found.changes) for s in ("kept", "renamed")}
    counts |= {s: sum(c.status == s for c in found.changes) for s in ("approximated", "lost")}
    told = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    frame.attrs["nbinfer"] = {
        "table": f"{source} → {target} · {told}",
        "code": code(found),
        "cell": cell_line(found),
    }
    return frame


def migrated(
    source: str,
    target: str,
    model_params: ModelParams | str | None = None,
    generation_params: GenerationParams | None = None,
    remote_params: RemoteParams | None = None,
) -> Migration:
    """The migration itself; see ``migrate``."""
    for name in (source, target):
        registry.spec(name)
    if source == target:
        raise ConfigurationError(f"{source} to {target} is no migration")
    if model_params is None:
        model_params = selection.for_engine(source).model
    model = ModelParams(model_params) if isinstance(model_params, str) else model_params
    generation = generation_params or GenerationParams()
    given = parameters(model, generation, remote_params)
    changes = [change(path, value, source, target) for path, value in given.items()]
    told: dict[str, Any] = {}
    for each in changes:
        told.update(each.becomes)
    return Migration(source, target, changes, *_params(told, target))


def parameters(
    model: ModelParams, generation: GenerationParams, remote: RemoteParams | None
) -> dict[str, Any]:
    """What is not at its default, by path; the model's name always."""
    found: dict[str, Any] = {"model_name": model.model_name}
    changed = {k: getattr(model, k) for k in model.to_dict(changed_only=True)}
    kwargs = changed.pop("model_kwargs", {})
    found.update(changed)
    found.update({f"model_kwargs.{name}": value for name, value in kwargs.items()})
    for name in generation.to_dict(changed_only=True):
        value = getattr(generation, name)
        plain = value.to_dict(changed_only=True) if name == "guided_decoding" else value
        found[f"generation_params.{name}"] = plain
    if remote is not None:
        for name in remote.to_dict(changed_only=True):
            found[f"remote_params.{name}"] = getattr(remote, name)
    return found


def _params(
    told: Mapping[str, Any], target: str
) -> tuple[ModelParams, GenerationParams, RemoteParams | None]:
    parts: dict[str, dict[str, Any]] = {"": {}, "model_kwargs": {}}
    for path, value in told.items():
        place, dot, name = path.partition(".")
        parts.setdefault(place if dot else "", {})[name if dot else place] = value
    model = ModelParams(**parts[""], model_kwargs=parts["model_kwargs"])
    generation = GenerationParams(**parts.get("generation_params", {}))
    remote = None
    if "server" in registry.spec(target).capabilities.features:
        remote = RemoteParams(**parts.get("remote_params", {}))
    return model, generation, remote


def _row(one: Change) -> dict[str, str | None]:
    return {
        "parameter": one.parameter,
        "value": shown_value(one.value),
        "status": one.status,
        "becomes": ", ".join(f"{k}={shown_value(v)}" for k, v in one.becomes.items()) or None,
        "why": one.why or None,
    }


def shown_value(value: Any) -> str:
    """A value as Python writes it; what is secret stays so."""
    return repr(dict(value) if isinstance(value, Mapping) else value)


# --------------------------------------------------------------------------- writing


def code(found: Migration) -> str:
    """Python that makes the target engine."""
    made = registry.engine_class(found.target).__name__
    names = {made, "ModelParams"}
    model = _call("ModelParams", _fields(found.model_params), 1)
    lines = [f"    {model},"]
    generation = _fields(found.generation_params)
    if generation:
        names.add("GenerationParams")
        lines.append(f"    generation_params={_call('GenerationParams', generation, 1)},")
    if found.remote_params is not None:
        names.add("RemoteParams")
        remote = {"api_url": f"{URL!r}", **_fields(found.remote_params)}
        if found.target in ("openai", "anthropic"):
            remote.pop("api_url", None)
        if remote:
            lines.append(f"    remote_params={_call('RemoteParams', remote, 1)},")
        else:
            names.discard("RemoteParams")
    imported = f"from nbinfer import {', '.join(sorted(names))}"
    return "\n".join([imported, "", f"engine = {made}(", *lines, ")", ""])


def _fields(params: Any) -> dict[str, str]:
    """What was changed, as Python writes it. A secret shows as ``'***'``."""
    found = {}
    for name in params.to_dict(changed_only=True):
        value = getattr(params, name)
        if hasattr(value, "to_dict"):
            value = value.to_dict(changed_only=True)
        found[name] = shown_value(value)
    return found


def _call(name: str, fields: Mapping[str, str], depth: int) -> str:
    text = f"{name}({', '.join(f'{k}={v}' for k, v in fields.items())})"
    if len(text) + 4 * depth <= 88:
        return text
    inner, outer = "    " * (depth + 1), "    " * depth
    return f"{name}(\n" + "".join(f"{inner}{k}={v},\n" for k, v in fields.items()) + f"{outer})"


def cell_line(found: Migration) -> str:
    """The options of a cell: ``%%infer -e vllm -m ...``; of fields without an option nothing."""
    words = ["%%infer", "-e", found.target]
    if found.model_params.model_name != ModelParams().model_name:
        words += ["-m", found.model_params.model_name]
    for name, value in found.model_params.model_kwargs.items():
        words += ["-k", f"{name}={option_word(value)}"]
    if found.remote_params is not None:
        urls = found.remote_params.api_url
        for url in [urls] if isinstance(urls, str) else urls or ():
            words += ["--url", str(getattr(url, "masked", url))]
    for name in found.generation_params.to_dict(changed_only=True):
        value = getattr(found.generation_params, name)
        if hasattr(value, "to_dict"):
            value = value.to_dict(changed_only=True)
        words += ["--set", f"{name}={option_word(value)}"]
    return " ".join(word if word == "%%infer" else shlex.quote(word) for word in words)


def option_word(value: Any) -> str:
    return value if isinstance(value, str) else shown_value(value)


def lost(changes: Iterable[Change]) -> list[str]:
    """What a reader has to know, in lines: all that is neither kept nor renamed."""
    return [
        f"{c.parameter}={shown_value(c.value)} is {c.status}: {c.why}"
        for c in changes
        if c.status not in ("kept", "renamed")
    ]
