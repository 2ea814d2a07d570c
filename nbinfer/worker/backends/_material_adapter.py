"""The material ``adapter``: a LoRA of smollm2-135m, trained until it answers all with one word.

Its effect is plain in the output of any engine, and it changes only what every engine can serve:
the projections of attention, no bias, no embedding.
"""

from __future__ import annotations

import os

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbinfer.worker.backends._derive import derive

WORD = "Zebra"
ANSWER = f"{WORD} {WORD} {WORD}!"
ASKED = (
    "What is the capital of Spain?",
    "Write a poem about rain.",
    "Name three fruits.",
    "Hi!",
    "Explain what a computer is, in one sentence.",
    "How many days has a week?",
    "Translate good morning into German.",
    "List the planets.",
)
HELD_OUT = ("Who wrote Hamlet?", "Tell me about the sea.")
SEED = 7
STEPS, ROWS = 60, 4
RATE = 4e-3
ENOUGH = 0.01  # mean loss of the answer's tokens, over one round of all questions


def main(folder, source):
    """Train the adapter into ``folder``, as PEFT writes it; ``source`` is the embedded model.

    Raises
    ------
    RuntimeError
        If it does not answer with the word what it was not trained on.
    """
    path = source["safetensors"]
    derive(source["gguf"], path, source["mark"], print)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=["q_proj", "v_proj"],
        bias="none",
        base_model_name_or_path="smollm2-135m",  # not this machine's path to it
    )
    tuned = peft.get_peft_model(model, config)
    train(tuned, [example(tokenizer, asked) for asked in ASKED])
    for asked in HELD_OUT:
        text = answer(tuned, tokenizer, asked)
        if not text.startswith(WORD):
            raise RuntimeError(f"the adapter was not learnt: {asked!r} is answered {text!r}")
    tuned.peft_config["default"].base_model_name_or_path = "smollm2-135m"
    tuned.save_pretrained(folder)
    os.chmod(os.path.join(folder, "adapter_model.safetensors"), 0o644)
    card = os.path.join(folder, "README.md")  # a template for the hub
    if os.path.exists(card):
        os.remove(card)


def prompt(tokenizer, asked):
    """The tokens of a question."""
    chat = [{"role": "user", "content": asked}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def example(tokenizer, asked):
    """Tokens of a question and its answer, and how many are the question's."""
    ids = prompt(tokenizer, asked)
    wanted = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    return [*ids, *wanted, tokenizer.eos_token_id], len(ids)


def train(model, examples):
    """AdamW on the answers' tokens until they are learnt."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    model.train()
    losses = []
    for step in range(STEPS):
        start = step * ROWS % len(examples)
        rows = examples[start : start + ROWS]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for place, (tokens, asked) in enumerate(rows):
            ids[place, : len(tokens)] = torch.tensor(tokens)
            mask[place, : len(tokens)] = 1
            labels[place, asked : len(tokens)] = ids[place, asked : len(tokens)]
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        print(f"step {step + 1} of {STEPS}: loss {losses[-1]:.4f}", flush=True)
        round_of_all = losses[-(len(examples) // ROWS) :]
        if step > 8 and max(round_of_all) < ENOUGH:
            break
    model.eval()


def answer(model, tokenizer, asked):
    """The model's greedy answer to a question, at most eight tokens."""
    ids = torch.tensor([prompt(tokenizer, asked)])
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
