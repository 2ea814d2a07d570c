"""A magic's line, parsed: quotes stripped, no abbreviations, errors that say what to do."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from typing import Any, NoReturn

from ..errors import ConfigurationError

__all__ = ["Parser", "split_line"]


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of ending the kernel."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.prog}: {message}", hint=f"{self.prog}? lists its options")

    def parse_line(self, line: str) -> argparse.Namespace:
        """Parse a line as a shell would split it."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ConfigurationError(f"{self.prog}: {error} in {line!r:.80}") from None
        options, unknown = self.parse_known_args(words)
        if unknown:
            near = difflib.get_close_matches(unknown[0], self._option_string_actions, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise ConfigurationError(
                f"{self.prog} has no option {unknown[0]!r:.80}"
                if unknown[0].startswith("-")
                else f"{self.prog}: {unknown[0]!r:.80} is one word too many",
                hint=f"{guess}{self.prog}? lists its options",
            )
        return options

    def takes_value(self, flag: str) -> bool:
        """Whether an option is followed by a value."""
        action = self._option_string_actions.get(flag)
        return action is not None and action.nargs != 0


_WORD = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[^\s"'])+)""")


def split_line(parser: Parser, line: str) -> tuple[str, str]:
    """Split ``%infer``'s line into its options and the prompt, which is kept to the letter.

    Options end at the first word that is neither an option nor an option's value, or at ``--``.
    """
    position = 0
    while True:
        match = _WORD.match(line, position)
        if match is None or not match.group(1).startswith("-"):
            return line[:position], line[position:].strip()
        word = match.group(1)
        if word == "--":
            return line[:position], line[match.end() :].strip()
        position = match.end()
        if "=" not in word and parser.takes_value(word):
            value = _WORD.match(line, position)
            position = value.end() if value is not None else position
