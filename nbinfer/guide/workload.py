"""What a benchmark asks: prompts and answers of given lengths, and when each request comes."""

from __future__ import annotations

import itertools
import math
import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import shown
from ..errors import ConfigurationError
from ..prompts import is_frame, normalise

if TYPE_CHECKING:
    import numpy as np

    from ..prompts import Prompt

__all__ = ["Calibration", "Lengths", "Workload", "arrivals", "calibrate", "text_of"]

# Common words, which nearly every tokenizer has as one token each: so many words are so many
# tokens, whatever the model. What they really come to is measured, and the rows say it.
_COMMON = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law car city
"""
WORDS = tuple(_COMMON.split())
PROBES = (32, 160)  # words of the two prompts that a tokenizer is measured with
_KINDS = {"fixed": 1, "uniform": 2, "normal": 2, "lognormal": 2}
_NUMBER = r"\d+(?:\.\d+)?"
_LENGTHS = re.compile(rf"(?:(\w+):)?({_NUMBER})(?:,({_NUMBER}))?")


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens: one, or a distribution of them.

    Attributes
    ----------
    kind : str
        ``"fixed"`` (``first``), ``"uniform"`` (from ``first`` to ``second``, both included),
        ``"normal"`` or ``"lognormal"`` (mean ``first`` and standard deviation ``second``, both of
        the lengths themselves; of the logarithm, variance is ln(1 + s²/m²) and mean ln m less half
        of that: Johnson, Kotz and Balakrishnan, "Continuous Univariate Distributions" 1, 1994,
        chapter 14). A drawn length is rounded, and at least 1.
    """

    kind: str
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, name: str, value: Any) -> Lengths:
        """Read ``128``, ``"uniform:64,256"``, ``"normal:128,32"`` or ``"lognormal:128,64"``.

        Raises
        ------
        ConfigurationError
            For what is none of them, with ``name`` and the value.
        """
        if isinstance(value, Lengths):
            return value
        text = value if isinstance(value, str) else f"{value}" if _is_int(value) else ""
        found = _LENGTHS.fullmatch(text.replace(" ", ""))
        kind = (found.group(1) or "fixed") if found else ""
        numbers = [float(n) for n in found.groups()[1:] if n is not None] if found else []
        if kind not in _KINDS or len(numbers) != _KINDS[kind]:
            raise ConfigurationError(
                f"{name} takes a number of tokens or a distribution of them, not {shown(value)}",
                hint="128, uniform:64,256 (from, to), normal:128,32 or lognormal:128,64 (mean, sd)",
            )
        made = cls(kind, *numbers)
        if made.first < 1 or (kind == "uniform" and made.second < made.first):
            raise ConfigurationError(f"{name}={shown(value)}: lengths begin at 1 and go upwards")
        return made

    def draw(self, count: int, random: np.random.Generator) -> list[int]:
        """So many lengths."""
        first, second = self.first, self.second
        if self.kind == "fixed":
            return [round(first)] * count
        if self.kind == "uniform":
            return [int(n) for n in random.integers(round(first), round(second) + 1, count)]
        if self.kind == "normal":
            drawn = random.normal(first, second, count)
        else:
            variance = math.log1p((second / first) ** 2)
            drawn = random.lognormal(math.log(first) - variance / 2, math.sqrt(variance), count)
        return [max(1, round(float(n))) for n in drawn]

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.first:g}"
        return f"{self.kind}:{self.first:g},{self.second:g}"


def _is_count(value: Any) -> bool:
    """A whole number above 0; a column with gaps has floats."""
    known = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return known and value == value and value >= 1 and float(value).is_integer()


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Calibration:
    """What a prompt's words come to on an engine: ``overhead`` tokens and so many a word.

    ``overhead`` is the chat template's. ``known`` is false where the engine tells no counts.
    """

    overhead: float
    per_word: float
    known: bool = True

    def words(self, tokens: int) -> int:
        """How many words make a prompt of so many tokens.

        Raises
        ------
        ConfigurationError
            If the template alone has as many.
        """
        found = round((tokens - self.overhead) / self.per_word)
        if found < 1:
            raise ConfigurationError(
                f"a prompt of {tokens} tokens cannot be made: the chat template alone has "
                f"{round(self.overhead)}",
                hint="ask longer prompts, or send text as it is with GenerationParams(raw=True)",
            )
        return found


def calibrate(counts: Sequence[int | None]) -> Calibration:
    """Of the ``prompt_tokens`` of two prompts of ``PROBES`` words."""
    few, many = counts
    if few is None or many is None or many <= few:
        return Calibration(0.0, 1.0, known=False)
    per_word = (many - few) / (PROBES[1] - PROBES[0])
    return Calibration(few - per_word * PROBES[0], per_word)


def text_of(words: int, random: np.random.Generator) -> str:
    """Random words: no two prompts begin alike, so that no cache of prefixes answers."""
    return " ".join(WORDS[i] for i in random.integers(0, len(WORDS), words))


def arrivals(rate: float, count: int, random: np.random.Generator) -> list[float]:
    """When the requests of a Poisson process come, in seconds; the first at once.

    The gaps are exponential with mean 1/rate (Kingman, "Poisson Processes", 1993, section 4.1).
    """
    gaps = random.exponential(1.0 / rate, count)
    gaps[0] = 0.0
    return [float(at) for at in gaps.cumsum()]


@dataclass(frozen=True)
class Workload:
    """What is asked of every engine alike.

    Attributes
    ----------
    prompt_tokens, output_tokens : Lengths
        ``prompt_tokens`` where ``prompts`` is ``None``.
    prompts : list of Prompt or None
        The user's own, taken in their order and again from the first.
    limits : list of int or None
        The longest answer for each of them, in place of ``output_tokens``.
    seed : int
        Of lengths, words and arrivals. Each repeat has words of its own and the same lengths.
    """

    prompt_tokens: Lengths
    output_tokens: Lengths
    prompts: list[Prompt] | None = None
    limits: list[int] | None = None
    seed: int = 0

    @classmethod
    def of(cls, prompts: Any, template: str | None, raw: bool, **lengths: Any) -> Workload:
        """Check what a user gave.

        Raises
        ------
        ConfigurationError, TemplateError
            For what is no prompt, and for a ``max_new_tokens`` that is no whole number above 0.
        """
        if prompts is None:
            return cls(**lengths)
        listed = normalise(prompts, template=template, raw=raw)
        for number, prompt in enumerate(listed):
            _, problem = prompt.request(raw)
            if problem is not None:
                raise ConfigurationError(f"prompt {number}: {problem}")
        limits = None
        if is_frame(prompts) and "max_new_tokens" in prompts.columns:
            limits = prompts["max_new_tokens"].tolist()
            bad = [v for v in limits if not _is_count(v)]
            if bad:
                raise ConfigurationError(
                    f"the column 'max_new_tokens' has {shown(bad[0])}: it takes whole numbers of "
                    "at least 1"
                )
            limits = [int(v) for v in limits]
        return cls(prompts=listed, limits=limits, **lengths)

    def random(self, *stream: int) -> np.random.Generator:
        """A generator of its own for each use, so that one draws nothing from another."""
        import numpy as np

        return np.random.default_rng([self.seed, *stream])

    def rows(
        self, count: int, repeat: int, words: Callable[[int], int], *, raw: bool
    ) -> list[tuple[Prompt, int]]:
        """Prompts with the tokens that each is to be answered with."""
        limits = self.output_tokens.draw(count, self.random(1))
        if self.prompts is not None:
            places = list(itertools.islice(itertools.cycle(range(len(self.prompts))), count))
            if self.limits is not None:
                limits = [self.limits[place] for place in places]
            return [(self.prompts[p], n) for p, n in zip(places, limits, strict=True)]
        random = self.random(2, repeat)
        lengths = self.prompt_tokens.draw(count, self.random(3))
        texts = [text_of(words(length), random) for length in lengths]
        return list(zip(normalise(texts, raw=raw), limits, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """In JSON's own types."""
        own = self.prompts
        return {
            "prompt_tokens": str(self.prompt_tokens) if own is None else None,
            "output_tokens": str(self.output_tokens) if self.limits is None else None,
            "prompts": None if own is None else len(own),
            "seed": self.seed,
        }
