"""An engine under proof: loaded as each probe wants it, its server started where it is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from .. import models
from ..config import ModelParams
from ..engines import registry
from ..engines.base import InferenceEngine
from ..residents import pool
from ..server_records import Server
from ..serving import serve
from . import materials
from .showing import TOKENS, row

__all__ = ["Bench"]

CONTEXT = 2048

# How each engine loads what a probe wants, beyond the embedded model as it is. A server is
# started anew for what it cannot add while it runs.
OPTIONS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("native", "4bit"): {"load_in_4bit": True},
    ("native", "8bit"): {"load_in_8bit": True},
    ("native", "speculative"): {"prompt_lookup_num_tokens": 3},
    ("native", "tensor_parallel"): {"tensor_parallel_size": 2},
    ("llamacpp", "speculative"): {"draft_model": "smollm2-135m", "draft_max": 4},
    ("vllm", "tensor_parallel"): {"tensor_parallel_size": 2},
    ("vllm", "speculative"): {
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 3,
        }
    },
}
OPTIONS = {
    **OPTIONS,
    **{
        ("remote-vllm", setup): OPTIONS["vllm", setup]
        for setup in ("tensor_parallel", "speculative")
    },
    ("remote-vllm", "adapters"): {"enable_lora": True},
    ("sglang", "adapters"): {"enable_lora": True},
    ("sglang", "tensor_parallel"): {"tensor_parallel_size": 2},
    ("sglang", "vision"): {"model_impl": "transformers"},
}
# Checkpoints of fewer bits: a material, and the file in it that is loaded.
QUANTIZED = {
    ("llamacpp", "8bit"): ("q8_0", "model.gguf"),
    **{
        (engine, setup): (name, "")
        for engine in ("vllm", "remote-vllm")
        for setup, name in (("4bit", "w4a16"), ("8bit", "w8a8"))
    },
}


class Bench:
    """Makes engines for probes; what it loads is unloaded at the end.

    Parameters
    ----------
    engine_name : str
        One of the feature table's engines.
    say : callable
        Told in a few words what is under way.
    """

    def __init__(self, engine_name: str, say: Callable[[str], None]) -> None:
        self.engine_name = engine_name
        self.say = say
        self._server: tuple[str, Server] | None = None
        self._loaded: list[InferenceEngine] = []
        self._plain: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.rest()
        for engine in self._loaded:
            engine.unload()

    @property
    def is_server(self) -> bool:
        """Whether this engine is a server that has to be started."""
        return bool(registry.spec(self.engine_name).asks)

    def engine(self, setup: str = "", **params: Any) -> InferenceEngine:
        """An engine, loaded as a setup wants it.

        Parameters
        ----------
        setup : str
            ``""`` for the embedded model as it is, ``"adapters"``, ``"vision"``,
            ``"tensor_parallel"``, ``"speculative"``, ``"4bit"``, ``"8bit"`` or ``"gguf"``.
        **params
            More fields of ``ModelParams``.
        """
        params = {**self._params(setup), **params}
        if self.is_server:
            self._serve(setup, params)
            for name in ("model_kwargs", "model_max_length"):
                params.pop(name, None)
        elif setup and self._loaded:  # memory for one more model is not taken for granted
            self.rest()
        made = registry.engine_class(self.engine_name)(ModelParams(**params))
        self._loaded.append(made)
        return made

    def plain(self, prompt: str) -> str:
        """The greedy answer of the embedded model as it is, asked for once."""
        if prompt not in self._plain:
            found = row(self.engine(), prompt, max_new_tokens=TOKENS)
            self._plain[prompt] = found["output"]
        return self._plain[prompt]

    @property
    def checkpoint_precision(self) -> str | None:
        """What the config of the folder that was loaded last says of its weights.

        A server tells nothing of them, and serves no checkpoint otherwise than by its config.
        """
        config = Path(self._loaded[-1].model_params.model_name) / "config.json"
        if not config.is_file():
            return None
        given = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
        groups = (given.get("config_groups") or {}).values()
        bits = {group["weights"]["num_bits"] for group in groups}
        return f"{given.get('quant_method')}-{'-'.join(map(str, sorted(bits)))}bit"

    def rest(self) -> None:
        """Stop what is running."""
        if self._server is not None:
            self._server[1].stop()
            self._server = None
        for resident in [r for e in self._loaded if (r := getattr(e, "resident", None))]:
            pool.unload(resident)

    def _params(self, setup: str) -> dict[str, Any]:
        params: dict[str, Any] = {
            "model_name": "smollm2-135m",
            "model_max_length": CONTEXT,
            "model_kwargs": dict(OPTIONS.get((self.engine_name, setup), {})),
        }
        if setup == "tensor_parallel":
            params["model_name"] = str(materials.get("tensor_parallel", self.say))
        elif setup == "vision":
            self._vision(params)
        elif (self.engine_name, setup) in QUANTIZED:
            name, file = QUANTIZED[self.engine_name, setup]
            params["model_name"] = str(materials.get(name, self.say) / file)
        elif setup == "gguf":
            params["model_name"] = str(models.resolve("smollm2-135m", progress=self.say).path)
        return params

    def _vision(self, params: dict[str, Any]) -> None:
        folder = materials.get("vision", self.say)
        if self.engine_name == "llamacpp":
            params["model_kwargs"]["mmproj"] = str(folder / "mmproj.gguf")
        else:
            params["model_name"] = str(folder)

    def _serve(self, setup: str, params: Mapping[str, Any]) -> None:
        if self._server is not None and self._server[0] == setup and self._server[1].alive:
            return
        self.rest()
        started = serve(registry.spec(self.engine_name).asks, ModelParams(**params), progress=False)
        self._server = (setup, started)
