"""Engines that run on this machine, each in a worker process of its own."""

from __future__ import annotations

import abc
import json
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .. import environments, interrupts, measure, models, settings
from ..config import GenerationParams
from ..errors import ConfigurationError, RunInterrupted, UnsupportedParameter
from ..local_run import LocalRun
from ..records import Outcome, RowRequest
from ..resident import Plan, Resident
from ..residents import pool
from ..tools import call_schema
from ..torch_build import gpu_vendor
from ..worker.host import Event, kernel_python
from . import registry
from .base import InferenceEngine

__all__ = ["LocalEngine", "check_counts", "physical_cores"]


class LocalEngine(InferenceEngine):
    """What llama.cpp, Transformers and vLLM share: a plan, a resident, a run.

    A subclass names its ``backend`` and prepares its load message. ``recipe`` is the managed
    environment that its library lives in; ``""`` is the kernel's own.
    """

    backend: str
    recipe: str = ""
    computes_on_gpu: bool = False  # where there is one

    def execute(self, code: str) -> str | None:
        """Run Python beside the model, in its process: what ``%%engine_exec`` does.

        See ``nbinfer.engines.console.execute``.

        Raises
        ------
        UnsupportedParameter
            Where the engine has no model object to show.
        """
        from .console import execute

        if "exec" not in self.capabilities.features:
            able = registry.supporting("exec", of="features")
            raise UnsupportedParameter(
                f"{self.name} has no model in Python to run code beside; "
                f"engines that have: {', '.join(able)}",
                parameter="exec",
                engine=self.name,
                engines=able,
            )
        return execute(self, code)

    @abc.abstractmethod
    def _prepare(self, progress: Callable[[str], None]) -> tuple[dict[str, Any], int]:
        """The backend's load message and the bytes it will need; runs in the loading thread."""

    def plan(self) -> Plan:
        """What has to be resident for this engine's parameters."""
        params, recipe = self.model_params.to_dict(), self._recipe()
        return Plan(
            key=(self.name, self.backend, json.dumps(params, sort_keys=True)),
            engine=self.name,
            model=self.model_params.model_name,
            backend=self.backend,
            python=self._python,
            prepare=self._prepare,
            library=registry.spec(self.name).library,
            device=self._device(recipe),
            recipe=recipe,
            params=self.model_params,
        )

    def _device(self, recipe: str) -> str:  # noqa: ARG002
        """Whose lease its runs take. The driver alone is looked for, so nothing is imported."""
        return "gpu" if self.computes_on_gpu and gpu_vendor() else "cpu"

    def _python(self, progress: Callable[[str], None]) -> str:
        """The interpreter that has the library; runs in the loading thread."""
        name = self._recipe()
        if not name:
            return kernel_python()
        if settings.current().auto_install and environments.available(name) is None:
            environments.install(name, progress=progress)
        return environments.python_for(name)

    def _recipe(self) -> str:
        """The environment that its library is taken from, ``""`` for the kernel's own."""
        return self.recipe

    def _resolve(self, progress: Callable[[str], None], *forms: str) -> models.ResolvedModel:
        """Which file or folder the model's name means, fetched where it must be."""
        params = self.model_params
        return models.resolve(
            params.model_name,
            forms=forms,
            engine=self.name,
            revision=params.model_revision,
            progress=progress,
        )

    def _transformers_message(self, model: models.ResolvedModel) -> dict[str, Any]:
        """What the backends of Transformers' models are told alike."""
        params = self.model_params
        tokenizer = params.tokenizer_name
        if tokenizer is not None and Path(tokenizer).expanduser().is_dir():
            tokenizer = str(Path(tokenizer).expanduser())
        return {
            **self._place(model),
            "n_ctx": params.model_max_length,
            "dtype": params.torch_dtype_str,
            "tokenizer": tokenizer,
            "chat_template": params.chat_template,
            "trust_remote_code": params.trust_remote_code,
            "compile": params.compile,
            "facts": model.to_dict(),
        }

    @staticmethod
    def _place(model: models.ResolvedModel) -> dict[str, Any]:
        """Where a backend finds a model, or what it has to convert."""
        message: dict[str, Any] = {"path": str(model.path)}
        if model.derived_from:
            message["derive_from"] = model.derived_from
            message["mark"] = {"sha256": model.sha256}
        return message

    @property
    def resident(self) -> Resident | None:
        """The loaded engine, or ``None``."""
        return pool.find(self.plan().key)

    def load(self) -> Self:
        mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with interrupts.guard() as guard, guard.listening(lambda: mailbox.put({"ev": "stop"})):
            resident = pool.ensure(self.plan(), mailbox.put)
            while True:
                event = mailbox.get()
                if event["ev"] == "ready":
                    return self
                if event["ev"] == "load_failed":
                    raise event["error"]
                if event["ev"] == "stop":
                    pool.forget_waiter(resident, mailbox.put)
                    raise RunInterrupted(
                        f"stopped waiting; {resident.label} goes on loading "
                        f"(%engine unload {self.name} ends it)"
                    )

    def unload(self) -> int:
        resident = self.resident
        return pool.unload(resident) if resident is not None else 0

    def _row_params(self, params: GenerationParams) -> dict[str, Any]:
        values = super()._row_params(params)
        if self.model_params.chat_template_kwargs:
            values["chat_template_kwargs"] = dict(self.model_params.chat_template_kwargs)
        if params.tools is not None:
            self._add_tools(values, params)
        return values

    def _add_tools(self, values: dict[str, Any], params: GenerationParams) -> None:
        """A forced call is one of guided decoding; a model that may call none is told of none."""
        assert params.tools is not None
        schema = call_schema(params.tools, params.tool_choice)
        if schema is not None:
            values["guided_decoding"] = {"json": schema}
        if params.tool_choice == "none":
            values["tools"] = None

    def memory(self) -> dict[str, int | None]:
        resident = self.resident
        if resident is None or resident.worker is None or not resident.worker.alive:
            return {"memory_bytes": None, "idle_bytes": None, "peak_bytes": None}
        now = measure.seen(resident.worker.pid).total
        return {
            "memory_bytes": now,
            "idle_bytes": resident.idle_bytes,
            "peak_bytes": max(resident.peak_bytes, now or 0) or None,
        }

    def _open_run(
        self,
        requests: Sequence[RowRequest],
        *,
        run_id: str,
        outcome: Outcome,
        stream: bool,
        wait: bool,
        ahead: int,
    ) -> LocalRun:
        return LocalRun(
            self.plan(),
            requests,
            run_id=run_id,
            outcome=outcome,
            stream=stream,
            wait=wait,
            ahead=ahead,
        )

    def _run_facts(self, run: Any) -> dict[str, Any]:
        assert isinstance(run, LocalRun)
        resident = run.resident
        facts: dict[str, Any] = {
            "load_s": run.load_s,
            "running_s": run.done_at - run.sent_at if run.sent_at else None,
            "model_memory_bytes": None,
            "peak_memory_bytes": run.peak_bytes or None,
        }
        if run.speculative:
            facts["speculative"] = dict(run.speculative)
        if resident is not None:
            report = dict(resident.report)
            facts["model_memory_bytes"] = resident.idle_bytes
            facts["versions"] = {report.pop("library", self.backend): report.pop("version", None)}
            facts["model_facts"] = resident.model_facts
            facts["engine_facts"] = report
        return facts


def physical_cores() -> int:
    """Cores that this process may use: hyperthreads only fight for the same units."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))


def check_counts(options: Mapping[str, Any], *names: str) -> None:
    """Refuse values of ``model_kwargs`` that are no integers of at least 1."""
    for name in names:
        value = options.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ConfigurationError(
                f"model_kwargs[{name!r}] must be an integer of at least 1, not {value!r:.80}"
            )
