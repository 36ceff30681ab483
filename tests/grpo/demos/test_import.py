"""`grpo demos import`: a trace is kept if the environment calls what it did a success."""

import asyncio
from dataclasses import replace

import pytest

from envs.base import Task
from envs.demonstrations import Demonstration, read_demonstrations
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.demos.import_traces import MARK, import_traces
from grpo.demos.options import Import, read_import
from grpo.errors import ConfigError
from grpo.rollouts.task_sampler import HELD_OUT

NAME = "click-word"


def shown(seed):
    async def play():
        env = ScriptedEnv()
        observation = await env.reset(Task(NAME, seed))
        return Demonstration(Task(NAME, seed), observation.goal, (env.demonstrate(),))

    return asyncio.run(play())


def test_what_succeeds_again_is_kept_once(tmp_path, capsys):
    good = shown(3)
    traces = {
        "b/good": good,
        "b/copy": good,
        "a/bad": replace(shown(4), actions=("click('1')",)),
        "c": replace(shown(5), task=Task(NAME, HELD_OUT)),
        **{f"d/{i}": ValueError("mouse_click has no counterpart") for i in range(2)},
    }
    for name in traces:
        (tmp_path / "traces" / name).mkdir(parents=True)
        (tmp_path / "traces" / name / MARK).touch()

    def read(folder):
        found = traces[str(folder.relative_to(tmp_path / "traces"))]
        if isinstance(found, ValueError):
            raise found
        return found

    def open_pool(config):
        assert config.task == (NAME,)
        return EnvPool(ScriptedEnv, 2)

    options = Import(Config(), str(tmp_path / "traces"), tmp_path / "demos.jsonl")
    assert import_traces(options, read, open_pool) == {NAME: 1}
    assert read_demonstrations(options.output) == [good]
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line] == [
        "left out, 1 trace: its seed is held out: 1000000 and above are evaluated on",
        "left out, 2 traces: mouse_click has no counterpart",
        "left out, 1 trace: click-word, seed 4: no success after 1 actions",
        "click-word: kept 1 of 2 traces",
        f"{options.output}: 1 demonstration",
    ]
    assert import_traces(options, read, open_pool) == {}  # it is there already
    assert read_demonstrations(options.output) == [good]


def test_a_folder_without_traces(tmp_path):
    with pytest.raises(ConfigError, match=r"expected folders with exp_args.pkl in .*, got none"):
        import_traces(Import(Config(), str(tmp_path), tmp_path / "demos.jsonl"), None, None)


def test_options():
    options = read_import(["traces", "-o", "new.jsonl", "--env-sessions", "3"])
    assert (options.traces, options.output.name) == ("traces", "new.jsonl")
    assert options.config.env_sessions == 3
    with pytest.raises(ConfigError, match="unknown option --env-session; did you mean"):
        read_import(["traces", "--env-session", "3"])
