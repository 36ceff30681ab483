"""Tokens of every task's first page, as BrowserGym writes it and as the model reads it.

The table also says whether the page's text is enough to do the task: `solved` by the scripted
solver of `envs.browser.miniwob.solvers`, or a verdict of `UNSOLVED`.

    python -m benchmarks.pages --write docs/pages.md     # two minutes
    python -m benchmarks.pages --seeds 1 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.base import Observation, Task
from envs.browser.env import BrowserEnv
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.miniwob.success import PARTIAL
from envs.browser.miniwob.tasks import tasks
from envs.browser.protocol import Response
from envs.browser.server.local import LocalServer
from grpo.model.bundled import HUB_ID, bundled_model_path
from grpo.model.chat import ChatTemplate

VERDICTS = {
    "solved": "a scripted solver does the whole of it by element ids and points of drawings",
    "attemptable": "the page has the text and ids it takes, but no solver has been written",
    "in part": "the page is enough for some of its goals; the others are guesses",
    "no name": "the element to click or count has an id but no name, so the page drops it",
    "pixels": "the answer is a position or a picture that the text does not describe",
    "drag by pixels": "a way has to be drawn that is not a straight line",
    "unrewardable": "BrowserGym gives no reward for a correct solution",
}

Verdict = tuple[str, str, str]
"""One of `VERDICTS`, the reason, the tasks."""

UNSOLVED: tuple[Verdict, ...] = (
    ("attemptable", "if a click follows the price within 0.1 s", "stock-market"),
    ("in part", "MiniWoB ignores the item that is selected at first", "click-pie-nodelay"),
    ("in part", "drags between sides show 1, 4, 5, 6; unclear for 2 and 3", "drag-cube"),
    ("in part", "its corner is dragged onto elements, which may be too near", "resize-textarea"),
    ("no name", "the colours, and words to select; marks also break the toolbar", "text-editor"),
    ("no name", "blocks to count", "visual-addition"),
    ("pixels", "where the events are in a calendar", "daily-calendar"),
    ("pixels", "a position", "hot-cold"),
    ("pixels", "a shape on a canvas", "count-sides"),
    ("pixels", "the pattern is a picture", "number-checkboxes"),
    ("drag by pixels", "a circle", "draw-circle"),
    ("unrewardable", "clicking a result changes the address", "search-engine"),
)

REACHED = ("solved", "attemptable", "in part")

HEADER = """# Page sizes, and which tasks can be done

Written by `benchmarks/pages.py`. Counts are tokens of {model} for the page after the
reset, medians over {seeds} seeds. *Tree* is BrowserGym's accessibility tree as text, with generic
nodes, which alone carry some ids, and without the folder of MiniWoB's files. *Page* is the text
that the model reads, made by `envs.browser.page_text` and `envs.browser.drawings`, with renumbered
ids and with the names that the server guesses for elements without one. *Prompt* is the page with
the goal, the instructions and the worked examples, in the chat template. The last two rows
summarize all tasks.

Of BrowserGym's {all} MiniWoB tasks, {reached}; {missed}.

A verdict without a solver was reached by reading the task's page, its goal and MiniWoB's HTML.
Tasks called attemptable were also solved by hand-written actions on at least six seeds. The
unrewardable task gives no reward in BrowserGym itself either. Four solved tasks pay by distance,
and a click is on a whole pixel: circle-center and find-midpoint pay 0.97 to 1 at best, bisect-angle
and right-angle paid 0.98 to 1. In tic-tac-toe the opponent's moves are partly random: the solver
won 11 of 13 seeds.

| verdict | tasks | meaning |
|---|---|---|
"""

SUCCESS = """
## Success

A success is the whole task. BrowserGym calls any raw reward of MiniWoB above 0 a success, and
{count} of the tasks pay that for a part: for one box of three ticked wrong, or for another card
than the greatest. Here a success takes the full reward, 1, or what the table says where that is
out of reach. BrowserGym's verdict is reported beside it: `success_browsergym` in the server's
metadata, in `StepResult.info` and in the evaluations' files, next to `success`.

The reward that is trained on is 1 for a success, else 0. With `--reward partial` it is MiniWoB's
own, which pays for a part; where that is negative (-1 for most wrong answers) it is 0, because an
agent that loses by a wrong answer, and not by none, learns not to answer. A success stays the whole
task. Both concern MiniWoB's tasks: a task of your own decides its reward and its success itself.

| task | raw reward for a part | success from | because |
|---|---|---:|---|
"""

Row = dict[str, Any]
"""`task`; `tree`, `page` and `prompt` in tokens; `ids`, a verdict and its reason."""


class Reader(Protocol):
    """An environment that keeps the accessibility tree of its newest page."""

    tree: str

    async def reset(self, task: Task) -> Observation:
        """Start an episode."""
        ...


class PageReader(BrowserEnv):
    """A `BrowserEnv` that also keeps the accessibility tree of its newest page."""

    tree = ""

    def _observe(self, task: Task, response: Response, goal: str) -> Observation:
        self.tree = response.axtree_txt
        return super()._observe(task, response, goal)


def verdicts() -> dict[str, str]:
    """Return the verdict and reason of each task without a solver, as in `pixels: colours`."""
    return {name: f"{kind}: {reason}" for kind, reason, names in UNSOLVED for name in names.split()}


async def measure(env: Reader, names: Iterable[str], seeds: int, chat: ChatTemplate) -> list[Row]:
    """Count the tokens of each task's first pages.

    Args:
        env: the environment to reset.
        names: names of the tasks.
        seeds: number of seeds per task: 0, 1, ...
        chat: the model's chat template.

    Returns:
        One row per task.
    """

    def count(text: str) -> int:
        return len(chat.tokenizer(text, add_special_tokens=False)["input_ids"])

    ids, rows = verdicts(), []
    for name in names:
        counts = []
        for seed in range(seeds):
            observation = await env.reset(Task(name, seed))
            # The address of a file contains the path of this checkout.
            tree = re.sub(r"url='file:[^']*/", "url='", env.tree)
            prompt = chat.prompt(observation.messages)
            counts.append((count(tree), count(observation.page), len(prompt)))
        tokens = map(median, zip(*counts, strict=True))
        rows.append(dict(zip(("tree", "page", "prompt"), tokens, strict=True), task=name))
        rows[-1]["ids"] = "solved" if name in SOLVERS else ids[name]
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return the median and the largest of each column as rows."""
    columns = ("tree", "page", "prompt")
    kinds: dict[str, Callable[[Iterable[float]], float]] = {"median": median, "largest": max}
    return [
        {"task": name, "ids": "", **{key: kind(row[key] for row in rows) for key in columns}}
        for name, kind in kinds.items()
    ]


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """Count the tasks of each verdict, in the order of `VERDICTS`."""
    found = Counter(row["ids"].partition(":")[0] for row in rows)
    return {kind: found[kind] for kind in VERDICTS}


def cells(row: Row) -> list[str]:
    """Format the cells of a row."""
    return [row["task"], *(f"{row[key]:,.0f}" for key in ("tree", "page", "prompt")), row["ids"]]


def markdown(rows: Sequence[Row], seeds: int) -> str:
    """Format the page for the documentation."""
    found = totals(rows)
    missed = {kind: number for kind, number in found.items() if kind not in REACHED}
    text = HEADER.format(
        model=HUB_ID.split("/")[1],
        seeds=seeds,
        all=len(rows),
        reached=f"{found['solved']} are solved, {found['attemptable']} more are attemptable and "
        f"{found['in part']} in part",
        missed=f"{sum(missed.values())} are not attemptable: "
        + ", ".join(f"{number} *{kind}*" for kind, number in missed.items()),
    )
    text += "".join(f"| {kind} | {found[kind]} | {VERDICTS[kind]} |\n" for kind in found)
    text += "\n| task | tree | page | prompt | ids |\n|---|---:|---:|---:|---|\n"
    text += "".join(f"| {' | '.join(cells(row))} |\n" for row in [*rows, *summary(rows)])
    return text + success_section()


def success_section() -> str:
    """Format what counts as a success, for the documentation."""
    rules = (
        f"| {task} | {rule.pays} | {rule.least:g} | {rule.tolerance} |\n"
        for task, rule in PARTIAL.items()
    )
    return SUCCESS.format(count=len(PARTIAL)) + "".join(rules)


def main() -> None:
    """Measure every task and print the table."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds per task: 0, 1, ...")
    parser.add_argument("--write", metavar="FILE", help="write the table as Markdown to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    names = track(sorted(tasks()), "resets", console=Console(stderr=True))
    server = LocalServer(workers=1, max_sessions=2)

    async def read() -> list[Row]:
        env = PageReader(await server.ensure())
        try:
            return await measure(env, names, arguments.seeds, ChatTemplate(tokenizer))
        finally:
            await env.close()

    try:
        rows = asyncio.run(read())
    finally:
        server.close()
    table = Table("task", "tree", "page", "prompt", "ids")
    for row in [*rows, *summary(rows)]:
        table.add_row(*cells(row))
    Console().print(table)
    Console().print(totals(rows))
    if arguments.write:
        Path(arguments.write).write_text(markdown(rows, arguments.seeds))
    if arguments.json:
        print(json.dumps({"seeds": arguments.seeds, "totals": totals(rows), "tasks": rows}))


if __name__ == "__main__":
    main()
