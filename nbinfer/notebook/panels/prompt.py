"""The panel's prompt: a conversation with the engine that a plain ``%%infer`` uses."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets

from ... import selection
from ...errors import ConfigurationError
from ...frame import ANSWERED
from ...messages import Conversation, Message
from ..engine_rows import State, label, short
from ..text import unknown
from .cells import Asked, infer_cell
from .form import Form
from .jobs import Jobs
from .live import Answer, speed
from .parts import (
    EDGE,
    TEXT,
    WIDE,
    Shown,
    block,
    button,
    cut,
    failed,
    quiet,
    system_message,
    titled,
)
from .pictures import Picture, Pictures, content
from .work import Work

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Prompt"]

# Of the conversation as it is shown; what the model is sent is never cut.
MOST_TURNS = 40
MOST_OF_A_TURN = 6_000


@dataclass(frozen=True)
class Turn:
    """What was said, as it is shown: the name, the text, and a remark."""

    who: str
    text: str
    note: str = ""
    failed: bool = False

    def html(self) -> str:
        """It as HTML in which nothing of the text is obeyed."""
        text = cut(self.text, MOST_OF_A_TURN)
        said = failed(text) if self.failed else block(text)
        return (
            f'<div style="{EDGE};padding:.3em 0"><div style="{TEXT};font-weight:600">'
            f"{html.escape(self.who)}</div>{said}{quiet(self.note)}</div>"
        )


class Prompt(Work):
    """System message, conversation, parameters and the answer as it is made.

    Parameters
    ----------
    jobs : Jobs
        The panel's.
    keep : callable
        Takes each run's DataFrame.
    """

    def __init__(self, jobs: Jobs, keep: Callable[[pd.DataFrame], None]) -> None:
        super().__init__(jobs, "Send")
        self._keep = keep
        self._suits: tuple[str, ...] = ()
        self.turns: tuple[tuple[Any, ...], ...] = ()
        self._asked: Asked | None = None
        self._said: deque[Turn] = deque(maxlen=MOST_TURNS)
        self.form = Form()
        self.head = ipywidgets.HTML()
        self.system = system_message()
        self.history = ipywidgets.HTML()
        self.answer = ipywidgets.HTML()
        self._live = Shown(self.answer)
        self.text = ipywidgets.Textarea(
            placeholder="what the model is asked", rows=3, tooltip="Prompt", layout=WIDE
        )
        self.pictures = Pictures()
        self.new = button("New chat", "forget the conversation; its rows stay", self._new)
        self.children = (
            self.head,
            titled("System message", self.system),
            self.history,
            self.answer,
            titled("Prompt", self.text),
            self.pictures,
            ipywidgets.HBox([self.go, self.stop, self.new]),
            self.status,
            self.notes,
            self.form.box,
            self.same_box,
        )
        self.add_class("nbinfer-prompt")

    def draw(self, state: State) -> None:
        """Show who is asked, and turn off what that engine cannot honour."""
        chosen = html.escape(label(state.chosen))
        self.head.value = (
            f'<div style="{TEXT}">Asks <strong>{chosen}</strong>, as a plain '
            "<code>%%infer</code> does; choose another under Engines.</div>"
        )
        if self._suits != (state.chosen.engine,):
            self._suit(state.chosen.engine)

    def _suit(self, engine: str) -> None:
        self._suits = (engine,)
        self.form.suit(self._suits)
        self.pictures.suit(engine)

    # -------------------------------------------------------------------------- running

    def prepare(self) -> tuple[Callable[[], None], str]:
        """Read the fields."""
        chosen = selection.current()
        self._suit(chosen.engine)  # chosen in a cell a moment ago, perhaps
        self.pictures.check()
        text = self.text.value.strip("\n")
        if not text.strip():
            raise ConfigurationError("there is no prompt", hint="write it in the box above")
        asked = Asked(
            (chosen,),
            (text,),
            self.form.params(),
            self.system.value.strip() or None,
            self.turns,
            self.pictures.pictures,
        )
        engine = chosen.make()
        engine._params(asked.params)
        self.text.value = ""
        self.pictures.clear()
        self._asked = asked
        self._say(Turn("You", text, _named(asked.pictures)))
        self._live.now("")

        def work() -> None:
            report = Answer(self._live, self.told)
            frame = engine.infer(
                _prompts(asked), asked.params, system=asked.system, stream=True, progress=report
            )
            self.keep(frame)

        return work, infer_cell(asked)

    def keep(self, frame: pd.DataFrame) -> None:
        """Take an answer: into the conversation, where it is whole, and to the rows."""
        asked = self._asked
        assert asked is not None
        rows = list(frame.itertuples())
        for place, row in enumerate(rows):
            of = f" ({place + 1} of {len(rows)})" if len(rows) > 1 else ""
            self._say(_turn(label(asked.selections[0]) + of, row))
        self._live.now("")
        first = rows[0]
        if first.finish_reason in ANSWERED and not unknown(first.output):
            said = (
                ("user", asked.prompts[0], *asked.pictures),
                ("assistant", str(first.output)),
            )
            self.turns = (*asked.turns, *said)
        self.told.now(quiet(speed(first)))
        self._keep(frame)

    def _ended(self, value: str | None) -> None:
        self._live.now("")
        super()._ended(value)

    def _new(self, _button: Any = None) -> None:
        if self.busy:
            self.told.now(quiet("an answer is under way: Stop ends it"))
            return
        self.turns = ()
        self._said.clear()
        self._draw_history()
        self.told.now("")

    def _say(self, turn: Turn) -> None:
        self._said.append(turn)
        self._draw_history()

    def _draw_history(self) -> None:
        if self.comm is not None:
            said = "".join(turn.html() for turn in self._said)
            self.history.value = f'<div role="log">{said}</div>' if said else ""

    def snapshot(self) -> str:
        """The conversation as static HTML."""
        return str(self.history.value)


def _prompts(asked: Asked) -> list[Any]:
    if not asked.turns and not asked.pictures:
        return [*asked.prompts]
    said = [*asked.turns, ("user", asked.prompts[0], *asked.pictures)]
    return [Conversation([Message(role, content(text, more)) for role, text, *more in said])]


def _named(pictures: Sequence[Picture]) -> str:
    names = ", ".join(short(picture.name) for picture in pictures)
    return f"with {names}" if names else ""


def _turn(who: str, row: Any) -> Turn:
    if not unknown(row.error):
        return Turn(who, str(row.error), speed(row), failed=True)
    text = "" if unknown(row.output) else str(row.output)
    if row.finish_reason == "cancelled":
        return Turn(who, text, "stopped; the model is not told of it in the next turn")
    return Turn(who, text, speed(row))
