"""What ``%engine`` does: thin over the Python functions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .. import overview, selection
from ..checks import Address
from ..engines import registry
from ..engines.remote import RemoteEngine
from ..errors import ConfigurationError
from ..progress import reporter
from ..recipes import RECIPES
from ..resident import Resident
from ..residents import pool
from ..server_records import servers
from .choosing import chosen as chosen_for
from .text import visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EngineCommands"]


class EngineCommands:
    """The subcommands of ``%engine``, each a method of its name."""

    def run(self, options: argparse.Namespace) -> pd.DataFrame | None:
        """Run what a parsed line asks for."""
        if options.action is None:
            return overview.engines()
        if options.action == "installed":
            from ..env_table import installed

            return installed()
        getattr(self, f"_{options.action}")(options)
        return None

    def _use(self, options: argparse.Namespace) -> None:
        chosen = chosen_for(options.name, options)
        selection.use(chosen)  # bad parameters are told now
        print(f"%%infer now uses {chosen.engine} · {visible(chosen.model.model_name)}")

    def _load(self, options: argparse.Namespace) -> None:
        chosen = chosen_for(options.name, options)
        engine = chosen.make().load()
        memory = engine.memory()["memory_bytes"]
        name = visible(chosen.model.model_name)
        size = "unknown memory" if memory is None else f"{memory / 1e6:,.0f} MB"
        if isinstance(engine, RemoteEngine):
            places = ", ".join(Address(url).masked for url in engine.urls)
            print(visible(f"{chosen.engine} · {name} is served at {places}"))
        else:
            print(f"{chosen.engine} · {name} is loaded: {size}")

    def _unload(self, options: argparse.Namespace) -> None:
        found = self._residents(options, all_without_name=True)
        for resident in found:
            freed = pool.unload(resident)
            print(f"{visible(resident.label)} is unloaded: {freed / 1e6:,.0f} MB came back")
        if not found:
            print("nothing was loaded")

    def _restart(self, options: argparse.Namespace) -> None:
        self._unload(options)
        self._load(options)

    def _logs(self, options: argparse.Namespace) -> None:
        for server in servers():
            if server.engine == options.name:
                print(visible(server.log_tail(options.lines)))
        for resident in self._residents(options):
            if resident.worker is not None:
                print(visible(resident.worker.log_tail(options.lines)))

    def _serve(self, options: argparse.Namespace) -> None:
        from ..serving import serve_for

        server = serve_for(options, chosen_for(self._named(options), options).model)
        told = f"{server.engine} serves {server.model} at {server.url}"
        print(visible(f"{told}; %%infer -e {server.client} uses it"))

    def _stop(self, options: argparse.Namespace) -> None:
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

    def _install(self, options: argparse.Namespace) -> None:
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

    def _uninstall(self, options: argparse.Namespace) -> None:
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
