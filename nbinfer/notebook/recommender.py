"""``%recommend`` without flags: the flowchart's questions as widgets, and the answer below."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from ..errors import NbinferError, brief_traceback
from ..guide.features import FEATURES
from ..guide.flowchart import QUESTIONS
from ..guide.recommend import recommend, summary
from .text import visible

__all__ = ["Recommender"]

ANSWERS = {"–": None, "yes": True, "no": False}


class Recommender(ipywidgets.VBox):  # type: ignore[misc]
    """The questions, and what is recommended for the answers so far.

    Parameters
    ----------
    beside : callable, optional
        Takes what finds the answer and calls it later, in another thread: of a model on the hub it
        may take seconds. By default it is called at once.

    Attributes
    ----------
    frame : pandas.DataFrame or None
        The table of ``nbinfer.recommend`` for them; ``None`` after an error.
    """

    def __init__(self, beside: Callable[[Callable[[], None]], None] | None = None) -> None:
        self.frame: Any = None
        self._beside = beside or (lambda work: work())
        self._model = ipywidgets.Text(
            placeholder="the default model", tooltip="Which model?", continuous_update=False
        )
        self._features = ipywidgets.SelectMultiple(
            options=[(title, name) for name, title in FEATURES.items()],
            tooltip="What does it need?",
            rows=5,
        )
        self._questions = {
            question.name: ipywidgets.ToggleButtons(
                options=list(ANSWERS),
                value="–",
                tooltips=[f"{question.text} {answer}" for answer in ("not answered", "yes", "no")],
            )
            for question in QUESTIONS
        }
        self._answer = ipywidgets.HTML()
        parts = [_asked("Which model?", self._model)]
        parts += [_asked(q.text, self._questions[q.name]) for q in QUESTIONS]
        parts += [_asked("What does it need?", self._features), self._answer]
        super().__init__(parts)
        for widget in (self._model, self._features, *self._questions.values()):
            widget.observe(self._changed, "value")
        self._changed(None)

    @property
    def _answers(self) -> dict[str, Any]:
        return {name: ANSWERS[widget.value] for name, widget in self._questions.items()}

    def _changed(self, _change: Any) -> None:
        """Answer anew; widgets of questions that no longer matter are switched off."""
        answers = self._answers
        ended = bool(answers["cloud"]) or answers["gpu"] is False
        for name in ("production", "distributed", "throughput"):
            self._questions[name].disabled = ended
        self._questions["gpu"].disabled = bool(answers["cloud"])
        self._beside(self._tell)

    def _tell(self) -> None:
        if self.comm is None:
            return
        try:
            self.frame = recommend(
                self._model.value.strip() or None, features=self._features.value, **self._answers
            )
        except NbinferError as error:
            self.frame = None
            self._answer.value = _plain("\n".join(brief_traceback(error)))
            return
        runners = self.frame[self.frame["verdict"] == "runner-up"]["engine"].tolist()
        also = f"\n\nRunners-up: {', '.join(runners)}" if runners else ""
        self._answer.value = _plain(summary(self.frame) + also)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        # The answer is static HTML too, for a reader of the saved notebook.
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        return {**bundle, "text/html": self._answer.value}

    def __repr__(self) -> str:
        with contextlib.suppress(TypeError):
            return summary(self.frame)
        return "no recommendation"


def _asked(text: str, widget: Any) -> ipywidgets.VBox:
    # The question is a label of its own: beside a widget it would be cut.
    return ipywidgets.VBox([ipywidgets.Label(text), widget])


def _plain(text: str) -> str:
    safe = "\n".join(visible(line) for line in text.splitlines())
    return f'<pre style="white-space:pre-wrap">{html.escape(safe)}</pre>'
