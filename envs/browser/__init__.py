"""Everything about browsers: tasks on web pages, the client, the page text, the server, MiniWoB."""

from envs.browser.web_task import Command, Folder, Outcome, WebTask

__all__ = ["Command", "Folder", "Outcome", "WebTask"]
