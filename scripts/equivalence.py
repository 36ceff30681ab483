"""Play the same actions on BrowserGym by itself and on our server, and compare what comes back.

    python scripts/equivalence.py --tasks click-test,login-user --seeds 3
    python scripts/equivalence.py --write docs/equivalence.md     # every task: an hour

BrowserGym runs with its own defaults, more than once: a task whose runs differ is not repeatable
by itself, and never counts as equal. Both sides read the same pages in the same Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from envs.browser.miniwob.tasks import tasks
from envs.browser.server.chromium import find_chromium
from envs.browser.server.local import LocalServer
from scripts.equivalence_worker import Run, State, run_plain

EQUAL, DIFFERENT, UNREPEATABLE = "equal", "different", "not repeatable by itself"

HEADER = """# The server beside BrowserGym

`scripts/equivalence.py` wrote this table. For each task and seed, the same actions were played
on BrowserGym {browsergym} with its defaults and on this server: the solver's of `envs.browser.miniwob.solvers`
where there is one, otherwise up to three clicks by chance. Compared after the reset and after
each action: the goal, the page's text with its element ids, the reward, the end, and whether
the action failed. BrowserGym played every episode twice, and two times more where the server
differs; where it differs from itself, nothing can be said of the server. The browser: {chromium}.

Of {all} tasks {equal} are equal, {different} different, {unrepeatable} not repeatable by itself.

| task | seeds | steps | reward 1 | result | what differs |
|---|---|---|---|---|---|
"""


async def run_ours(url: str, wanted: Sequence[Run], sessions: int = 2) -> list[Run]:
    """Replay the actions of episodes on the server at `url`, some at a time."""
    limit = asyncio.Semaphore(sessions)

    async def play(run: Run) -> Run:
        async with limit:
            return await _play(url, run)

    return await asyncio.gather(*map(play, wanted))


async def _play(url: str, wanted: Run) -> Run:
    from openenv.core import GenericEnvClient

    run = Run(wanted.task, wanted.seed, wanted.by_chance)
    client = GenericEnvClient(base_url=url)
    try:
        run.states.append(_state(await client.reset(task_name=run.task, seed=run.seed)))
        for action in wanted.actions:
            if run.states[-1].done:
                break
            reply = await client.step({"action_str": action})
            run.actions.append(action)
            run.states.append(_state(reply))
    except Exception as error:  # whatever it is, it is what the server does here
        run.broken = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        await client.close()
    return run


def _state(reply: Any) -> State:
    page = reply.observation
    failed = page["last_action_error"]
    return State(page["goal"], page["axtree_txt"], reply.reward or 0.0, reply.done, failed)


def differences(expected: Run, got: Run) -> list[str]:
    """Say in what `got` differs from `expected`, at the first state where it does.

    Returns:
        One text for each field; none if the runs are equal.
    """
    for step, (one, other) in enumerate(zip(expected.states, got.states, strict=False)):
        if one != other:
            where = expected.actions[step - 1] if step else "reset"
            return [f"seed {got.seed}, {where}: {text}" for text in _unequal(one, other)]
    if expected.broken or got.broken:
        return [f"seed {got.seed}: {got.broken or 'no error'}, not {expected.broken or 'no error'}"]
    if len(expected.states) != len(got.states):
        return [f"seed {got.seed}: {len(got.states)} states, not {len(expected.states)}"]
    return []


def _unequal(one: State, other: State) -> Iterator[str]:
    for name in ("goal", "reward", "done", "failed"):
        if getattr(one, name) != getattr(other, name):
            yield f"{name} {getattr(other, name)!r}, not {getattr(one, name)!r}"
    old, new = (_lines(state.page) for state in (one, other))
    if one.page != other.page:
        yield f"page has {_few(new, old)}, not {_few(old, new)}"


def _lines(page: str) -> list[str]:
    return [line.strip().split(", url=")[0] for line in page.splitlines()]


def _few(lines: Iterable[str], known: Sequence[str], most: int = 3) -> str:
    new = [line for line in lines if line not in known]
    return "; ".join(new[:most]) + ("; ..." if new[most:] else "") or "these lines"


def judge(first: Sequence[Run], again: Sequence[Run], ours: Sequence[Run]) -> dict[str, Any]:
    """Return the table's row of one task.

    Args:
        first: BrowserGym's runs, one a seed.
        again: more runs of BrowserGym with the same actions.
        ours: the server's runs.
    """
    by_seed = {run.seed: run for run in first}
    own = [text for run in again for text in differences(by_seed[run.seed], run)]
    found = [text for run in ours for text in differences(by_seed[run.seed], run)]
    return {
        "task": first[0].task,
        "seeds": len(first),
        "steps": sum(len(run.actions) for run in first),
        "solved": sum(run.states[-1].reward == 1 for run in first if run.states),
        "result": UNREPEATABLE if own else DIFFERENT if found else EQUAL,
        "what": own or found,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as the page that goes into the documentation."""
    from importlib.metadata import version

    results = [row["result"] for row in rows]
    text = HEADER.format(
        browsergym=version("browsergym-core"),
        chromium=subprocess.check_output([find_chromium(), "--version"], text=True).strip(),
        all=len(rows),
        equal=results.count(EQUAL),
        different=results.count(DIFFERENT),
        unrepeatable=results.count(UNREPEATABLE),
    )
    for row in rows:
        what = " ".join(row["what"][:1]).replace("|", "\\|").replace("\n", " ")
        cells = [row["task"], row["seeds"], row["steps"], row["solved"], row["result"], what[:300]]
        text += f"| {' | '.join(map(str, cells))} |\n"
    return text


def main() -> None:
    """Play, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", help="names with commas between; all of them if left out")
    parser.add_argument("--seeds", type=int, default=2, help="the seeds 0, 1, ... of each task")
    parser.add_argument("--by-chance", action="store_true", help="actions of any kind by chance")
    parser.add_argument("--json", action="store_true", help="print the rows as the last line")
    parser.add_argument("--write", metavar="FILE", help="write the table as Markdown")
    args = parser.parse_args()
    names = args.tasks.split(",") if args.tasks else sorted(tasks())
    wanted = [Run(name, seed, args.by_chance) for name in names for seed in range(args.seeds)]
    console = Console(stderr=True)

    def played(runs: Sequence[Run], what: str) -> list[Run]:
        return list(track(run_plain(runs), what, len(runs), console=console))

    first = played(wanted, "BrowserGym")
    again = played(first, "BrowserGym once more")
    server = LocalServer()
    try:
        ours = asyncio.run(run_ours(server.start(), first))
    finally:
        server.close()
    differing = [run for run, our in zip(first, ours, strict=True) if differences(run, our)]
    again += played(2 * differing, "BrowserGym where the server differs")
    rows = [
        judge(*([run for run in runs if run.task == name] for runs in (first, again, ours)))
        for name in names
    ]
    text = table(rows)
    if args.write:
        Path(args.write).write_text(text)
    print(json.dumps(rows) if args.json else text)


if __name__ == "__main__":
    main()
