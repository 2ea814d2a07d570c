"""vLLM through ``AsyncLLM``: one asyncio loop in a thread, the engine core in processes of its own.

Traps of the library that this file answers, each seen:

* One SIGINT ends its engine core: the worker is in a session that no terminal interrupts, and
  sends its children none.
* Its children do not end with it: ``guardian.py`` sees to that.
* Of an adapter that does not fit it copies what it can, in silence: ``_lora.py`` looks first. An
  adapter that cannot be read would end the engine core in the middle of a step: it is loaded
  before, by a call that can fail alone.
* ``arrival_time`` is wall clock and the other stamps are monotonic: only those are used.
* A core that died answers every later request with the same error: the worker ends, so that
  the next use loads anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import math
import os
import sys
import threading

# Read when vLLM is imported. Its children are spawned: a forked one would hold this process's
# pipes, and nobody would notice its end.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_COLOR", "0")
os.environ.setdefault("NO_COLOR", "1")

import vllm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TextPrompt
from vllm.lora.request import LoRARequest
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from nbinfer.worker.backends import _lora
from nbinfer.worker.backends._derive import derive
from nbinfer.worker.backends._toolform import for_template
from nbinfer.worker.backends._vllm_load import cause, engine_arguments, telling_stages
from nbinfer.worker.thoughts import opening

WATCH_S = 0.05  # how soon a cancel is passed on
EXIT_CORE_DEAD = 70
# Nobody reads a row's text before it is done unless it streams: tokens of others come in groups,
# which saves a wake-up of this process for each of them. The first comes at once.
GROUP = 8
FINISH = {"stop": "stop", "length": "length", "abort": "cancelled", "repetition": "stop"}


class Backend:
    """One ``AsyncLLM``; each slot's thread keeps one request in it."""

    batch = 1
    slots = 1

    def load(self, model, stage):
        if model.get("derive_from"):
            derive(model["derive_from"], model["path"], model["mark"], stage)
        self._tool_calls = None
        if model.get("tool_call_parser"):  # it imports vLLM's server
            from nbinfer.worker.backends._vllm_tools import reader

            self._tool_calls = reader(model["tool_call_parser"])
        arguments, notes = engine_arguments(model)
        with telling_stages(stage):
            try:
                self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            except Exception as error:
                raise RuntimeError(cause(error)) from error
        config = self._llm.vllm_config
        self.slots = config.scheduler_config.max_num_seqs
        self._n_ctx = config.model_config.max_model_len
        self._renderer = self._llm.renderer
        self._rendering = threading.Lock()  # a fast tokenizer is for one thread at a time
        self._path = model["path"]
        self._chat_template = model.get("chat_template")
        self._adapters = {}
        self._live = {}
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm-loop", daemon=True).start()
        stage("trying it")
        self._run(self._try())
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)
        cache = config.cache_config
        return {
            "library": "vllm",
            "version": vllm.__version__,
            "devices": [config.device_config.device_type],
            "n_ctx": self._n_ctx,
            "kv_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
            "kv_cache_memory_bytes": cache.kv_cache_memory_bytes,
            "max_num_seqs": self.slots,
            "enforce_eager": config.model_config.enforce_eager,
            "quantization": config.model_config.quantization,
            "model": {"precision": precision(config.model_config)},
            **notes,
        }

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _try(self):
        """One token: what is made at the first request is not that request's time."""
        greeting = [{"role": "user", "content": "Hello"}]
        with contextlib.suppress(ValueError):  # a base model has no template
            self._rendered({"messages": greeting, "params": {}})
        (prompt,) = self._renderer.render_cmpl([TextPrompt(prompt="Hello")])
        async for _ in self._llm.generate(prompt, SamplingParams(max_tokens=1), "try"):
            pass

    async def _watch(self):
        """Pass on cancels, and end this process when the engine core has ended."""
        while True:
            await asyncio.sleep(WATCH_S)
            for task, request in list(self._live.items()):
                if request.run.cancelled:
                    task.cancel()
            if self._llm.errored:
                self._end()

    @staticmethod
    def _end():
        print("vLLM's engine core has ended; this process ends with it", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_CORE_DEAD)

    # ------------------------------------------------------------------------- rows

    def generate(self, requests, emit, cancelled):
        (request,) = requests
        try:
            prompt = self._rendered(request.data)
            params = sampling(request.data["params"], stream=request.stream)
            calls = self._calls(request.data)
            if calls is not None:
                params.skip_special_tokens &= calls.skip_special_tokens
        except ValueError as error:  # vLLM's own are ValueErrors too
            emit.failed(request, worded(error))
            return
        if cancelled(request):
            return
        emit.dispatched(request)
        try:
            self._run(self._answer(request, prompt, params, emit, calls))
        except asyncio.CancelledError:
            return  # the scheduler answers for it
        except EngineDeadError:
            self._end()
        except ValueError as error:
            emit.failed(request, worded(error))

    def _rendered(self, data):
        given = data["params"]
        with self._rendering:
            if "messages" in data:
                self._check_template()
                template = self._chat_template or getattr(
                    self._renderer.tokenizer, "chat_template", None
                )
                messages, tools = for_template(data["messages"], given.get("tools"), template)
                chat = ChatParams(
                    chat_template=self._chat_template,
                    chat_template_kwargs={
                        "add_generation_prompt": True,
                        **({"tools": tools} if tools else {}),
                        **(given.get("chat_template_kwargs") or {}),
                    },
                )
                # The template writes the special tokens: the tokenizer must not add them again.
                tokens = self._renderer.default_chat_tok_params.with_kwargs(
                    add_special_tokens=False
                )
                tokens = dataclasses.replace(tokens, max_total_tokens=None)
                _, (prompt,) = self._renderer.render_chat([messages], chat, tokens)
            else:
                tokens = dataclasses.replace(
                    self._renderer.default_cmpl_tok_params, max_total_tokens=None
                )
                (prompt,) = self._renderer.render_cmpl([TextPrompt(prompt=data["prompt"])], tokens)
        count = len(prompt.get("prompt_token_ids") or ())
        if count >= self._n_ctx:
            raise ValueError(
                f"the prompt has {count} tokens and the context is {self._n_ctx}: shorten it, or "
                "load the model with a larger ModelParams(model_max_length=...)"
            )
        return prompt

    def _check_template(self):
        tokenizer = self._renderer.tokenizer
        # A processor, or a tokenizer of another kind, may bring its own.
        if self._chat_template is None and getattr(tokenizer, "chat_template", True) is None:
            raise ValueError(
                "the model has no chat template: send the text as it is with --raw "
                "(GenerationParams(raw=True)), or give one in ModelParams(chat_template=...)"
            )

    def _calls(self, data):
        """Who reads the calls that the model may make freely."""
        given = data["params"]
        if not given.get("tools") or given["tool_choice"] != "auto":
            return None
        return self._tool_calls(self._renderer.tokenizer, data)

    def _opening(self, prompt):
        """What the end of a chat's prompt has of the answer."""
        end = (prompt.get("prompt_token_ids") or ())[-8:]
        return opening(self._renderer.tokenizer.decode(list(end)))

    async def _answer(self, request, prompt, params, emit, calls):
        task = asyncio.current_task()
        self._live[task] = request
        try:
            lora = await self._adapter(request.data["params"].get("adapter"))
            answer = Answer(request, emit, self._renderer.tokenizer, calls)
            if "messages" in request.data:
                request.opening = self._opening(prompt)
            emit.prefill(request, 0, len(prompt.get("prompt_token_ids") or ()))
            name = str(next(self._numbers))
            async for output in self._llm.generate(prompt, params, name, lora_request=lora):
                answer.take(output)
        finally:
            del self._live[task]

    async def _adapter(self, wanted):
        if not wanted:
            return None
        # By what is in the folder: an adapter trained anew under the same name is another one.
        weights = max(os.stat(e).st_mtime_ns for e in os.scandir(wanted["path"]))
        key = (wanted["path"], weights)
        known = self._adapters.get(key)
        if known is None:
            number = len(self._adapters) + 1
            known = self._adapters[key] = (
                LoRARequest(f"{wanted['name']}-{number}", number, wanted["path"]),
                asyncio.Lock(),
                [],
            )
        lora, lock, loaded = known
        async with lock:
            if not loaded:
                try:
                    _lora.check(wanted["path"], self._path)
                    if not await self._llm.add_lora(lora):
                        raise ValueError("vLLM refused it")
                except EngineDeadError:
                    raise
                except Exception as error:
                    rank = wanted["rank"]
                    most = self._llm.vllm_config.lora_config.max_lora_rank
                    hint = ""
                    if rank > most:
                        hint = f" (load it with -k max_lora_rank={rank}: it has {most} now)"
                    raise ValueError(
                        f"the adapter {wanted['name']!r} at {wanted['path']!r} cannot be used "
                        f"with this model: {worded(error)}{hint}"
                    ) from None
                loaded.append(True)
        return lora

    def close(self):
        # The process ends next, and its session with it.
        pass


class Answer:
    """What is known of one request, and what is told of it."""

    def __init__(self, request, emit, tokenizer, calls=None):
        self._request = request
        self._emit = emit
        self._tokenizer = tokenizer
        self._calls = calls
        self._top = request.data["params"].get("logprobs")
        self._logprobs = []
        self._tokens = 0
        self._began = False

    def take(self, output):
        (made,) = output.outputs
        new = len(made.token_ids)
        self._tokens += new
        if not self._began and new:
            self._began = True
            self._emit.prefill(self._request, len(output.prompt_token_ids or ()), 0)
        if new:
            self._emit.token(self._request, made.text, new)
        elif made.text:
            self._emit.text(self._request, made.text)
        if self._top is not None and made.logprobs:
            pairs = zip(made.token_ids, made.logprobs, strict=True)
            self._logprobs += [self._logprob(token, given) for token, given in pairs]
        if output.finished:
            self._close(output, made)

    def _logprob(self, token, given):
        ranked = sorted(given.items(), key=lambda item: (item[1].rank or math.inf, item[0]))
        top = [self._entry(t, lp) for t, lp in ranked[: self._top]]
        return {**self._entry(token, given[token]), "top": top}

    def _entry(self, token, found):
        text = found.decoded_token
        if text is None:
            text = self._tokenizer.decode([token])
        finite = math.isfinite(found.logprob)
        return {"token": text, "id": int(token), "logprob": found.logprob if finite else None}

    def _close(self, output, made):
        stats = output.metrics
        if stats is not None and stats.first_token_ts:
            # The engine core's own: it stamps a token before it is on its way to us.
            self._emit.stamped(self._request, stats.first_token_ts, stats.last_token_ts)
        fields = {
            "prompt_tokens": len(output.prompt_token_ids or ()),
            "cached_tokens": output.num_cached_tokens,
            "output_tokens": self._tokens,
        }
        if self._top is not None:
            fields["logprobs"] = self._logprobs
        reason = FINISH.get(made.finish_reason)
        if reason is None:
            self._emit.failed(self._request, f"vLLM ended the answer with {made.finish_reason!r}")
        else:
            found = self._calls and self._calls.read("".join(self._request.pieces))
            if found:
                fields["tool_calls"], fields["output"] = found
            self._emit.finished(self._request, reason, **fields)


def sampling(given, *, stream):
    """``SamplingParams`` out of a row's parameters; every default that differs is sent."""
    guided = given.get("guided_decoding")
    kinds = ("json", "regex", "choice", "grammar")
    structured = None
    if guided:
        wanted = {k: guided[k] for k in kinds if guided.get(k) is not None}
        structured = StructuredOutputsParams(**wanted)
    return SamplingParams(
        max_tokens=given["max_new_tokens"],
        temperature=given["temperature"],
        top_p=given["top_p"],
        top_k=given.get("top_k") or 0,
        min_p=given["min_p"],
        seed=given.get("seed"),
        stop=list(given.get("stop_strings") or ()),
        stop_token_ids=list(given.get("stop_token_ids") or ()),
        logit_bias={int(k): v for k, v in (given.get("logit_bias") or {}).items()} or None,
        frequency_penalty=given["frequency_penalty"],
        presence_penalty=given["presence_penalty"],
        repetition_penalty=given["repetition_penalty"],
        logprobs=given.get("logprobs"),
        skip_special_tokens=given["skip_special_tokens"],
        structured_outputs=structured,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=1 if stream else GROUP,
    )


def precision(config):
    """``float32``, ``awq``, ``fp8``: what the weights are."""
    return config.quantization or str(config.dtype).removeprefix("torch.")


def worded(error):
    """The first line of what vLLM says; its validation errors add the offending object."""
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return type(error).__name__
