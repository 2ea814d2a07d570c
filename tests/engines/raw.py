"""The raw libraries' greedy answers: run by an engine's own Python, nothing of nbinfer in it.

    python raw.py LIBRARY MODEL < {"prompts": [...], "tokens": 16}

writes one answer a line, as JSON: its text and its tokens, the end token counted.
"""

from __future__ import annotations

import json
import os
import sys


def native(folder, prompts, tokens):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt in prompts:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        made = out[0, inputs["input_ids"].shape[1] :]
        yield tokenizer.decode(made, skip_special_tokens=True), len(made)


def llama_cpp_python(path, prompts, tokens):
    from llama_cpp import Llama

    llama = Llama(path, n_ctx=2048, n_batch=256, verbose=False)
    for prompt in prompts:
        answer = llama.create_chat_completion(
            [{"role": "user", "content": prompt}], max_tokens=tokens, temperature=0.0
        )
        choice = answer["choices"][0]
        ended = choice["finish_reason"] == "stop"
        yield choice["message"]["content"], answer["usage"]["completion_tokens"] + ended


def xllamacpp(path, prompts, tokens):
    import tempfile

    import xllamacpp as library

    params = library.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx, params.n_batch = 1, 2048, 256
    params.n_ubatch, params.warmup, params.fit_params = 256, False, False
    params.hostnames = [tempfile.mkdtemp() + "/s.sock"]
    server = library.Server(params)
    for prompt in prompts:
        answer = server.handle_chat_completions(
            {
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "temperature": 0.0,
                "top_k": 0,
                "min_p": 0.0,
            }
        )
        count = answer["usage"]["completion_tokens"]
        yield answer["choices"][0]["message"]["content"], count


def vllm(folder, prompts, tokens):
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=2048,
        enforce_eager=True,
        kv_cache_memory_bytes=400_000_000,
    )
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    params = SamplingParams(temperature=0.0, max_tokens=tokens)
    for output in llm.chat(chats, params, use_tqdm=False):
        (made,) = output.outputs
        yield made.text, len(made.token_ids)


def vision(folder, prompts, tokens):
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    for path, text in prompts:
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        inputs = processor(images=[Image.open(path)], text=prompt, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        made = out[0, inputs["input_ids"].shape[1] :]
        yield processor.decode(made, skip_special_tokens=True), len(made)


if __name__ == "__main__":
    # A library's own words are no answers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.read())
    for text, count in globals()[sys.argv[1]](sys.argv[2], asked["prompts"], asked["tokens"]):
        print(json.dumps([text, count]), file=out, flush=True)
