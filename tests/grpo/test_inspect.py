"""`grpo inspect`: the page and its tokens, what agents score, a picture."""

import dataclasses
import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from envs.base import EnvError, Observation, Task
from envs.browser.new_site import write_site
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.cli import main
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.inspect import run_inspection
from grpo.model.loading import load_chat
from grpo.reporting.inspection import print_inspection
from grpo.reporting.progress import SafeConsole
from tests.support.models import TASK, make_model, make_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tokenizer and a configuration, and no weights."""
    folder = tmp_path_factory.mktemp("inspect") / "tiny-model"
    make_tokenizer().save_pretrained(folder)
    make_model("llama").config.save_pretrained(folder)
    return folder


@pytest.fixture
def look(model, tmp_path):
    """A function that inspects an environment's tasks; options are those of `Config`."""

    async def look(env=ScriptedEnv, sessions=2, **options):
        options = {"task": TASK.name, "seed": TASK.seed, "eval_episodes": 6} | options
        config = Config(model=str(model), output=str(tmp_path / "out"), **options)
        return await run_inspection(config, EnvPool(env, sessions))

    return look


def shown(found, width=100):
    file = io.StringIO()
    print_inspection(SafeConsole(file=file, width=width), found)
    return file.getvalue()


async def test_the_tokens_are_the_models_own(look, model):
    (found,) = await look()
    chat, limit = load_chat(Config(model=str(model)))
    messages = found.observation.messages
    assert found.prompt_tokens == len(chat.prompt(messages))
    assert found.page_tokens == len(make_tokenizer()(found.observation.page)["input_ids"])
    assert (found.max_tokens, limit) == (128 - Config().max_new_tokens, 128)
    assert (found.lines_cut, found.model) == (0, "tiny-model")
    assert f"tiny-model, seed {TASK.seed}" in shown(found)


async def test_a_page_that_is_cut_is_said(look):
    (whole,) = await look()
    (found,) = await look(max_prompt_tokens=whole.prompt_tokens - 1)
    assert found.max_tokens == whole.prompt_tokens - 1
    assert found.lines_cut >= 1
    assert found.prompt_tokens < whole.prompt_tokens
    text = " ".join(shown(found, 300).split())
    assert f"the last {found.lines_cut} line" in text
    assert "of the page are left out" in text


class Undemonstrated(ScriptedEnv):
    """A task without a scripted solver."""

    def demonstrate(self):
        return ""


async def test_the_random_agent_plays_so_many_episodes_from_the_seed_on(look):
    seeds = []

    class Noting(Undemonstrated):
        async def reset(self, task, **options):
            seeds.append(task.seed)
            return await super().reset(task, **options)

    (found,) = await look(Noting, eval_episodes=9)
    assert sorted(seeds) == sorted([TASK.seed, *range(TASK.seed, TASK.seed + 9)])
    assert (found.random.rate.n, found.random.actions) == (9, 9)
    assert f"{found.random.rate.success:.2f} [" in shown(found)
    assert found.scripted is None
    assert "demonstration   none" in shown(found)


class Clumsy(ScriptedEnv):
    """Fails an action, refuses the next one, and then lets the episode succeed."""

    async def reset(self, task, **options):
        self.turn = 0
        self.page = await super().reset(task, **options)
        return self.page

    async def step(self, text):
        self.turn += 1
        result = await super().step("nonsense")
        page = dataclasses.replace(result.observation, error="click failed: it is [bold]covered")
        if self.turn == 1:
            return dataclasses.replace(result, observation=page, valid_action=True)
        if self.turn == 2:
            return result
        return dataclasses.replace(
            result, observation=self.page, valid_action=True, done=True, success=True, reward=1.0
        )

    def demonstrate(self):
        return "click('1')"


async def test_failed_and_invalid_actions_are_counted(look):
    (found,) = await look(Clumsy)
    assert (found.random.actions, found.random.invalid) == (18, 6)
    assert found.random.failed == Counter({"click failed: it is [bold]covered": 6})
    text = shown(found)
    assert "of 18 actions 6 failed, 6 were invalid" in text
    assert "6 x click failed: it is [bold]covered" in text


async def test_a_demonstration_is_played(look):
    (found,) = await look(Clumsy)
    assert (found.scripted.rate.solved, found.scripted.rate.n) == (6, 6)
    assert "demonstration   success 1.00 [0.61, 1.00] in 6 episodes, 3.0 actions each" in shown(
        found
    )


async def test_failures_of_the_infrastructure_are_no_episodes(look):
    class Dying(Undemonstrated):
        async def reset(self, task, **options):
            self.dies = task.seed == TASK.seed
            return await super().reset(task, **options)

        async def step(self, text):
            if self.dies:
                raise EnvError("the browser died")
            return await super().step(text)

    (found,) = await look(Dying)
    assert (found.random.failures, found.random.lost, found.random.rate.n) == (2, 1, 5)
    assert "2 failures, 1 episode lost; the last: the browser died" in shown(found)


async def test_the_first_page_is_tried_twice(look):
    made = []

    def make():
        made.append(ScriptedEnv(fail_at=1 if len(made) < limit else 0))
        return made[-1]

    limit = 1
    (found,) = await look(make, sessions=1)
    assert found.random.failures == 0
    made, limit = [], 9
    with pytest.raises(EnvError):
        await look(make, sessions=1)
    assert len(made) == 2


class Framed(ScriptedEnv):
    """A page with a picture, and one element on it."""

    boxes = {"12": (10.0, 10.0, 50.0, 20.0)}  # noqa: RUF012

    async def reset(self, task, *, screenshot=False):
        page = await super().reset(task)
        file = io.BytesIO()
        Image.new("RGB", (400, 300), "white").save(file, "PNG")
        return dataclasses.replace(page, screenshot=file.getvalue() if screenshot else None)


async def test_a_picture_of_the_page(look, tmp_path):
    (found,) = await look(Framed)
    assert found.picture == tmp_path / "out" / f"{TASK.name}-{TASK.seed}.png"
    assert (found.drawn, Image.open(found.picture).width > 400) == (1, True)
    assert f"{found.picture}  (1 element in the window)" in shown(found, 300)


async def test_a_page_without_a_picture_leaves_no_folder(look, tmp_path):
    (found,) = await look()
    assert found.picture is None
    assert "screenshot" not in shown(found)
    assert not (tmp_path / "out").exists()


async def test_no_episodes(look):
    (found,) = await look(eval_episodes=0)
    assert "random agent    no episode was played" in shown(found)


async def test_every_task_is_shown(look, capsys):
    found = await look(task="click-word", held_out_tasks="click-two-words", eval_episodes=1)
    assert [each.task.name for each in found] == ["click-word", "click-two-words"]
    text = capsys.readouterr().out
    assert text.index("click-word ─") < text.index("click-two-words ─")


async def test_what_a_page_says_is_shown_as_text(look):
    (found,) = await look()
    evil = Observation((), "\x1b[2J[red]goal", "text '\x1b]0;evil\x07[link]'")
    text = shown(dataclasses.replace(found, observation=evil, task=Task("a\x1b[1m\nb", 0)))
    assert "\x1b" not in text
    assert "\\x1b[2J[red]goal" in text
    assert "[link]" in text
    assert "a\\x1b[1m b ─" in text


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot load model"):
        load_chat(Config(model=str(tmp_path)))


@pytest.mark.browser
@pytest.mark.model
def test_the_template_as_a_new_user_sees_it(tmp_path, monkeypatch, capsys):
    write_site(tmp_path / "my_site")
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "my_site/tasks.py", "--episodes", "4", "--env-workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "button 'Green tea' [" in text
    assert text.count("success 1.00 [0.51, 1.00] in 4 episodes, 1.0 actions each") == 2
    assert text.count("no failure") == 2
    for name in ("Order", "OrderNew"):
        path = Path("runs", "inspect", f"{name}-0.png")
        assert f"{path}  (8 elements in the window)" in text
        assert Image.open(path).size == (856, 656)


@pytest.mark.browser
@pytest.mark.model
def test_a_task_of_miniwob(tmp_path, capsys):
    argv = ["inspect", "click-test", "--episodes", "2", "--output", str(tmp_path)]
    assert main([*argv, "--env-workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "Click the button." in text
    assert text.count("success 1.00 [0.34, 1.00] in 2 episodes, 1.0 actions each") == 2
    assert (tmp_path / "click-test-0.png").is_file()
