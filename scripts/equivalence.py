"""Play the same actions on plain BrowserGym and on our server, and compare the results.

    python -m scripts.equivalence --tasks click-test,login-user --seeds 3
    python -m scripts.equivalence --write docs/equivalence.md     # every task: half an hour

The reward that is compared is BrowserGym's: 1 for a part of some tasks, unlike ours.
BrowserGym runs with its defaults, at least twice: a task whose runs differ is not repeatable and
never counts as equal. Both sides read the same pages in the same Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from envs.browser.miniwob.tasks import tasks
from envs.browser.page_text import simplify_axtree
from envs.browser.server.chromium import find_chromium
from envs.browser.server.local import LocalServer
from scripts.equivalence_worker import Episode, State, choose, play_on_browsergym

EQUAL, DIFFERENT, UNREPEATABLE = "equal", "different", "not repeatable"

HEADER = """# Our server compared with BrowserGym

Written by `scripts/equivalence.py`. For each task and seed, the same actions were played on
BrowserGym {browsergym} with its defaults and on our server: those of the scripted solver
(`envs.browser.miniwob.solvers`) where there is one, otherwise up to three random clicks. After the
reset and after each action, these were compared: the goal, the page's text with its element ids,
the reward, the end of the episode, and whether the action failed. The reward is BrowserGym's own:
1 for any raw reward of MiniWoB above 0, which the server reports as `success_browsergym`; its
`success` and its reward are stricter ([pages.md](pages.md#success)). BrowserGym played every
episode twice, and twice more where the server differed; where BrowserGym differs from itself, the
result says nothing about the server. The browser: {chromium}.

Of {all} tasks, {equal} are equal, {different} different and {unrepeatable} not repeatable.

| task | seeds | steps | reward 1 | result | first difference |
|---|---|---|---|---|---|
"""


async def play_on_server(url: str, wanted: Sequence[Episode], sessions: int = 2) -> list[Episode]:
    """Repeat the actions of episodes on the server at `url`, in several sessions at once.

    An episode without states has its actions chosen: the solver's, otherwise random clicks.
    """
    limit = asyncio.Semaphore(sessions)

    async def play(episode: Episode) -> Episode:
        async with limit:
            return await _play(url, episode)

    return await asyncio.gather(*map(play, wanted))


async def _play(url: str, wanted: Episode) -> Episode:
    from openenv.core import GenericEnvClient

    episode = Episode(wanted.task, wanted.seed, wanted.random)
    rng = random.Random(f"{episode.task} {episode.seed}")
    client = GenericEnvClient(base_url=url)
    try:
        response = await client.reset(task_name=episode.task, seed=episode.seed)
        episode.states.append(_state(response))
        while not episode.states[-1].done:
            if wanted.states:
                action = next(iter(wanted.actions[len(episode.actions) :]), None)
            else:
                ids = [e.id for e in simplify_axtree(episode.states[-1].page) if e.id]
                action = choose(episode, ids, rng)
            if action is None:
                break
            response = await client.step({"action_str": action})
            episode.actions.append(action)
            episode.states.append(_state(response))
    except Exception as error:  # part of the server's behaviour, so it is compared
        episode.broken = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        await client.close()
    return episode


def _state(response: Any) -> State:
    page = response.observation
    failed = page["last_action_error"]
    reward = float(page["metadata"]["success_browsergym"])
    return State(page["goal"], page["axtree_txt"], reward, response.done, failed)


def differences(expected: Episode, got: Episode) -> list[str]:
    """Describe how `got` differs from `expected`, at the first state where it does.

    Returns:
        One text per field that differs; none if the episodes are equal.
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


def judge(
    first: Sequence[Episode], again: Sequence[Episode], ours: Sequence[Episode]
) -> dict[str, Any]:
    """Return the table's row of one task.

    Args:
        first: BrowserGym's episodes, one per seed.
        again: more episodes of BrowserGym with the same actions.
        ours: the server's episodes.
    """
    by_seed = {episode.seed: episode for episode in first}
    own = [text for episode in again for text in differences(by_seed[episode.seed], episode)]
    found = [text for episode in ours for text in differences(by_seed[episode.seed], episode)]
    return {
        "task": first[0].task,
        "seeds": len(first),
        "steps": sum(len(episode.actions) for episode in first),
        "solved": sum(episode.states[-1].reward == 1 for episode in first if episode.states),
        "result": UNREPEATABLE if own else DIFFERENT if found else EQUAL,
        "differences": own or found,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows as the page for the documentation."""
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
        first = " ".join(row["differences"][:1]).replace("|", "\\|").replace("\n", " ")
        cells = [row["task"], row["seeds"], row["steps"], row["solved"], row["result"], first[:300]]
        text += f"| {' | '.join(map(str, cells))} |\n"
    return text


def main() -> None:
    """Play, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", help="names, separated by commas (default: all tasks)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds per task: 0, 1, ...")
    parser.add_argument("--random", action="store_true", help="random actions instead of solvers")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead")
    parser.add_argument("--write", metavar="FILE", help="write the table as Markdown to this file")
    args = parser.parse_args()
    names = args.tasks.split(",") if args.tasks else sorted(tasks())
    wanted = [Episode(name, seed, args.random) for name in names for seed in range(args.seeds)]
    console = Console(stderr=True)

    def played(episodes: Sequence[Episode], label: str) -> list[Episode]:
        return list(track(play_on_browsergym(episodes), label, len(episodes), console=console))

    first = played(wanted, "BrowserGym")
    again = played(first, "BrowserGym once more")
    server = LocalServer()
    try:
        ours = asyncio.run(play_on_server(server.start(), first))
    finally:
        server.close()
    differing = [one for one, our in zip(first, ours, strict=True) if differences(one, our)]
    again += played(2 * differing, "BrowserGym where the server differs")
    rows = [
        judge(*([e for e in episodes if e.task == name] for episodes in (first, again, ours)))
        for name in names
    ]
    text = table(rows)
    if args.write:
        Path(args.write).write_text(text)
    print(json.dumps(rows) if args.json else text)


if __name__ == "__main__":
    main()
