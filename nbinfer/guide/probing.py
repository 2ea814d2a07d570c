"""Run probes on the real engines, and keep what they saw."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from ..errors import NbinferError, RunInterrupted
from ..notices import notify
from ..progress import Reporter, reporter
from ..records import Stage
from . import proofs, reasons
from .bench import Bench
from .probes import PROBES
from .showing import Unproven

__all__ = ["prove"]


def prove(
    engines: Sequence[str], features: Sequence[str], progress: bool | Reporter | None = None
) -> None:
    """Probe each feature on each engine, one engine after another.

    What is done is kept, also when it is stopped. An engine that is not installed is passed over.

    Raises
    ------
    RunInterrupted
        When the user stops it.
    """
    with reporter(progress) as report:
        for engine in engines:
            wanted = [f for f in features if (f, engine) not in reasons.REASONS and f in PROBES]
            if proofs.installed_version(engine) is None:
                name = proofs.environment(engine)
                notify(f"{engine} is not installed (%engine install {name}): not probed")
            elif wanted:
                _prove(engine, wanted, report)


def _prove(engine: str, features: Sequence[str], report: Reporter) -> None:
    with Bench(engine, lambda text: report(Stage(f"{engine} · {text}"))) as bench:
        # What one load proves is proven together: loading is most of the time.
        for feature in features:
            if PROBES[feature].plain:
                with contextlib.suppress(NbinferError, Unproven):  # its own probe will tell
                    bench.plain(PROBES[feature].plain)
        for number, feature in enumerate(sorted(features, key=lambda f: PROBES[f].setup), 1):
            bench.say(f"{feature} ({number} of {len(features)})")
            began = time.monotonic()
            state, detail = _outcome(bench, feature)
            proofs.keep(engine, feature, state, detail, time.monotonic() - began)


def _outcome(bench: Bench, feature: str) -> tuple[str, str]:
    probe = PROBES[feature]
    try:
        return "proven", probe.run(bench)
    except RunInterrupted:
        raise
    except Unproven as why:
        return "failed", str(why)
    except NbinferError as error:
        return "failed", f"{type(error).__name__}: {error}"
