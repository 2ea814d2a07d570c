"""A tiny Llama for proofs of tensor parallelism: four heads, two key-value heads, two layers.

Its weights are random and large enough that no two tokens are near a tie; its tokenizer is
SmolLM2's.
"""

from __future__ import annotations

import math

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from nbinfer.worker.backends._derive import derive


def main(folder, source):
    """Write the model to ``folder``, as safetensors."""
    if source.get("gguf"):
        derive(source["gguf"], source["safetensors"], source["mark"], print)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source["safetensors"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=1 / math.sqrt(weight.shape[1]))
        model.get_input_embeddings().weight.normal_()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
