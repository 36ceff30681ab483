"""Recorded episodes: a picture of every page, and what was said to it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any

from envs.base import Task
from envs.replay import Pool
from grpo.files import replacing, write_text
from grpo.reporting.pictures import cropped, outlined
from grpo.rollouts.page_state import page_state
from grpo.rollouts.rollout import OnEpisode, Rollouts, ignore_episode
from grpo.safe_output import one_line
from grpo.types import Episode, StepRecord

MAX_NAME = 200
"""Bytes of a folder's name; file systems take 255."""

_log = logging.getLogger(__name__)


async def record_episode(
    rollouts: Rollouts,
    task: Task,
    folder: Path,
    seed: int = 0,
    *,
    on_episode: OnEpisode = ignore_episode,
) -> None:
    """Play one episode, and keep a picture of each page and the completion for it.

    Writes `<task>/<seed>/<k>.png` for every page, with an outline around the elements that were
    then acted on, and `<task>/<seed>/episode.json` into the folder; nothing if the episode was
    dropped.

    Args:
        rollouts: plays the episode.
        task: what to play.
        folder: created where it is missing.
        seed: determines what is sampled.
        on_episode: called after the episode.
    """
    episode = await rollouts.episode(task, [seed, task.seed], record=True, on_episode=on_episode)
    if episode is not None:
        save_episode(episode, folder)


def save_episode(episode: Episode, folder: Path, *, has_check: bool = True) -> None:
    """Keep an episode that was played with `record=True`; see `record_episode`.

    Args:
        episode: the episode.
        folder: created where it is missing.
        has_check: False if nothing has decided whether it is solved.
    """
    place = folder / _folder_name(episode.task.name) / str(episode.task.seed)
    _save(episode, place, has_check=has_check)


async def record_replay(pool: Pool, episode: Episode, folder: Path, *, bonus: float = 0.0) -> None:
    """Execute the actions of an episode again for their pictures, and keep them.

    Pages and rewards are compared with the episode's. From the first that differs on (the task is
    then not deterministic) only the completions are kept: a picture is of the episode, or missing.

    Args:
        pool: lends the session.
        episode: what was played.
        folder: of its files, as `record_episode` names them.
        bonus: reward for each valid action, which the turns' rewards include.

    Raises:
        EnvError: the infrastructure failed.
        OSError: the files cannot be written.
    """
    records: list[StepRecord] = []
    async with pool.lease() as env:
        observation = await env.reset(episode.task, screenshot=True)
        for k, turn in enumerate(episode.turns, 1):
            if page_state(observation) != turn.state:
                break
            result = await env.step(turn.text)
            reward = result.reward + bonus * result.valid_action
            is_end = k == len(episode.turns) and episode.stop_reason == "done"
            if result.done != is_end or not isclose(reward, turn.reward):
                break
            records.append(StepRecord(observation, result))
            observation = result.observation
        else:
            records.append(StepRecord(observation))
    _save(replace(episode, records=tuple(records)), folder, durable=False)


def record_tally(folder: Path, tally: Mapping[str, Mapping[str, int]]) -> None:
    """Keep how many episodes of an evaluation were solved, beside those that were recorded.

    Args:
        folder: of `record_episode`; created where it is missing.
        tally: `solved` and `n` by task.
    """
    text = json.dumps({name: {k: of[k] for k in ("solved", "n")} for name, of in tally.items()})
    write_text(folder / "tally.json", text + "\n")


def _save(episode: Episode, folder: Path, *, durable: bool = True, has_check: bool = True) -> None:
    """Write an episode's files, all of them or none."""
    unknown = {} if has_check else {"solved": None}
    text = json.dumps(_as_json(episode) | unknown, indent=2)
    with replacing(folder, durable=durable) as unfinished:
        unfinished.mkdir()
        for k, picture in _pictures(episode).items():
            (unfinished / f"{k}.png").write_bytes(picture)
        (unfinished / "episode.json").write_text(text + "\n", encoding="utf-8")


def _folder_name(task: str) -> str:
    """Return a task's name without what would name another folder."""
    name = one_line(task).replace("/", "%2F")
    if len(name.encode()) > MAX_NAME:
        name = name[: MAX_NAME // 8] + hashlib.sha256(name.encode()).hexdigest()
    return name if name.strip(".") else name.replace(".", "%2E")


def _pictures(episode: Episode) -> dict[int, bytes]:
    """Return the pictures of an episode's pages by their number, without those that are broken."""
    pictures = {}
    for k, (observation, result) in enumerate(episode.records):
        if observation.screenshot is not None:
            try:
                pictures[k] = outlined(observation.screenshot, result.acted_on if result else ())
            except ValueError as error:
                _log.warning("a picture of %s is left out: %s", episode.task.name, error)
    try:
        return dict(zip(pictures, cropped(list(pictures.values())), strict=True))
    except ValueError as error:
        _log.warning("the pictures of %s are left out: %s", episode.task.name, error)
        return {}


def _as_json(episode: Episode) -> dict[str, Any]:
    """Describe an episode: of every page what was read, the completion, and its result.

    The last entry is the page that nothing was said to; a page that was not recorded has no prompt.
    """
    pages: list[dict[str, Any]] = []
    for k, turn in enumerate(episode.turns):
        page = {
            "completion": turn.text,
            "valid": turn.valid_action,
            "reward": turn.reward,
            "logprob": sum(turn.completion.logprobs),
            "tokens": len(turn.completion.logprobs),
        }
        if k < len(episode.records):
            observation, result = episode.records[k]
            if cut := turn.completion.lines_cut:
                observation = observation.cut(len(observation.page.splitlines()) - cut)
            page["prompt"] = observation.messages[-1]["content"]
            if result is not None:
                page |= {"reward": result.reward, "error": result.observation.error}
        pages.append(page)
    end = episode.records[len(pages) :]
    pages.append({"prompt": end[0].observation.messages[-1]["content"]} if end else {})
    return {
        "task": episode.task.name,
        "seed": episode.task.seed,
        "goal": episode.goal,
        "reward": episode.reward,
        "solved": episode.success,
        "stop_reason": episode.stop_reason,
        "pages": pages,
    }
