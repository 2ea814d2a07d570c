"""The panel in a real kernel: what it shows while cells run, and what a second run leaves."""

from __future__ import annotations

import time

from ..kernel import Kernel


def test_an_answer_streams_while_a_cell_runs_and_an_interrupt_is_the_cells_alone():
    with Kernel() as kernel:
        kernel.run("%engine use echo -k token_s=0.05").ok()
        kernel.run("panel = %panel").ok()
        names = ("text", "go", "answer", "stop")
        text, go, answer, stop = kernel.value(
            f"[getattr(panel.prompt, name).model_id for name in {names}]"
        )
        kernel.tell(text, method="update", state={"value": "word " * 60}, buffer_paths=[])
        kernel.click(go)
        cell = kernel.send("import time; time.sleep(30)")
        kernel.began(cell)

        def wait(true, seconds=10.0):
            deadline = time.monotonic() + seconds
            while not true() and time.monotonic() < deadline:
                kernel.pump(0.05)
            assert true(), kernel.widgets

        wait(lambda: "word word" in kernel.widgets[answer]["value"])
        kernel.interrupt()
        assert kernel.wait(cell).ename == "KeyboardInterrupt"
        assert kernel.value("panel.wait(20)")
        (row,) = kernel.rows("panel.df")
        assert (row["finish_reason"], row["output_tokens"]) == ("stop", 60)
        assert kernel.widgets[stop]["disabled"]
        assert not kernel.widgets[go]["disabled"]
        kernel.tell(text, method="update", state={"value": "more " * 400}, buffer_paths=[])
        kernel.click(go)
        wait(lambda: "more more" in kernel.widgets[answer]["value"])
        kernel.click(stop)
        assert kernel.value("panel.wait(20)")
        assert [row["finish_reason"] for row in kernel.rows("panel.df")] == ["stop", "cancelled"]


def test_running_its_cell_again_closes_the_one_before():
    with Kernel() as kernel:
        kernel.wait(kernel.send("first = %panel\nfirst", cell="a")).ok()
        before = len(kernel.widgets)
        kernel.wait(kernel.send("second = %panel\nsecond", cell="a")).ok()
        assert kernel.value("[first.comm is None, second.comm is None]") == [True, False]
        assert len(kernel.widgets) == before
        kernel.run("second.close()").ok()
        assert kernel.widgets == {}
        threads = kernel.value("[t.name for t in __import__('threading').enumerate()]")
        assert not [name for name in threads if name.startswith("nbinfer-panel")]
