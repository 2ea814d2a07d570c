"""LoRA adapters that join a running vLLM.

Of an adapter that does not fit vLLM copies what it can, in silence: ``_lora.py`` looks first. One
that cannot be read would end the engine core in the middle of a step: it is loaded before, by a
call that can fail alone.
"""

from __future__ import annotations

import asyncio
import os

from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from nbinfer.worker.backends import _lora
from nbinfer.worker.backends._vllm_words import worded


class Adapters:
    """Those that were asked for, each loaded once."""

    def __init__(self, llm, model_path):
        self._llm = llm
        self._model_path = model_path
        self._known = {}

    async def ready(self, wanted):
        """The ``LoRARequest`` of an adapter, loaded; ``None`` where none is wanted.

        Raises
        ------
        ValueError
            If it cannot be used with this model.
        """
        if not wanted:
            return None
        # By what is in the folder: an adapter trained anew under the same name is another one,
        # and so is its part of the prefix cache, which vLLM keeps by the name.
        weights = max(os.stat(e).st_mtime_ns for e in os.scandir(wanted["path"]))
        key = (wanted["path"], weights)
        known = self._known.get(key)
        if known is None:
            number = len(self._known) + 1
            lora = LoRARequest(f"{wanted['name']}-{number}", number, wanted["path"])
            known = self._known[key] = (lora, asyncio.Lock(), [])
        lora, lock, loaded = known
        async with lock:
            if not loaded:
                await self._load(lora, wanted)
                loaded.append(True)
        return lora

    async def _load(self, lora, wanted):
        try:
            _lora.check(wanted["path"], self._model_path)
            if not await self._llm.add_lora(lora):
                raise ValueError("vLLM refused it")
        except EngineDeadError:
            raise
        except Exception as error:
            rank, most = wanted["rank"], self._llm.vllm_config.lora_config.max_lora_rank
            hint = ""
            if rank > most:
                hint = f" (load it with -k max_lora_rank={rank}: it has {most} now)"
            raise ValueError(
                f"the adapter {wanted['name']!r} at {wanted['path']!r} cannot be used "
                f"with this model: {worded(error)}{hint}"
            ) from None
