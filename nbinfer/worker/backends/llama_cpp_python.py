"""llama.cpp through llama-cpp-python's high-level ``Llama``: one request at a time.

The library counts no tokens and hears no cancel while it streams: ``Watched`` looks over its
shoulder, at each pass over a batch of the prompt and at each token, and everything that rows
report comes from there. A stop in the middle is an exception through the library's own
generators, after which it is as usable as before.
"""

from __future__ import annotations

import json

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from nbinfer.worker.backends._llama_cpp_python_answer import Abandoned, Answer
from nbinfer.worker.backends._llama_cpp_python_load import (
    SPLIT_MODES,
    Adapters,
    Projector,
    lookup,
)
from nbinfer.worker.backends._llamacpp_body import choice_grammar
from nbinfer.worker.backends._llamacpp_cells import has_images, text_of
from nbinfer.worker.backends._llamacpp_schema import impossible
from nbinfer.worker.backends._llamacpp_words import BAD_GRAMMAR, NO_PROJECTOR, unused
from nbinfer.worker.backends._logtail import last_error
from nbinfer.worker.backends._toolform import for_template, with_objects

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}  # enum ggml_type


class Watched(llama_cpp.Llama):
    """``Llama`` that tells of each batch of the prompt and of each token."""

    answer = None

    def eval(self, tokens):
        if self.answer is not None:
            self.answer.passes()
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
            self.answer.begins(tokens)
        for token in super().generate(tokens, *arguments, **options):
            if self.answer is not None:
                self.answer.makes(token)
            yield token

    def _init_sampler(self, *, temp, top_k, top_p, min_p, **others):
        """The library's chain with temperature before what cuts the tail, as elsewhere.

        Its own order has it last, where top_p 0.9 is another set of tokens.
        """
        sampler = super()._init_sampler(temp=0.0, **others)
        if temp > 0:
            chain = sampler.sampler
            last = llama_cpp.llama_sampler_chain_n(chain) - 1  # the greedy choice
            llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_chain_remove(chain, last))
            sampler.add_temp(temp)
            sampler.add_top_k(top_k)
            sampler.add_top_p(top_p, 1)
            sampler.add_min_p(min_p, 1)
            sampler.add_dist(self._seed)
        return sampler


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
        options.setdefault("n_batch", 512 if model.get("mmproj") else 256)  # an image in one
        options.setdefault("n_gpu_layers", -1)
        options.setdefault("n_threads_batch", model["n_threads"])
        # Of the whole answer, as the other engines count, and not of its last 64 tokens.
        options.setdefault("last_n_tokens_size", n_ctx)
        scale = options.pop("lora_scale", 1.0)
        if isinstance(options.get("split_mode"), str):
            options["split_mode"] = SPLIT_MODES.index(options["split_mode"])
        options["draft_model"] = lookup(options)
        stage("reading {}".format(model["path"].rpartition("/")[2]))
        try:
            self._llama = Watched(
                model["path"],
                **{**options, "n_ctx": n_ctx, "n_threads": model["n_threads"]},
                verbose=True,  # or the log would not have the cause of a failure
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise RuntimeError(last_error() or str(error)) from None
        self._adapters = Adapters(self._llama, model.get("adapters") or (), scale)
        self._projector = None
        if model.get("mmproj"):
            self._projector = Projector(model["mmproj"], model.get("chat_template"))
            self._projector.load(self._llama)
        self._llama.verbose = False
        self._template = model.get("chat_template") or self._llama.metadata.get(
            "tokenizer.chat_template", ""
        )
        if model.get("chat_template"):
            self._llama.chat_handler = Jinja2ChatFormatter(
                template=model["chat_template"],
                eos_token=self._text_of(self._llama.token_eos()),
                bos_token=self._text_of(self._llama.token_bos()),
                stop_token_ids=[self._llama.token_eos()],
            ).to_chat_handler()
        report = {
            "library": "llama-cpp-python",
            "version": llama_cpp.__version__,
            "devices": ["GPU"] if llama_cpp.llama_supports_gpu_offload() else ["CPU"],
            "n_ctx": n_ctx,
            "n_threads": model["n_threads"],
            "system_info": llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(),
        }
        warning = None if llama_cpp.llama_supports_gpu_offload() else unused(model["options"])
        if warning:
            report["warning"] = warning
        if model.get("mmproj"):
            report["mmproj"] = model["mmproj"]
        return report

    def _text_of(self, token):
        return self._llama._model.token_get_text(token) if token >= 0 else ""

    def generate(self, requests, emit, cancelled):
        (request,) = requests
        given = request.data["params"]
        sees = has_images(request.data)
        if sees and self._projector is None:
            emit.failed(request, NO_PROJECTOR)
            return
        answer = Answer(request, emit, lambda: cancelled(request), self._llama, cached=not sees)
        try:
            body = {
                **sampling(given),
                "grammar": grammar(given.get("guided_decoding"), self._llama),
            }
        except ValueError as error:
            emit.failed(request, error)
            return
        self._adapters.apply(given.get("adapter"))
        self._llama.answer = answer
        try:
            for chunk in self._chunks(request.data, body, sees):
                answer.take(chunk["choices"][0])
        except Abandoned:
            return  # the scheduler answers for it
        except ValueError as error:
            emit.failed(request, self._worded(str(error)))
            return
        finally:
            self._llama.answer = None
            if sees:
                # The library takes what is in an image's place for text, in the next prompt too.
                self._llama.reset()
        answer.close()

    def _chunks(self, data, body, sees):
        """The library's stream, by the way that fits the prompt."""
        if "messages" not in data:
            return self._llama.create_completion(data["prompt"], **body)
        messages = data["messages"]
        if sees:
            return self._projector(llama=self._llama, messages=messages, **body)
        # Its templates take text alone.
        messages = [{**m, "content": text_of(m["content"])} for m in messages]
        messages, tools = for_template(messages, data["params"].get("tools"), self._template)
        return self._llama.create_chat_completion(with_objects(messages), tools=tools, **body)

    def _worded(self, text):
        if "Prompt exceeds n_ctx" in text:
            text = "exceed context window ({})".format(text.rpartition(": ")[2].split(" ")[0])
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


def sampling(given):
    """A row's parameters in the library's words."""
    return {
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
    }


def grammar(guided, llama):
    """A grammar object out of ``GuidedDecodingParams`` as a dict.

    Raises
    ------
    ValueError
        For one that holds no answer. The library would take it for none.
    """
    if not guided:
        return None
    if guided.get("grammar"):
        text = guided["grammar"]
    elif guided.get("choice"):
        text = choice_grammar(guided["choice"])
    else:
        why = impossible(guided["json"])
        if why:
            raise ValueError(why)
        try:
            return llama_cpp.LlamaGrammar.from_json_schema(
                json.dumps(guided["json"]), verbose=False
            )
        except (AssertionError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"llama-cpp-python cannot read the schema: {error}") from None
    sampler = llama_cpp.llama_sampler_init_grammar(
        llama._model.vocab, text.encode("utf-8"), b"root"
    )
    if not sampler:
        raise ValueError(BAD_GRAMMAR)
    llama_cpp.llama_sampler_free(sampler)
    return llama_cpp.LlamaGrammar.from_string(text, verbose=False)
