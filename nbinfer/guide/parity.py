"""Do two engines with the same weights say the same? Greedy answers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..comparison import compare
from ..config import GenerationParams

if TYPE_CHECKING:
    from ..engines.base import InferenceEngine

__all__ = ["PROMPTS", "Parity", "Parting", "parity"]

_THINGS = (
    *("a fox", "the sea", "winter", "a clock", "rain", "fire", "a map", "bread", "a mirror"),
    *("gold", "a river", "chess", "tea", "dust", "an owl", "iron", "a song"),
)
_ASKED = ("What is {}?", "Write a line about {}.", "Why do people like {}?")
PROMPTS = [ask.format(thing) for thing in _THINGS for ask in _ASKED][:50]
ALTERNATIVES = 5


@dataclass(frozen=True)
class Parting:
    """Where two answers to one prompt part.

    Attributes
    ----------
    prompt : str
    place : int
        The token, counted from 0, that is the first to differ.
    tokens : tuple of str
        What each engine took there.
    gaps : tuple of (float or None)
        By how much each preferred its own token to the other's: the difference of their
        log-probabilities, ``None`` where the other's is not among the alternatives.
    """

    prompt: str
    place: int
    tokens: tuple[str, str]
    gaps: tuple[float | None, float | None]

    def is_near_tie(self, most: float) -> bool:
        """Whether either engine held the two tokens for about as likely."""
        return any(gap is not None and gap <= most for gap in self.gaps)


@dataclass(frozen=True)
class Parity:
    """Of two engines: their names, tokens before answers part, of how many, and where they do."""

    engines: tuple[str, str]
    alike: int
    tokens: int
    partings: tuple[Parting, ...]

    @property
    def share(self) -> float:
        """The share of tokens before any difference, 0 to 1."""
        return self.alike / self.tokens


def parity(
    engines: Sequence[InferenceEngine], prompts: Sequence[str] = PROMPTS, tokens: int = 32
) -> Parity:
    """Ask two engines the same, greedily, and lay their tokens side by side.

    Parameters
    ----------
    engines : two of InferenceEngine
        Both must tell log-probabilities.
    prompts : sequence of str
        Default: fifty short ones.
    tokens : int, default 32
        Longest answer. What stands behind the first difference is not compared: it answers
        another text.

    Raises
    ------
    UnsupportedParameter
        For an engine without log-probabilities.
    """
    params = GenerationParams(max_new_tokens=tokens, logprobs=ALTERNATIVES)
    frame = compare(list(engines), list(prompts), params, progress=False)
    alike = total = 0
    partings = []
    for _, pair in frame.groupby("id", sort=False):
        first, second = (list(value) for value in pair["logprobs"])
        place = next(
            (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if not _same(a, b)),
            min(len(first), len(second)),
        )
        alike += place
        total += max(len(first), len(second))
        if place < min(len(first), len(second)):
            a, b = first[place], second[place]
            partings.append(
                Parting(
                    prompt=pair["prompt"].iloc[0],
                    place=place,
                    tokens=(a["token"], b["token"]),
                    gaps=(_gap(a, b), _gap(b, a)),
                )
            )
    names = (engines[0].name, engines[1].name)
    return Parity(names, alike, total, tuple(partings))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    ids = one.get("id"), other.get("id")
    return ids[0] == ids[1] if None not in ids else bool(one["token"] == other["token"])


def _gap(own: dict[str, Any], others: dict[str, Any]) -> float | None:
    for candidate in own["top"]:
        if _same(candidate, others) and None not in (own["logprob"], candidate["logprob"]):
            return float(own["logprob"] - candidate["logprob"])
    return None
