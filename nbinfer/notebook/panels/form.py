"""The generation parameters as fields: checked one by one, and off where an engine has none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ipywidgets

from ...config import GenerationParams, GuidedDecodingParams, parse_setting, parse_value
from ...engines import registry
from ...errors import ConfigurationError, brief_traceback
from .parts import WIDE, failed, quiet

__all__ = ["Form", "cannot"]

# The fields that have a box of their own, with their labels.
NUMBERS = {
    "max_new_tokens": "Most tokens",
    "temperature": "Temperature",
    "top_p": "Top p",
    "top_k": "Top k",
    "min_p": "Min p",
    "seed": "Seed",
    "n": "Answers (n)",
    "repetition_penalty": "Repetition penalty",
    "frequency_penalty": "Frequency penalty",
    "presence_penalty": "Presence penalty",
    "num_beams": "Beams",
}
_SCHEMA = 'that the answer must fit: {"type": "object", "properties": {…}}'
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(GenerationParams)}


class Field:
    """One box: its name, how its text is read, and what is wrong with it.

    Parameters
    ----------
    name : str
        Of the field of ``GenerationParams`` that it is.
    widget : ipywidgets.Text or Textarea
    read : callable
        From its text to values of ``GenerationParams``, which are then checked.
    """

    def __init__(self, name: str, widget: Any, read: Callable[[str], dict[str, Any]]) -> None:
        self.name = name
        self.widget = widget
        self.wrong = ipywidgets.HTML()
        self.box = ipywidgets.VBox([widget, self.wrong], layout=WIDE)
        self._read = read
        self._tooltip = widget.tooltip
        self._placeholder = widget.placeholder
        widget.observe(self._changed, "value")

    def values(self) -> dict[str, Any]:
        """What it sets; nothing where it is empty or off.

        Raises
        ------
        ConfigurationError
            For a value that cannot be right; it stands below the box too.
        """
        text = self.widget.value
        if self.widget.disabled or not text.strip():
            off = self.widget.disabled and text.strip()
            self.wrong.value = quiet(f"not sent: {self.widget.tooltip}") if off else ""
            return {}
        try:
            values = self._read(text)
            GenerationParams(**values)
        except ConfigurationError as error:
            self.wrong.value = failed("\n".join(brief_traceback(error)))
            raise
        self.wrong.value = ""
        return values

    def turn_off(self, why: str) -> None:
        """Turn it off with the reason; on again without one."""
        self.widget.disabled = bool(why)
        self.widget.tooltip = why or self._tooltip
        self.widget.placeholder = why or self._placeholder
        self._changed(None)

    def _changed(self, _change: Any) -> None:
        try:
            self.values()
        except ConfigurationError:
            return  # it is said below the box


class Form:
    """All fields, and the ``GenerationParams`` that they come to."""

    def __init__(self) -> None:
        self.fields = [self._number(name, label) for name, label in NUMBERS.items()]
        stops = _text("Stop at", 'a text that ends an answer, or a list: ["a", "b"]', "none")
        self.fields.append(Field("stop_strings", stops, _stops))
        self.fields.append(
            Field("guided_decoding", _area("JSON Schema", _SCHEMA, rows=4, typed=True), _schema)
        )
        self.fields.append(
            Field(
                "",
                _area("Others", "any other field: KEY=VALUE, one a line, such as raw=true"),
                _settings,
            )
        )
        columns = "repeat(auto-fit, minmax(18em, 1fr))"
        small = [one.box for one in self.fields[:-2]]
        grid = ipywidgets.GridBox(small, layout={"grid_template_columns": columns, "grid_gap": "0"})
        fields = ipywidgets.VBox([grid, *(one.box for one in self.fields[-2:])], layout=WIDE)
        self.box = ipywidgets.Accordion([fields], titles=("Parameters",))

    def __getitem__(self, name: str) -> Field:
        (found,) = (one for one in self.fields if one.name == name)
        return found

    def params(self) -> GenerationParams:
        """What the fields come to.

        Raises
        ------
        ConfigurationError
            For the first field that is wrong; each says so itself.
        """
        values: dict[str, Any] = {}
        wrong: list[ConfigurationError] = []
        for one in self.fields:
            try:
                values.update(one.values())
            except ConfigurationError as error:
                wrong.append(error)
        if wrong:
            raise wrong[0]
        return GenerationParams(**values)

    def suit(self, engines: Sequence[str]) -> None:
        """Turn off what one of these engines cannot honour, with the reason."""
        for one in self.fields:
            if one.name:
                one.turn_off(_missing(one.name, engines))

    @staticmethod
    def _number(name: str, label: str) -> Field:
        default = _DEFAULTS[name]
        shown = "none" if default is None else f"{default:g}"
        return Field(
            name, _text(label, name, shown), lambda text: {name: parse_value(text.strip())}
        )


def _missing(name: str, engines: Sequence[str]) -> str:
    for engine in engines:
        has = registry.spec(engine).capabilities
        if name not in has.generation:
            return cannot(engine, name, registry.supporting(name))
        if name == "guided_decoding" and "json" not in has.guided_decoding:
            return cannot(engine, "JSON Schema", registry.supporting("json", of="guided_decoding"))
    return ""


def cannot(engine: str, what: str, able: Collection[str]) -> str:
    """Why something is off, and which engines have it."""
    who = f"engines that can: {', '.join(able)}" if able else "no engine here can"
    return f"{engine} cannot honour {what}; {who}"


# ------------------------------------------------------------------------ how it is read


def _stops(text: str) -> dict[str, Any]:
    value = parse_value(text)
    return {"stop_strings": value if isinstance(value, list | tuple) else text}


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"it is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConfigurationError(
            f"a JSON Schema is an object, not {type(schema).__name__}",
            hint='such as {"type": "object", "properties": {"name": {"type": "string"}}}',
        )
    return {"guided_decoding": GuidedDecodingParams(json=schema)}


def _settings(text: str) -> dict[str, Any]:
    return dict(parse_setting(line) for line in text.splitlines() if line.strip())


def _text(label: str, tooltip: str, default: str) -> Any:
    return ipywidgets.Text(
        description=label,
        placeholder=default,
        tooltip=tooltip,
        continuous_update=False,
        style={"description_width": "11em"},
        layout={"width": "auto"},
    )


def _area(label: str, about: str, *, rows: int = 2, typed: bool = False) -> Any:
    """A box of several lines; ``typed``: it is checked with each key."""
    return ipywidgets.Textarea(
        description=label,
        placeholder=about,
        tooltip=f"{label}: {about}",
        rows=rows,
        continuous_update=typed,
        style={"description_width": "11em"},
        layout={"width": "auto"},
    )
