"""A safetensors folder out of a GGUF file, once: for engines that read no GGUF."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MARK = "nbinfer.json"


def derive(gguf, folder, mark, stage):
    """Dequantize ``gguf`` to float32 into ``folder``, whole or not at all.

    ``mark`` is what ``nbinfer.json`` in the folder will say of it; a folder whose file says the
    same is kept.
    """
    if _mark(folder) == mark:
        return
    stage(f"converting {os.path.basename(gguf)} to safetensors, once")
    parent, name = os.path.split(gguf)
    _remove_leftovers(folder)
    loaded = AutoModelForCausalLM.from_pretrained(parent, gguf_file=name, dtype=torch.float32)
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    # ``save_pretrained`` refuses a model that was loaded from GGUF, though nothing of it is
    # quantized any more: its weights go into one that was not.
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    part = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}-", dir=os.path.dirname(folder))
    try:
        plain.save_pretrained(part)
        AutoTokenizer.from_pretrained(parent, gguf_file=name).save_pretrained(part)
        with open(os.path.join(part, MARK), "w", encoding="utf-8") as stream:
            json.dump(mark, stream)
        os.chmod(part, 0o755)
        if _mark(folder) != mark:  # another kernel may have been as fast
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_leftovers(folder, older_than_s=3600):
    """What a conversion that was killed left behind."""
    pattern = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}-*")
    for left in glob.glob(pattern):
        if time.time() - os.path.getmtime(left) > older_than_s:
            shutil.rmtree(left, ignore_errors=True)


def _mark(folder):
    try:
        with open(os.path.join(folder, MARK), encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None
