"""The raw libraries in processes of their own: the baselines of ``native.py``, ``bindings.py`` and
``local_vllm.py``.

Run by an engine's own Python; reads a request a line, writes an answer a line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]


def transformers(folder: str, threads: int) -> Callable[[Answer], int]:
    """``model.generate`` on left-padded batches, in the order given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def answer(request: Answer) -> int:
        tokens = 0
        prompts, size = request["prompts"], request["batch"]
        for at in range(0, len(prompts), size):
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
                )
                for p in prompts[at : at + size]
            ]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                out = model.generate(
                    **inputs,
                    max_new_tokens=request["max_tokens"],
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            for row in out[:, inputs["input_ids"].shape[1] :].tolist():
                end = (
                    row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else None
                )
                tokens += len(row[:end])
        return tokens

    return answer


def llama_cpp(path: str, threads: int) -> Callable[[Answer], int]:
    """``Llama.create_chat_completion`` in a loop, streamed as nbinfer's rows are."""
    from llama_cpp import Llama

    llama = Llama(
        path, n_ctx=2048, n_batch=256, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def answer(request: Answer) -> int:
        tokens = 0
        for prompt in request["prompts"]:
            chunks = llama.create_chat_completion(
                [{"role": "user", "content": prompt}],
                max_tokens=request["max_tokens"],
                temperature=0.0,
                top_k=0,
                top_p=1.0,
                min_p=0.0,
                stream=True,
            )
            tokens += sum(bool(c["choices"][0]["delta"].get("content")) for c in chunks)
        return tokens

    return answer


def vllm(folder: str, threads: int) -> Callable[[Answer], int]:
    """``LLM.chat`` on the whole list, with nbinfer's load options."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(
        map(str, sorted(os.sched_getaffinity(0))[:threads])
    )
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=2048,
        enforce_eager=True,
        kv_cache_memory_bytes=16_384 * 46_080,
        max_num_seqs=64,
        max_num_batched_tokens=512,
    )

    def answer(request: Answer) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=request["max_tokens"])
        chats = [[{"role": "user", "content": p}] for p in request["prompts"]]
        outputs = llm.chat(chats, params, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs)

    return answer


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's own words are no answers
    answer = globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        tokens = answer(json.loads(line))
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=out, flush=True)


if __name__ == "__main__":
    main()
