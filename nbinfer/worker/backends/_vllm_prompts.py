"""A row's conversation or text as vLLM's engine core takes it: template, tokens, images."""

from __future__ import annotations

import dataclasses
import itertools
import re
import threading

from vllm.inputs import TextPrompt
from vllm.multimodal.media.image import ImageMediaIO
from vllm.renderers import ChatParams

from nbinfer.worker.backends._images import image_bytes
from nbinfer.worker.backends._toolform import for_template
from nbinfer.worker.backends._vllm_words import worded


class Prompts:
    """Renders rows with the model's own renderer; any thread may ask."""

    def __init__(self, llm, chat_template):
        self._renderer = llm.renderer
        self._n_ctx = llm.vllm_config.model_config.max_model_len
        self._chat_template = chat_template
        self._rendering = threading.Lock()  # a fast tokenizer is for one thread at a time
        processor = self._renderer.mm_processor
        limits = processor.info.allowed_mm_limits if processor is not None else {}
        self._most_images = limits.get("image", 0)

    @property
    def reads_images(self):
        return bool(self._most_images)

    def render(self, data):
        """The prompt of a row, with its images.

        Raises
        ------
        ValueError
            For what this model cannot read: an image that is none, a prompt that is too long.
        """
        if "messages" in data:
            prompt = self._chat(data["messages"], data["params"])
        else:
            tokens = self._unbounded(self._renderer.default_cmpl_tok_params)
            with self._rendering:
                (prompt,) = self._renderer.render_cmpl([TextPrompt(prompt=data["prompt"])], tokens)
        count = len(prompt.get("prompt_token_ids") or ())
        if count >= self._n_ctx:
            raise ValueError(
                f"the prompt has {count} tokens and the context is {self._n_ctx}: shorten it, or "
                "load the model with a larger ModelParams(model_max_length=...)"
            )
        return prompt

    def _chat(self, messages, given):
        self._check_template()
        template = self._chat_template or getattr(self._renderer.tokenizer, "chat_template", None)
        messages, tools = for_template(messages, given.get("tools"), template)
        chat = ChatParams(
            chat_template=self._chat_template,
            chat_template_kwargs={
                "add_generation_prompt": True,
                **({"tools": tools} if tools else {}),
                **(given.get("chat_template_kwargs") or {}),
            },
        )
        # The template writes the special tokens: the tokenizer must not add them again.
        tokens = self._renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        messages = self._with_images(messages)
        with self._rendering:
            # vLLM's cache of images trusts that requests reach the core in the order of their
            # rendering, and that each does. A cancelled row does not: every row brings its own.
            _, (prompt,) = self._renderer.render_chat(
                [messages], chat, self._unbounded(tokens), skip_mm_cache=True
            )
        return prompt

    @staticmethod
    def _unbounded(tokens):
        """Without vLLM's own limit: ours says what to do."""
        return dataclasses.replace(tokens, max_total_tokens=None)

    def _check_template(self):
        tokenizer = self._renderer.tokenizer
        # A processor, or a tokenizer of another kind, may bring its own.
        if self._chat_template is None and getattr(tokenizer, "chat_template", True) is None:
            raise ValueError(
                "the model has no chat template: send the text as it is with --raw "
                "(GenerationParams(raw=True)), or give one in ModelParams(chat_template=...)"
            )

    # ----------------------------------------------------------------------- images

    def _with_images(self, messages):
        """The messages with each image read: fetching one keeps no other row from its template."""
        count = sum(_is_image(part) for m in messages for part in _parts(m))
        if not count:
            return messages
        if not self.reads_images:
            raise ValueError(
                "this model reads text alone, and the prompt has an image: load one that reads "
                "images"
            )
        if count > self._most_images:
            raise ValueError(
                f"the prompt has {count} images and the model takes {self._most_images}: send "
                "fewer, or load it with model_kwargs={'limit_mm_per_prompt': {'image': ...}}"
            )
        numbers = itertools.count(1)
        return [
            {**m, "content": [self._part(part, numbers) for part in _parts(m)]} if _parts(m) else m
            for m in messages
        ]

    def _part(self, part, numbers):
        if not _is_image(part):
            return part
        number = next(numbers)
        try:
            image = ImageMediaIO().load_bytes(image_bytes(part["image_url"]["url"])).media
        except Exception as error:  # Pillow's are of many kinds
            # Pillow says where its bytes are in memory.
            why = re.sub(r" <_io\.BytesIO object at \w+>", "", worded(error))
            raise ValueError(f"image {number} of the prompt cannot be read: {why}") from None
        return {"type": "image_pil", "image_pil": image}


def _parts(message):
    content = message.get("content")
    return content if isinstance(content, list) else []


def _is_image(part):
    return part.get("type") == "image_url"
