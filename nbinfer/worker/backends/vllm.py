"""vLLM through ``AsyncLLM``: one asyncio loop in a thread, the engine core in processes of its own.

Traps of the library that this file answers, each seen:

* One SIGINT ends its engine core: the worker is in a session that no terminal interrupts, and
  sends its children none.
* Its children do not end with it: ``guardian.py`` sees to that.
* What it does with LoRA adapters and images that do not fit: ``_vllm_lora.py``,
  ``_vllm_prompts.py``.
* ``arrival_time`` is wall clock and the other stamps are monotonic: only those are used.
* A core that died answers every later request with the same error: the worker ends, so that
  the next use loads anew.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from vllm.exceptions import VLLMError
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from nbinfer.worker.backends._vllm_load import derive_all, engine_arguments, telling_stages, why
from nbinfer.worker.backends._vllm_lora import Adapters
from nbinfer.worker.backends._vllm_prompts import Prompts
from nbinfer.worker.backends._vllm_words import worded
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
        derive_all(model, stage)
        self._tool_calls = None
        if model.get("tool_call_parser"):  # it imports vLLM's server
            from nbinfer.worker.backends._vllm_tools import reader

            self._tool_calls = reader(model["tool_call_parser"])
        arguments, notes = engine_arguments(model)
        with telling_stages(stage):
            try:
                self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            except Exception as error:
                raise RuntimeError(why(error, model)) from error
        config = self._llm.vllm_config
        self.slots = config.scheduler_config.max_num_seqs
        self._tokenizer = self._llm.renderer.tokenizer
        self._prompts = Prompts(self._llm, model.get("chat_template"))
        self._adapters = Adapters(self._llm, model["path"])
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
            "n_ctx": config.model_config.max_model_len,
            "kv_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
            "kv_cache_memory_bytes": cache.kv_cache_memory_bytes,
            "max_num_seqs": self.slots,
            "enforce_eager": config.model_config.enforce_eager,
            "quantization": config.model_config.quantization,
            "model": {"precision": precision(config.model_config, model["facts"]["precision"])},
            **notes,
        }

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _try(self):
        """One token: what is made at the first request is not that request's time."""
        greeting = [{"role": "user", "content": "Hello"}]
        with contextlib.suppress(ValueError, VLLMError):  # a base model has no template
            self._prompts.render({"messages": greeting, "params": {}})
        prompt = self._prompts.render({"prompt": "Hello", "params": {}})
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
            prompt = self._prompts.render(request.data)
            params = sampling(request.data["params"], stream=request.stream or request.timed)
            calls = self._calls(request.data)
            if calls is not None:
                params.skip_special_tokens &= calls.skip_special_tokens
        except (ValueError, VLLMError) as error:
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
        except (ValueError, VLLMError) as error:
            emit.failed(request, worded(error))

    def _calls(self, data):
        """Who reads the calls that the model may make freely."""
        given = data["params"]
        if not given.get("tools") or given["tool_choice"] != "auto":
            return None
        return self._tool_calls(self._tokenizer, data)

    def _opening(self, prompt):
        """What the end of a chat's prompt has of the answer."""
        end = (prompt.get("prompt_token_ids") or ())[-8:]
        return opening(self._tokenizer.decode(list(end)))

    async def _answer(self, request, prompt, params, emit, calls):
        task = asyncio.current_task()
        self._live[task] = request
        try:
            lora = await self._adapters.ready(request.data["params"].get("adapter"))
            answer = Answer(request, emit, self._tokenizer, calls)
            if "messages" in request.data:
                request.opening = self._opening(prompt)
            emit.prefill(request, 0, len(prompt.get("prompt_token_ids") or ()))
            name = str(next(self._numbers))
            async for output in self._llm.generate(prompt, params, name, lora_request=lora):
                answer.take(output)
        finally:
            del self._live[task]

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
        drafts = made.spec_decode_metrics
        if drafts is not None:
            told = drafts.to_dict()
            fields["speculative"] = {
                "drafted_tokens": told["num_draft_tokens"],
                "accepted_tokens": told["num_accepted_draft_tokens"],
            }
        reason = FINISH.get(made.finish_reason)
        if reason is None:
            # A form that its core could not compile, for one: the others go on.
            text = f"vLLM ended the answer with {made.finish_reason!r}; %engine logs vllm says why"
            self._emit.failed(self._request, text)
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
        ignore_eos=given["ignore_eos"],
        structured_outputs=structured,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=1 if stream else GROUP,
    )


def precision(config, told):
    """``float32``, ``awq-4bit``, ``fp8``: what the weights are; ``told`` is what the files say."""
    if not config.quantization:
        return str(config.dtype).removeprefix("torch.")
    stored = getattr(config.hf_config, "quantization_config", None)
    return told if stored and told else config.quantization
