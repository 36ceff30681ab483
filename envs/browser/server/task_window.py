"""The window that a task of the user's own asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.connected import ConnectedWindow
from envs.browser.server.playwright.origins import Origins
from envs.browser.server.playwright.window import Window
from envs.browser.server.task_code import task_error
from envs.browser.web_task import WebTask


def task_window(browser: PlaywrightChromium, task: WebTask, folder: Path) -> Window:
    """Return a window for an episode of a task, not opened yet.

    Args:
        browser: the Chromium.
        task: the task, with the address of its site.
        folder: the folder that the task's relative paths start from.

    Raises:
        TaskError: the task brings cookies, and the browser has its user's.
    """
    options: dict[str, Any] = {}
    if task.storage_state is not None:
        state = task.storage_state
        options["storage_state"] = folder / state if isinstance(state, str) else state
    if browser.is_shared and (task.cookies or options):
        raise task_error(task, "its cookies cannot be used in a browser that runs already")
    return (ConnectedWindow if browser.is_shared else Window)(
        browser,
        Origins([task.url, *task.allowed_origins]),
        (task.viewport[0], task.viewport[1]),
        {name: folder / path for name, path in task.files.items()},
        [
            dict(cookie) if cookie.keys() & {"url", "domain"} else {**cookie, "url": task.url}
            for cookie in task.cookies
        ],
        options,
    )
