"""Every exception that nbinfer raises, and nothing else.

::

    Exception
     └─ NbinferError
         ├─ ConfigurationError (ValueError)   a name, a type or a value that cannot be right
         │   ├─ UnsupportedParameter          right elsewhere, but not on this engine
         │   └─ TemplateError                 a {{name}} that nothing fills, a table without prompts
         ├─ ModelNotFound                     no such file, alias or embedded model
         ├─ DownloadError                     a model or engine could not be fetched or stored
         ├─ EngineNotInstalled                the engine's library is in no environment
         ├─ LoadError                         the library refused the model; the text has the cause
         ├─ ServerError                   a server refused us, or could not be used or started
         │   └─ ServerUnreachable         no server answers at the address, or none any more
         ├─ ExecutionError                    a cell of %%engine_exec raised; its traceback is kept
         ├─ OutputError                       output_path cannot be written; finished rows are kept
         └─ EngineCrashed                     the engine's process died; finished rows are kept
    KeyboardInterrupt
     └─ RunInterrupted                        the user stopped a run; finished rows are kept

A row that fails inside a run raises nothing: its message is in the row's
``error`` column, and the other rows go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ConfigurationError",
    "DownloadError",
    "EngineCrashed",
    "EngineNotInstalled",
    "ExecutionError",
    "LoadError",
    "ModelNotFound",
    "NbinferError",
    "OutputError",
    "RunInterrupted",
    "ServerError",
    "ServerUnreachable",
    "TemplateError",
    "UnsupportedParameter",
]


class NbinferError(Exception):
    """Base of every error that nbinfer raises on purpose.

    Parameters
    ----------
    message : str
        What was wrong, with the value.
    hint : str, optional
        What to do about it. Shown on a line of its own.

    Attributes
    ----------
    frame : pandas.DataFrame or None
        The rows of the run that this error ended, finished ones included.
        ``None`` where no run had begun.
    """

    frame: pd.DataFrame | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigurationError(NbinferError, ValueError):
    """A parameter's name, type or value cannot be right on any engine."""


class UnsupportedParameter(ConfigurationError):
    """A parameter that this engine cannot honour. It is never dropped in silence.

    Attributes
    ----------
    parameter : str
        The parameter's name.
    engine : str
        The engine that cannot honour it.
    engines : tuple of str
        The engines that can.
    """

    def __init__(
        self,
        message: str,
        *,
        parameter: str,
        engine: str,
        engines: tuple[str, ...] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter
        self.engine = engine
        self.engines = engines


class TemplateError(ConfigurationError):
    """A prompt template names something that nothing fills."""


class ModelNotFound(NbinferError):
    """A model name that means no model, or none that the engine can load."""


class DownloadError(NbinferError):
    """A model or an engine's packages could not be fetched, verified or stored."""


class EngineNotInstalled(NbinferError):
    """The engine's library is importable in no environment that nbinfer knows."""


class LoadError(NbinferError):
    """The engine's library refused the model.

    Attributes
    ----------
    log_tail : str
        The last lines of the worker's log.
    """

    def __init__(self, message: str, *, hint: str | None = None, log_tail: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log_tail = log_tail


class ServerError(NbinferError):
    """A server that refused us, or that could not be used or started."""


class ServerUnreachable(ServerError):
    """No server answers at the address, or none does any more; finished rows are kept."""


class ExecutionError(NbinferError):
    """A cell that ran beside the model raised an exception there.

    Attributes
    ----------
    worker_traceback : str
        The traceback in the engine's process, the cell's own lines in it.
    """

    def __init__(self, message: str, *, worker_traceback: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.worker_traceback = worker_traceback


class OutputError(NbinferError):
    """The file of ``output_path`` could not be written in the middle of a run: a full disk."""


class EngineCrashed(NbinferError):
    """The engine's process died. The kernel lives, and the next use loads the model again.

    Attributes
    ----------
    signal : str or None
        The signal's name (``"SIGKILL"``), or ``None`` where it exited by itself.
    exit_code : int or None
        The exit status where no signal ended it.
    peak_memory_bytes : int or None
        The highest memory of the process tree that was seen, in bytes.
    log_tail : str
        The last lines of the worker's log.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        signal: str | None = None,
        exit_code: int | None = None,
        peak_memory_bytes: int | None = None,
        log_tail: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.signal = signal
        self.exit_code = exit_code
        self.peak_memory_bytes = peak_memory_bytes
        self.log_tail = log_tail


class RunInterrupted(KeyboardInterrupt):
    """The user stopped a run. Finished rows are kept and the model stays resident.

    It is a ``KeyboardInterrupt``, so "Run All" stops and a bare
    ``except Exception`` does not swallow it.

    Attributes
    ----------
    frame : pandas.DataFrame or None
        All rows; those that had not finished have ``finish_reason="cancelled"``.
    """

    def __init__(self, message: str, frame: pd.DataFrame | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.frame = frame


def brief_traceback(error: BaseException) -> list[str]:
    """Clean lines for a notebook: the error's name and text, then what to do.

    Of a cell that ran in an engine, its own traceback: that is the user's code.
    """
    if isinstance(error, ExecutionError):
        return error.worker_traceback.splitlines()
    name = type(error).__name__
    lines = [f"{name}: {getattr(error, 'message', None) or error}"]
    hint: Any = getattr(error, "hint", None)
    if hint:
        lines.append(str(hint))
    return lines
