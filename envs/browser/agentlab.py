"""Traces of AgentLab's experiments, read as demonstrations.

AgentLab keeps an episode of BrowserGym as a folder: `exp_args.pkl` has the task and its seed, and
`step_<n>.pkl.gz` what the agent did.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from envs.base import Task
from envs.browser.actions import ACTIONS, Action, InvalidAction, format_action, parse_action
from envs.browser.element_ids import page_id
from envs.browser.inert_pickle import attributes_of, read_pickle
from envs.demonstrations import Demonstration

MAX_TURNS = 1000

PREFIX = "miniwob."

ARGUMENTS: dict[str, tuple[str, ...]] = {
    **{name: ("bid",) for name, kinds in ACTIONS.items() if kinds == ("id",)},
    "fill": ("bid", "value"),
    "select_option": ("bid", "options"),
    "press": ("bid", "key_comb"),
    "drag_and_drop": ("from_bid", "to_bid"),
    "scroll": ("delta_x", "delta_y"),
    "noop": (),
}
"""BrowserGym's names of the arguments that our actions have as well."""

DEFAULTS: dict[str, Any] = {"button": "left", "modifiers": [], "enable_autocomplete_menu": False}
"""Arguments that BrowserGym's actions have besides; only these values have a counterpart."""

FURTHER = {
    "noop": ("wait_ms",),
    "fill": ("enable_autocomplete_menu",),
    "click": ("button", "modifiers"),
    "dblclick": ("button", "modifiers"),
}


def read_trace(folder: Path) -> Demonstration:
    """Read an experiment's folder; whether it succeeds is for the environment to say.

    Args:
        folder: with `exp_args.pkl` and `step_<n>.pkl.gz`.

    Returns:
        Its actions with our element ids, without those that BrowserGym reported as errors; and
        the agent's thoughts, but for those that name an id or another number.

    Raises:
        ValueError: it has no counterpart here, or is not a trace; one line.
        OSError: a file cannot be read.
    """
    arguments = attributes_of(read_pickle(folder / "exp_args.pkl", packed=False))
    env = attributes_of(arguments.get("env_args"))
    name, seed = env.get("task_name"), env.get("task_seed")
    if not isinstance(name, str) or type(seed) is not int or seed < 0:
        raise ValueError(f"expected a task and its seed, got {name!r:.60} and {seed!r:.20}")
    if not re.fullmatch(r"miniwob\.[a-z0-9-]{1,80}", name):
        raise ValueError(f"expected a task of MiniWoB, got {name!r:.60}")
    if env.get("task_kwargs"):
        raise ValueError("the task has arguments (task_kwargs), which have no counterpart")
    task = Task(name.removeprefix(PREFIX), seed)
    agent = attributes_of(arguments.get("agent_args")).get("agent_name")
    steps = _read_steps(folder)
    actions, thoughts = list[str](), list[str]()
    goal = attributes_of(steps[0].get("obs")).get("goal")
    for step, after in zip(steps, [*steps[1:], {}], strict=True):
        text = step.get("action")
        if text is None or attributes_of(after.get("obs")).get("last_action_error"):
            continue
        done = to_actions(text, task)
        actions += done
        think = attributes_of(step.get("agent_info")).get("think")
        # The ids of a thought are BrowserGym's: the model would learn ids that are not there.
        think = think.strip() if isinstance(think, str) else ""
        think = "" if re.search(r"\bbid|[0-9]", think) else think
        thoughts += [think, *[""] * len(done)][: len(done)]
    if not actions:
        raise ValueError("it has no action")
    return Demonstration(
        task,
        goal if isinstance(goal, str) else "",
        tuple(actions),
        source=agent if isinstance(agent, str) else "agentlab",
        thoughts=tuple(thoughts) if any(thoughts) else (),
    )


def to_actions(text: Any, task: Task) -> list[str]:
    """Return our actions for those of a step of BrowserGym.

    Args:
        text: calls such as `click('13')`, one per line, with BrowserGym's element ids.
        task: determines our element ids.

    Raises:
        ValueError: one of them has no counterpart; the message begins with its name.
    """
    try:
        body = ast.parse(text if isinstance(text, str) else "?").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"expected actions such as click('13'), got {text!r:.60}") from error
    return [_to_action(statement, task) for statement in body]


def _to_action(statement: ast.stmt, task: Task) -> str:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"expected actions such as click('13'), got {ast.dump(statement):.60}")
    name = call.func.id
    if name not in ARGUMENTS:
        raise ValueError(f"{name:.40} has no counterpart")
    expected, further = ARGUMENTS[name], FURTHER.get(name, ())
    try:
        values = dict(zip((*expected, *further), map(ast.literal_eval, call.args), strict=False))
        values |= {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{name}: expected plain arguments") from error
    given = len(call.args)
    if not set(expected) <= set(values) or given > len(expected) + len(further):
        names = ", ".join(expected or further)
        raise ValueError(f"{name}: expected {names}, got {given or 'no'} arguments")
    for key, value in values.items():
        if key not in expected and key != "wait_ms" and value != DEFAULTS.get(key, ...):
            raise ValueError(f"{name} with {key:.40}={value!r:.40} has no counterpart")
    options = values.get("options")
    if isinstance(options, list) and len(options) == 1:
        values["options"] = options[0]
    kinds = zip(expected, ACTIONS[name], strict=True)
    args: list[Any] = [
        page_id(task, str(values[key])) if kind == "id" else values[key] for key, kind in kinds
    ]
    ours = format_action(Action(name, tuple(args)))
    try:
        parse_action(ours)
    except InvalidAction as error:
        raise ValueError(f"{name} has other arguments: {error}") from error
    return ours


def _read_steps(folder: Path) -> list[dict[str, Any]]:
    found = {
        int(match[1]): path
        for path in folder.glob("step_*.pkl.gz")
        if (match := re.fullmatch(r"step_([0-9]{1,6})\.pkl\.gz", path.name))
    }
    if not found or sorted(found) != list(range(len(found))) or len(found) > MAX_TURNS:
        raise ValueError(
            f"expected step_0.pkl.gz and those after it, at most {MAX_TURNS}, got {len(found)}"
        )
    return [attributes_of(read_pickle(found[n], packed=True)) for n in range(len(found))]
