"""llama.cpp's own server core, in-process, through xllamacpp.

Traps of the library that this file and its neighbours (``_llamacpp_*.py``) answer, each seen:

* ``Server`` opens a TCP port unless it is given a Unix socket: it gets one in a private
  folder, with a random key, and the folder is removed at once. Nobody can connect.
* A truthy return from the streaming callback cancels; an exception in it is swallowed.
* ``n_ctx`` is the whole cache's: ``kv_unified_per_slot`` makes it a request's.
* The unified cache overflows for *every* running request when one asks too much, so rows
  are admitted by a reservation of their prompt and ``max_new_tokens``; the true length of a
  prompt arrives with the first progress event, before its prefill, and corrects it.
* A cancel is heard between decode calls only: ``n_batch`` is small, and progress is asked for.
* A load that fails raises without a cause; the cause is in the log.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile

from nbinfer.worker.backends._llamacpp_answer import Answer, describe
from nbinfer.worker.backends._llamacpp_body import body
from nbinfer.worker.backends._llamacpp_cells import Cells, estimate, has_images
from nbinfer.worker.backends._llamacpp_params import common_params, xllamacpp
from nbinfer.worker.backends._llamacpp_schema import Compiling, impossible
from nbinfer.worker.backends._llamacpp_words import NO_PROJECTOR, unused
from nbinfer.worker.backends._logtail import last_error

FOLDER = "nbinfer-socket-"


class Backend:
    """One ``xllamacpp.Server``; each slot's thread keeps one request in it."""

    batch = 1
    slots = 1

    def load(self, model, stage):
        self._adapters = [a["source"] for a in model.get("adapters") or ()]
        self._template = model.get("chat_template") or model.get("own_template") or ""
        params = common_params(model)
        self.slots = params.n_parallel
        self._n_ctx = model["n_ctx"]
        self._image_tokens = model.get("image_tokens")
        self._cells = Cells(model["kv_tokens"])
        self._compiling = Compiling()
        folder = private_folder()
        params.hostnames = [os.path.join(folder, "s.sock")]
        params.api_keys = [secrets.token_hex(16)]
        stage("reading {}".format(os.path.basename(model["path"])))
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise RuntimeError(last_error() or str(error)) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        devices = [d["name"] for d in xllamacpp.get_device_info() if d["name"] != "CPU"]
        report = {
            "library": "xllamacpp",
            "version": xllamacpp.__version__,
            "devices": devices or ["CPU"],
            "n_ctx": self._n_ctx,
            "kv_tokens": model["kv_tokens"],
            "n_threads": params.cpuparams.n_threads,
        }
        warning = None if devices else unused(model["options"])
        if warning:
            report["warning"] = warning
        for name in ("mmproj", "draft"):
            if model.get(name):
                report[name] = model[name]
        return report

    def generate(self, requests, emit, cancelled):
        (request,) = requests
        data = request.data
        problem = self._problem(data)
        if problem is not None:
            emit.failed(request, problem)
            return
        guided = data["params"].get("guided_decoding") or {}
        checked = None if guided.get("json") is None else self._compiling
        answer = Answer(request, emit, self._cells, lambda: cancelled(request), checked)
        try:
            asked = body(data, self._n_ctx, self._lora(data["params"]), self._template)
        except ValueError as error:
            emit.failed(request, error)
            return
        need = min(self._n_ctx, estimate(data, self._image_tokens or 0))
        while True:
            if not self._cells.reserve(min(need, self._cells.total), answer.cancelled):
                return  # cancelled while it waited: the scheduler answers for it
            answer.start(min(need, self._cells.total))
            emit.dispatched(request)
            try:
                if "messages" in data:
                    self._server.handle_chat_completions(asked, answer)
                else:
                    self._server.handle_completions(asked, answer)
            except ValueError as error:  # what its chat parser makes of a schema
                emit.failed(request, describe(str(error).rpartition("generation failed: ")[2]))
                return
            finally:
                answer.begun()
                self._cells.release(answer.reserved)
            if not answer.needs_more:
                break
            need = answer.needs_more
        answer.close()

    def _problem(self, data):
        """Why the library could not answer, where it would not say so itself."""
        if has_images(data) and self._image_tokens is None:
            return NO_PROJECTOR
        guided = data["params"].get("guided_decoding") or {}
        return None if guided.get("json") is None else impossible(guided["json"])

    def _lora(self, given):
        """An adapter is on by default in llama.cpp: each request says which one it wants.

        The library empties a slot's cache when its adapters change.
        """
        wanted = given.get("adapter")
        if wanted is not None and wanted not in self._adapters:
            raise ValueError(f"the adapter {wanted!r} was not loaded with the model")
        if not self._adapters:
            return None
        return [{"id": i, "scale": float(a == wanted)} for i, a in enumerate(self._adapters)]

    def close(self):
        # The process ends next, and the system takes everything back faster than a
        # destructor that joins llama.cpp's threads.
        pass


def private_folder():
    """A folder (0700) for the socket; those that killed loads left behind are removed.

    ``Server`` holds the interpreter's lock while it loads, so nothing of ours can remove the
    folder before it returns: a SIGKILL in that time leaves an empty folder with a dead socket,
    until the next load sees that its owner is gone.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            owner = re.match(FOLDER + r"(\d+)-", entry.name)
            if owner and not alive(int(owner.group(1))):
                shutil.rmtree(entry.path, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")


def alive(pid):
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True
