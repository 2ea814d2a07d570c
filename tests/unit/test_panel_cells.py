"""What the panel says is the same as a cell: read by IPython and our parser, and run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbinfer
from nbinfer import GenerationParams, GuidedDecodingParams, ModelParams, RemoteParams
from nbinfer.notebook.panels import cells
from nbinfer.notebook.panels.cells import Asked, benchmark_cell, compare_cell, infer_cell
from nbinfer.selection import Selection

ECHO = Selection("echo", ModelParams("mine"))
SCHEMA = {
    "type": "object",
    "properties": {"it's": {"type": "string", "pattern": "^\"a\\d'\n\u2028é😀$"}},
    "additionalProperties": False,
    "default": None,
}


def asked(*prompts, engines=(ECHO,), **fields):
    return Asked(tuple(engines), prompts or ("a b",), **fields)


@pytest.mark.parametrize(
    ("what", "begins"),
    [
        (asked(), "%%infer -e echo -m mine\na b"),
        (asked("a", "b"), "%%infer -e echo -m mine\na\n---\nb"),
        (asked("a\n---\nb"), "%%infer -e echo -m mine --sep=----\na\n---\nb"),
        (asked('it\'s {{x}} "{y}" $z %z !z'), "%%infer -e echo -m mine\nit's {{x}}"),
        (asked("%%infer\n?x"), "%%infer -e echo -m mine\n%%infer"),
        (asked(system="-x 'y' \"z\" ?"), "%%infer -e echo -m mine '--system="),
        (
            asked(
                params=GenerationParams(max_new_tokens=7, temperature=0.1, seed=3, n=2, raw=True)
            ),
            "%%infer -e echo -m mine --max-new-tokens 7 --temperature 0.1 --seed 3 -n 2 --raw",
        ),
        (asked(params=GenerationParams(stop_strings=[" a'", '"\n'])), "%%infer -e echo"),
        (asked(params=GenerationParams(logit_bias={5: -1.5})), "%%infer -e echo"),
        (
            asked(params=GenerationParams(guided_decoding=GuidedDecodingParams(json=SCHEMA))),
            "%%infer -e echo",
        ),
        (
            asked(engines=[Selection("echo", ModelParams("a b", model_kwargs={"s": "1", "n": 1}))]),
            "%%infer -e echo -m 'a b' -k 's=",
        ),
        (
            asked(
                engines=[
                    Selection(
                        "remote-vllm",
                        ModelParams("m"),
                        remote=RemoteParams(api_url=["http://a:1", "http://b:2"], num_workers=3),
                    )
                ]
            ),
            "%%infer -e remote-vllm -m m --url http://a:1 --url http://b:2 -r num_workers=3",
        ),
        # What no cell can say is Python.
        (asked(system="two\nlines"), "import nbinfer"),
        (asked("a\r\nb"), "import nbinfer"),
        (asked("\u2028"), "import nbinfer"),
        (asked(turns=(("user", "a"), ("assistant", "b"))), "import nbinfer"),
        (asked(engines=[Selection("native", ModelParams("x", compile=True))]), "import nbinfer"),
    ],
)
def test_a_cell_says_the_same_or_is_python(clean, what, begins):
    cell = infer_cell(what)
    assert cell.startswith(begins)
    if cell.startswith("%%"):
        assert cells._reads(cell) == ("infer", *cells._meaning(what))
        assert len(cell.splitlines()[0]) == cell.index("\n")
    else:
        compile(cell, "cell", "exec")


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(min_size=1),
    system=st.none() | st.text(min_size=1),
    stop=st.none() | st.lists(st.text(min_size=1), min_size=1, max_size=2),
    model=st.text(min_size=1).filter(str.strip),
    option=st.none() | st.text() | st.integers() | st.booleans() | st.lists(st.text()),
)
def test_whatever_it_is(prompt, system, stop, model, option):
    what = asked(
        prompt,
        system=system,
        params=GenerationParams(stop_strings=stop),
        engines=[Selection("echo", ModelParams(model, model_kwargs={"tally": option}))],
    )
    cell = infer_cell(what)
    if cell.startswith("%%"):
        assert cells._reads(cell) == ("infer", *cells._meaning(what))
    else:
        found = run_python(cell)
        assert found["prompts"] == [prompt]
        assert found["params"] == what.params
        assert found["system"] == system
        assert found["engines"] == [cells._plain(s)[:2] for s in what.selections]


def run_python(cell):
    """What a cell of Python asks, without asking it."""
    found = {}

    class Engine:
        def __init__(self, name, model, remote_params=None):
            self.name, self.model = name, model

        def infer(self, prompts, params, system=None):
            found.update(
                engines=[(self.name, self.model)], prompts=prompts, params=params, system=system
            )

    names = {
        spec.path.partition(":")[2]: spec.name
        for spec in nbinfer.engines.registry.specs(hidden=True)
    }
    space = {k: getattr(nbinfer, k) for k in ("GenerationParams", "ModelParams", "RemoteParams")}
    for class_name, name in names.items():
        space[class_name] = lambda model, name=name, **more: Engine(name, model, **more)
    module = type("module", (), {k: staticmethod(v) for k, v in space.items()})
    exec(cell.removeprefix("import nbinfer"), {"nbinfer": module})
    return found


def test_a_conversation_is_python_that_runs(clean):
    turns = (("user", 'say "a"'), ("assistant", "a\nb"))
    cell = infer_cell(asked("c d", turns=turns, system="s", params=GenerationParams(seed=1)))
    *_, last = cell.splitlines()
    space = {}
    exec(cell.replace(last, f"frame = {last}"), space)
    assert space["frame"]["output"].tolist() == ["c d"]
    said = [(m["role"], m["content"]) for m in space["frame"]["messages"][0]]
    assert said == [("system", "s"), *turns, ("user", "c d")]


def test_a_schema_can_be_read(clean):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    params = GenerationParams(guided_decoding={"json": {**schema, "additionalProperties": False}})
    line, _prompt = infer_cell(asked(params=params)).splitlines()
    written = json.dumps({"json": {**schema, "additionalProperties": False}})
    assert line == f"%%infer -e echo -m mine --set 'guided_decoding={written}'"


def test_a_comparison(clean):
    other = Selection("llamacpp", ModelParams("x.gguf", model_kwargs={"n_ctx": 512}))
    what = asked("a", "b", engines=[ECHO, other], params=GenerationParams(max_new_tokens=5))
    cell = compare_cell(what)
    assert cell == (
        "%%compare -e echo,llamacpp -m echo=mine -m llamacpp=x.gguf -k llamacpp:n_ctx=512 "
        "--max-new-tokens 5\na\n---\nb"
    )
    assert cells._reads(cell) == ("compare", *cells._meaning(what))
    twice = asked("a", engines=[ECHO, Selection("echo", ModelParams("other"))])
    assert "nbinfer.compare(engines, ['a'], params)" in compare_cell(twice)


def test_a_benchmark(clean):
    line = benchmark_cell([ECHO], {"prompt_tokens": "uniform:8,16", "concurrency": "1,2"})
    assert line == (
        "%benchmark -e echo -m echo=mine --prompt-tokens uniform:8,16 --concurrency 1,2"
    )
    twice = benchmark_cell([ECHO, Selection("echo", ModelParams("other"))], {"concurrency": "1,2"})
    assert twice.endswith("], concurrency=[1, 2])")
    compile(twice, "cell", "exec")


def test_no_cell_holds_a_key(clean):
    remote = RemoteParams(api_url="http://a:1", api_key="planted-key")
    what = asked(engines=[Selection("openai", ModelParams("m"), remote=remote)])
    assert "planted" not in infer_cell(what)
    secret = Selection("native", ModelParams("m", model_kwargs={"token": "planted-key"}))
    assert "planted" not in infer_cell(asked(engines=[secret]))
    assert "planted" not in json.dumps(compare_cell(asked(engines=[secret, ECHO])))
