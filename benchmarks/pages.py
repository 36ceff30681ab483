"""Tokens of a page at reset, as BrowserGym writes it and as the model reads it, for every task.

Beside each task stands whether element ids are enough to do it: `solved` by the scripted solver
of `envs.browser.miniwob.solvers`, or a verdict of `UNSOLVED`.

    python benchmarks/pages.py --write docs/pages.md     # two minutes
    python benchmarks/pages.py --seeds 1 --json
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
from envs.browser.miniwob.tasks import tasks
from envs.browser.protocol import Answer
from envs.browser.server.local import LocalServer
from grpo.model.bundled import HUB_ID, bundled_model_path
from grpo.rollouts.rollout import read_prompt

VERDICTS = {
    "solved": "a scripted solver does it with element ids alone",
    "attemptable": "the page tells all and has the ids; nobody wrote the solver",
    "in part": "the same for some of its goals; the others are chance",
    "no id": "what is to be clicked is on the page without an id (SVG)",
    "no name": "what is to be clicked or counted has an id but no name: the page drops it",
    "pixels": "the answer is a place, a colour or a picture that no text tells",
    "drag by pixels": "something is dragged to a place that is no element",
    "unrewardable": "BrowserGym gives no reward for what is right",
}

Verdict = tuple[str, str, str]
"""One of `VERDICTS`, why, and the tasks."""

UNSOLVED: tuple[Verdict, ...] = (
    ("attemptable", "icons stand in the goal by name", "click-menu-2"),
    ("attemptable", "one more by Control+ArrowDown, Control+Space", "click-scroll-list"),
    ("attemptable", "numbers dragged onto numbers", "drag-sort-numbers"),
    ("attemptable", "the slider takes focus and arrows", "form-sequence use-slider use-slider-2"),
    ("attemptable", "a list and a button", "form-sequence-3"),
    ("attemptable", "where a click follows the price within 0.1 s", "stock-market"),
    ("attemptable", "keys one by one", "terminal"),
    ("attemptable", "the field takes the colour's code", "use-colorwheel"),
    ("in part", "a text and a textarea look alike", "click-widget"),
    ("in part", "letters and digits are told; shape, colour, size not", "count-shape"),
    ("in part", "letters and digits are told, shapes not", "identify-shape"),
    ("in part", "a drag between sides turns to 1, 4, 5, 6; 2 and 3 not settled", "drag-cube"),
    ("in part", "dragged up it lands, down it does not", "drag-items"),
    ("in part", "some places cannot be dragged to", "drag-items-grid"),
    ("in part", "by keys, where the text starts the page", "highlight-text highlight-text-2"),
    ("in part", "folders and files look alike", "navigate-tree"),
    ("no id", "SVG texts", "ascending-numbers click-pie click-pie-nodelay"),
    ("no id", "SVG points", "grid-coordinate"),
    ("no name", "cells of a calendar", "daily-calendar"),
    (
        "no name",
        "star, trash and send are icons",
        "email-inbox email-inbox-delete email-inbox-forward email-inbox-forward-nl "
        "email-inbox-forward-nl-turk email-inbox-important email-inbox-nl-turk "
        "email-inbox-noscroll email-inbox-reply email-inbox-star-reply",
    ),
    ("no name", "cards; the numbers on them are hidden", "find-greatest"),
    ("no name", "handles", "resize-textarea"),
    ("no name", "buttons are icons", "social-media social-media-all social-media-some"),
    ("no name", "the editor; and BrowserGym's marks break its toolbar", "text-editor"),
    ("no name", "squares of the board", "tic-tac-toe"),
    ("no name", "blocks to count", "visual-addition"),
    ("pixels", "an angle", "bisect-angle right-angle"),
    ("pixels", "a place", "circle-center find-midpoint hot-cold"),
    ("pixels", "colours", "click-color click-shades"),
    ("pixels", "shapes, and without ids", "click-shape"),
    ("pixels", "a drawn shape", "count-sides"),
    ("pixels", "the pattern is a picture", "number-checkboxes"),
    ("drag by pixels", "shapes", "drag-circle drag-shapes drag-shapes-2 drag-single-shape"),
    ("drag by pixels", "a stroke", "draw-circle draw-line"),
    ("unrewardable", "a click on a result changes the address", "search-engine"),
)

REACHED = ("solved", "attemptable", "in part")

HEADER = """# What a page costs, and how far element ids reach

`benchmarks/pages.py` wrote this page. Tokens are {model}'s, of the page
after the reset, medians over {seeds} seeds. *Tree* is BrowserGym's accessibility tree as text, with
the generic nodes that alone carry some ids, without the folder of MiniWoB's files. *Page* is what
`envs.browser.prompts` makes of it, under the ids that the model reads. *Prompt* is the page with the goal,
the instructions and the worked examples, in the chat template. The last two rows are over all.

Of BrowserGym's {all} MiniWoB tasks, {reached}; not attemptable are {missed}.

A verdict without a solver comes from the task's page, its goal and MiniWoB's HTML; what is called
attemptable was also played, by actions written for it, on six seeds or more, with reward on each;
what is unrewardable is so in BrowserGym by itself, too.

| verdict | tasks | meaning |
|---|---|---|
"""

Row = dict[str, Any]
"""`task`, the tokens `tree`, `page` and `prompt`, and `ids`, a verdict and why."""


class Reader(Protocol):
    """An environment that keeps the tree of the page it showed last."""

    tree: str

    async def reset(self, task: Task) -> Observation: ...


class PageReader(BrowserEnv):
    """A session with the server that keeps the tree, too."""

    tree = ""

    def _observe(self, task: Task, answer: Answer, goal: str) -> Observation:
        self.tree = answer.axtree_txt
        return super()._observe(task, answer, goal)


def verdicts() -> dict[str, str]:
    """Return of each task without a solver the verdict and why, `pixels: colours`."""
    return {name: f"{kind}: {why}" for kind, why, names in UNSOLVED for name in names.split()}


async def measure(env: Reader, names: Iterable[str], seeds: int, tokenizer: Any) -> list[Row]:
    """Count the tokens of each task's first pages.

    Args:
        env: on which the tasks are reset.
        names: of the tasks.
        seeds: the seeds 0, 1, ... of each task.
        tokenizer: the model's, with a chat template.

    Returns:
        One row a task.
    """

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    ids, rows = verdicts(), []
    for name in names:
        counts = []
        for seed in range(seeds):
            seen = await env.reset(Task(name, seed))
            # The address of a file says where this checkout lies.
            tree = re.sub(r"url='file:[^']*/", "url='", env.tree)
            counts.append((count(tree), count(seen.page), len(read_prompt(seen, tokenizer)[0])))
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
    """Write a row's cells."""
    return [row["task"], *(f"{row[key]:,.0f}" for key in ("tree", "page", "prompt")), row["ids"]]


def markdown(rows: Sequence[Row], seeds: int) -> str:
    """Write the page that goes into the documentation."""
    found = totals(rows)
    missed = {kind: number for kind, number in found.items() if kind not in REACHED}
    text = HEADER.format(
        model=HUB_ID.split("/")[1],
        seeds=seeds,
        all=len(rows),
        reached=f"{found['solved']} are solved, {found['attemptable']} more are attemptable and "
        f"{found['in part']} in part",
        missed=f"{sum(missed.values())}: "
        + ", ".join(f"{number} *{kind}*" for kind, number in missed.items()),
    )
    text += "".join(f"| {kind} | {found[kind]} | {VERDICTS[kind]} |\n" for kind in found)
    text += "\n| task | tree | page | prompt | ids |\n|---|---:|---:|---:|---|\n"
    return text + "".join(f"| {' | '.join(cells(row))} |\n" for row in [*rows, *summary(rows)])


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, ... of each task")
    parser.add_argument("--write", metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    names = track(sorted(tasks()), "resets", console=Console(stderr=True))
    server = LocalServer(workers=1, max_sessions=2)

    async def read() -> list[Row]:
        env = PageReader(await server.ensure())
        try:
            return await measure(env, names, arguments.seeds, tokenizer)
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
