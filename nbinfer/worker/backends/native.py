"""Hugging Face Transformers: any model of text, or of images and text, that it generates with.

Rows of all runs join one running batch and leave it between two forward passes (``_joining.py``),
from the keys and values that earlier rows left (``_prefixes.py``). What that cannot do goes
through ``model.generate``, in static batches (``_static.py``): beams, an assistant, a model whose
cache is not plain keys and values, images (``_vision.py``), a model that is split over ranks
(``_ranks.py``), or everything where ``batching`` is ``"static"``. The passes of both take turns
(``_passes.py``), so no two fight for the cores.

What ``generate`` cannot be told is hung on it from outside: a logits processor that samples
for each row with its own parameters and seed, a stopping criterion that sees every token as
it is made (so stamps are a row's and not the batch's), and hooks on the layers that end an
abandoned forward pass in the middle of a long prefill.
"""

from __future__ import annotations

import functools

import torch
import transformers
from transformers import GenerationConfig

from nbinfer.worker.backends import _vision
from nbinfer.worker.backends._adapters import Adapters
from nbinfer.worker.backends._assistant import OPTIONS, Assistant
from nbinfer.worker.backends._derive import derive
from nbinfer.worker.backends._grammar import Grammar
from nbinfer.worker.backends._joining import Joining
from nbinfer.worker.backends._loading import load_model, load_tokenizer, precision
from nbinfer.worker.backends._memory import Room, end_thread_team, give_back_freed_memory
from nbinfer.worker.backends._passes import Abandoned, Pass, Passes
from nbinfer.worker.backends._prefixes import Prefixes, plain_cache
from nbinfer.worker.backends._rows import Row
from nbinfer.worker.backends._static import Static
from nbinfer.worker.backends._toolform import for_template, with_objects
from nbinfer.worker.thoughts import Thoughts, opening

IMAGE_TOKENS = 576  # a guess, for sorting: LLaVA's own
PREFIX_TOKENS = 8192  # that are kept of earlier rows, in a quarter of the caches' memory at most
# All else is the library's.
OWN = ("batch_size", "batching", "prefix_cache_tokens", "tensor_parallel_size", *OPTIONS)


class Backend:
    """One model, which up to ``slots`` runs share."""

    slots = 4

    def load(self, model, stage):
        options = dict(model["options"])
        own = {name: options.pop(name, None) for name in OWN}
        if model.get("n_threads"):
            torch.set_num_threads(model["n_threads"])
        if model.get("derive_from"):
            derive(model["derive_from"], model["path"], model["mark"], stage)
        stage("reading the tokenizer")
        self.tokenizer = load_tokenizer(model)
        self._ranks = self._split(own["tensor_parallel_size"] or 1, model, options, stage)
        stage("reading the weights")
        self.model = load_model(model, options)
        vocabulary = self.model.config.get_text_config().vocab_size
        self._assistant = Assistant(model, own, vocabulary, self.tokenizer, stage)
        sees = _vision.sees(self.model.config)
        self._vision = _vision.Vision(model, self.tokenizer) if sees else None
        self._settle(model, own)
        stage("trying it")
        self._try()
        if self._ranks is not None:
            self._ranks.loaded()
        give_back_freed_memory()
        self.rest()
        return {
            "library": "transformers",
            "version": transformers.__version__,
            "torch": torch.__version__,
            "devices": sorted(
                {str(p.device).replace("meta", "disk") for p in self.model.parameters()}
            ),
            "n_ctx": self._n_ctx,
            "n_threads": torch.get_num_threads(),
            "attn_implementation": self.model.config._attn_implementation,
            "batching": "static" if self._joined is None else "continuous",
            "tensor_parallel_size": own["tensor_parallel_size"] or 1,
            "model": {"precision": precision(self.model)},
        }

    def _split(self, size, model, options, stage):
        """The other ranks of a model that is split; ``None`` where it is not."""
        if size == 1:
            return None
        from nbinfer.worker.backends._ranks import Ranks  # torch.distributed takes a moment

        stage(f"starting {size} ranks")
        self.slots = 1  # one batch at a time, which all ranks compute
        ranks = Ranks(size, model, options)
        options["distributed_config"] = ranks.config
        return ranks

    def _settle(self, model, own):
        """What every batch needs to know of the model, and the hooks."""
        config = self.model.config.get_text_config()
        given = self.model.generation_config
        stop = given.eos_token_id if given.eos_token_id is not None else config.eos_token_id
        stop = [] if stop is None else stop if isinstance(stop, list) else [stop]
        if self.tokenizer.eos_token_id is not None:
            stop = [*stop, self.tokenizer.eos_token_id]
        self._stop_ids = sorted(set(stop))
        pad = self.tokenizer.pad_token_id
        self._pad = pad if pad is not None else (self._stop_ids or [0])[0]
        # The model's own sampling defaults would fill in for whatever we leave out.
        self.model.generation_config = GenerationConfig(
            pad_token_id=self._pad, eos_token_id=self._stop_ids or None
        )
        known = getattr(config, "max_position_embeddings", None) or 1 << 20
        self._n_ctx = min(model.get("n_ctx") or known, known)
        self._room = Room(self.model, model["cache_bytes"], own["batch_size"])
        if model.get("compile"):
            self.model.forward = torch.compile(self.model.forward, dynamic=True)
        self._adapters = Adapters(self.model, model["path"])
        self._passes = Passes(
            self.model,
            self._adapters,
            by_layer=not model.get("compile"),
            agree=self._ranks and self._ranks.agree,
        )
        if self._assistant.model is not None:
            self._passes.also(self._assistant.model)
        self._joined = self._joining(own)
        self._static = Static(
            self.model, self._passes, self._room, self._assistant, self._ranks, self._pad
        )

    def _joining(self, own):
        """Where rows join a running batch; ``None`` where they cannot or shall not."""
        if own["batching"] == "static" or self._ranks is not None:
            return None
        if not plain_cache(self.model) or not _vision.plain_places(self.model.config):
            if own["batching"] == "continuous":
                raise ValueError(
                    "this model's cache is not plain keys and values of every layer: its rows "
                    "cannot join a running batch; leave out model_kwargs['batching']"
                )
            return None
        kept = own["prefix_cache_tokens"]
        if kept is None:
            # LLM.int8 rounds activations: it makes rounding errors of a kept prefix visible.
            kept = 0 if getattr(self.model, "is_loaded_in_8bit", False) else PREFIX_TOKENS
        most = min(self._room.bytes // 4, kept * self._room.token_bytes)
        prefixes = Prefixes(self._room.token_bytes, most)
        return Joining(self.model, self._passes, self._room, prefixes, self._pad)

    def _try(self):
        """One token: what a device or a dtype cannot do is told at load, not in every row."""
        ids = torch.tensor([[self._pad]], device=self.model.device)
        with self._passes.of(Pass(lambda: False)):
            logits = self.model(input_ids=ids).logits
        if not torch.isfinite(logits).all():
            raise ValueError(
                f"the model gives no finite numbers in {self.model.dtype}: "
                'try ModelParams(torch_dtype_str="float32")'
            )

    # ------------------------------------------------------------------ batching

    def pick(self, waiting):
        """Which of a run's waiting rows go into its next batch: the longest that fit together.

        Longest first: what does not fit in memory is seen at once, and time left is never
        estimated from the easy rows.
        """
        sizes = {r: _guess(r.data) for r in waiting}
        beams = waiting[0].data["params"].get("num_beams", 1)
        alike = [r for r in waiting if r.data["params"].get("num_beams", 1) == beams]
        alike.sort(key=lambda r: sizes[r], reverse=True)
        if self._joined is not None and beams == 1:
            return alike[: 4 * self._room.most]  # they take each other's places
        return alike[: self._room.fitting(sizes[alike[0]], beams)]

    def generate(self, requests, emit, cancelled):
        rows = []
        for request in requests:
            try:
                rows.append(self._row(request, lambda request=request: cancelled(request)))
            except Abandoned:
                pass  # the scheduler answers for it
            except ValueError as error:
                emit.failed(request, error)
        rows.sort(key=lambda row: len(row.ids), reverse=True)
        alone = len(rows) == 1 and not (self._joined and self._joined.busy)
        if alone and rows[0].images is None and self._assistant.can_help(rows[0]):
            rows[0].assisted = True
        joining = [row for row in rows if self._joins(row)]
        if joining:
            self._joined.answer(joining, emit, cancelled)
        self._static.answer([r for r in rows if not self._joins(r)], emit, cancelled)

    def _joins(self, row):
        """Whether a row can join a running batch."""
        plain = row.params.get("num_beams", 1) == 1 and not row.assisted and row.images is None
        return plain and self._joined is not None

    def _row(self, request, over):
        data, params = request.data, request.data["params"]
        text, ids, images = self._read(data, over)
        if "prompt" not in data:
            request.opening = opening(text)
        if not ids:
            ids = [self.tokenizer.bos_token_id or self._pad]
        room = self._n_ctx - len(ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the context is {self._n_ctx}: shorten it, "
                "or load the model with a larger ModelParams(model_max_length=...)"
            )
        own = () if params["ignore_eos"] else self._stop_ids
        stop_ids = {*own, *(params.get("stop_token_ids") or ())}
        limit = min(params["max_new_tokens"], room)
        row = Row(request, ids, self.tokenizer, limit, stop_ids)
        row.images = images
        if params.get("tools") and params["tool_choice"] == "auto":
            row.read_calls = functools.partial(self._read_calls, text, params["tools"])
        if self._ranks is not None and params.get("adapter"):
            raise ValueError("a model that is split over ranks takes no adapter: vllm's can")
        row.adapter = self._adapters.add(params.get("adapter"), self._passes.turns)
        if params.get("guided_decoding"):
            row.grammar = Grammar(self.tokenizer, params["guided_decoding"], self._stop_ids)
        return row

    def _read(self, data, over):
        """The prompt, its tokens, and the tensors of its images or ``None``."""
        if "prompt" in data:
            return data["prompt"], self.tokenizer(data["prompt"])["input_ids"], None
        messages, addresses = _vision.split(data["messages"])
        if addresses and self._vision is None:
            raise ValueError(
                "the prompt has an image, and this model reads text alone: load one that sees, "
                "such as a LLaVA, Qwen-VL, Gemma 3 or SmolVLM"
            )
        if addresses and data["params"].get("tools"):
            raise ValueError("native takes no tools beside an image: leave out one of the two")
        if addresses:
            options = data["params"].get("chat_template_kwargs") or {}
            return self._vision.read(messages, addresses, options, over)
        if self._vision is not None and self._vision.wants_parts:
            messages = [{**m, "content": _vision.as_parts(m["content"])} for m in messages]
        text = self._templated({**data, "messages": messages})
        return text, self.tokenizer(text, add_special_tokens=False)["input_ids"], None

    def _templated(self, data):
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the model has no chat template: send the text as it is with --raw "
                "(GenerationParams(raw=True)), or give one in ModelParams(chat_template=...)"
            )
        params = data["params"]
        template, tools = self.tokenizer.chat_template, params.get("tools")
        if tools and params["tool_choice"] == "auto" and not self._response_template:
            raise ValueError(
                "native reads the calls of tool_choice='auto' by the tokenizer's "
                "response_template, and this model's has none: give one in "
                "ModelParams(tokenizer_kwargs={'response_template': ...}), force a call by "
                "tool_choice='required' or a name, or take llamacpp, vllm or a server"
            )
        messages, tools = for_template(data["messages"], tools, template)
        extra = params.get("chat_template_kwargs") or {}
        return self.tokenizer.apply_chat_template(
            with_objects(messages),
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            **extra,
        )

    @property
    def _response_template(self):
        return getattr(self.tokenizer, "response_template", None)

    def _read_calls(self, prompt, tools, tokens):
        """What Transformers' own parser finds in an answer: calls, and the text beside them.

        Its region of thoughts goes the way of all reasoning.
        """
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        try:
            message = self.tokenizer.parse_response(text, prefix=prompt, tools=tools)
        except ValueError as error:
            return {"error": f"the tool's call cannot be read: {error}"[:600]}
        if not message.get("tool_calls"):
            return {}
        functions = [call.get("function", call) for call in message["tool_calls"]]
        thoughts = Thoughts()
        said = thoughts.reasoning(message.get("thinking") or message.get("reasoning") or "")
        said += thoughts.answer(message.get("content") or "") + thoughts.end()
        calls = [{"name": f["name"], "arguments": f["arguments"]} for f in functions]
        return {"tool_calls": calls, "output": said}

    def scope(self):
        """What ``%%engine_exec`` has at hand."""
        return {"model": self.model, "tokenizer": self.tokenizer, "torch": torch}

    rest = staticmethod(end_thread_team)

    def close(self):
        # The process ends next, and the system takes everything back.
        pass


def _guess(data):
    """Tokens a row may take, by its length in characters: good enough to sort by."""
    messages, images = _vision.split(data.get("messages", ()))
    texts = [part.get("text", "") for m in messages for part in _vision.as_parts(m["content"])]
    characters = len(data.get("prompt") or "") + sum(map(len, texts))
    return characters // 3 + 32 + IMAGE_TOKENS * len(images) + data["params"]["max_new_tokens"]
