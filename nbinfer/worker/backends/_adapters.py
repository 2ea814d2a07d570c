"""LoRA adapters on a Transformers model, by PEFT: they join it as it is, and apply row by row.

An adapter is switched on and off between forward passes, and rows are batched by adapter. PEFT
can also mix adapters in one batch (``adapter_names``), which spares a pass for each more of them,
but only for LoRA without variants such as DoRA, and on layers that support it: switching is right
for whatever PEFT can load, and costs a pass without adapters nothing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os

import torch

from nbinfer.worker.backends import _lora


class Adapters:
    """The adapters that a model has, and the one that is on.

    Parameters
    ----------
    model : PreTrainedModel
    path : str
        The folder or file that it was loaded from.
    """

    def __init__(self, model, path):
        self._model = model
        self._folder = path if os.path.isdir(path) else None
        self._known = {}
        self._numbers = itertools.count(1)
        self._layers = []
        self._on = None

    def add(self, wanted, turns):
        """The name of an adapter inside the model, which it joins if it has not yet.

        Raises
        ------
        ValueError
            If it does not fit the model.
        """
        if not wanted:
            return None
        # By what is in the folder: an adapter trained anew under the same name is another one.
        weights = max(os.stat(e).st_mtime_ns for e in os.scandir(wanted["path"]))
        key = (wanted["path"], weights)
        with turns:  # no pass meanwhile
            if key not in self._known:
                name = f"adapter{next(self._numbers)}"
                self._join(wanted, name)
                self._known[key] = name
            return self._known[key]

    def _join(self, wanted, name):
        try:
            if self._folder is not None:
                _lora.check(wanted["path"], self._folder)
            self._load(wanted["path"], name)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the adapter {wanted['name']!r} at {wanted['path']!r} cannot be used with this "
                f"model: {text}"
            ) from None

    def _load(self, path, name):
        """What ``PeftModel.load_adapter`` does, on the model as it is.

        Transformers' own ``load_adapter`` of 5.23 wants a PEFT that is not released yet.
        """
        try:
            import peft
            from peft import functional
            from peft.tuners.tuners_utils import BaseTunerLayer
            from peft.utils import AuxiliaryTrainingWrapper
        except ImportError as error:
            raise ValueError(
                f"it needs peft in the engine's environment ({error}): %engine install native "
                "--reinstall"
            ) from None
        config = peft.PeftConfig.from_pretrained(path)
        config.inference_mode = True
        weights = peft.load_peft_weights(path, device="cpu")
        self._set_adapter = functools.partial(functional.set_adapter, inference_mode=True)
        try:
            functional.inject_adapter_in_model(config, self._model, name)
            with left_packed(self._model):
                result = functional.set_peft_model_state_dict(self._model, weights, name)
            lacking = [key for key in result.missing_keys if f".{name}." in key]
            for key in [*lacking, *result.unexpected_keys]:
                raise ValueError(f"its weights do not match the model's at {key}")
        except Exception:
            self._remove(functional, config, name)
            raise
        finally:
            kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
            self._layers = [m for m in self._model.modules() if isinstance(m, kinds)]
            self._model.eval()
            self._switch(None)

    def _remove(self, functional, config, name):
        prefix = f"{config.peft_type.value.lower()}_"
        with contextlib.suppress(Exception):  # as far as it got
            functional.delete_adapter(self._model, name, prefix)
        getattr(self._model, "peft_config", {}).pop(name, None)

    def use(self, name):
        """Switch to an adapter, or to none, before a pass."""
        if name != self._on:
            self._switch(name)

    def _switch(self, name):
        for layer in self._layers:
            layer.enable_adapters(name is not None)
        if name is not None:
            self._set_adapter(self._model, name)
        self._on = name


@contextlib.contextmanager
def left_packed(model):
    """Weights in 4 bits stay as they are, although somebody asks for a state dict.

    On a CPU with AVX512-BF16 bitsandbytes packs them at the first pass. Its ``Linear4bit`` unpacks
    them for a state dict, and in 0.50 leaves their scales transposed: all answers after are noise.
    """
    plain = torch.nn.Module._save_to_state_dict
    layers = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    for layer in layers:
        layer._save_to_state_dict = functools.partial(plain, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer._save_to_state_dict
