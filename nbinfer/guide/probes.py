"""One probe for each feature: it uses the feature on a real engine and says what it saw.

A probe proves by an effect that would not be there otherwise: runs at once that beat one
after another, a prompt's tokens that were not computed, an answer that an adapter changes. What
is promised alone (a field that is accepted) proves nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..config import GenerationParams, GuidedDecodingParams
from ..messages import Conversation, ImagePart, Message, Role, TextPart
from ..torch_build import gpu_vendor
from . import materials, pictures
from .showing import TOKENS, Unproven, need, row, rows

if TYPE_CHECKING:
    from .bench import Bench

__all__ = ["PROBES", "Probe"]

PROMPTS = (
    "Write a haiku about the sea.",
    "Name three colours.",
    "Count from one to five.",
    "Describe rain in a sentence.",
)
REPEATED = "Repeat this: one two three four one two three four one two three four"
# Engines compute it in blocks of tokens, so a shared text must fill several.
LONG = "The rules of the house are listed here, one after another, and all of them count. " * 16


@dataclass(frozen=True)
class Probe:
    """``run`` returns what was seen; ``setup`` is how the engine must be loaded for it.

    ``plain`` is a prompt whose answer without that setup is asked for while the engine is loaded
    as it is: it need not be loaded once more to compare.
    """

    run: Callable[[Bench], str]
    setup: str = ""
    plain: str = ""


def continuous_batching(bench: Bench) -> str:
    """Runs at once share the model's passes: together they beat one after another.

    The best of three tries: others may use the machine meanwhile.
    """
    engine = bench.engine().load()

    def run(prompt: str) -> None:
        rows(engine, [prompt], max_new_tokens=32)

    def seconds(work: Callable[[], None]) -> float:
        began = time.monotonic()
        work()
        return time.monotonic() - began

    def one_by_one() -> None:
        for prompt in PROMPTS:
            run(prompt)

    def together() -> None:
        with ThreadPoolExecutor(len(PROMPTS)) as threads:
            list(threads.map(run, PROMPTS))

    one_by_one()  # both ways find the same in the prefix cache
    said = ""
    for _ in range(3):
        at_once, alone = seconds(together), seconds(one_by_one)
        said = f"four runs at once took {at_once:.2f} s, one after the other {alone:.2f} s"
        if at_once < 0.9 * alone:
            return said
    raise Unproven(said)


def prefix_caching(bench: Bench) -> str:
    """A prompt's beginning that was computed before is not computed again."""
    engine = bench.engine().load()
    row(engine, "Hi", max_new_tokens=1)
    shared = f"Note {secrets.token_hex(4)}. {LONG}"
    cold = row(engine, shared + "What is rule one?", max_new_tokens=2)
    warm = row(engine, shared + "What is rule two?", max_new_tokens=2)
    need(
        warm["cached_tokens"] > 100,
        f"{warm['cached_tokens']} of {warm['prompt_tokens']} prompt tokens were cached",
    )
    return (
        f"{warm['cached_tokens']} of {warm['prompt_tokens']} prompt tokens cached; TTFT "
        f"{cold['ttft_s']:.2f} s, then {warm['ttft_s']:.2f} s"
    )


def multi_turn(bench: Bench) -> str:
    """The second turn of a conversation finds the first in the cache."""
    engine = bench.engine().load()
    turns = [Message(Role.SYSTEM, f"{secrets.token_hex(4)} {LONG}"), Message(Role.USER, "Hello!")]
    first = row(engine, Conversation(turns), max_new_tokens=8)
    turns += [Message(Role.ASSISTANT, first["output"]), Message(Role.USER, "And now?")]
    second = row(engine, Conversation(turns), max_new_tokens=8)
    need(
        second["cached_tokens"] >= first["prompt_tokens"] // 2,
        f"{second['cached_tokens']} of the first turn's {first['prompt_tokens']} tokens cached",
    )
    return f"{second['cached_tokens']} of the first turn's {first['prompt_tokens']} tokens cached"


def streaming(bench: Bench) -> str:
    """Text comes while the answer is being made."""
    engine = bench.engine().load()
    stream = engine.stream(PROMPTS[0], GenerationParams(max_new_tokens=24))
    stamps = [time.monotonic() for _ in stream]
    need(len(stamps) > 3, f"the answer came in {len(stamps)} pieces")
    need(stamps[-1] > stamps[0], "all pieces came at once")
    return f"{len(stamps)} pieces over {stamps[-1] - stamps[0]:.2f} s"


def adapters(bench: Bench) -> str:
    """An adapter changes the answer where it is asked for, and nowhere else."""
    folder = materials.get("adapter", bench.say)
    plain = bench.plain(PROMPTS[1])
    engine = bench.engine("adapters", adapters={"trained": str(folder)})
    adapted = row(engine, PROMPTS[1], max_new_tokens=TOKENS, adapter="trained")["output"]
    again = row(engine, PROMPTS[1], max_new_tokens=TOKENS)["output"]
    need(adapted != plain, f"the adapter changed nothing: {plain!r:.60}")
    need(again == plain, f"without it the answer was {again!r:.60} and not {plain!r:.60}")
    return f"{plain!r:.40} became {adapted!r:.40}, and again the first without it"


def vision(bench: Bench) -> str:
    """What an image shows changes the answer, and the same image gives the same one."""
    engine = bench.engine("vision")

    def seen(image: bytes) -> Any:
        asked = Message(Role.USER, [ImagePart(image), TextPart("What color is it?")])
        return row(engine, [Conversation([asked])], max_new_tokens=16)

    red, blue = seen(pictures.png("red")), seen(pictures.png("blue"))
    need(red["output"] != blue["output"], f"two images gave the same {blue['output']!r:.60}")
    need(seen(pictures.png("red"))["output"] == red["output"], "the same image gave two answers")
    return f"red: {red['output']!r:.40}, blue: {blue['output']!r:.40}"


def structured_output(bench: Bench) -> str:
    """An answer that has the form of a JSON Schema, parsed; and one out of given choices."""
    engine = bench.engine()
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    guided = GuidedDecodingParams(json=schema)
    parsed = row(engine, "Invent a person.", max_new_tokens=80, guided_decoding=guided)["parsed"]
    need(
        isinstance(parsed, dict) and set(parsed) == {"name", "age"},
        f"the answer was {parsed!r:.80}",
    )
    seen = [f"JSON {parsed!r:.60}"]
    tried: Mapping[str, tuple[Any, Callable[[str], bool]]] = {
        "choice": (["heron", "otter"], lambda text: text in ("heron", "otter")),
        "regex": (r"[0-9]{4}", lambda text: len(text) == 4 and text.isdigit()),
    }
    for kind, (value, fits) in tried.items():
        if kind in engine.capabilities.guided_decoding:
            form = GuidedDecodingParams(**{kind: value})
            output = row(engine, PROMPTS[0], max_new_tokens=16, guided_decoding=form)["output"]
            need(fits(output), f"{kind} gave {output!r:.60}")
            seen.append(f"{kind} {output!r}")
    return ", ".join(seen)


def set_alarm(hour: Literal[6, 7, 8], label: Literal["morning", "evening"]) -> None:
    """Set the alarm clock."""


def tools(bench: Bench) -> str:
    """A tool is called with arguments that fit it, and the conversation goes on with its result."""
    engine = bench.engine()
    told = {"tools": [set_alarm], "max_new_tokens": 60}
    asked = Message(Role.USER, "Wake me at 7 in the morning.")
    calls = row(engine, [Conversation([asked])], tool_choice="set_alarm", **told)["tool_calls"]
    need(len(calls or ()) == 1, f"the calls were {calls!r:.80}")
    name, arguments = calls[0]["name"], calls[0]["arguments"]
    need(
        name == "set_alarm"
        and arguments["hour"] in (6, 7, 8)
        and arguments["label"] in ("morning", "evening"),
        f"the call was {calls[0]!r:.80}",
    )
    said = [asked, Message(Role.ASSISTANT, tool_calls=calls), Message(Role.TOOL, "done")]
    answer = row(engine, [Conversation(said)], max_new_tokens=8)
    need(answer["output_tokens"] > 0, "after the tool's result there was no answer")
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"


def reasoning(bench: Bench) -> str:
    """What is thought in a block is apart from the answer, and is what was in it."""
    engine = bench.engine()
    prompt = "Question: 2 + 2?\n<think>"
    apart = row(engine, prompt, raw=True, max_new_tokens=12)
    whole = row(engine, prompt, raw=True, max_new_tokens=12, separate_reasoning=False)["output"]
    thought = apart.get("reasoning")
    need(thought, f"nothing is apart of {whole!r:.60}")
    need(whole.lstrip().startswith(thought), f"{thought!r:.40} is not of {whole!r:.40}")
    return f"{thought!r:.40} in a block that the prompt opens"


def logprobs(bench: Bench) -> str:
    """Each token's log-probability, with the likeliest others."""
    tokens = row(bench.engine(), PROMPTS[1], max_new_tokens=4, logprobs=3)["logprobs"]
    need(len(tokens) == 4, f"{len(tokens)} of 4 tokens have one")
    for token in tokens:
        need(token["logprob"] <= 0 and len(token["top"]) == 3, f"one of them is {token!r:.80}")
    return f"{tokens[0]['token']!r} {tokens[0]['logprob']:.3f}"


def samples(bench: Bench) -> str:
    """Several different answers to one prompt."""
    found = rows(bench.engine(), PROMPTS[0], max_new_tokens=16, n=3, temperature=1.5)["output"]
    need(len(found) == 3 and found.nunique() > 1, f"all samples were {found.iloc[0]!r:.60}")
    return f"{found.nunique()} different ones of 3"


def seeds(bench: Bench) -> str:
    """A seed gives the same answer again, and another one another."""
    engine = bench.engine()
    made = [
        row(engine, PROMPTS[0], max_new_tokens=16, temperature=1.5, seed=seed)["output"]
        for seed in (7, 7, 8)
    ]
    need(made[0] == made[1], f"the same seed gave {made[0]!r:.40} and {made[1]!r:.40}")
    need(made[0] != made[2], f"two seeds gave the same {made[0]!r:.40}")
    return "the same seed twice gave one answer, another seed another"


def stop_strings(bench: Bench) -> str:
    """The answer ends before a stop string."""
    engine = bench.engine()
    full = row(engine, PROMPTS[2], max_new_tokens=32)["output"]
    stop = full.split()[3]
    cut = row(engine, PROMPTS[2], max_new_tokens=32, stop_strings=[stop])
    need(
        stop not in cut["output"] and full.startswith(cut["output"].rstrip()),
        f"{cut['output']!r:.60}",
    )
    need(cut["finish_reason"] == "stop", f"it finished by {cut['finish_reason']}")
    return f"{full!r:.40} ended before {stop!r}"


def cpu(bench: Bench) -> str:
    """An answer, with no GPU to help."""
    engine = bench.engine()
    if gpu_vendor():
        raise Unproven("this machine has a GPU, which may have helped: probe on one without")
    answer = row(engine, PROMPTS[1], max_new_tokens=8)
    return (
        f"{answer['output_tokens']} tokens in {answer['latency_s']:.2f} s on a machine without GPU"
    )


def tensor_parallel(bench: Bench) -> str:
    """One model on two ranks."""
    answer = row(bench.engine("tensor_parallel"), PROMPTS[1], max_new_tokens=8)
    need(answer["output_tokens"] > 0, "two ranks answered nothing")
    return f"two ranks answered with {answer['output_tokens']} tokens"


def speculative(bench: Bench) -> str:
    """Drafted tokens change nothing of a greedy answer."""
    plain = bench.plain(REPEATED)
    drafted = row(bench.engine("speculative"), REPEATED, max_new_tokens=TOKENS)["output"]
    need(drafted == plain, f"{plain!r:.40} became {drafted!r:.40}")
    return "a greedy answer is the same with drafted tokens"


def _quantized(bits: str) -> Callable[[Bench], str]:
    def run(bench: Bench) -> str:
        frame = rows(bench.engine(bits), PROMPTS[1], max_new_tokens=8)
        facts = frame.attrs["nbinfer"].get("model_facts") or {}
        precision = str(facts.get("precision") or bench.checkpoint_precision)
        need(bits[0] in precision, f"the weights are {precision}")
        return f"{precision}: {frame['output'].iloc[0]!r:.40}"

    return run


def gguf(bench: Bench) -> str:
    """A GGUF file, loaded and answering."""
    frame = rows(bench.engine("gguf"), PROMPTS[1], max_new_tokens=8)
    facts = frame.attrs["nbinfer"].get("model_facts") or {}
    need(facts.get("format") == "gguf", f"what was loaded is {facts.get('format')}")
    return f"{facts.get('path', '').rpartition('/')[2]}: {frame['output'].iloc[0]!r:.40}"


def beam_search(bench: Bench) -> str:
    """A search over four beams finds an answer at least as likely as the greedy one."""
    answer = row(bench.engine(), PROMPTS[1], max_new_tokens=8, num_beams=4)
    need(answer["output_tokens"] > 0, "four beams answered nothing")
    return f"four beams: {answer['output']!r:.40}"


PROBES: Mapping[str, Probe] = {
    "continuous_batching": Probe(continuous_batching),
    "prefix_caching": Probe(prefix_caching),
    "multi_turn": Probe(multi_turn),
    "streaming": Probe(streaming),
    "structured_output": Probe(structured_output),
    "tools": Probe(tools),
    "reasoning": Probe(reasoning),
    "logprobs": Probe(logprobs),
    "samples": Probe(samples),
    "seeds": Probe(seeds),
    "stop_strings": Probe(stop_strings),
    "cpu": Probe(cpu),
    "beam_search": Probe(beam_search),
    "adapters": Probe(adapters, "adapters", PROMPTS[1]),
    "vision": Probe(vision, "vision"),
    "gguf": Probe(gguf, "gguf"),
    "quantization_4bit": Probe(_quantized("4bit"), "4bit"),
    "quantization_8bit": Probe(_quantized("8bit"), "8bit"),
    "speculative": Probe(speculative, "speculative", REPEATED),
    "tensor_parallel": Probe(tensor_parallel, "tensor_parallel"),
}
