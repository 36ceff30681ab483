"""Demonstrations: episodes that somebody showed, in a file with one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Task

MAX_LINE = 10_000_000
"""Longest line of a file that is read, in characters."""


@dataclass(frozen=True)
class Demonstration:
    """One episode that solved its task.

    Attributes:
        task: its task and seed, with which it can be played again.
        goal: the instruction in words.
        actions: plain actions, one per turn: texts for `Env.step`, or, where an environment has
            other completions, for `Formatter.write_action`. Where it numbers its elements, with the
            numbers of `task`.
        pages: the page before each action as the model reads it, or none at all; for reference.
        source: where it comes from: "record", "oracle", the name of a model.
        task_file: absolute path of the file of the task; empty for one of BrowserGym's. In a file
            of demonstrations it is relative to that file.
        thoughts: what is said before each action in answer formats that have thoughts, or none at
            all. An empty one is left to the environment; numbers of elements stay as they are.
    """

    task: Task
    goal: str
    actions: tuple[str, ...]
    pages: tuple[str, ...] = ()
    source: str = ""
    task_file: str = ""
    thoughts: tuple[str, ...] = ()

    def to_json(self, folder: Path) -> str:
        """Return its line of a file in this folder, without the line's end."""
        line: dict[str, Any] = {
            "task": self.task.name,
            "seed": self.task.seed,
            "goal": self.goal,
            "actions": self.actions,
            "pages": self.pages,
            "source": self.source,
            "task_file": self.task_file and os.path.relpath(self.task_file, folder),
        }
        if self.thoughts:
            line["thoughts"] = self.thoughts
        return json.dumps(line)

    @classmethod
    def from_json(cls, line: str, folder: Path) -> Demonstration:
        """Read a line of a file in this folder; keys that it does not know are left out.

        Raises:
            ValueError: it is not a demonstration; the message says what was expected.
        """
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a JSON object, got {line[:60]!r}") from error
        if not isinstance(found, dict):
            raise ValueError(f"expected a JSON object, got {line[:60]!r}")
        name, seed = found.get("task"), found.get("seed")
        if not isinstance(name, str) or not name:
            raise ValueError(f"task must be the name of a task, got {name!r:.60}")
        if type(seed) is not int or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r:.60}")
        actions = _texts("actions", found.get("actions"))
        pages = _texts("pages", found.get("pages", ()))
        thoughts = _texts("thoughts", found.get("thoughts", ()))
        if not actions:
            raise ValueError("actions must be at least one text, got none")
        for noun, each in (("page", pages), ("thought", thoughts)):
            if each and len(each) != len(actions):
                raise ValueError(
                    f"expected a {noun} for each of {len(actions)} actions, got {len(each)}"
                )
        texts = {key: found.get(key, "") for key in ("goal", "source", "task_file")}
        for key, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"{key} must be a text, got {text!r:.60}")
        if texts["task_file"]:
            texts["task_file"] = os.path.abspath(folder / texts["task_file"])
        return cls(Task(name, seed), actions=actions, pages=pages, thoughts=thoughts, **texts)


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """Read a file of demonstrations.

    Raises:
        ValueError: a line is not a demonstration, or there is none; the message names the line.
        OSError: the file cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        found = list(_read(file, Path(path)))
    if not found:
        raise ValueError(f"expected demonstrations in {path}, got an empty file")
    return found


def append_demonstration(path: str | Path, demonstration: Demonstration) -> None:
    """Add a demonstration to a file, which is created where it is missing.

    It is on the disk when this returns; a line that a crash left unfinished is ended first.
    """
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(demonstration.to_json(folder).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _read(file: Any, path: Path) -> Iterator[Demonstration]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            yield Demonstration.from_json(line, path.parent)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _texts(key: str, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key} must be a list of texts, got {texts!r:.60}")
    return tuple(texts)
