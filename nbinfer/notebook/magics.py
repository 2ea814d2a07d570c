"""``%%infer``, ``%infer``, ``%engine`` and ``%nbinfer``: thin over the Python functions."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand
from IPython.display import display

from .. import interrupts, overview, selection
from ..config import GenerationParams, GuidedDecodingParams, ModelParams, parse_setting, parse_value
from ..engines import registry
from ..errors import ConfigurationError, NbinferError, RunInterrupted, brief_traceback
from ..messages import Conversation, ImagePart, Message, Role, TextPart
from ..progress import in_kernel
from ..prompts import fill
from ..residents import Resident, pool
from .arguments import engine_parser, infer_parser, split_line
from .display import visible
from .status import CellStream

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NbinferMagics"]


def clean_errors(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Show nbinfer's errors in two lines, with no traceback through our own code.

    They are still raised: the cell fails, "Run All" stops, and nbval notices. Raised from the
    Python functions they keep their traceback, which there leads to the user's code.
    """

    @functools.wraps(magic)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return magic(*args, **kwargs)
        except (NbinferError, RunInterrupted) as error:
            lines = [visible(line) for line in brief_traceback(error)]
            error._render_traceback_ = lambda: lines  # type: ignore[union-attr]
            raise

    return wrapped


@magics_class
class NbinferMagics(Magics):  # type: ignore[misc]
    """nbinfer's magics on one shell."""

    @no_var_expand
    @line_cell_magic
    @clean_errors
    def infer(self, line: str, cell: str | None = None) -> pd.DataFrame | None:
        """Send prompts to an engine."""
        parser = infer_parser()
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

    @line_magic
    @no_var_expand
    @clean_errors
    def engine(self, line: str) -> pd.DataFrame | None:
        """See, choose, load and unload engines."""
        options = engine_parser().parse_line(line)
        if options.action is None:
            return overview.engines()
        getattr(self, f"_engine_{options.action}")(options)
        return None

    @no_var_expand
    @line_cell_magic
    @clean_errors
    def nbinfer(self, line: str, cell: str | None = None) -> Any:
        """Run any of nbinfer's magics under its full name: %nbinfer infer, %nbinfer engine."""
        name, _, rest = line.strip().partition(" ")
        if name not in ("infer", "engine"):
            raise ConfigurationError(
                f"%nbinfer has no command {name!r}", hint="Commands: infer, engine"
            )
        if name == "engine":
            return self.engine(rest)
        return self.infer(rest, cell)

    # -------------------------------------------------------------------- %%infer

    def _infer(self, options: argparse.Namespace, body: str) -> pd.DataFrame:
        chosen = selection.for_engine(options.engine, options.model, _settings(options.kwarg))
        model = chosen.model
        adapter = None
        if options.adapter is not None:
            adapter = Path(options.adapter).name
            model = _with_adapter(model, adapter, options.adapter)
        engine = registry.engine_class(chosen.engine)(model)
        params = self._generation(options, adapter)
        prompts: Any = self._prompts(options, body)
        single = len(prompts) == 1 and params.n == 1 and options.data is None
        stream = single and options.out is None and not options.no_stream
        extra: dict[str, Any] = {}
        if options.data is not None:
            (extra["template"],) = prompts
            prompts = self._data(options.data)
            extra["variables"] = self.shell.user_ns if options.vars else None
        return engine.infer(
            prompts,
            params,
            system=options.system,
            batch_size=options.batch_size,
            wait=not options.no_wait,
            stream=stream,
            progress=CellStream(in_kernel()) if stream else None,
            **extra,
        )

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

    def _generation(self, options: argparse.Namespace, adapter: str | None) -> GenerationParams:
        given = {
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
            "n": options.n,
            "raw": options.raw or None,
            "adapter": adapter,
        }
        values = {name: value for name, value in given.items() if value is not None}
        values.update(parse_setting(text) for text in options.set)
        if options.schema is not None:
            schema = self._variable(options.schema, "--schema")
            values["guided_decoding"] = GuidedDecodingParams(json=schema)
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

    # -------------------------------------------------------------------- %engine

    def _engine_use(self, options: argparse.Namespace) -> None:
        chosen = selection.for_engine(options.name, options.model, _settings(options.kwarg))
        registry.engine_class(chosen.engine)(chosen.model)  # bad parameters are told now
        selection.use(chosen)
        print(f"%%infer now uses {chosen.engine} · {visible(chosen.model.model_name)}")

    def _engine_load(self, options: argparse.Namespace) -> None:
        chosen = selection.for_engine(options.name, options.model, _settings(options.kwarg))
        engine = registry.engine_class(chosen.engine)(chosen.model).load()
        memory = engine.memory()["memory_bytes"] or 0
        name = visible(chosen.model.model_name)
        print(f"{chosen.engine} · {name} is loaded: {memory / 1e6:,.0f} MB")

    def _engine_unload(self, options: argparse.Namespace) -> None:
        found = self._residents(options, all_without_name=True)
        for resident in found:
            freed = pool.unload(resident)
            print(f"{visible(resident.label)} is unloaded: {freed / 1e6:,.0f} MB came back")
        if not found:
            print("nothing was loaded")

    def _engine_restart(self, options: argparse.Namespace) -> None:
        self._engine_unload(options)
        self._engine_load(options)

    def _engine_logs(self, options: argparse.Namespace) -> None:
        for resident in self._residents(options):
            if resident.worker is not None:
                print(visible(resident.worker.log_tail(options.lines)))

    def _residents(
        self, options: argparse.Namespace, *, all_without_name: bool = False
    ) -> list[Resident]:
        name = options.name
        if name is None and not all_without_name:
            name = selection.current().engine
        if name is not None:
            registry.spec(name)
        return [
            r
            for r in pool.residents()
            if (name is None or r.plan.engine == name)
            and (options.model is None or r.plan.model == options.model)
        ]


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


def _settings(texts: list[str]) -> dict[str, object]:
    """``KEY=VALUE`` words as a dict; values are Python literals or else text."""
    values: dict[str, object] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ConfigurationError(f"{text!r:.80} is not KEY=VALUE")
        values[name] = parse_value(value)
    return values


def _with_adapter(model: ModelParams, name: str, path: str) -> ModelParams:
    import dataclasses

    adapters: Mapping[str, str] = {**(model.adapters or {}), name: path}
    return dataclasses.replace(model, adapters=adapters)
