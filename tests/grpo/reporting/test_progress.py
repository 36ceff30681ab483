import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from grpo.distributed import World
from grpo.reporting.progress import (
    Bars,
    SafeConsole,
    sparkline,
    step_line,
    success_table,
    time_line,
)
from grpo.safe_output import printable

ROOT = Path(__file__).resolve().parents[3]

RATE = {"success": 0.5, "low": 0.31, "high": 0.69, "n": 25, "turns": 2.04}
RATES = {
    "random": {"sampled": RATE},
    "untrained": {"sampled": RATE, "greedy": RATE | {"success": 0.75}},
    "blind": {"sampled": RATE, "greedy": RATE | {"success": 0.0}},
    "trained": {"sampled": RATE | {"success": 1.0}, "greedy": RATE | {"success": 0.25}},
}
SUMMARY = {
    "task": "click-test",
    "steps": 3,
    "episodes": 96,
    "seconds": {"setup": 1.4, "eval": 20.2, "rollout": 30.0, "generate": 9, "env": 7, "update": 12},
    "per_task": {"click-test": RATES},
}


def printed(renderable):
    console = Console(file=io.StringIO(), width=150)
    console.print(renderable)
    return console.file.getvalue()


def test_step_line():
    line = step_line(3, {"reward": 0.256, "entropy": 1.0, "seconds/rollout": 2.04, "other": 1})
    assert line == "step   3  reward 0.26  entropy 1.00  rollout 2.0s"
    assert step_line(12, {"update/skipped": 1.0}) == "step  12  update skipped"


def test_time_line():
    line = time_line(SUMMARY)
    warm = time_line(SUMMARY | {"seconds": SUMMARY["seconds"] | {"imitation": 7.2}})
    assert "imitation" not in line
    assert "set-up 1, imitation 7, evaluation 20" in warm
    assert "\n" not in line
    for part in (
        "3 steps",
        "96 episodes",
        "set-up 1",
        "evaluation 20",
        "rollouts 30",
        "updates 12",
    ):
        assert part in line

    one = time_line(SUMMARY | {"steps": 1, "episodes": 1})
    assert one.startswith("1 step, 1 episode. Seconds: set-up 1,")


def test_a_benchmarks_own_verdict_has_a_row_where_it_differs():
    rates = {
        name: {how: rate | {"success_own": 0.875 if name == "trained" else rate["success"]}
               for how, rate in decodings.items()}
        for name, decodings in RATES.items()
    }  # fmt: skip
    text = printed(success_table(SUMMARY | {"per_task": {"a": rates, "b": RATES}} | RATES))
    rows = [line.split("│") for line in text.splitlines() if "success_own" in line]
    (cells,) = ([cell.strip() for cell in row[1:-1]] for row in rows)
    assert cells == ["", "success_own", "0.50", "0.50", "0.50", "0.88", ""]
    rates["trained"]["sampled"]["success_own"] = 1.0
    assert "success_own" not in printed(success_table(SUMMARY | {"per_task": {"a": rates}}))


def test_success_table():
    lines = [line.split("│") for line in printed(success_table(SUMMARY)).splitlines()]
    (title,), _, header, _, sampled, greedy, *_ = lines
    assert "success on 25 held-out seeds per task" in title
    cells = [cell.strip() for cell in "".join(header).split("┃")[1:-1]]
    assert cells == ["task", "decoding", "random", "untrained", "blind", "trained", "turns"]
    rates = ["0.50 [0.31, 0.69]"] * 3 + ["1.00 [0.31, 0.69]"]
    assert [cell.strip() for cell in sampled[1:-1]] == ["click-test", "sampled", *rates, "2.0"]
    rates = ["", "0.75 [0.31, 0.69]", "0.00 [0.31, 0.69]", "0.25 [0.31, 0.69]"]
    assert [cell.strip() for cell in greedy[1:-1]] == ["", "greedy", *rates, "2.0"]


def test_success_table_of_two_tasks_has_their_total():
    tasks = {"click-test": RATES, "click-link": RATES}
    total = {name: {"sampled": RATE | {"success": 0.125}} for name in RATES}
    shown = printed(success_table(SUMMARY | total | {"per_task": tasks}))
    assert shown.index("click-test") < shown.index("click-link") < shown.index("│ all")
    assert shown.count("0.12 [0.31, 0.69]") == 4


def test_rates_of_a_resumed_run_are_in_the_order_of_training():
    """Those after training stand last, also where the file has them first."""
    names = ("trained", "random", "blind", "untrained")
    shown = printed(success_table(SUMMARY | {"per_task": {"a": {n: RATES[n] for n in names}}}))
    (header,) = [line for line in shown.splitlines() if "decoding" in line]
    cells = [cell.strip() for cell in header.split("┃")[3:-2]]
    assert cells == ["random", "blind", "untrained", "trained"]


def test_sparkline():
    steps = [{"success": rate} for rate in (0, 0.5, 1, 2)]
    assert sparkline(steps) == "▁▅██"
    assert sparkline([*steps, {"reward": 1}], width=2) == "▃█"
    assert sparkline([]) == sparkline(steps, "entropy") == ""


def test_sparkline_in_ascii():
    steps = [{"success": rate} for rate in (0, 0.5, 1)]
    assert sparkline(steps, ascii_only=True) == "_=#"


HOSTILE = "[red]a[/] :smile: \x1b[31m\x07\u202e\ud800 [/b]"


def test_what_is_printed_is_text():
    """In lines, in tables and their titles, in the names of bars: neither markup nor escapes."""
    console = SafeConsole(file=io.StringIO(), width=150)
    console.print(HOSTILE, soft_wrap=True)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    with Bars(console).status(HOSTILE):
        pass
    text = console.file.getvalue()
    assert text.count(printable(HOSTILE)) == 5
    assert printable(text) == text


def test_names_of_bars_and_the_spinner_are_text(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = SafeConsole(file=io.StringIO(), force_terminal=True, color_system=None, width=150)
    bars = Bars(console)
    with bars.status(HOSTILE):
        pass
    assert console.file.getvalue().count(printable(HOSTILE)) >= 1
    console.file = io.StringIO()
    with bars.bar(HOSTILE, 2):
        pass
    text = console.file.getvalue()
    assert printable(HOSTILE) in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text
    assert "\u202e" not in text


def test_without_a_terminal_an_announced_bar_is_a_line_now_and_then(monkeypatch):
    clock = iter([0.0, 59.0, 60.0, 60.0, 61.0, 121.0, 121.0])
    monkeypatch.setattr("grpo.reporting.progress.time.monotonic", lambda: next(clock))
    bars = Bars(SafeConsole(file=io.StringIO(), width=120))
    with bars.bar("evaluate", 8, announced=True) as on_episode:
        for _ in range(4):
            on_episode()
    first, *lines = bars.console.file.getvalue().split("\n")[:-2]
    assert first == "evaluate: 8 episodes"
    assert [line.split(", ")[0] for line in lines] == ["evaluate: 2 of 8", "evaluate: 4 of 8"]
    assert all(re.search(r", \d+:\d\d:\d\d left$", line) for line in lines)


def test_a_status_is_a_line_where_there_is_no_terminal():
    bars = Bars(SafeConsole(file=io.StringIO(), width=120))
    with bars.status("loading the model"):
        assert bars.console.file.getvalue() == "loading the model\n"


PRINTS = """
from grpo.distributed import World
from grpo.reporting.progress import Bars, sparkline, success_table

rate = {"success": 1.0, "low": 0.5, "high": 1.0, "n": 4, "turns": 1.0}
summary = {"per_task": {"tâche " * 40: {"日本": {"sampled": rate}}}}
bars = Bars.for_world(World.single())
with bars.bar("é 日本", 3) as bar, bars.status("日本"):
    bar()
    bars.console.print("é", sparkline([{"success": 1}]))
bars.console.print(success_table(summary))
print("end")
"""


@pytest.mark.parametrize("terminal", ["0", "1"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_console_that_lacks_a_character(encoding, terminal):
    done = subprocess.run(
        [sys.executable, "-c", PRINTS],
        cwd=ROOT, capture_output=True, timeout=60,
        env=os.environ
        | {"PYTHONIOENCODING": encoding, "TTY_COMPATIBLE": terminal, "TERM": "xterm"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode(encoding)
    assert text.endswith("end\n")
    assert r"\u65e5" in text


def test_only_the_main_rank_shows_its_bars():
    other = World.single()
    assert not Bars.for_world(other).console.quiet
    other.rank = 1
    assert Bars.for_world(other).console.quiet


def test_nested_bars():
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=120))
    progress = bars._progress
    with bars.bar("steps", 3) as outer:
        with bars.bar("episodes", 2) as inner:
            inner(None)
            inner("an episode")
            outer()
            assert [(t.description, t.completed, t.total) for t in progress.tasks] == [
                ("steps", 1, 3),
                ("episodes", 2, 2),
            ]
            inner.reset()
            assert progress.tasks[1].completed == 0
        assert [t.description for t in progress.tasks] == ["steps"]
        assert progress.live.is_started
    assert not progress.live.is_started


def test_an_error_ends_the_bars():
    bars = Bars(Console(file=io.StringIO()))
    with pytest.raises(KeyError), bars.bar("steps", 3):
        raise KeyError
    assert bars._progress.tasks == []
    assert not bars._progress.live.is_started
