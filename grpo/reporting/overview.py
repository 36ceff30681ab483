"""Success per task over the steps, and what changed: the first part of a run's page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo.rollouts.evaluation import Outcome

POINTS = 60
"""Points of a task's curve; more steps are averaged."""

CHANGE = 0.1
"""A success rate that changes by less is not mentioned."""

Points = Sequence[tuple[float, float]]
"""Steps, and a task's success in each."""


def overview(
    tasks: Sequence[str],
    steps: Sequence[Mapping[str, float]],
    summary: Mapping[str, Any],
    *,
    every: int,
    is_over: bool = False,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Collect the success rates of a run's page.

    Args:
        tasks: the evaluated tasks.
        steps: metrics of the training steps, as `read_metrics` returns them.
        summary: success rates of the agents, as the reports hold them.
        every: that many steps are compared with as many before them; 0 for no comparison.
        is_over: True to compare the trained policy with the untrained one instead.
        changes: lines to show before those of the comparison.

    Returns:
        A JSON object: `rates`, sampled success over the trained tasks by agent; `tasks`, each
        with its own `rates`, `points`, and `now`, its success in the newest steps; `compared`,
        a heading, and `changes`, lines below it.
    """
    last = int(steps[-1]["step"]) if steps else 0
    rows, pairs, found = [], [], list(changes)
    compared = ""
    for name in tasks:
        key = f"success/{name}"
        points = [(step["step"], step[key]) for step in steps if key in step]
        rates = _sampled(summary.get("per_task", {}).get(name, {}))
        now, before = (_mean(points, last - k * every, every) for k in (1, 2))
        rows.append({"task": name, "points": _thinned(points), "now": now, "rates": rates})
        if is_over:
            before, now = (rates.get(k, {}).get("success") for k in ("untrained", "trained"))
            pairs.append((name, before, now))
        else:
            pairs.append((name, before, now))
            first = next((step for step, success in points if success), 0)
            if 0 < last - every < first and points[0][0] < first:
                found.append(f"{name}: solved for the first time, in step {first}")
    if is_over and "trained" in summary:
        compared = "The trained policy, compared with the untrained one"
    elif not is_over and 0 < every < last:
        compared = f"Steps {last - every + 1} to {last}, compared with those before"
    return {
        "rates": _sampled(summary),
        "tasks": rows,
        "compared": compared,
        "changes": found + _changed(pairs),
    }


def solved_now(before: Iterable[Outcome], after: Iterable[Outcome]) -> list[str]:
    """Say of how many held-out episodes the training has changed the end.

    Args:
        before: outcomes of the untrained policy.
        after: outcomes of the trained one; those of equal tasks and seeds are compared.
    """
    was = {outcome.task: outcome.success for outcome in before}
    ends = [(was[outcome.task], outcome.success) for outcome in after if outcome.task in was]
    of_failed = [is_solved for was_solved, is_solved in ends if not was_solved]
    of_solved = [is_solved for was_solved, is_solved in ends if was_solved]
    lines = []
    if of_failed:
        lines.append(
            f"{sum(of_failed)} of {len(of_failed)} held-out episodes that failed before the "
            "training are solved now"
        )
    if of_solved:
        lost = of_solved.count(False)
        lines.append(f"{lost} of {len(of_solved)} that were solved before it fail now")
    return lines


def _sampled(rates: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the sampled success rates by agent; other entries are left out."""
    return {
        agent: rate["sampled"]
        for agent, rate in rates.items()
        if isinstance(rate, Mapping) and "sampled" in rate
    }


def _mean(points: Points, first: int, count: int) -> float | None:
    """Average the success of steps first + 1 to first + count; None if the task was not played."""
    values = [success for step, success in points if first < step <= first + count]
    return sum(values) / len(values) if values else None


def _thinned(points: Points) -> list[tuple[float, float]]:
    bins = min(POINTS, len(points))
    edges = [i * len(points) // bins for i in range(bins + 1)] if bins else []
    means = []
    for a, b in pairwise(edges):
        steps, values = zip(*points[a:b], strict=True)
        means.append((sum(steps) / (b - a), sum(values) / (b - a)))
    return means


def _changed(pairs: Iterable[tuple[str, float | None, float | None]]) -> list[str]:
    """Say which tasks' success rose or fell, the largest changes first."""
    known = [(name, a, b) for name, a, b in pairs if a is not None and b is not None]
    known = [pair for pair in known if abs(pair[2] - pair[1]) >= CHANGE - 1e-9]
    known.sort(key=lambda pair: -abs(pair[2] - pair[1]))
    return [
        f"{name}: success {'rose' if b > a else 'fell'} from {a:.2f} to {b:.2f}"
        for name, a, b in known
    ]
