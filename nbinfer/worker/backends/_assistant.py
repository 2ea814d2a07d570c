"""Assisted generation: a small model, or the prompt itself, guesses tokens that one pass checks.

The answer is the same as without (Leviathan et al. 2023; Saxena 2023 for the prompt's n-grams),
only sooner, for a row that has the model to itself: Transformers assists one row at a time, and
rows that decode together are faster than rows assisted one after another.
"""

from __future__ import annotations

from nbinfer.worker.backends._derive import derive
from nbinfer.worker.backends._loading import load_model, load_tokenizer

OPTIONS = ("num_assistant_tokens", "prompt_lookup_num_tokens")


class Assistant:
    """What ``generate`` is told for a row that is assisted.

    Parameters
    ----------
    model : dict
        The load message; ``assistant`` in it is the small model's.
    options : dict
        ``num_assistant_tokens`` and ``prompt_lookup_num_tokens``, where they are given.
    vocabulary : int
        The large model's.
    """

    def __init__(self, model, options, vocabulary, tokenizer, stage):
        self.model = None
        self._config, self._arguments = {}, {}
        if options.get("prompt_lookup_num_tokens"):
            self._config["prompt_lookup_num_tokens"] = options["prompt_lookup_num_tokens"]
        small = model.get("assistant")
        if small is None:
            return
        stage("reading the assistant model")
        if small.get("derive_from"):
            derive(small["derive_from"], small["path"], small["mark"], stage)
        message = {**small, "dtype": model.get("dtype"), "device_map": model.get("device_map")}
        self.model = load_model(message, {})
        if options.get("num_assistant_tokens"):
            given = self.model.generation_config
            given.num_assistant_tokens = options["num_assistant_tokens"]
            given.num_assistant_tokens_schedule = "constant"
        self._arguments["assistant_model"] = self.model
        if self.model.config.get_text_config().vocab_size != vocabulary:
            self._arguments["tokenizer"] = tokenizer
            self._arguments["assistant_tokenizer"] = load_tokenizer(small)

    def __bool__(self):
        return bool(self._config or self._arguments)

    def can_help(self, row):
        """Whether the row's next token depends on the tokens before it through the model alone.

        A grammar, penalties and log-probabilities follow the answer token by token: a guess that is
        thrown away would have moved them. Such a row is decoded plainly.
        """
        params = row.params
        return (
            bool(self)
            and row.grammar is None
            and row.top_logprobs is None
            and params.get("num_beams", 1) == 1
            and params.get("repetition_penalty", 1.0) == 1.0
            and not params.get("frequency_penalty")
            and not params.get("presence_penalty")
        )

    @property
    def config(self):
        """What belongs into a ``GenerationConfig``."""
        return dict(self._config)

    @property
    def arguments(self):
        """What belongs to ``generate`` itself."""
        return dict(self._arguments)
