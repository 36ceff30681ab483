"""BrowserGym by itself, in processes of its own, for `scripts/equivalence.py`.

As a script it reads one episode a line, a `Run` as JSON, and answers with the same one played.
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

from benchmarks.rollouts_worker import MOST_STEPS, lay_out_chromium
from envs.browser.actions import ACTIONS, Action, format_action
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.miniwob.tasks import merged_tree_text
from envs.browser.prompts import CONTROLS, simplify_axtree

RANDOM_STEPS = 3
ATTEMPTS = 3

TEXTS = {
    **dict.fromkeys(
        ("click", "dblclick", "hover", "focus", "clear", "scroll", "drag_and_drop"), ()
    ),
    "fill": ("ab", "7", "Ann Smith, 12", ""),
    "press": ("Enter", "Tab", "ArrowDown", "Backspace", "a", "Shift+B", "Control+a"),
    "select_option": (),  # one of the page's
}
"""What by chance is drawn from: BrowserGym's actions that ours shares, and texts for them."""


@dataclass(frozen=True)
class State:
    """What an observation, its reward and its end say, in the same words from both sides."""

    goal: str
    page: str
    reward: float = 0.0
    done: bool = False
    failed: bool = False  # whether the action's error is set


@dataclass
class Run:
    """One episode: the state after the reset and each action, and what broke it off."""

    task: str
    seed: int
    by_chance: bool = False  # clicks by chance even where there is a solver
    actions: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    broken: str = ""

    def to_json(self) -> str:
        """Write it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Run:
        """Read what `to_json` wrote."""
        run = cls(**json.loads(line))
        run.states = [State(**state) for state in run.states]  # type: ignore[arg-type]
        return run


def choose(run: Run, clickable: Sequence[str], chance: random.Random) -> str | None:
    """Return the next action: the solver's, else a click by chance; None after the last one.

    Args:
        run: the episode until now; if it goes by chance, any action on any control is drawn.
        clickable: the ids that a click by chance is drawn from.
        chance: the generator that draws.
    """
    state, step = run.states[-1], len(run.actions)
    elements = simplify_axtree(state.page)
    if run.task in SOLVERS and not run.by_chance and step < MOST_STEPS:
        try:
            return format_action(SOLVERS[run.task](state.goal, elements, step))
        except LookupError:
            pass  # the page of this seed lacks what the task needs
    controls = [e.id for e in elements if e.id and e.role in CONTROLS and e.id not in clickable]
    ids = [*clickable, *(controls if run.by_chance else [])]
    if step >= RANDOM_STEPS or not ids:
        return None
    if not run.by_chance:
        return format_action(Action("click", (chance.choice(ids),)))
    options = [e.name for e in elements if e.role == "option"]
    name = chance.choice(list(TEXTS))
    draw: dict[str, Any] = {
        "id": ids,
        "text": TEXTS[name] or options or ["none"],
        "number": (-300, 0, 300),
    }
    return format_action(Action(name, tuple(chance.choice(draw[kind]) for kind in ACTIONS[name])))


def play(wanted: Run) -> Run:
    """Play an episode on BrowserGym with its defaults.

    BrowserGym gives an element 500 ms to be ready, which a machine under load can miss: an
    episode with such an error is played again, and counts where the error comes every time.

    Args:
        wanted: its actions are played; if it has no states either, they are chosen.
    """
    for _ in range(ATTEMPTS):
        run, late = _play(wanted)
        if not late:
            break
    return run


def _play(wanted: Run) -> tuple[Run, bool]:
    import browsergym.miniwob  # noqa: F401 (registers the tasks)
    import gymnasium

    run = Run(wanted.task, wanted.seed, wanted.by_chance)
    chance = random.Random(f"{run.task} {run.seed}")
    late = False
    env = gymnasium.make(f"browsergym/miniwob.{run.task}")
    try:
        observation, _ = env.reset(seed=run.seed)
        run.states.append(_state(observation, 0.0, False))
        while not run.states[-1].done:
            if not wanted.states:
                action = choose(run, _clickable(observation), chance)
            else:
                action = next(iter(wanted.actions[len(run.actions) :]), None)
            if action is None:
                break
            observation, reward, done, _, _ = env.step(action)
            run.actions.append(action)
            run.states.append(_state(observation, float(reward), bool(done)))
            late = late or "Timeout" in observation["last_action_error"]
    except Exception as error:  # whatever it is, it is what BrowserGym does here
        run.broken = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        env.close()
    return run, late


def _state(observation: dict[str, Any], reward: float, done: bool) -> State:
    page = merged_tree_text(observation["axtree_object"])
    failed = bool(observation["last_action_error"])
    return State(observation["goal"], page, reward, done, failed)


def _clickable(observation: dict[str, Any]) -> list[str]:
    properties = observation["extra_element_properties"].items()
    return [bid for bid, its in properties if its["clickable"] and its["visibility"] >= 0.5]


class Plain:
    """BrowserGym by itself, in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(self, wanted: Run) -> Run:
        """Play its actions; if it has no states yet, choose them.

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
        return Run.from_json(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def run_plain(wanted: Sequence[Run], processes: int = 2) -> Iterator[Run]:
    """Play episodes on BrowserGym by itself, some at a time; they come in the order asked for."""
    free: SimpleQueue[Plain] = SimpleQueue()

    def play(run: Run) -> Run:
        worker = free.get()
        try:
            return worker.play(run)
        finally:
            free.put(worker)

    with ExitStack() as stack:
        for _ in range(processes):
            worker = Plain()
            stack.callback(worker.close)
            free.put(worker)
        yield from stack.enter_context(ThreadPoolExecutor(processes)).map(play, wanted)


def main() -> None:
    """Answer until standard input ends, as it does when the parent dies."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out_chromium(Path(folder))
        for line in sys.stdin:
            print(play(Run.from_json(line)).to_json(), flush=True)


if __name__ == "__main__":
    main()
