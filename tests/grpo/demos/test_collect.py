"""`grpo demos collect`: what an agent solves is in the file, once, and at once."""

import asyncio
import re
import signal
from dataclasses import replace

import pytest

from envs.base import EnvError, Task
from envs.demonstrations import read_demonstrations
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.cli import main
from grpo.config import Config
from grpo.demos.collect import MAX_FAILURES, run_collection
from grpo.demos.options import Collection, read_collection
from grpo.deploy import openai_api
from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.rollouts.demonstrations import replay
from grpo.rollouts.gather import gather
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.shutdown import Shutdown, Stopped
from tests.support.models import TASK
from tests.support.openai_server import MODELS, said, serving

CHAT = "/v1/chat/completions"
SEED = 1
"""With it the first click of the tiny policy is the right one."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "demos.jsonl"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(openai_api, "PAUSES_S", (0.0,))


def collection(path, number, task="click-word", **more):
    options = {key: more.pop(key) for key in ("teacher", "teacher_model", "oracle") if key in more}
    config = Config(task=task, **({"max_turns": 3, "env_sessions": 4} | more))
    return Collection(config, number, path, **options)


async def collect(options, env=ScriptedEnv):
    return await run_collection(options, EnvPool(env, options.config.env_sessions))


async def succeeding(demonstrations):
    pool = EnvPool(ScriptedEnv, 4)
    replays = await gather(replay(pool, each) for each in demonstrations)
    return [each.succeeds and not each.differs for each in replays]


def clumsy(body):
    """Say something else first, then click the word of the goal; a wrong one for an apple."""
    content = body["messages"][-1]["content"]
    if "Error:" not in content:
        return said("I would click on it.")
    goal = re.search(r"Click (\w+)\.", content)[1]
    words = {word: number for number, word in re.findall(r"\[(\d+)\] text '(\w+)'", content)}
    if goal == "apple":
        goal = next(word for word in words if word != goal)
    return said(f" click('{words[goal]}')\n")


async def goals(number):
    env = ScriptedEnv()
    return {seed: (await env.reset(Task("click-word", seed))).goal for seed in range(number)}


# The scripted solver.


async def test_the_oracles_episodes(path, capsys):
    options = collection(path, 3, "click-word,click-two-words", oracle=True)
    assert await collect(options) == {"click-word": 3, "click-two-words": 3}
    found = read_demonstrations(path)
    assert sorted(each.task for each in found) == [
        Task(name, seed) for name in ("click-two-words", "click-word") for seed in range(3)
    ]
    assert {each.source for each in found} == {"oracle"}
    assert {(each.task.name, len(each.actions)) for each in found} == {
        ("click-word", 1),
        ("click-two-words", 2),
    }
    assert all(await succeeding(found))
    shown = capsys.readouterr().out
    assert "click-word: kept 3 of 3 episodes (1.00)" in shown
    assert "demos.jsonl: 6 demonstrations" in shown


async def test_no_seed_is_played_twice(path):
    await collect(collection(path, 2, oracle=True))
    started = []

    class Counted(ScriptedEnv):
        async def reset(self, task, **options):
            started.append(task.seed)
            return await super().reset(task, **options)

    assert await collect(collection(path, 5, oracle=True), Counted) == {"click-word": 3}
    assert sorted(started) == [2, 3, 4]
    assert sorted(each.task.seed for each in read_demonstrations(path)) == [0, 1, 2, 3, 4]
    assert await collect(collection(path, 5, oracle=True)) == {}
    of_site = collection(path, 1, oracle=True, task_file=str(path.with_name("tasks.py")))
    assert await collect(of_site) == {"click-word": 1}  # another task of this name
    assert read_demonstrations(path)[-1].task_file == of_site.config.task_file


async def test_a_failure_of_the_infrastructure_is_no_demonstration(path, capsys):
    class Dead(ScriptedEnv):
        async def reset(self, task, **options):
            if task.seed == 0:
                raise EnvError("the browser is gone")
            return await super().reset(task, **options)

    assert await collect(collection(path, 3, oracle=True), Dead) == {"click-word": 2}
    assert sorted(each.task.seed for each in read_demonstrations(path)) == [1, 2]
    shown = capsys.readouterr().out
    assert "kept 2 of 2 episodes" in shown
    assert "1 episode could not be played" in shown


async def test_the_pages_of_a_failed_attempt_are_left_out(path):
    made = []

    class Numbered(ScriptedEnv):
        def __init__(self):
            made.append(self)
            super().__init__(fail_at=3 if len(made) == 1 else 0)  # dies in its second turn

        def _observe(self, error):
            return replace(super()._observe(error), page=f"session {len(made)}")

    await collect(collection(path, 1, "click-two-words", oracle=True), Numbered)
    (found,) = read_demonstrations(path)
    assert found.pages == ("session 2", "session 2")


async def test_no_session_at_all(path):
    with pytest.raises(EnvError, match="no episode could be played; the last error: this env"):
        await collect(collection(path, 2, oracle=True), lambda: ScriptedEnv(fail_at=1))
    assert not path.exists()


async def test_an_interrupt_loses_nothing(path):
    shutdown, steps = Shutdown(), []

    class Stops(ScriptedEnv):
        async def step(self, text):
            steps.append(text)
            if len(steps) == 4:
                shutdown.request(signal.SIGINT)
                await asyncio.Event().wait()
            return await super().step(text)

    options = collection(path, 50, oracle=True, env_sessions=1)
    with pytest.raises(Stopped):
        await run_collection(options, EnvPool(Stops, 1), shutdown)
    assert [each.task.seed for each in read_demonstrations(path)] == [0, 1, 2]
    await collect(collection(path, 5, oracle=True))
    assert [each.task.seed for each in read_demonstrations(path)] == [0, 1, 2, 3, 4]


# A model behind an address.


async def test_a_teachers_solved_episodes_without_its_refused_actions(path, monkeypatch, capsys):
    monkeypatch.setenv(openai_api.API_KEY, "sesame")
    with serving({"/v1/models": MODELS, CHAT: clumsy}) as server:
        options = {"max_new_tokens": 9, "chat_template_kwargs": {"enable_thinking": False}}
        await collect(collection(path, 20, teacher=server.url, **options))
    wanted = {seed for seed, goal in (await goals(20)).items() if "apple" not in goal}
    found = read_demonstrations(path)
    assert {each.task.seed for each in found} == wanted
    assert 0 < len(wanted) < 20
    assert {each.source for each in found} == {"small"}
    assert {len(each.actions) for each in found} == {1}
    assert all(each.actions[0] == each.actions[0].strip() for each in found)
    assert all(await succeeding(found))
    share = f"kept {len(wanted)} of 20 episodes ({len(wanted) / 20:.2f})"
    assert share in capsys.readouterr().out
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies(CHAT)} == {(0, 9)}
    assert all(not body["chat_template_kwargs"]["enable_thinking"] for body in server.bodies(CHAT))
    keys = {headers["Authorization"] for _, headers, _ in server.requests}
    assert keys == {"Bearer sesame"}


async def test_one_prompt_that_the_server_refuses(path, capsys):
    goal = (await goals(3))[1]

    def respond(body):
        refused = goal in body["messages"][-1]["content"]
        return (400, "maximum context length", {}) if refused else clumsy(body)

    with serving({CHAT: respond}) as server:
        await collect(collection(path, 3, teacher=server.url, teacher_model="big"))
    seeds = {each.task.seed for each in read_demonstrations(path)}
    assert 1 not in seeds
    assert {body["model"] for body in server.bodies(CHAT)} == {"big"}
    assert "could not be played" in capsys.readouterr().out


async def test_a_server_that_fails_again_and_again(path):
    with serving({CHAT: (500, "broken", {})}) as server:
        options = collection(path, 50, teacher=server.url, teacher_model="big", env_sessions=1)
        with pytest.raises(GeneratorError, match="HTTP 500: broken"):
            await collect(options)
    assert len(server.bodies(CHAT)) == 2 * MAX_FAILURES
    assert not path.exists()


# A policy.


async def test_a_policys_solved_episodes(path, make_policy, monkeypatch):
    policy = make_policy(double=False, start=True)
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: policy)
    await collect(collection(path, TASK.seed, oracle=True))
    # One page is left: four of the policy's sixteen words are its clicks, and one of them is right.
    one_word = {"max_turns": 50, "max_new_tokens": 1, "temperature": 100.0}  # any of them
    options = collection(path, TASK.seed + 1, seed=SEED, **one_word)
    assert await collect(options) == {TASK.name: 1}
    found = read_demonstrations(path)[-1]
    assert (found.task, found.source) == (TASK, "policy")
    assert len(found.actions) == 1
    assert await succeeding([found]) == [True]


# The command.


def options_of(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return read_collection(
        text.split(), lambda file, names: {name: name == "Held" for name in names}
    )


def test_its_options(monkeypatch, tmp_path):
    found = options_of("click-word --oracle -n 7 -o x/d.jsonl --max-turns 3", monkeypatch, tmp_path)
    assert (found.oracle, found.number, str(found.output)) == (True, 7, "x/d.jsonl")
    assert (found.config.task, found.config.max_turns) == (("click-word",), 3)
    found = options_of("a --teacher http://h/v1 --teacher-model m", monkeypatch, tmp_path)
    assert (found.teacher, found.teacher_model, found.number) == ("http://h/v1", "m", 20)
    found = options_of("a --adapter user/name", monkeypatch, tmp_path)
    assert (found.config.adapter, found.config.temperature) == ("user/name", 1.0)
    (tmp_path / "config.yaml").write_text("model: to/train\nmax_turns: 4\n")
    found = options_of("tasks.py:A --oracle", monkeypatch, tmp_path)
    assert (found.config.max_turns, found.config.task_file) == (4, str(tmp_path / "tasks.py"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a", "expected one of --teacher, --oracle, and --adapter or --model"),
        ("a --oracle --teacher http://h/v1", "expected one of"),
        ("a --oracle --adapter user/name", "expected one of"),
        ("a --oracle --teacher-model m", "--teacher-model needs --teacher"),
        ("a --oracle -n 0", f"-n must be from 1 to {HELD_OUT}, got 0"),
        (f"a --oracle -n {HELD_OUT + 1}", f"-n must be from 1 to {HELD_OUT}"),
        ("a --oracle -n x", "invalid int value: 'x'"),
        ("tasks.py:Held --oracle", "tasks to train on, got held-out ones: ['Held']"),
        ("a --oracle -o ", "expected one argument"),
        ("a --oracle --no-such-option", "unknown option --no-such-option"),
    ],
)
def test_options_that_cannot_be(text, line, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(line)):
        options_of(text, monkeypatch, tmp_path)


def test_a_file_of_something_else(path, capsys, monkeypatch):
    monkeypatch.setattr("grpo.cli._browser_pool", lambda config: EnvPool(ScriptedEnv, 2))
    path.parent.mkdir()
    path.write_text("hello\n")
    command = ["demos", "collect", "click-word", "--oracle", "-n", "1", "-o", str(path)]
    assert main(command) == 2
    assert f"error: {path}, line 1: expected a JSON object" in capsys.readouterr().err
    assert path.read_text() == "hello\n"
    path.write_text("")
    assert main(command) == 0
    assert len(read_demonstrations(path)) == 1


@pytest.mark.browser
def test_a_task_of_miniwob(path, capsys):
    options = ["--oracle", "-n", "2", "-o", str(path), "--env-workers", "1", "--env-sessions", "2"]
    assert main(["demos", "collect", "click-test", *options]) == 0
    assert "click-test: kept 2 of 2 episodes (1.00)" in capsys.readouterr().out
    for each in read_demonstrations(path):
        (action,), (page,) = each.actions, each.pages
        number = re.fullmatch(r"click\('(\d+)'\)", action)[1]
        assert f"[{number}]" in page
        assert (each.goal, each.source, each.task_file) == ("Click the button.", "oracle", "")
    assert sorted(each.task.seed for each in read_demonstrations(path)) == [0, 1]
