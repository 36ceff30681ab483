"""A worker process: one Chromium, and the sessions in it, one request at a time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import playwright.sync_api as playwright

from envs.actions import Action
from envs.base import TaskError
from envs.server.chromium import CHROMIUM_ARGS, find_chromium
from envs.server.session import Session, SessionError, find_task, tasks

_PR_SET_PDEATHSIG = 1


def main(connection: Connection) -> None:
    """Answer requests until the pipe ends, which it does when the server dies.

    A request is `(method, session id, keyword arguments)`; the answer is a dict or one of
    `TaskError` and `SessionError`.
    """
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the server, which ends us
    with playwright.sync_playwright() as driver:
        driver.selectors.set_test_id_attribute("bid")
        worker = _Worker(driver)
        tasks()
        connection.send({})
        while True:
            try:
                method, session_id, arguments = connection.recv()
            except EOFError:
                break
            connection.send(worker.answer(method, session_id, arguments))
        worker.browser.close()


class _Worker:
    def __init__(self, driver: playwright.Playwright):
        self.driver = driver
        self.browser = self._launch()
        self.sessions: dict[int, Session] = {}
        self.lost: set[int] = set()

    def answer(self, method: str, session_id: int, arguments: dict[str, Any]) -> Any:
        try:
            return getattr(self, method)(session_id, **arguments)
        except (TaskError, SessionError) as error:
            return error
        except Exception as error:
            # Playwright's errors are many, and none of them is an outcome of the episode.
            self._lose(session_id)
            return SessionError(f"the session is lost: {type(error).__name__}: {error}")

    def reset(self, session_id: int, task_name: str, seed: int, screenshot: bool) -> dict[str, Any]:
        self._check(session_id)
        task_class = find_task(task_name)
        if session_id not in self.sessions:
            self.sessions[session_id] = self._open()
        return self.sessions[session_id].reset(task_class, seed, screenshot)

    def step(self, session_id: int, action: Action) -> dict[str, Any]:
        self._check(session_id)
        if session_id not in self.sessions:
            raise SessionError("no episode is running: reset first")
        return self.sessions[session_id].step(action)

    def close(self, session_id: int) -> dict[str, Any]:
        self.lost.discard(session_id)
        session = self.sessions.pop(session_id, None)
        if session is not None:
            session.close()
        return {}

    def _open(self) -> Session:
        try:
            return Session(self.browser)
        except playwright.Error:
            # The browser died, perhaps while nobody asked it for anything.
            with contextlib.suppress(playwright.Error):
                self.browser.close()
            self.lost |= set(self.sessions)
            self.sessions = {}
            self.browser = self._launch()
            return Session(self.browser)

    def _check(self, session_id: int) -> None:
        if session_id in self.lost:
            raise SessionError("the session is lost: open a new one")

    def _lose(self, session_id: int) -> None:
        """End the session, and with a dead browser every session that lived in it."""
        gone = [session_id] if session_id in self.sessions else []
        if not self.browser.is_connected():
            gone = list(self.sessions)
        for one in gone:
            self.lost.add(one)
            session = self.sessions.pop(one)
            with contextlib.suppress(playwright.Error):  # it is gone already
                session.close()

    def _launch(self) -> playwright.Browser:
        sandbox = hasattr(os, "geteuid") and os.geteuid() != 0  # Chromium refuses it to root
        return self.driver.chromium.launch(
            executable_path=find_chromium(),
            args=list(CHROMIUM_ARGS),
            chromium_sandbox=sandbox,
            ignore_default_args=["--hide-scrollbars"],
        )


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
