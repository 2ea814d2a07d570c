"""What the magics do: thin over the Python functions. Imported when the first one is used."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.display import display

from .. import interrupts, overview, selection
from ..comparison import compare
from ..config import GenerationParams, GuidedDecodingParams, parse_setting, parse_value
from ..engines import registry
from ..engines.local import LocalEngine
from ..errors import ConfigurationError, NbinferError, RunInterrupted
from ..messages import Conversation, ImagePart, Message, Role, TextPart
from ..progress import in_kernel, reporter
from ..prompts import fill
from ..recipes import RECIPES
from ..residents import Resident, pool
from ..server_records import servers
from .arguments import (
    compare_parser,
    engine_parser,
    exec_parser,
    infer_parser,
    panel_parser,
    split_line,
)
from .status import CellStream
from .text import visible

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

    def compare(self, line: str, cell: str) -> pd.DataFrame | None:
        """Run ``%%compare``."""
        options = compare_parser().parse_line(line)
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
        options = exec_parser().parse_line(line)
        engine = self._engine(options.name, options)
        if not isinstance(engine, LocalEngine):
            raise ConfigurationError(f"{engine.name} is on another machine: no cell runs there")
        value = engine.execute(cell)
        if value is not None:
            print(value)

    def panel(self, line: str) -> Panel:
        """Run ``%panel``."""
        panel_parser().parse_line(line)
        from .panel import panel  # ipywidgets is imported for a panel alone

        return panel()

    def engine(self, line: str) -> pd.DataFrame | None:
        """Run ``%engine``."""
        options = engine_parser().parse_line(line)
        if options.action is None:
            return overview.engines()
        if options.action == "installed":
            from ..env_table import installed

            return installed()
        getattr(self, f"_engine_{options.action}")(options)
        return None

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
        return compare(engines, prompts, self._generation(options), **extra)

    def _engine(self, name: str | None, options: argparse.Namespace) -> InferenceEngine:
        """The engine that a magic's options name."""
        chosen = _chosen(name, options)
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
        chosen = _chosen(options.name, options)
        selection.use(chosen)  # bad parameters are told now
        print(f"%%infer now uses {chosen.engine} · {visible(chosen.model.model_name)}")

    def _engine_load(self, options: argparse.Namespace) -> None:
        chosen = _chosen(options.name, options)
        engine = chosen.make().load()
        memory = engine.memory()["memory_bytes"]
        name = visible(chosen.model.model_name)
        size = "unknown memory" if memory is None else f"{memory / 1e6:,.0f} MB"
        print(f"{chosen.engine} · {name} is loaded: {size}")

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
        for server in servers():
            if server.engine == options.name:
                print(visible(server.log_tail(options.lines)))
        for resident in self._residents(options):
            if resident.worker is not None:
                print(visible(resident.worker.log_tail(options.lines)))

    def _engine_serve(self, options: argparse.Namespace) -> None:
        from ..serving import serve_for

        server = serve_for(options, _chosen(self._named(options), options).model)
        clients = {"vllm": "remote-vllm", "llamacpp": "openai-compatible"}
        client = clients.get(server.engine, server.engine)
        told = f"{server.engine} serves {server.model} at {server.url}"
        print(visible(f"{told}; %%infer -e {client} uses it"))

    def _engine_stop(self, options: argparse.Namespace) -> None:
        from ..server_records import stop

        for server in stop(options.name):
            print(visible(f"the server of {server.engine} at {server.url} is stopped"))

    @staticmethod
    def _named(options: argparse.Namespace) -> str:
        from ..serving import ENGINES

        if options.name not in ENGINES:
            raise ConfigurationError(
                f"%engine serve {options.name or ''}: which server?",
                hint=f"these can be started: {', '.join(ENGINES)}",
            )
        return str(options.name)

    def _engine_install(self, options: argparse.Namespace) -> None:
        from .. import installing

        done = installing.run_install(
            self._installable(options),
            reporter(None),
            reinstall=options.reinstall,
            upgrade=options.upgrade,
            dry_run=options.dry_run,
            extras=options.extras,
        )
        print("\n".join(map(visible, done)))

    def _engine_uninstall(self, options: argparse.Namespace) -> None:
        from .. import installing

        for line in installing.run_uninstall(self._installable(options)):
            print(visible(line))

    @staticmethod
    def _installable(options: argparse.Namespace) -> str:
        if options.name is None:
            raise ConfigurationError(
                f"%engine {options.action} needs a name", hint=f"one of: {', '.join(RECIPES)}"
            )
        return str(options.name)

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
            and (
                not options.model
                or r.plan.model == selection.model_for(r.plan.engine, options.model)
            )
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


def _chosen(name: str | None, options: argparse.Namespace) -> selection.Selection:
    """Engine, model and address of a command."""
    engine = name or selection.current().engine
    remote = _settings(_own(engine, options.remote))
    urls = [u.removeprefix(f"{engine}=") for u in options.url if _is_for(engine, u)]
    if "api_key" in remote:
        raise ConfigurationError(
            "a key that is written into a cell is saved with the notebook",
            hint="-r api_key_env_varname=NAME names the variable that holds it",
        )
    if urls:
        remote["api_url"] = urls if len(urls) > 1 else urls[0]
    kwargs = _settings(_own(engine, options.kwarg))
    return selection.for_engine(name, options.model, kwargs, remote)


def _own(engine: str, texts: list[str]) -> list[str]:
    """Of ``KEY=VALUE`` and ``ENGINE:KEY=VALUE``, what is for this engine."""
    own = []
    for text in texts:
        prefix, colon, rest = text.partition(":")
        if not colon or prefix not in registry.names(hidden=True):
            own.append(text)
        elif prefix == engine:
            own.append(rest)
    return own


def _is_for(engine: str, text: str) -> bool:
    """Whether ``VALUE`` or ``ENGINE=VALUE`` is for this engine."""
    prefix, sign, _ = text.partition("=")
    return not sign or prefix == engine or prefix not in registry.names(hidden=True)


def _settings(texts: list[str]) -> dict[str, object]:
    """``KEY=VALUE`` words as a dict; values are Python literals or else text."""
    values: dict[str, object] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ConfigurationError(f"{text!r:.80} is not KEY=VALUE")
        values[name] = parse_value(value)
    return values
