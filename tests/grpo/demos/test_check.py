"""`grpo demos check`: the environment decides which demonstrations still succeed."""

from dataclasses import replace

from envs.base import Task
from envs.demonstrations import Demonstration, append_demonstration
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.cli import main
from grpo.config import Config
from grpo.demos.check import check


async def demonstrate(seed):
    env = ScriptedEnv()
    observation = await env.reset(Task("click-word", seed))
    return Demonstration(
        Task("click-word", seed), observation.goal, (env.demonstrate(),), (observation.page,)
    )


async def test_each_is_played_in_the_environment_of_its_file(tmp_path, capsys):
    path, opened = tmp_path / "demos.jsonl", []
    good = await demonstrate(0)
    of_site = replace(good, task=Task("click-word", 1), task_file=str(tmp_path / "tasks.py"))
    changed = replace(await demonstrate(2), pages=("another page",))
    for each in (good, of_site, changed):
        append_demonstration(path, each)

    def open_pool(config):
        opened.append((config.task, config.task_file))
        return EnvPool(ScriptedEnv, 2)

    replays = check(str(path), Config(), open_pool)
    assert opened == [(("click-word",), ""), (("click-word",), of_site.task_file)]
    assert [each.demonstration for each in replays] == [good, of_site, changed]
    assert [each.succeeds for each in replays] == [True, False, True]
    shown = capsys.readouterr().out
    assert "2 of 3 demonstrations succeed" in shown
    assert "page before action 1 is not the recorded one" in " ".join(shown.split())


def test_its_exit_code_tells_whether_all_succeed(tmp_path, capsys, monkeypatch):
    path = tmp_path / "demos.jsonl"
    assert main(["demos", "check", str(path)]) == 2
    path.write_text('{"task": "click-word", "seed": 0, "actions": []}\n')
    assert main(["demos", "check", str(path)]) == 2
    assert main(["demos", "check", str(path), "--no-such-option"]) == 2
    no_file, no_action, unknown = capsys.readouterr().err.splitlines()
    assert "No such file" in no_file
    assert no_action == f"error: {path}, line 1: actions must be at least one text, got none"
    assert "--no-such-option" in unknown
    monkeypatch.setattr("grpo.cli._browser_pool", lambda config: EnvPool(ScriptedEnv, 2))
    path.write_text('{"task": "click-word", "seed": 0, "actions": ["click(\'1\')"]}\n')
    assert main(["demos", "check", str(path)]) == 1
    assert "0 of 1 demonstration succeed" in capsys.readouterr().out
