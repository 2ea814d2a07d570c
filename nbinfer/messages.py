"""Conversations: who said what, in the shape that every chat template takes."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import images
from .errors import ConfigurationError
from .tool_calls import ToolCall

__all__ = ["Conversation", "ImagePart", "Message", "Role", "TextPart"]


class Role(enum.StrEnum):
    """Who speaks. The values are those of chat templates and of OpenAI's API."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class TextPart:
    """A piece of text inside a message that also holds images."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


@dataclass(frozen=True)
class ImagePart:
    """An image inside a message.

    Parameters
    ----------
    source : str, pathlib.Path, bytes or PIL image
        A file, an ``http(s)``/``data`` URL, the encoded image itself, or a picture.

    Notes
    -----
    The image is read when the request is made, not here.
    """

    source: Any

    def to_dict(self) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": images.data_url(self.source)}}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Parameters
    ----------
    role : Role or str
        ``"system"``, ``"user"``, ``"assistant"`` or ``"tool"``.
    content : str or sequence of (TextPart or ImagePart)
        Text, or parts in the order in which the model reads them.
    tool_calls : sequence of (ToolCall or mapping), optional
        What the assistant called: what a row's ``tool_calls`` holds.
    tool_call_id : str, optional
        The call that a tool's message answers. Without it, results answer the calls before them
        in order.

    Raises
    ------
    ConfigurationError
        For another role, content of another type, or calls of another than the assistant.
    """

    role: Role
    content: str | tuple[TextPart | ImagePart, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __init__(
        self,
        role: Role | str,
        content: str | Sequence[TextPart | ImagePart] = "",
        tool_calls: Sequence[ToolCall | Mapping[str, Any]] | None = None,
        tool_call_id: str | None = None,
    ) -> None:
        try:
            checked = Role(role)
        except ValueError:
            roles = ", ".join(repr(r.value) for r in Role)
            raise ConfigurationError(f"role {role!r} is not one of {roles}") from None
        if not isinstance(content, str):
            parts = tuple(content) if isinstance(content, Iterable) else (content,)
            wrong = [p for p in parts if not isinstance(p, TextPart | ImagePart)]
            if wrong:
                raise ConfigurationError(
                    f"message content must be text, TextPart or ImagePart, not {wrong[0]!r:.80}"
                )
            content = parts
        for name, given, owner in (
            ("tool_calls", tool_calls, Role.ASSISTANT),
            ("tool_call_id", tool_call_id, Role.TOOL),
        ):
            if given and checked is not owner:
                raise ConfigurationError(
                    f"{name} belongs to messages of the role {owner.value!r}, not {checked.value!r}"
                )
        object.__setattr__(self, "role", checked)
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "tool_calls", tuple(map(ToolCall.from_dict, tool_calls or ())))
        object.__setattr__(self, "tool_call_id", tool_call_id)

    @property
    def text(self) -> str:
        """The text parts, joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(p.text for p in self.content if isinstance(p, TextPart))

    @property
    def has_images(self) -> bool:
        return not isinstance(self.content, str) and any(
            isinstance(p, ImagePart) for p in self.content
        )

    def to_dict(self) -> dict[str, Any]:
        """The message as chat templates and OpenAI-compatible servers take it."""
        content = (
            self.content if isinstance(self.content, str) else [p.to_dict() for p in self.content]
        )
        message: dict[str, Any] = {"role": self.role.value, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        unknown = set(value) - {"role", "content", "tool_calls", "tool_call_id"}
        if unknown or "role" not in value or not {"content", "tool_calls"} & set(value):
            raise ConfigurationError(
                "a message needs 'role' and 'content', and may have 'tool_calls' and "
                f"'tool_call_id', not {sorted(map(str, value))}"
            )
        content: Any = value.get("content")
        if content is None and value.get("tool_calls"):
            content = ""  # as OpenAI's API tells of an answer that is a call alone
        if isinstance(content, list):
            content = [_part(p) for p in content]
        return cls(value["role"], content, value.get("tool_calls"), value.get("tool_call_id"))


def _part(value: Any) -> TextPart | ImagePart:
    if isinstance(value, TextPart | ImagePart):
        return value
    if isinstance(value, Mapping) and value.get("type") == "text":
        return TextPart(value["text"])
    if isinstance(value, Mapping) and value.get("type") == "image_url":
        url = value["image_url"]
        return ImagePart(url["url"] if isinstance(url, Mapping) else url)
    raise ConfigurationError(f"unknown content part {value!r:.80}")


def _paired(messages: Iterable[Message]) -> Iterator[Message]:
    """The messages, each call with an id and each result with the id of its call.

    Ids are of nine letters and digits, which Mistral's templates ask for.

    Raises
    ------
    ConfigurationError
        For the result of a call that was not made.
    """
    number = 0
    waiting: list[str] = []
    for message in messages:
        if message.tool_calls:
            calls = [
                call if call.id else replace(call, id=f"call{place:05d}")
                for place, call in enumerate(message.tool_calls, number)
            ]
            number += len(calls)
            waiting = [str(call.id) for call in calls]
            yield Message(message.role, message.content, calls)
        elif message.role is Role.TOOL:
            identity = message.tool_call_id or (waiting[0] if waiting else None)
            if identity is not None:
                if identity not in waiting:
                    raise ConfigurationError(
                        f"a tool's message answers no call of id {identity!r:.80}",
                        hint="before it stands the assistant's message with its tool_calls",
                    )
                waiting.remove(identity)
            yield Message(message.role, message.content, None, identity)
        else:
            yield message


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with an optional identifier that becomes the row's ``id``.

    Raises
    ------
    ConfigurationError
        Without any message.
    """

    messages: tuple[Message, ...]
    conversation_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        conversation_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        checked = tuple(m if isinstance(m, Message) else Message.from_dict(m) for m in messages)
        if not checked:
            raise ConfigurationError("a conversation needs at least one message")
        object.__setattr__(self, "messages", tuple(_paired(checked)))
        object.__setattr__(self, "conversation_id", conversation_id)
        object.__setattr__(self, "metadata", dict(metadata or {}))

    @property
    def last_text(self) -> str:
        """The text of the last message: what a row shows as its ``prompt``."""
        return self.messages[-1].text

    @property
    def has_images(self) -> bool:
        return any(m.has_images for m in self.messages)

    def to_list(self) -> list[dict[str, Any]]:
        return [m.to_dict() for m in self.messages]
