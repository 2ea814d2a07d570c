"""What stands beside llama-cpp-python's ``Llama``: adapters, a projector, guesses ahead."""

from __future__ import annotations

import ctypes
import re

import llama_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from nbinfer.worker.backends._logtail import last_error

SPLIT_MODES = ("none", "layer", "row", "tensor")


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


class Projector(MTMDChatHandler):
    """The library's own way of reading images, with the chat template that was asked for."""

    def __init__(self, path, template):
        super().__init__(path)
        self._template = template

    def load(self, llama):
        """Now, and not at the first image: a file that does not fit ends the load."""
        try:
            self._init_mtmd_context(llama)
        except ValueError as error:
            raise RuntimeError(last_error() or str(error)) from None

    def _get_chat_template(self, llama_model):
        self._template = self._template or super()._get_chat_template(llama_model)
        return self._template

    def _get_template_messages(self, messages, media_marker):
        """A template that knows no parts would print them as Python does: it gets their text."""
        messages = super()._get_template_messages(messages, media_marker)
        if re.search(r"\b(type|image)\b", self._template):
            return messages
        return [
            {**m, "content": "\n".join(part["text"] for part in m["content"])}
            if isinstance(m["content"], list)
            else m
            for m in messages
        ]


class Lookup(LlamaPromptLookupDecoding):
    """The library's guesses out of the text itself, counted."""

    drafted = 0

    def __call__(self, input_ids, **options):
        found = super().__call__(input_ids, **options)
        self.drafted += len(found)
        return found


def lookup(options):
    """The guesser that options ask for, taken out of them, or ``None``."""
    kind, size, most = (options.pop(n, None) for n in ("spec_type", "ngram_size", "draft_max"))
    if kind is None:
        return None
    # Llama keeps the scores of a whole context then, and forgets to make room for them.
    options["logits_all"] = True
    return Lookup(max_ngram_size=size or 2, num_pred_tokens=most or 10)
