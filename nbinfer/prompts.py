"""From what people pass as prompts to rows that can be sent."""

from __future__ import annotations

import difflib
import re
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError, TemplateError
from .messages import Conversation, Message, Role

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Prompt", "Prompts", "fill", "is_frame", "normalise", "placeholders"]

Prompts = Any  # a str, Conversation, DataFrame, or a sequence of str, Conversation, message lists

_PLACEHOLDER = re.compile(r"\{\{\s*([^{}\n]*?)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: its row's ``id``, and a conversation or, raw, the text itself."""

    id: Any
    conversation: Conversation | str

    @property
    def shown(self) -> str:
        """The text of the row's ``prompt`` column."""
        conversation = self.conversation
        return conversation if isinstance(conversation, str) else conversation.last_text

    @property
    def has_images(self) -> bool:
        return not isinstance(self.conversation, str) and self.conversation.has_images

    def request(self, raw: bool) -> tuple[dict[str, Any], str | None]:
        """The request's part that carries the prompt, and why it cannot be sent, if it cannot."""
        if isinstance(self.conversation, str):
            return {"prompt": self.conversation}, _unreadable([self.conversation])
        calls = [call for m in self.conversation.messages for call in m.tool_calls]
        arguments = [call.to_dict()["function"]["arguments"] for call in calls]
        problem = _unreadable([*(m.text for m in self.conversation.messages), *arguments])
        if raw:
            if self.has_images:
                problem = problem or "a raw prompt is text alone: an image needs the chat template"
            return {"prompt": self.conversation.last_text}, problem
        try:
            return {"messages": self.conversation.to_list()}, problem
        except ConfigurationError as error:  # an image that cannot be read
            return {"messages": []}, f"{error}"


def _unreadable(texts: Iterable[str]) -> str | None:
    """Why no engine could take one of these texts, or ``None``."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            return (
                f"the prompt has a lone surrogate, U+{code:04X}, at character {error.start}: "
                "that is half a character and no engine can read it"
            )
    return None


def placeholders(template: str) -> list[str]:
    """Names in ``{{name}}``, in order, each once."""
    return list(dict.fromkeys(m.group(1) for m in _PLACEHOLDER.finditer(template)))


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Replace each ``{{name}}``; single braces, as in JSON or Python, are left alone.

    Raises
    ------
    TemplateError
        For a name without a value.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            near = difflib.get_close_matches(name, [str(v) for v in values], 1)
            known = ", ".join(str(v) for v in list(values)[:20]) or "none"
            guess = f"did you mean {{{{{near[0]}}}}}? " if near else ""
            raise TemplateError(
                f"nothing fills {{{{{name}}}}} in the prompt", hint=f"{guess}Known names: {known}"
            )
        return str(values[name])

    return _PLACEHOLDER.sub(value, template)


def normalise(
    prompts: Prompts,
    *,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    system: str | None = None,
    raw: bool = False,
) -> list[Prompt]:
    """Make a list of prompts of whatever was passed.

    Parameters
    ----------
    prompts : str, Conversation, DataFrame, or sequence of (str, Conversation, list of messages)
        A DataFrame needs ``template`` or a column ``prompt``; its column ``id``, where it has
        one, becomes the rows' id.
    template : str, optional
        Text with ``{{column}}`` placeholders, for a DataFrame.
    variables : mapping, optional
        What fills the placeholders that are no columns.
    system : str, optional
        Put in front of each conversation that has no system message.
    raw : bool
        No chat template: strings stay strings.

    Raises
    ------
    ConfigurationError
        Without any prompt, or for one of a type that is no prompt.
    TemplateError
        For a placeholder that no column fills.
    """
    if system is not None and raw:
        raise ConfigurationError(
            "a system message needs a chat template, and raw prompts have none",
            hint="put the text at the head of the prompt itself",
        )
    if is_frame(prompts):
        pairs = list(_from_frame(prompts, template, variables or {}))
    elif template is not None:
        raise TemplateError("a template needs a DataFrame to fill it")
    else:
        pairs = list(enumerate(_listed(prompts)))
    if not pairs:
        raise ConfigurationError("there are no prompts", hint="pass at least one")
    return [_prompt(position, value, system, raw) for position, value in pairs]


def is_frame(value: Any) -> bool:
    """Whether it is a DataFrame."""
    # While pandas is not imported, or only half, in fetch_pandas' thread, nothing is one.
    return isinstance(value, getattr(sys.modules.get("pandas"), "DataFrame", ()))


def _listed(prompts: Any) -> Sequence[Any]:
    if isinstance(prompts, str | Conversation):
        return [prompts]
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise ConfigurationError(
            f"prompts must be text, conversations or a DataFrame, not {type(prompts).__name__}"
        )
    listed = list(prompts)
    if listed and all(isinstance(p, Message) or _is_message(p) for p in listed):
        return [listed]  # one conversation, given as its messages
    return listed


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping) or "role" not in value:
        return False
    return "content" in value or "tool_calls" in value


def _from_frame(
    frame: pd.DataFrame, template: str | None, variables: Mapping[str, Any]
) -> Iterator[tuple[Any, Any]]:
    fallback = dict(variables)
    ids = frame["id"].tolist() if "id" in frame.columns else range(len(frame))
    if template is None:
        if "prompt" not in frame.columns:
            columns = ", ".join(map(repr, frame.columns))
            raise TemplateError(
                "the DataFrame has no column 'prompt' and there is no template",
                hint=f"columns: {columns}",
            )
        yield from zip(ids, frame["prompt"].tolist(), strict=True)
        return
    names = [name for name in placeholders(template) if name in frame.columns]
    values = [frame[name].tolist() for name in names]
    rows: Iterable[Any] = zip(*values, strict=True) if names else (() for _ in range(len(frame)))
    # A table without rows must still say that its template is wrong.
    fill(template, ChainMap(dict.fromkeys(frame.columns), fallback))
    for identity, row in zip(ids, rows, strict=True):
        # A chain and not a merged dictionary: a notebook may have thousands of variables.
        yield identity, fill(template, ChainMap(dict(zip(names, row, strict=True)), fallback))


def _prompt(identity: Any, value: Any, system: str | None, raw: bool) -> Prompt:
    if isinstance(value, str):
        if raw:
            return Prompt(identity, value)
        conversation = Conversation([Message(Role.USER, value)])
    elif isinstance(value, Conversation):
        conversation = value
        if value.conversation_id is not None:
            identity = value.conversation_id
    elif isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
        conversation = Conversation(value)
    else:
        raise ConfigurationError(
            f"prompt {identity!r} is {type(value).__name__}, not text or a conversation: "
            f"{value!r:.80}"
        )
    if raw:
        return Prompt(identity, conversation.last_text)
    if system is not None and conversation.messages[0].role is not Role.SYSTEM:
        messages = (Message(Role.SYSTEM, system), *conversation.messages)
        conversation = Conversation(messages, conversation.conversation_id)
    return Prompt(identity, conversation)
