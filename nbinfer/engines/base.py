"""The contract that every engine keeps, and what all of them share.

``stream()`` and ``infer()`` are thin folds over one generator, the records of ``_open_run``.
"""

from __future__ import annotations

import abc
import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .. import frame as frames
from .. import interrupts, resume
from ..answers import read
from ..checks import integer
from ..config import GenerationParams, ModelParams, RemoteParams
from ..errors import ConfigurationError, UnsupportedParameter
from ..progress import Reporter, reporter
from ..prompts import Prompt, Prompts, is_frame, normalise
from ..records import Finished, Outcome, RowRequest
from ..run import AHEAD, Run, new_run_id
from ..tools import choice_kind
from . import registry
from .registry import Capabilities
from .results import conclude
from .stream import TextStream

if TYPE_CHECKING:
    import os

    import pandas as pd

__all__ = ["InferenceEngine"]


class InferenceEngine(abc.ABC):
    """An engine with a model, loaded when it is first needed and kept resident.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        The model and how to load it; a string is its name. By default the embedded model.
    generation_params : GenerationParams, optional
        Defaults for every call.
    remote_params : RemoteParams, optional
        Where the server is; remote engines only.

    Raises
    ------
    ConfigurationError
        For names, types and values that cannot be right. Nothing is loaded and no file is
        touched here: files and servers are looked at by ``load()`` or the first ``infer()``.
    UnsupportedParameter
        For a parameter that this engine cannot honour; the message names those that can.
    """

    name: ClassVar[str]
    # The largest values that its library takes, of parameters that GenerationParams lets be larger.
    most: ClassVar[Mapping[str, float]] = {}
    # The names of model_kwargs that completion offers.
    model_options: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model_params: ModelParams | str | None = None,
        *,
        generation_params: GenerationParams | None = None,
        remote_params: RemoteParams | None = None,
    ) -> None:
        if isinstance(model_params, str):
            model_params = ModelParams(model_params)
        self.model_params = model_params or ModelParams()
        self.generation_params = generation_params or GenerationParams()
        if not isinstance(self.model_params, ModelParams):
            raise ConfigurationError(f"model_params must be ModelParams, not {model_params!r:.80}")
        self._check_remote(remote_params)
        self._check_model(self.model_params)
        self._check_generation(self.generation_params)

    # -------------------------------------------------------------- the contract

    @property
    def capabilities(self) -> Capabilities:
        """What this engine honours."""
        return registry.spec(self.name).capabilities

    @property
    def asked_beyond(self) -> dict[str, Any]:
        """What changes an answer beside model and generation parameters, by its field's name."""
        return {}

    @abc.abstractmethod
    def load(self) -> Self:
        """Load the model now, if it is not resident. Returns the engine.

        Raises
        ------
        ModelNotFound, DownloadError, EngineNotInstalled, LoadError, EngineCrashed
            With the cause.
        RunInterrupted
            If the user stopped waiting; the load itself goes on.
        """

    @abc.abstractmethod
    def unload(self) -> int:
        """Free the model. Returns the bytes that came back, 0 if it was not loaded."""

    @abc.abstractmethod
    def memory(self) -> dict[str, int | None]:
        """``memory_bytes`` now, ``idle_bytes`` when it was loaded, ``peak_bytes`` so far.

        Bytes; ``None`` where unknown or not loaded.
        """

    @abc.abstractmethod
    def _open_run(
        self,
        requests: Sequence[RowRequest],
        *,
        run_id: str,
        outcome: Outcome,
        stream: bool,
        wait: bool,
        ahead: int,
    ) -> Run:
        """Prepare a run; nothing happens until its records are read."""

    @abc.abstractmethod
    def _run_facts(self, run: Any) -> dict[str, Any]:
        """The engine's part of a run's facts: memory, load time, versions, model."""

    def _open_batch(
        self,
        batch: bool | str,  # noqa: ARG002
        requests: Sequence[RowRequest],  # noqa: ARG002
        **options: Any,  # noqa: ARG002
    ) -> Run:
        """The same by a cloud's batch API."""
        able = registry.supporting("batch", of="features")
        raise self._cannot("run a batch by an API", "batch", able)

    # ------------------------------------------------------------------- folding

    def infer(
        self,
        prompts: Prompts,
        generation_params: GenerationParams | None = None,
        *,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        system: str | None = None,
        batch_size: int | None = None,
        wait: bool = True,
        progress: bool | Reporter | None = None,
        stream: bool = False,
        output_path: str | os.PathLike[str] | None = None,
        batch: bool | str = False,
    ) -> pd.DataFrame:
        """Complete every prompt; one row for each completion.

        Parameters
        ----------
        prompts : str, Conversation, DataFrame, or sequence
            See ``nbinfer.prompts.normalise``. The columns of a DataFrame come first in the
            result, unchanged.
        generation_params : GenerationParams, optional
            For this call, instead of the engine's own.
        template : str, optional
            Text with ``{{column}}`` placeholders, for a DataFrame.
        variables : mapping, optional
            What fills the placeholders that are no columns.
        system : str, optional
            A system message for conversations that have none.
        batch_size : int, optional
            At most so many rows are given to the engine at once; by default it takes what
            it can batch.
        wait : bool
            Wait while another engine computes on the same device (default); ``False`` shares
            the cores with it, and both will be slow.
        progress : bool or Reporter, optional
            By default shown in notebooks and terminals after half a second.
        stream : bool
            Pass pieces of text to ``progress`` as they are made.
        output_path : str or path, optional
            An SQLite file (``answers.db``) that each answer is written to as it comes. If it is
            there, the run goes on from it: its answers are not asked for again, and rows that
            failed or were cancelled are. ``nbinfer.read_rows`` looks into it.
        batch : bool or str
            ``True``: hand the rows over to the cloud's batch API, at half its price and within
            a day, and wait. The id of a batch that was handed over: wait for that one.

        Returns
        -------
        pandas.DataFrame
            Columns as in ``nbinfer.frame.COLUMNS``; times in seconds, memory in bytes. A row
            that failed has its reason in ``error``; the others are not affected.

        Raises
        ------
        ConfigurationError, UnsupportedParameter
            Before anything runs; also for an ``output_path`` that holds other prompts, another
            model or other parameters, or that another run is writing to.
        RunInterrupted
            When the user stops it; ``.frame`` holds all rows, the finished ones answered.
        EngineCrashed, LoadError, OutputError, ...
            When the whole run ends; ``.frame`` holds what was done.
        """
        params = self._params(generation_params)
        listed = normalise(
            prompts, template=template, variables=variables, system=system, raw=params.raw
        )
        self._check_prompts(listed)
        ahead = AHEAD if batch_size is None else integer(1)("batch_size", batch_size)
        requests, run_id = self._requests(listed, params), new_run_id()
        with resume.opened(
            output_path, requests, engine=self, params=params, run_id=run_id
        ) as store:
            outcome = Outcome()
            open_run = functools.partial(self._open_batch, batch) if batch else self._open_run
            run = open_run(
                store.left, run_id=run_id, outcome=outcome, stream=stream, wait=wait, ahead=ahead
            )
            frames.fetch_pandas()
            started = time.monotonic()
            rows: list[frames.Row] = []
            with interrupts.guard() as guard, guard.listening(run.stop):
                with reporter(progress) as report:
                    for record in store.records(run):
                        if isinstance(record, Finished):
                            rows.append(read(record.row, params))
                        report(record)
                outcome.interrupted = guard.take() or outcome.interrupted
                return conclude(
                    self,
                    run,
                    rows,
                    params,
                    started=started,
                    resumed=store.resumed,
                    inputs=prompts if is_frame(prompts) else None,
                )

    def stream(
        self,
        prompt: Prompts,
        generation_params: GenerationParams | None = None,
        *,
        system: str | None = None,
        wait: bool = True,
    ) -> TextStream:
        """Complete one prompt, piece by piece.

        Returns
        -------
        TextStream
            An iterator of str; ``.result`` is the one-row DataFrame once it is exhausted.
            Leaving the loop early, or ``close()``, cancels the rest.
        """
        params = self._params(generation_params)
        listed = normalise(prompt, system=system, raw=params.raw)
        if len(listed) != 1 or params.n != 1:
            raise ConfigurationError(
                f"stream() takes one prompt and n=1, not {len(listed)} and n={params.n}",
                hint="infer() takes many",
            )
        self._check_prompts(listed)
        frames.fetch_pandas()
        run = self._open_run(
            self._requests(listed, params),
            run_id=new_run_id(),
            outcome=Outcome(),
            stream=True,
            wait=wait,
            ahead=AHEAD,
        )
        return TextStream(self, run, params)

    def __enter__(self) -> Self:
        return self.load()

    def __exit__(self, *error: object) -> None:
        self.unload()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_params.model_name!r:.120})"

    # ------------------------------------------------------------------ checking

    def _params(self, given: GenerationParams | None) -> GenerationParams:
        if given is None:
            return self.generation_params
        if not isinstance(given, GenerationParams):
            raise ConfigurationError(
                f"generation_params must be GenerationParams, not {type(given).__name__}"
            )
        self._check_generation(given)
        return given

    def _check_remote(self, params: RemoteParams | None) -> None:
        if params is not None:
            raise UnsupportedParameter(
                f"{self.name} runs on this machine and takes no remote_params",
                parameter="remote_params",
                engine=self.name,
                engines=registry.supporting("server", of="features"),
            )

    def _check_model(self, params: ModelParams) -> None:
        changed = set(params.to_dict(changed_only=True)) - {"model_name", "model_kwargs"}
        for name in sorted(changed - self.capabilities.model):
            self._refuse(name, getattr(params, name), of="model")

    def _check_generation(self, params: GenerationParams) -> None:
        changed = params.to_dict(changed_only=True)
        for name in sorted(set(changed) - self.capabilities.generation):
            self._refuse(name, changed[name], of="generation")
        for name, most in self.most.items():
            if getattr(params, name) > most:
                raise UnsupportedParameter(
                    f"{self.name} takes a {name} of at most {most}, got {getattr(params, name)}",
                    parameter=name,
                    engine=self.name,
                )
        guided = params.guided_decoding
        if guided is not None:
            (kind,) = (
                k for k in ("json", "regex", "choice", "grammar") if getattr(guided, k) is not None
            )
            if kind not in self.capabilities.guided_decoding:
                self._refuse(kind, getattr(guided, kind), of="guided_decoding")
        choice = choice_kind(params)
        if choice is not None and choice not in self.capabilities.tool_choice:
            able = registry.supporting(choice, of="tool_choice")
            raise self._cannot(f"honour tool_choice={params.tool_choice!r}", "tool_choice", able)

    def _refuse(self, name: str, value: object, *, of: str) -> None:
        label = f"guided decoding by {name}" if of == "guided_decoding" else f"{name}={value!r:.80}"
        raise self._cannot(f"honour {label}", name, registry.supporting(name, of=of))

    def _cannot(self, what: str, parameter: str, able: tuple[str, ...]) -> UnsupportedParameter:
        who = f"engines that can: {', '.join(able)}" if able else "no engine here can"
        return UnsupportedParameter(
            f"{self.name} cannot {what}; {who}",
            parameter=parameter,
            engine=self.name,
            engines=able,
        )

    def _check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if "vision" not in self.capabilities.features and any(p.has_images for p in prompts):
            able = registry.supporting("vision", of="features")
            raise self._cannot("read images", "image", able)

    # ------------------------------------------------------------------ building

    def _requests(self, prompts: Sequence[Prompt], params: GenerationParams) -> list[RowRequest]:
        shared = self._row_params(params)
        per_sample = [
            # Samples of one prompt need seeds of their own, or they would be one answer n times.
            shared if params.seed is None or k == 0 else {**shared, "seed": params.seed + k}
            for k in range(params.n)
        ]
        sent = [prompt.request(params.raw) for prompt in prompts]
        return [
            RowRequest(
                index=index,
                sample=k,
                id=prompt.id,
                prompt=prompt.shown,
                body=body,
                params=per_sample[k],
                error=problem,
            )
            for index, (prompt, (body, problem)) in enumerate(zip(prompts, sent, strict=True))
            for k in range(params.n)
        ]

    def _row_params(self, params: GenerationParams) -> dict[str, Any]:
        """What a row carries on the wire: what the engine honours, no more."""
        values = params.to_dict()
        return {k: values[k] for k in self.capabilities.generation if k in values}
