"""Play episodes on plain BrowserGym, in processes of its own, for `scripts/equivalence.py`.

Run as a module it reads one episode per line, an `Episode` as JSON, and writes it back as played.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.rollouts_worker import MAX_TURNS, lay_out_chromium
from envs.browser.actions import ACTIONS, Action, format_action
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.page_text import CONTROLS, simplify_axtree
from envs.browser.server.tree import merged_tree_text

ROOT = Path(__file__).resolve().parent.parent

RANDOM_STEPS = 3
ATTEMPTS = 3

TEXTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("click", "dblclick", "hover", "focus", "clear", "scroll", "drag_and_drop"), ()
    ),
    "fill": ("ab", "7", "Ann Smith, 12", ""),
    "press": ("Enter", "Tab", "ArrowDown", "Backspace", "a", "Shift+B", "Control+a"),
    "select_option": (),  # an option of the page
}
"""Actions that random play draws from, all known to BrowserGym and to us, with their texts."""


@dataclass(frozen=True)
class State:
    """An observation with its reward and end, in the form in which the two sides are compared."""

    goal: str
    page: str
    reward: float = 0.0
    done: bool = False
    failed: bool = False
    """True if the observation reports an error of the action."""


@dataclass
class Episode:
    """One episode: its actions, and the states after the reset and after each action.

    Attributes:
        task: name of the task.
        seed: seed of the task.
        random: True to play random actions even if there is a solver.
        actions: what was done.
        states: what came of it, one more than there are actions.
        broken: the exception that ended it early, "" if none did.
    """

    task: str
    seed: int
    random: bool = False
    actions: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    broken: str = ""

    def to_json(self) -> str:
        """Format it as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Episode:
        """Parse the output of `to_json`."""
        values = json.loads(line)
        return cls(**values | {"states": [State(**state) for state in values["states"]]})


def choose(episode: Episode, clickable: Sequence[str], rng: random.Random) -> str | None:
    """Return the next action: the solver's, otherwise a random click; None after the last one.

    Args:
        episode: the episode so far; if it is `random`, any action on any control is drawn.
        clickable: element ids for random clicks.
        rng: draws.
    """
    state, step = episode.states[-1], len(episode.actions)
    elements = simplify_axtree(state.page)
    if episode.task in SOLVERS and not episode.random and step < MAX_TURNS:
        try:
            return format_action(SOLVERS[episode.task](state.goal, elements, step))
        except LookupError:
            pass  # the page of this seed lacks what the solver needs
    controls = [e.id for e in elements if e.id and e.role in CONTROLS and e.id not in clickable]
    ids = [*clickable, *(controls if episode.random else [])]
    if step >= RANDOM_STEPS or not ids:
        return None
    if not episode.random:
        return format_action(Action("click", (rng.choice(ids),)))
    options = [e.name for e in elements if e.role == "option"]
    name = rng.choice(list(TEXTS))
    draw: dict[str, Any] = {
        "id": ids,
        "text": TEXTS[name] or options or ["none"],
        "number": (-300, 0, 300),
    }
    return format_action(Action(name, tuple(rng.choice(draw[kind]) for kind in ACTIONS[name])))


def play(wanted: Episode) -> Episode:
    """Play an episode on BrowserGym with its defaults.

    BrowserGym waits 500 ms for an element to be ready, which may be too short on a loaded machine.
    An episode with such a timeout is repeated; it counts if every attempt times out.

    Args:
        wanted: its actions are played; if it has no states, the actions are chosen here.
    """
    for _ in range(ATTEMPTS):
        episode, timed_out = _play(wanted)
        if not timed_out:
            break
    return episode


def _play(wanted: Episode) -> tuple[Episode, bool]:
    import browsergym.miniwob  # noqa: F401 (registers the tasks)
    import gymnasium

    episode = Episode(wanted.task, wanted.seed, wanted.random)
    rng = random.Random(f"{episode.task} {episode.seed}")
    timed_out = False
    env = gymnasium.make(f"browsergym/miniwob.{episode.task}")
    try:
        observation, _ = env.reset(seed=episode.seed)
        episode.states.append(_state(observation, 0.0, False))
        while not episode.states[-1].done:
            if not wanted.states:
                action = choose(episode, _clickable(observation), rng)
            else:
                action = next(iter(wanted.actions[len(episode.actions) :]), None)
            if action is None:
                break
            observation, reward, done, _, _ = env.step(action)
            episode.actions.append(action)
            episode.states.append(_state(observation, float(reward), bool(done)))
            timed_out = timed_out or "Timeout" in observation["last_action_error"]
    except Exception as error:  # part of BrowserGym's behaviour, so it is compared
        episode.broken = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        env.close()
    return episode, timed_out


def _state(observation: dict[str, Any], reward: float, done: bool) -> State:
    page = merged_tree_text(observation["axtree_object"])
    failed = bool(observation["last_action_error"])
    return State(observation["goal"], page, reward, done, failed)


def _clickable(observation: dict[str, Any]) -> list[str]:
    properties = observation["extra_element_properties"].items()
    return [bid for bid, its in properties if its["clickable"] and its["visibility"] >= 0.5]


class BrowserGymProcess:
    """Plain BrowserGym in its own process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.equivalence_worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(self, wanted: Episode) -> Episode:
        """Play an episode; see `play`.

        Raises:
            RuntimeError: the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(wanted.to_json() + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"BrowserGym's process ended at {wanted.task}, seed {wanted.seed}")
        return Episode.from_json(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def play_on_browsergym(wanted: Sequence[Episode], processes: int = 2) -> Iterator[Episode]:
    """Play episodes on plain BrowserGym, one per process at a time, and yield them in order."""
    free: SimpleQueue[BrowserGymProcess] = SimpleQueue()

    def play(episode: Episode) -> Episode:
        worker = free.get()
        try:
            return worker.play(episode)
        finally:
            free.put(worker)

    with ExitStack() as stack:
        for _ in range(processes):
            worker = BrowserGymProcess()
            stack.callback(worker.close)
            free.put(worker)
        yield from stack.enter_context(ThreadPoolExecutor(processes)).map(play, wanted)


def main() -> None:
    """Play until standard input ends, as it does when the parent dies."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out_chromium(Path(folder))
        for line in sys.stdin:
            print(play(Episode.from_json(line)).to_json(), flush=True)


if __name__ == "__main__":
    main()
