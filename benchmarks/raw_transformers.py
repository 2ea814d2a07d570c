"""Transformers' own ``model.generate`` in a process of its own: the baseline of ``native.py``.

Run by the Python of native's environment; reads a request a line, writes an answer a line.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        tokens, answers = 0, []
        prompts, size = request["prompts"], request["batch"]
        for at in range(0, len(prompts), size):
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                for prompt in prompts[at : at + size]
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
                if tokenizer.eos_token_id in row:
                    row = row[: row.index(tokenizer.eos_token_id) + 1]
                tokens += len(row)
                answers.append(row)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "tokens": tokens, "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
