"""A todo list: add, complete and delete an item, and the same with items that are held out."""

import json
from collections.abc import Sequence
from random import Random

from playwright.async_api import Page

from envs.browser import Folder, Outcome, WebTask
from envs.browser.page_text import Element

ITEMS = tuple(
    f"{verb} {noun}"
    for verb, nouns in {
        "buy": ("milk", "bread", "coffee", "stamps", "flowers"),
        "call": ("Ann", "the bank", "Grandma", "the dentist", "Sam"),
        "clean": ("the windows", "the car", "the oven", "the desk", "the bikes"),
        "book": ("a table", "a flight", "the hall", "a hotel", "two seats"),
    }.items()
    for noun in nouns
)
NEW_ITEMS = (
    *("water the plants", "fix the lamp", "send the report", "feed the cat", "pay the rent"),
    *("wash the dog", "read chapter two", "paint the fence", "find my keys", "visit Tom"),
)


class _Todo(WebTask):
    """A list of three items and one change to make; any other change ends the episode."""

    site = Folder("site")
    items: Sequence[str] = ITEMS
    max_turns = 1
    deterministic = True
    expected: list[dict[str, object]]

    async def open(self, page: Page, path: str, texts: Sequence[str]) -> None:
        self.start = [{"text": text, "done": False} for text in texts]
        # Runs before the page's own scripts, on every page: `??=` keeps a list that is there.
        await page.add_init_script(f"localStorage.todos ??= {json.dumps(json.dumps(self.start))}")
        await page.goto(self.url + path)

    async def evaluate(self, page: Page) -> Outcome:
        todos = await page.evaluate("JSON.parse(localStorage.todos)")
        success = todos == self.expected
        return Outcome(reward=float(success), done=todos != self.start, success=success)


class AddTodo(_Todo):
    """Type the item, then click Add."""

    max_turns = 2

    async def setup(self, page: Page, rng: Random) -> str:
        self.item, *others = rng.sample(self.items, 4)
        await self.open(page, "/new.html", others)
        self.expected = [*self.start, {"text": self.item, "done": False}]
        return f'Add "{self.item}" to the list.'

    def demonstrate(self, elements: Sequence[Element], turn: int) -> str:
        if turn == 0:
            return f"fill({id_of('Text', elements)!r}, {self.item!r})"
        return f"click({id_of('Add', elements)!r})"


class CompleteTodo(_Todo):
    """Click the item's checkbox."""

    async def setup(self, page: Page, rng: Random) -> str:
        texts = rng.sample(self.items, 3)
        self.item = rng.choice(texts)
        await self.open(page, "/", texts)
        self.expected = [todo | {"done": todo["text"] == self.item} for todo in self.start]
        return f'Mark "{self.item}" as done.'

    def demonstrate(self, elements: Sequence[Element], turn: int) -> str:
        return f"click({id_of(f'Mark {self.item} as done', elements)!r})"


class DeleteTodo(_Todo):
    """Click the item's button."""

    async def setup(self, page: Page, rng: Random) -> str:
        texts = rng.sample(self.items, 3)
        self.item = rng.choice(texts)
        await self.open(page, "/", texts)
        self.expected = [todo for todo in self.start if todo["text"] != self.item]
        return f'Delete "{self.item}".'

    def demonstrate(self, elements: Sequence[Element], turn: int) -> str:
        return f"click({id_of(f'Delete {self.item}', elements)!r})"


def id_of(name: str, elements: Sequence[Element]) -> str:
    """Return the id of the first element with this name."""
    return next(element.id for element in elements if element.name == name)


AddTodoHeldOut = AddTodo(items=NEW_ITEMS, held_out=True)
CompleteTodoHeldOut = CompleteTodo(items=NEW_ITEMS, held_out=True)
DeleteTodoHeldOut = DeleteTodo(items=NEW_ITEMS, held_out=True)
