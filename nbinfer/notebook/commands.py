"""What the magics do: thin over the Python functions. Imported when the first one is used."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.display import display

from .. import interrupts
from ..comparison import compare
from ..config import GenerationParams, GuidedDecodingParams, parse_setting
from ..engines.local import LocalEngine
from ..errors import ConfigurationError, NbinferError, RunInterrupted
from ..messages import Conversation, ImagePart, Message, Role, TextPart
from ..progress import in_kernel
from ..prompts import fill
from .arguments import PARSERS
from .choosing import chosen as chosen_for
from .engine_commands import EngineCommands
from .parser import split_line
from .status import CellStream

if TYPE_CHECKING:
    import pandas as pd
    from IPython.core.interactiveshell import InteractiveShell

    from ..engines.base import InferenceEngine
    from .panel import Panel

__all__ = ["Commands"]


class Commands:
    """The commands of one shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell

    def infer(self, line: str, cell: str | None) -> pd.DataFrame | None:
        """Run ``%infer`` or ``%%infer``."""
        parser = PARSERS["infer"]()
        if cell is None:
            line, cell = split_line(parser, line)
        options = parser.parse_line(line)
        with interrupts.guard():
            try:
                frame = self._infer(options, cell)
            except (NbinferError, RunInterrupted) as error:
                if error.frame is not None:
                    self._keep(error.frame, options, show=True)
                raise
            return self._keep(frame, options, show=options.show)

    def compare(self, line: str, cell: str) -> pd.DataFrame | None:
        """Run ``%%compare``."""
        options = PARSERS["compare"]().parse_line(line)
        with interrupts.guard():
            try:
                frame = self._compare(options, cell)
            except (NbinferError, RunInterrupted) as error:
                if error.frame is not None:
                    self._keep(error.frame, options, show=True)
                raise
            return self._keep(frame, options, show=options.show)

    def engine_exec(self, line: str, cell: str) -> None:
        """Run ``%%engine_exec``."""
        options = PARSERS["engine_exec"]().parse_line(line)
        engine = self._engine(options.name, options)
        if not isinstance(engine, LocalEngine):
            raise ConfigurationError(f"{engine.name} is on another machine: no cell runs there")
        value = engine.execute(cell)
        if value is not None:
            print(value)

    def panel(self, line: str) -> Panel:
        """Run ``%panel``."""
        PARSERS["panel"]().parse_line(line)
        from .panel import panel  # ipywidgets is imported for a panel alone

        return panel()

    def engine(self, line: str) -> pd.DataFrame | None:
        """Run ``%engine``."""
        return EngineCommands().run(PARSERS["engine"]().parse_line(line))

    # -------------------------------------------------------------------- %%infer

    def _infer(self, options: argparse.Namespace, body: str) -> pd.DataFrame:
        engine = self._engine(options.engine, options)
        params = self._generation(options)
        prompts, extra = self._asked(options, body)
        single = len(prompts) == 1 and params.n == 1 and options.data is None
        quiet = options.no_stream or options.out is not None or options.resume is not None
        stream = single and not quiet
        return engine.infer(
            prompts,
            params,
            stream=stream,
            progress=CellStream(in_kernel()) if stream else None,
            output_path=options.resume,
            **extra,
        )

    def _compare(self, options: argparse.Namespace, body: str) -> pd.DataFrame:
        names = [name.strip() for name in options.engine.split(",") if name.strip()]
        engines = [self._engine(name, options) for name in names]
        prompts, extra = self._asked(options, body)
        if options.no_logprobs:
            extra["alternatives"] = None
        return compare(engines, prompts, self._generation(options), wide=options.wide, **extra)

    def _engine(self, name: str | None, options: argparse.Namespace) -> InferenceEngine:
        """The engine that a magic's options name."""
        chosen = chosen_for(name, options)
        model = chosen.model
        path = getattr(options, "adapter", None)
        if path is not None:
            adapters = {**(model.adapters or {}), Path(path).name: path}
            chosen = dataclasses.replace(
                chosen, model=dataclasses.replace(model, adapters=adapters)
            )
        return chosen.make()

    def _asked(self, options: argparse.Namespace, body: str) -> tuple[Any, dict[str, Any]]:
        """The prompts, and what else ``infer`` is told of them."""
        prompts: Any = self._prompts(options, body)
        extra: dict[str, Any] = {
            "system": options.system,
            "batch_size": options.batch_size,
            "wait": not options.no_wait,
        }
        if options.data is not None:
            (extra["template"],) = prompts
            prompts = self._data(options.data)
            extra["variables"] = self.shell.user_ns if options.vars else None
        return prompts, extra

    def _prompts(self, options: argparse.Namespace, body: str) -> list[Any]:
        texts = _split(body, options.sep)
        if not texts:
            raise ConfigurationError(
                "the cell has no prompt", hint="write it below the %%infer line"
            )
        if options.data is not None:
            if len(texts) > 1:
                raise ConfigurationError(
                    f"--data fills one prompt, and the cell has {len(texts)}",
                    hint=f"a line {options.sep} separates prompts; --sep TEXT changes it",
                )
            return texts
        if options.vars:
            texts = [fill(text, self.shell.user_ns) for text in texts]
        if options.image is None:
            return texts
        image = ImagePart(self.shell.user_ns.get(options.image, options.image))
        return [Conversation([Message(Role.USER, [image, TextPart(t)])]) for t in texts]

    def _generation(self, options: argparse.Namespace) -> GenerationParams:
        given = {
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
            "n": options.n,
            "raw": options.raw or None,
            "adapter": Path(options.adapter).name if options.adapter is not None else None,
        }
        values = {name: value for name, value in given.items() if value is not None}
        values.update(parse_setting(text) for text in options.set)
        if options.schema is not None:
            schema = self._variable(options.schema, "--schema")
            values["guided_decoding"] = GuidedDecodingParams(json=schema)
        if options.tools is not None:
            values["tools"] = self._variable(options.tools, "--tools")
        return GenerationParams(**values)

    def _variable(self, name: str, option: str) -> Any:
        if name not in self.shell.user_ns:
            raise ConfigurationError(f"{option}: the notebook has no variable {name!r}")
        return self.shell.user_ns[name]

    def _data(self, name: str) -> Any:
        value = self._variable(name, "--data")
        if not hasattr(value, "columns"):
            raise ConfigurationError(f"--data: {name!r} is no DataFrame but {type(value).__name__}")
        return value

    def _keep(
        self, frame: pd.DataFrame, options: argparse.Namespace, *, show: bool
    ) -> pd.DataFrame | None:
        if options.out is None and not show:
            return frame
        if options.out is not None:
            self.shell.user_ns[options.out] = frame
        if show:
            display(frame)
        return None


def _split(body: str, separator: str) -> list[str]:
    """Prompts of a cell: the text between lines that hold the separator alone."""
    prompts: list[list[str]] = [[]]
    for line in body.splitlines():
        if line.strip() == separator:
            prompts.append([])
        else:
            prompts[-1].append(line)
    texts = ["\n".join(lines).strip("\n") for lines in prompts]
    return [text for text in texts if text.strip()]
