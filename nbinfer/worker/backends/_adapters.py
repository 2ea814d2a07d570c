"""LoRA adapters on a Transformers model, by PEFT: they join it as it is, and apply row by row.

An adapter is switched on and off between forward passes, and rows are batched by adapter. PEFT
can also mix adapters in one batch (``adapter_names``), which spares a pass for each more of them,
but only for LoRA without variants such as DoRA, and on layers that support it: switching is right
for whatever PEFT can load, and costs a pass without adapters nothing.
"""

from __future__ import annotations

import os

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
                name = f"{len(self._known) + 1}"
                self._join(wanted, name)
                self._known[key] = name
            return self._known[key]

    def _join(self, wanted, name):
        try:
            if self._folder is not None:
                _lora.check(wanted["path"], self._folder)
            report = self._load(wanted["path"], name)
            if report.mismatched_keys or report.unexpected_keys or report.missing_keys:
                odd = [*report.mismatched_keys, *report.unexpected_keys, *report.missing_keys]
                raise ValueError(f"its weights do not match the model's at {odd[0]}")
        except Exception as error:
            if name in getattr(self._model, "peft_config", {}):
                self._model.delete_adapter(name)
            self._off()
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the adapter {wanted['name']!r} at {wanted['path']!r} cannot be used with this "
                f"model: {text}"
            ) from None
        self._off()

    def _load(self, path, name):
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"it needs peft in the engine's environment ({error}): %engine install native "
                "--reinstall"
            ) from None
        return self._model.load_adapter(path, adapter_name=name)

    def _off(self):
        self._on = None
        if getattr(self._model, "peft_config", None):
            self._model.disable_adapters()

    def use(self, name):
        """Switch to an adapter, or to none, before a pass."""
        if name == self._on:
            return
        if name is None:
            self._model.disable_adapters()
        else:
            if self._on is None:
                self._model.enable_adapters()
            self._model.set_adapter(name)
        self._on = name
