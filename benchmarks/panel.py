"""What the panel costs, in a real JupyterLab and a headless Chromium.

    pip install -e ".[test,browser]" && python tests/browser/chromium.py
    python benchmarks/panel.py [--repeats 5] [--tokens 256]

Throughput is also taken in a kernel that no front end shows, which is what the panel itself costs:
a browser on the engine's own cores takes what its drawing takes.

First paint: from the kernel's result of the cell ``%panel``, as it reaches the page, to the frame
that shows the panel. Updates: of the answer of the echo engine, which makes a token each
millisecond, as they reach the page. Throughput: a streamed answer of llama.cpp through the panel,
from the click to its row, over the same through ``engine.infer``, in turn. Medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import median, table
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.browser import chromium, servers
from tests.browser.book import PANEL, Book, Wires, new_page
from tests.kernel import Kernel

CELLS = (
    "%load_ext nbinfer\n"
    "import json, time\nimport nbinfer\nfrom nbinfer import GenerationParams\n"
    "%engine load echo -k token_s=0.001\n%engine load llamacpp -k n_ctx=1024",
    "panel = %panel\npanel",
    "",
)
PLACE = 1
# Runs the panel's cell again; the panel before it is closed.
PAINT = """async ([place, panel]) => {
    const app = window.jupyterapp, page = app.shell.currentWidget;
    const kernel = page.sessionContext.session.kernel;
    let answered;
    const told = (_, message) => {
        if (message.header.msg_type === 'execute_result') answered = performance.now();
    };
    kernel.iopubMessage.connect(told);
    const former = document.querySelector(panel);
    page.content.activeCellIndex = place;
    app.commands.execute('notebook:run-cell');
    const painted = await new Promise(done => {
        const look = () => {
            const shown = document.querySelector(panel);
            // One frame more, so that the one with the panel is done.
            if (shown && shown !== former && shown.offsetHeight > 100)
                requestAnimationFrame(() => done(performance.now()));
            else requestAnimationFrame(look);
        };
        look();
    });
    kernel.iopubMessage.disconnect(told);
    return painted - answered;
}"""
COUNT = """id => {
    window.updates = [];
    window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.iopubMessage.connect(
        (_, message) => {
            const {msg_type} = message.header, {comm_id, data} = message.content;
            if (msg_type === 'comm_msg' && comm_id === id && data.state?.value)
                window.updates.push(performance.now());
        });
}"""
STREAM = """
panel.prompt.new.click()
panel.prompt.turns = ()
panel.prompt.form["max_new_tokens"].widget.value = "2000"
panel.prompt.text.value = "word " * 2000
panel.prompt.go.click()
assert panel.wait(120)
"""
USE = "%engine use llamacpp -k n_ctx=1024"
THROUGHPUT = """
params = GenerationParams(max_new_tokens={tokens}, ignore_eos=True)
engine = nbinfer.selection.current().make()
panel.prompt.form["max_new_tokens"].widget.value = "{tokens}"
panel.prompt.form[""].widget.value = "ignore_eos=true"
took = []
for _ in range({repeats} + 1):
    begun = time.perf_counter()
    frame = engine.infer("Write a story about a fox.", params, progress=False)
    alone = time.perf_counter() - begun
    panel.prompt.new.click()
    panel.prompt.text.value = "Write a story about a fox."
    begun = time.perf_counter()
    panel.prompt.go.click()
    assert panel.wait(300)
    seen = time.perf_counter() - begun
    assert panel.df["output_tokens"].iloc[-1] == frame["output_tokens"].item() == {tokens}
    took.append((alone, seen))
print(json.dumps(took[1:]))
"""


def compared(output: str, tokens: int) -> tuple[float, float, float]:
    """Tokens a second alone and through the panel, and the time that the panel adds, of one."""
    took = json.loads(output)
    alone, through = (median([tokens / pair[place] for pair in took]) for place in (0, 1))
    return alone, through, median([seen / without - 1 for without, seen in took])


def measure(book: Book, repeats: int, tokens: int) -> list[tuple[str, str, str]]:
    """The table's rows."""
    page = book.page
    book.run("%engine use echo -k token_s=0.001")
    paints = [page.evaluate(PAINT, [PLACE, PANEL]) for _ in range(repeats + 1)][1:]
    book.panel().tab("Prompt")
    page.evaluate(COUNT, book.value("panel.prompt.answer.model_id"))
    speeds = []
    for _ in range(repeats):
        page.evaluate("window.updates.length = 0")
        book.run(STREAM)
        seen: list[float] = page.evaluate("window.updates")
        speeds.append((len(seen) - 1) / (seen[-1] - seen[0]) * 1e3)
    book.run(USE)
    output: Any = book.run(THROUGHPUT.format(tokens=tokens, repeats=repeats)).inner_text()
    alone, through, cost = compared(output, tokens)
    with Kernel() as kernel:
        for cell in (*CELLS[:2], USE):
            kernel.run(cell).ok()
        unseen = kernel.run(THROUGHPUT.format(tokens=tokens, repeats=repeats), 600).ok().stdout
    return [
        ("first paint after the kernel's result, ms", f"{median(paints):.0f}", "< 300"),
        (
            "updates a second, of 1,000 tokens a second",
            f"{median(speeds):.1f}",
            "≤ 20",
        ),
        ("llama.cpp through engine.infer, tok/s", f"{alone:.1f}", ""),
        ("llama.cpp through the panel, tok/s", f"{through:.1f}", ""),
        ("time that panel and browser add, pair by pair", f"{100 * cost:.1f} %", ""),
        ("time that the panel itself adds", f"{100 * compared(unseen, tokens)[2]:.1f} %", "< 5 %"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    path = chromium.find()
    if path is None:
        raise SystemExit(chromium.WANTED)
    with (
        tempfile.TemporaryDirectory() as place,
        servers.lab(Path(place)) as address,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = new_page(browser)
        book = Book(page, Wires(page), f"{address}/doc/tree/panel.ipynb")
        book.write(Path(place) / "panel.ipynb", *CELLS)
        book.open()
        for number in range(len(CELLS)):
            book.run(place=number)
        rows = measure(book, options.repeats, options.tokens)
        browser.close()
    print(table(rows, ("panel", "median", "goal")))


if __name__ == "__main__":
    main()
