"""`benchmarks/pages.py`: its verdicts cover all tasks, and its table adds up."""

from collections import Counter
from pathlib import Path

from benchmarks.pages import (
    UNSOLVED,
    VERDICTS,
    markdown,
    measure,
    success_section,
    summary,
    totals,
    verdicts,
)
from envs.base import Observation
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.miniwob.tasks import tasks


def test_every_task_without_a_solver_has_one_verdict():
    names = Counter(name for _, _, some in UNSOLVED for name in some.split())
    assert names == Counter(set(tasks()) - set(SOLVERS))
    assert {kind for kind, _, _ in UNSOLVED} == set(VERDICTS) - {"solved"}


class Words:
    """A chat template, and its tokenizer of one token per word."""

    @property
    def tokenizer(self):
        return self

    def __call__(self, text, add_special_tokens):
        return {"input_ids": text.split()}

    def prompt(self, messages):
        return ["<chat>", *" ".join(message["content"] for message in messages).split()]


WORDS = {"click-test": (1, 5, 2), "hot-cold": (3, 4, 8)}


class Stub:
    """An environment whose pages have as many words as `WORDS` says; their trees, twice as many."""

    async def reset(self, task):
        page = " ".join(["a"] * WORDS[task.name][task.seed])
        self.tree = f"{page} {page}, url='file:///a folder with words/page.html'"
        return Observation(({"role": "user", "content": f"goal {page}"},), page=page)


async def test_the_table():
    rows = await measure(Stub(), ["click-test", "hot-cold"], 3, Words())
    assert rows == [
        {"task": "click-test", "tree": 5, "page": 2, "prompt": 4, "ids": "solved"},
        {"task": "hot-cold", "tree": 9, "page": 4, "prompt": 6, "ids": "pixels: a position"},
    ]
    assert [(row["task"], row["tree"], row["page"]) for row in summary(rows)] == [
        ("median", 7, 3),
        ("largest", 9, 4),
    ]
    assert {kind: n for kind, n in totals(rows).items() if n} == {"solved": 1, "pixels": 1}
    text = markdown(rows, 3)
    assert "Of BrowserGym's 2 MiniWoB tasks, 1 are solved, 0 more are attemptable" in text
    assert "| hot-cold | 9 | 4 | 6 | pixels: a position |\n| median | 7 | 3 | 5 |  |\n" in text
    assert verdicts()["hot-cold"] == "pixels: a position"


def test_the_page_says_what_a_success_is_now():
    page = Path(__file__).resolve().parents[2] / "docs" / "pages.md"
    assert page.read_text().endswith(success_section())
    assert "\n| phone-book | 0.4 for another detail of the right person | 1 |  |\n" in (
        success_section()
    )
