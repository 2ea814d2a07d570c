"""What a model thinks before it answers, in the one form in which it travels.

Servers and libraries tell of it apart or in the text, and chat templates may write its first tag
themselves. On its way to the kernel it is always text: ``<think>``, the reasoning, ``</think>``,
the answer. ``nbinfer.reasoning`` takes them apart again.
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def opened(prompt: str) -> bool:
    """Whether a prompt ends inside a block that the answer goes on with."""
    return prompt.rstrip().endswith(OPEN)


def opening(prompt: str) -> str:
    """The tag that the end of a prompt has of the answer, ``""`` where it has none."""
    return f"{OPEN}\n" if opened(prompt) else ""


class Thoughts:
    """Reasoning and answer that come apart, as one text: tags go where one ends."""

    def __init__(self) -> None:
        self._thinking = False

    def reasoning(self, text: str) -> str:
        """The text to tell of a piece of reasoning."""
        if not text or self._thinking:
            return text
        self._thinking = True
        return f"{OPEN}\n{text}"

    def answer(self, text: str) -> str:
        """The text to tell of a piece of the answer."""
        return self.end() + text if text else ""

    def end(self) -> str:
        """What closes a block that was still open; ``""`` where none was."""
        if not self._thinking:
            return ""
        self._thinking = False
        return f"\n{CLOSE}\n\n"
