"""Measure one kind of environment for `benchmarks/rollouts.py`.

Reads one JSON request per line, `{"task": …, "sessions": …, "seconds": …}`, and writes one JSON
response per line. The oracle plays: a reset, then steps until the episode is over, each of which
returns the page as text.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.episodes import Episode, count, pss, windows
from envs.browser.actions import format_action
from envs.browser.miniwob.files import miniwob_url
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.page_text import simplify_axtree
from envs.browser.server.chromium import find_chromium
from envs.browser.server.local import LocalServer
from envs.browser.server.processes import marked
from envs.browser.server.tree import merged_tree_text

RESET: dict[str, Any] = {"final_page": False}
"""Options of our server's reset, as `BrowserEnv` sets them without screenshots."""

MAX_TURNS = 30

State = tuple[str, str, float, bool]
"""Goal, page text, reward, done."""


class BrowserGym:
    """BrowserGym's Gymnasium environment; each call must come from the executor's only thread.

    Synchronous Playwright is bound to one thread and refuses one with an event loop.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.env: Any = None

    async def reset(self, task: str, seed: int) -> State:
        """Start an episode."""
        return await asyncio.to_thread(self._reset, task, seed)

    async def step(self, action: str) -> State:
        """Perform an action of BrowserGym's."""
        return await asyncio.to_thread(self._step, action)

    async def close(self) -> None:
        """Close it."""
        if self.env is not None:
            await asyncio.to_thread(self.env.close)

    def _reset(self, task: str, seed: int) -> State:
        import browsergym.miniwob  # noqa: F401 (registers the tasks)
        import gymnasium

        if self.env is None:
            self.env = gymnasium.make(f"browsergym/miniwob.{task}", **self.options)
        return self._state(self.env.reset(seed=seed)[0], 0.0, False)

    def _step(self, action: str) -> State:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return self._state(observation, reward, terminated or truncated)

    def _state(self, observation: dict[str, Any], reward: float, done: bool) -> State:
        if done:
            return (
                observation["goal"],
                "",
                float(reward),
                True,
            )  # the page after the end is not read
        page = merged_tree_text(observation["axtree_object"])
        return observation["goal"], page, float(reward), False


class Session:
    """A session with our server, through OpenEnv's own client."""

    def __init__(self, url: str) -> None:
        from openenv.core import GenericEnvClient

        self.client = GenericEnvClient(base_url=url)

    async def reset(self, task: str, seed: int) -> State:
        """Start an episode."""
        return self._state(await self.client.reset(task_name=task, seed=seed, **RESET))

    async def step(self, action: str) -> State:
        """Perform an action of BrowserGym's."""
        return self._state(await self.client.step({"action_str": action}))

    async def close(self) -> None:
        """Close it."""
        await self.client.close()

    def _state(self, response: Any) -> State:
        page = response.observation
        return page["goal"], page["axtree_txt"], response.reward or 0.0, response.done


Env = BrowserGym | Session


async def play(env: Env, session: int, task: str, seed: int) -> Episode:
    """Let the oracle play one episode."""
    steps: list[float] = []
    begun = time.perf_counter()
    goal, page, reward, done = await env.reset(task, seed)
    reset = time.perf_counter() - begun
    while not done and len(steps) < MAX_TURNS:
        try:
            action = SOLVERS[task](goal, simplify_axtree(page), len(steps))
        except LookupError:
            break  # the solver cannot do this page: the episode ends without reward
        begun = time.perf_counter()
        goal, page, reward, done = await env.step(format_action(action))
        steps.append(time.perf_counter() - begun)
    return Episode(session, time.perf_counter(), reward, reset, tuple(steps))


async def measure(
    make: Callable[[], Env],
    processes: Callable[[], list[int]],
    task: str,
    sessions: int,
    seconds: float,
) -> dict[str, Any]:
    """Play in `sessions` environments at once until each has its window; see `count`."""
    envs = [make() for _ in range(sessions)]
    episodes: list[Episode] = []
    seeds = itertools.count()

    async def run(session: int) -> None:
        while len(windows(episodes, seconds, sessions)) < sessions:
            try:
                episode = await play(envs[session], session, task, next(seeds))
            except Exception as error:  # any failure loses the episode
                print(f"lost: {error!r}", file=sys.stderr)
                episode = Episode(session, time.perf_counter(), None)
                await envs[session].close()
                envs[session] = make()
            episodes.append(episode)

    await asyncio.gather(*map(run, range(sessions)))
    memory = pss(processes())
    await asyncio.gather(*(env.close() for env in envs))
    return count(episodes, seconds, sessions) | {"memory": memory}


def lay_out_chromium(folder: Path) -> None:
    """Link our Chromium into a folder where Playwright looks for its own.

    No option sets the path of the second one, which BrowserGym launches for its chat window.
    """
    import playwright

    names = {"chromium": "chrome", "chromium-headless-shell": "headless_shell"}
    listed = Path(playwright.__file__).parent / "driver" / "package" / "browsers.json"
    for browser in json.loads(listed.read_text())["browsers"]:
        if name := names.get(browser["name"]):
            place = f"{browser['name'].replace('-', '_')}-{browser['revision']}/chrome-linux"
            (folder / place).mkdir(parents=True)
            (folder / place / name).symlink_to(find_chromium())
    os.environ["PLAYWRIGHT_BROWSERS_PATH"] = str(folder)
    os.environ["MINIWOB_URL"] = miniwob_url()


def serve(make: Callable[[], Env], processes: Callable[[], list[int]]) -> None:
    """Respond to requests until standard input ends, as it does when the parent dies."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(ThreadPoolExecutor(1))
        print(json.dumps({}), flush=True)
        for line in sys.stdin:
            request = measure(make, processes, **json.loads(line))
            print(json.dumps(runner.run(request)), flush=True)


def main() -> None:
    """Measure the kind of environment that the first argument describes."""
    settings = json.loads(sys.argv[1])
    if "workers" in settings:
        server = LocalServer(settings["workers"], max_sessions=2 * settings["sessions"])
        server.start()
        try:
            serve(lambda: Session(server.url), server.processes)
        finally:
            server.close()
    else:
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder).name
            os.environ["GRPO_BENCHMARK"] = (
                mark  # inherited by children; /proc does not show it here
            )
            lay_out_chromium(Path(folder))
            make = partial(BrowserGym, settings["options"])
            serve(make, lambda: [os.getpid(), *marked(f"GRPO_BENCHMARK={mark}")])


if __name__ == "__main__":
    main()
