"""The guide's decision flowchart, as data, and what an answer to each of its questions means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CLOUD", "QUESTIONS", "Question", "walk"]


@dataclass(frozen=True)
class Question:
    """A branch of the flowchart.

    Attributes
    ----------
    name : str
        Of its flag and its widget.
    text : str
        As the guide asks it.
    yes, no : tuple of str
        The engines that an answer leads to; empty where the guide goes on.
    why : mapping of bool to str
        The guide's reason for them, by answer.
    """

    name: str
    text: str
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()
    why: tuple[str, str] = ("", "")  # of yes, of no


CLOUD = ("openai", "anthropic", "openai-compatible")
QUESTIONS = (
    Question(
        "cloud",
        "Do you need a cloud API (OpenAI, Anthropic, etc.)?",
        yes=CLOUD,
        why=("a cloud API is needed", ""),
    ),
    Question("gpu", "Do you have a GPU?", no=("llamacpp",), why=("", "without a GPU")),
    Question(
        "production",
        "Is this for production?",
        yes=("vllm", "remote-vllm"),
        no=("native",),
        why=("for production on a GPU", "for prototyping, not for production"),
    ),
    Question(
        "distributed",
        "Do you need distributed serving?",
        yes=("remote-vllm", "sglang"),
        why=("distributed serving is needed", ""),
    ),
    Question(
        "throughput",
        "Is throughput critical?",
        yes=("vllm", "sglang"),
        why=("throughput is critical", ""),
    ),
)
DEFAULT = ("native", "the guide's default: start here, and take vllm for production")


def walk(answers: Mapping[str, bool | None]) -> list[tuple[str, list[str]]]:
    """The engines that the flowchart leads to, the best first, each with the guide's reasons.

    The guide asks production, distributed and throughput beside each other. Where several are
    answered with yes, an engine that more of them name comes first, and one that distributed
    serving does not name is out. A no to production counts where all else is no. A question
    without an answer (``None``) is no branch; without any, the default holds.

    Parameters
    ----------
    answers : mapping of str to bool or None
        By the questions' names.
    """
    cloud, gpu, *branches = QUESTIONS
    if answers.get(cloud.name):
        return [(name, [cloud.why[0]]) for name in cloud.yes]
    if answers.get(gpu.name) is False:
        return [(name, [gpu.why[1]]) for name in gpu.no]
    yes = [question for question in branches if answers.get(question.name)]
    if not yes:
        production = branches[0]
        if answers.get(production.name) is False:
            return [(name, [production.why[1]]) for name in production.no]
        return [(DEFAULT[0], [DEFAULT[1]])]
    reasons: dict[str, list[str]] = {}
    for question in yes:
        for name in question.yes:
            reasons.setdefault(name, []).append(question.why[0])
    needed = branches[1]
    if needed in yes:
        reasons = {name: why for name, why in reasons.items() if name in needed.yes}
    return sorted(reasons.items(), key=lambda item: -len(item[1]))
