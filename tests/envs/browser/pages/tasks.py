"""The pages of this folder as tasks, whose addresses the test puts into the environment."""

import os
from urllib.parse import quote

from page_table import PAGES
from ways_out import WAYS, task_name

from envs.browser import Outcome, WebTask


class _PageTask(WebTask):
    site = os.environ.get("PAGES_SITE", "http://127.0.0.1:9")
    max_turns = 50
    path = ""
    check = "false"
    wait_until = "load"

    async def setup(self, page, rng):
        await page.goto(f"{self.url}/{self.path}", wait_until=self.wait_until)
        if self.wait_until == "load":
            assert not await page.evaluate(self.check), "this holds before the first action"
        return "Do what the table says."

    async def evaluate(self, page):
        return Outcome(float(bool(await page.evaluate(self.check))))


for _name, _entry in PAGES.items():
    globals()[_name] = _PageTask(
        name=_name.replace("/", "."),
        check=_entry.check,
        allowed_origins=os.environ.get("PAGES_ORIGINS", "").split(),
        **{"path": f"{_name}.html", **_entry.attributes},
    )
for _name, _html in WAYS.items():
    globals()[_name] = _PageTask(name=task_name(_name), path=f"html?{quote(_html)}")
GOTO = _PageTask(name="goto", path="navigation/target.html", actions=("goto",))
STATE = _PageTask(name="state", path="isolation/state.html")
LOCAL = _PageTask(name="local", path="local.html")
HELD = _PageTask(name="held", path="late/held.html", check="window.bought")
LOCALHOST = _PageTask(
    name="localhost",
    site=_PageTask.site.replace("127.0.0.1", "localhost"),
    path="localhost.html",
)
