"""llama.cpp through llama-cpp-python's high-level ``Llama``: one request at a time.

The library counts no tokens and hears no cancel while it streams: ``Watched`` looks over its
shoulder, at each pass over a batch of the prompt and at each token, and everything that rows
report comes from there. A stop in the middle is an exception through the library's own
generators, after which it is as usable as before.
"""

from __future__ import annotations

import ctypes
import json
import math

import llama_cpp
import numpy
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from nbinfer.worker.backends._logtail import last_error

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}  # enum ggml_type


class Abandoned(Exception):
    """Nobody waits for this answer any more."""


class Watched(llama_cpp.Llama):
    """``Llama`` that tells of each batch of the prompt and of each token."""

    answer = None

    def eval(self, tokens):
        for at in range(0, len(tokens), self.n_batch):
            part = tokens[at : at + self.n_batch]
            if self.answer is not None:
                self.answer.go_on()
            super().eval(part)
            if self.answer is not None:
                self.answer.read(len(part))
        if not tokens:
            super().eval(tokens)

    def generate(self, tokens, *arguments, **options):
        if self.answer is not None:
            self.answer.begins(len(tokens))
        for token in super().generate(tokens, *arguments, **options):
            if self.answer is not None:
                self.answer.makes(token)
            yield token


class Backend:
    """One ``Llama``; rows wait for each other."""

    slots = 1
    batch = 1

    def load(self, model, stage):
        options = dict(model["options"])
        for name, place in (("cache_type_k", "type_k"), ("cache_type_v", "type_v")):
            if options.get(name):
                options[place] = CACHE_TYPES[options.pop(name)]
        n_ctx = model["n_ctx"]
        options.setdefault("n_batch", 256)
        options.setdefault("n_gpu_layers", -1)
        # Of the whole answer, as the other engines count, and not of its last 64 tokens.
        options.setdefault("last_n_tokens_size", n_ctx)
        scale = options.pop("lora_scale", 1.0)
        stage("reading {}".format(model["path"].rpartition("/")[2]))
        try:
            self._llama = Watched(
                model["path"],
                **{**options, "n_ctx": n_ctx, "n_threads": model["n_threads"]},
                n_threads_batch=options.pop("n_threads_batch", model["n_threads"]),
                verbose=True,  # or the log would not have the cause of a failure
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise RuntimeError(last_error() or str(error)) from None
        self._adapters = Adapters(self._llama, model.get("adapters") or (), scale)
        self._llama.verbose = False
        if model.get("chat_template"):
            self._llama.chat_handler = Jinja2ChatFormatter(
                template=model["chat_template"],
                eos_token=self._text_of(self._llama.token_eos()),
                bos_token=self._text_of(self._llama.token_bos()),
                stop_token_ids=[self._llama.token_eos()],
            ).to_chat_handler()
        return {
            "library": "llama-cpp-python",
            "version": llama_cpp.__version__,
            "devices": ["GPU"] if llama_cpp.llama_supports_gpu_offload() else ["CPU"],
            "n_ctx": n_ctx,
            "n_threads": model["n_threads"],
            "system_info": llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(),
        }

    def _text_of(self, token):
        return self._llama._model.token_get_text(token) if token >= 0 else ""

    def generate(self, requests, emit, cancelled):
        (request,) = requests
        given = request.data["params"]
        answer = Answer(request, emit, lambda: cancelled(request), self._llama)
        body = {
            "stream": True,
            "max_tokens": given["max_new_tokens"],
            "temperature": given["temperature"],
            "top_p": given["top_p"],
            "top_k": given.get("top_k") or 0,
            "min_p": given["min_p"],
            "typical_p": 1.0,
            "repeat_penalty": given["repetition_penalty"],
            "frequency_penalty": given["frequency_penalty"],
            "presence_penalty": given["presence_penalty"],
            "stop": list(given.get("stop_strings") or ()),
            "seed": given.get("seed"),
            "logit_bias": given.get("logit_bias") or None,
            "grammar": grammar(given.get("guided_decoding")),
        }
        self._adapters.apply(given.get("adapter"))
        self._llama.answer = answer
        try:
            if "messages" in request.data:
                chunks = self._llama.create_chat_completion(request.data["messages"], **body)
            else:
                chunks = self._llama.create_completion(request.data["prompt"], **body)
            for chunk in chunks:
                answer.take(chunk["choices"][0])
        except Abandoned:
            return  # the scheduler answers for it
        except ValueError as error:
            emit.failed(request, self._worded(str(error)))
            return
        finally:
            self._llama.answer = None
        answer.close()

    def _worded(self, text):
        if "exceed context window" in text:
            count = text.partition("(")[2].partition(")")[0]
            return (
                f"the prompt has {count} tokens and the context is {self._llama.n_ctx()}: shorten "
                'it, or load the model with a larger model_kwargs={"n_ctx": ...}'
            )
        return text

    def close(self):
        # The process ends next, and the system takes everything back.
        pass


class Adapters:
    """The LoRA adapters that were loaded with the model, at most one of them applied.

    ``Llama`` itself has one for its whole life. The library has a call that changes it, and
    what is in the KV cache then is another model's.
    """

    def __init__(self, llama, adapters, scale):
        self._llama = llama
        self._scale = scale
        self._applied = None
        self._loaded = {}
        for adapter in adapters:
            path = adapter["path"].encode("utf-8")
            handle = llama_cpp.llama_adapter_lora_init(llama._model.model, path)
            if not handle:
                raise RuntimeError(last_error() or f"{adapter['source']} could not be loaded")
            self._loaded[adapter["source"]] = handle

    def apply(self, wanted):
        if wanted == self._applied:
            return
        if wanted is not None and wanted not in self._loaded:
            raise ValueError(f"the adapter {wanted!r} was not loaded with the model")
        count = int(wanted is not None)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._loaded.get(wanted))
        scales = (ctypes.c_float * 1)(self._scale)
        context = self._llama._ctx.ctx
        if llama_cpp.llama_set_adapters_lora(context, handles, count, scales):
            raise RuntimeError(f"llama.cpp could not apply the adapter {wanted!r}")
        self._applied = wanted
        self._llama.reset()


class Answer:
    """What is known of the request under way."""

    def __init__(self, request, emit, cancelled, llama):
        self._request = request
        self._emit = emit
        self._cancelled = cancelled
        self._llama = llama
        self._top = request.data["params"].get("logprobs")
        self._logprobs = []
        self._prompt_tokens = self._read = self._made = 0
        self._reason = None

    def go_on(self):
        if self._cancelled():
            raise Abandoned

    def begins(self, prompt_tokens):
        self._prompt_tokens = prompt_tokens
        self._emit.prefill(self._request, 0, prompt_tokens)

    def read(self, count):
        if not self._made:
            self._read += count
            self._emit.prefill(self._request, count, 0)

    def makes(self, token):
        self.go_on()
        self._made += 1
        self._emit.made(self._request)
        if self._top is not None:
            self._logprobs.append(self._logprob(token))

    def take(self, choice):
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        self._reason = choice.get("finish_reason") or self._reason
        if text:
            self._emit.text(self._request, text)

    def _logprob(self, token):
        """From the scores that the token was drawn from: they are the context's last."""
        pointer = self._llama._ctx.get_logits_ith(-1)
        scores = numpy.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),))
        scores = scores.astype(numpy.float64)
        logprobs = scores - scores.max()
        logprobs -= math.log(numpy.exp(logprobs).sum())
        best = numpy.argsort(-logprobs)[: self._top]
        return {**self._entry(token, logprobs), "top": [self._entry(t, logprobs) for t in best]}

    def _entry(self, token, logprobs):
        value = float(logprobs[token])
        text = self._llama.detokenize([int(token)], special=True).decode("utf-8", "replace")
        return {
            "token": text,
            "id": int(token),
            "logprob": value if math.isfinite(value) else None,
        }

    def close(self):
        fields = {
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._prompt_tokens - self._read,
            "output_tokens": self._made,
        }
        if self._top is not None:
            fields["logprobs"] = self._logprobs
        if self._reason is None:
            self._emit.failed(self._request, "llama-cpp-python ended the answer without a reason")
        else:
            self._emit.finished(self._request, self._reason, **fields)


def grammar(guided):
    """A grammar object out of ``GuidedDecodingParams`` as a dict."""
    if not guided:
        return None
    if guided.get("grammar"):
        text = guided["grammar"]
    elif guided.get("choice"):
        text = "root ::= " + " | ".join(json.dumps(choice) for choice in guided["choice"])
    else:
        return llama_cpp.LlamaGrammar.from_json_schema(json.dumps(guided["json"]), verbose=False)
    return llama_cpp.LlamaGrammar.from_string(text, verbose=False)
