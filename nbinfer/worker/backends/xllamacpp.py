"""llama.cpp's own server core, in-process, through xllamacpp.

Traps of the library that this file answers, each seen:

* ``Server`` opens a TCP port unless it is given a Unix socket: it gets one in a private
  folder, with a random key, and the folder is removed at once. Nobody can connect.
* A truthy return from the streaming callback cancels; an exception in it is swallowed.
* ``n_ctx`` is the whole cache's: ``kv_unified_per_slot`` makes it a request's.
* The unified cache overflows for *every* running request when one asks too much, so rows
  are admitted by a reservation of their prompt and ``max_new_tokens``; the true length of a
  prompt arrives with the first progress event, before its prefill, and corrects it.
* A cancel is heard between decode calls only: ``n_batch`` is small, and progress is asked for.
* A load that fails raises without a cause; the cause is in the log.
* Sampling defaults differ from everybody's (top_k 40, min_p 0.05): each one is always sent.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading

# llama.cpp's threads meet at a barrier many times for each token, and spin there. When
# anything else wants the cores they spin away whole time slices: eight rows on two cores took
# over a minute beside two busy processes, and a few seconds with a bounded spin. Too short a
# spin costs a tenth of the speed on idle cores (1,000 did); this bound keeps most of both. The
# OpenMP runtime reads it when the library is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "200000")

import xllamacpp

from nbinfer.worker.backends._logtail import last_error
from nbinfer.worker.backends._toolform import for_template, knows
from nbinfer.worker.thoughts import Thoughts

FOLDER = "nbinfer-socket-"
# Temperature comes before what cuts the tail, as in Transformers, vLLM and SGLang: llama.cpp's own
# order has it last, where top_p 0.9 is another set of tokens.
SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
CACHE_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


class Cells:
    """Tokens of the unified KV cache, reserved and given back.

    ``enlarge`` is for a prompt that proved longer than estimated: it never waits, because a
    request that waits inside the library while holding cells could wait for ever.
    """

    def __init__(self, total):
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    def reserve(self, count, cancelled):
        with self._changed:
            while self._free < count:
                if cancelled():
                    return False
                self._changed.wait(0.1)
            self._free -= count
            return True

    def enlarge(self, extra):
        with self._changed:
            if self._free < extra:
                return False
            self._free -= extra
            return True

    def release(self, count):
        with self._changed:
            self._free += count
            self._changed.notify_all()


class Backend:
    """One ``xllamacpp.Server``; each slot's thread keeps one request in it."""

    batch = 1
    slots = 1

    def load(self, model, stage):
        options = model["options"]
        self._adapters = model.get("adapters") or []
        self._template = model.get("chat_template") or model.get("own_template") or ""
        params = self._params(model, options)
        self.slots = params.n_parallel
        self._n_ctx = model["n_ctx"]
        self._cells = Cells(model["kv_tokens"])
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
        if options.get("n_gpu_layers", 0) and not devices:
            report["warning"] = (
                "n_gpu_layers={!r}, but this build of llama.cpp sees no accelerator: "
                "everything runs on the CPU".format(options["n_gpu_layers"])
            )
        return report

    def _params(self, model, options):
        p = xllamacpp.CommonParams()
        p.model.path = model["path"]
        p.n_parallel = model["slots"]
        p.n_ctx = model["kv_tokens"] + options.get("n_batch", 256)  # slack of one batch
        p.kv_unified = True
        p.kv_unified_per_slot = model["n_ctx"]
        p.n_batch = options.get("n_batch", 256)
        p.n_ubatch = min(options.get("n_ubatch", 256), p.n_batch)
        p.cpuparams.n_threads = model["n_threads"]
        p.cpuparams_batch.n_threads = options.get("n_threads_batch", model["n_threads"])
        p.n_gpu_layers = options.get("n_gpu_layers", -1)
        p.cache_ram_mib = options.get("cache_ram_mib", 0)
        p.main_gpu = options.get("main_gpu", 0)
        p.warmup = False
        p.fit_params = False  # it loads the model a second time to measure it
        p.ui = False
        p.endpoint_slots = False
        p.use_jinja = True
        if options.get("flash_attn") is not None:
            name = "ENABLED" if options["flash_attn"] else "DISABLED"
            p.flash_attn_type = getattr(
                xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_" + name
            )
        for key in ("cache_type_k", "cache_type_v"):
            if options.get(key):
                kind = "GGML_TYPE_" + CACHE_TYPES[options[key]]
                setattr(p, key, getattr(xllamacpp.ggml_type, kind))
        if options.get("use_mmap") is False:
            p.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
        elif options.get("use_mlock"):
            p.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP_MLOCK
        for key in ("rope_freq_base", "rope_freq_scale"):
            if options.get(key):
                setattr(p, key, options[key])
        if model.get("chat_template"):
            p.chat_template = model["chat_template"]
        if self._adapters:
            p.lora_adapters = [
                xllamacpp.CommonAdapterLoraInfo(a["path"], 1.0) for a in self._adapters
            ]
        return p

    def generate(self, requests, emit, cancelled):
        (request,) = requests
        answer = Answer(request, emit, self._cells, lambda: cancelled(request))
        try:
            body = self._body(request.data)
        except ValueError as error:
            emit.failed(request, error)
            return
        need = self._estimate(request.data)
        while True:
            if not self._cells.reserve(min(need, self._cells.total), answer.cancelled):
                return  # cancelled while it waited: the scheduler answers for it
            answer.start(min(need, self._cells.total))
            emit.dispatched(request)
            try:
                call = (
                    self._server.handle_chat_completions
                    if "messages" in request.data
                    else self._server.handle_completions
                )
                call(body, answer)
            finally:
                self._cells.release(answer.reserved)
            if not answer.needs_more:
                break
            need = answer.needs_more
        answer.close()

    def _estimate(self, data):
        """Tokens to reserve: about a token for three bytes, corrected once it is known."""
        if "messages" in data:
            texts = [m["content"] for m in data["messages"]]
            size = sum(len(t.encode("utf-8", "replace")) for t in texts) + 60 * len(texts) + 120
            size += len(json.dumps(data["params"].get("tools") or ""))
        else:
            size = len(data["prompt"].encode("utf-8", "replace"))
        return min(self._n_ctx, size // 3 + 8 + data["params"]["max_new_tokens"])

    def _body(self, data):
        given = data["params"]
        body = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
            "return_progress": True,
            "cache_prompt": True,
            "max_tokens": given["max_new_tokens"],
            "temperature": given["temperature"],
            "top_p": given["top_p"],
            "top_k": given.get("top_k") or 0,
            "min_p": given["min_p"],
            "typical_p": 1.0,
            "samplers": SAMPLERS,
            "repeat_penalty": given["repetition_penalty"],
            "repeat_last_n": self._n_ctx,
            "frequency_penalty": given["frequency_penalty"],
            "presence_penalty": given["presence_penalty"],
            "seed": -1 if given.get("seed") is None else given["seed"],
        }
        if given.get("stop_strings"):
            body["stop"] = list(given["stop_strings"])
        if given.get("logit_bias"):
            body["logit_bias"] = [[int(k), v] for k, v in given["logit_bias"].items()]
        if self._adapters:
            # An adapter is on by default in llama.cpp: each request says which one it wants.
            wanted = given.get("adapter")
            body["lora"] = [
                {"id": i, "scale": float(a["name"] == wanted)} for i, a in enumerate(self._adapters)
            ]
        guided = given.get("guided_decoding") or {}
        if guided.get("grammar"):
            body["grammar"] = guided["grammar"]
        elif guided.get("choice"):
            body["grammar"] = "root ::= " + " | ".join(json.dumps(c) for c in guided["choice"])
        elif guided.get("json") is not None and "messages" in data:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": guided["json"]},
            }
        elif guided.get("json") is not None:
            body["json_schema"] = guided["json"]
        logprobs = given.get("logprobs")
        if "messages" in data:
            self._add_messages(body, data["messages"], given)
            if given.get("chat_template_kwargs"):
                body["chat_template_kwargs"] = given["chat_template_kwargs"]
            if logprobs is not None:
                body.update(logprobs=True, top_logprobs=logprobs)
        else:
            body["prompt"] = data["prompt"]
            if logprobs is not None:
                body["n_probs"] = max(logprobs, 1)
        return body

    def _add_messages(self, body, messages, given):
        """A conversation, and tools: llama.cpp drops them where the template knows none."""
        tools, choice = given.get("tools"), given.get("tool_choice")
        if tools and choice == "auto" and not knows(self._template, "tools"):
            raise ValueError(
                "the model's chat template knows no tools, so that llama.cpp can read no calls: "
                "force one by tool_choice='required' or a name, or give another template in "
                "ModelParams(chat_template=...)"
            )
        # A forced call is held to its schema: llama.cpp takes no names and says nothing, and where
        # it was told that one is required, in a template's own form, none was seen to come.
        body["messages"], tools = for_template(
            messages, tools, self._template, in_text=choice != "auto"
        )
        if tools:
            body.update(tools=tools, tool_choice=choice)

    def close(self):
        # The process ends next, and the system takes everything back faster than a
        # destructor that joins llama.cpp's threads.
        pass


class Answer:
    """The streaming callback of one request. Truthy stops llama.cpp; it must not raise."""

    def __init__(self, request, emit, cells, cancelled):
        self._request = request
        self._emit = emit
        self._cells = cells
        self.cancelled = cancelled
        self._logprobs = [] if request.data["params"].get("logprobs") is not None else None
        self._top = request.data["params"].get("logprobs") or 0
        self._reason = self._error = None
        self._usage = {}
        self._thoughts = Thoughts()
        self._calls = {}
        self._made = 0
        self._prefilled = 0
        self.reserved = 0
        self.needs_more = None

    def start(self, reserved):
        self.reserved = reserved
        self.needs_more = None
        self._prefilled = 0

    def __call__(self, chunk):
        try:
            return self._chunk(chunk)
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
            return True

    def _chunk(self, chunk):
        if "error" in chunk or "choices" not in chunk:
            self._error = describe(chunk.get("error", chunk))
            return True
        if self.cancelled():
            return True
        progress = chunk.get("prompt_progress")
        if progress:
            return self._prompt(progress)
        self._usage = chunk.get("usage") or self._usage
        made = chunk.get("timings", {}).get("predicted_n", self._made)
        for choice in chunk["choices"]:
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else self._told(delta)
            new = max(made - self._made, 1 if text else 0)
            self._made += new
            if new:
                self._emit.token(self._request, text or "", new)
            if self._logprobs is not None and choice.get("logprobs"):
                self._logprobs += [self._logprob(t) for t in choice["logprobs"]["content"]]
        return False

    def _told(self, delta):
        """The text of a piece of a chat's answer; calls of tools are none."""
        for call in delta.get("tool_calls") or ():
            known = self._calls.setdefault(call["index"], ["", ""])
            function = call.get("function") or {}
            known[0] = function.get("name") or known[0]
            known[1] += function.get("arguments") or ""
        reasoning = self._thoughts.reasoning(delta.get("reasoning_content") or "")
        return reasoning + self._thoughts.answer(delta.get("content") or "")

    def _read_calls(self):
        """The calls of a finished answer."""
        for _, (name, arguments) in sorted(self._calls.items()):
            try:
                yield {"name": name, "arguments": json.loads(arguments or "{}")}
            except ValueError:
                if self._reason != "length":
                    self._error = f"the call of the tool {name!r} is no JSON: {arguments[:200]!r}"

    def _prompt(self, progress):
        limit = self._request.data["params"]["max_new_tokens"]
        need = min(progress["total"] + limit, self._cells.total)
        if need > self.reserved:
            if not self._cells.enlarge(need - self.reserved):
                self.needs_more = need
                return True
            self.reserved = need
        done = progress["processed"] - self._prefilled
        total = progress["total"] if not self._prefilled and not progress["processed"] else 0
        self._prefilled = progress["processed"]
        if done or total:
            self._emit.prefill(self._request, done, total)
        return False

    def _logprob(self, token):
        top = token.get("top_logprobs") or []
        return {
            "token": token["token"],
            "id": token.get("id"),
            "logprob": finite(token["logprob"]),
            "top": [
                {"token": t["token"], "id": t.get("id"), "logprob": finite(t["logprob"])}
                for t in top[: self._top]
            ],
        }

    def close(self):
        """Tell how it ended; what the scheduler can say better is left to it."""
        usage = self._usage
        fields = {
            "prompt_tokens": usage.get("prompt_tokens"),
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        }
        if self._logprobs is not None:
            fields["logprobs"] = self._logprobs
        if self._calls:
            fields["tool_calls"] = list(self._read_calls())
        if self._reason not in (None, "length"):
            self._emit.text(self._request, self._thoughts.end())
        if self._error is not None:
            self._emit.failed(self._request, self._error)
        elif self._reason is None and self.cancelled():
            self._emit.finished(self._request, "cancelled", **fields)
        elif self._reason is None:
            self._emit.failed(self._request, "llama.cpp ended the answer without a reason")
        else:
            self._emit.finished(
                self._request,
                self._reason,
                output_tokens=usage.get("completion_tokens"),
                **fields,
            )


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


def finite(value):
    """A log probability that JSON can carry; minus infinity becomes ``None``."""
    return value if math.isfinite(value) else None


def describe(error):
    """One line from llama.cpp's error object."""
    if not isinstance(error, dict):
        return str(error)
    if error.get("type") == "exceed_context_size_error":
        return (
            "the prompt has {n_prompt_tokens} tokens and the context is {n_ctx}: shorten it, "
            'or load the model with a larger model_kwargs={{"n_ctx": ...}}'.format(**error)
        )
    return error.get("message") or str(error)


if sys.byteorder != "little":
    raise ImportError("GGUF files are read on little-endian machines only")
