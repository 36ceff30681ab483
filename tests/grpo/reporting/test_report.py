"""Which episodes are recorded, and what a report keeps of a program's evaluations."""

import asyncio
import io
import json
import os
from dataclasses import replace

import pytest
from rich.console import Console

from envs.base import Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.distributed import World
from grpo.reporting.progress import Bars
from grpo.reporting.report import (
    RECORDED,
    EvaluationReport,
    Report,
    command_line,
    pick_examples,
)
from grpo.rollouts.agents import oracle_agent
from grpo.rollouts.evaluation import Outcome
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.runtime import Runtime
from grpo.shutdown import Shutdown


def test_failures_and_successes_are_recorded_in_turn():
    a, b = ([Task(name, seed) for seed in range(9)] for name in "ab")
    outcomes = [Outcome(task, task.seed > 1, 1) for task in a]  # two failures
    outcomes += [Outcome(task, False, 1) for task in b]
    assert pick_examples(outcomes, 3) == [a[0], a[2], a[1], *b[:3]]
    assert pick_examples(outcomes, 6) == [a[0], a[2], a[1], a[3], a[4], a[5], *b[:6]]
    assert pick_examples(outcomes[:1], 6) == a[:1]
    assert pick_examples([], 6) == []
    assert pick_examples(outcomes, 3, [a[4], b[8], a[1]]) == [a[1], a[4], a[0], b[8], *b[:2]]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/env/bin/grpo", "train", "--task", "a b"], "grpo train --task 'a b'"),
        (["/x/grpo/__main__.py", "eval"], "python -m grpo eval"),
        (
            [f"{os.getcwd()}/examples/miniwob.py", "--seed", "3"],
            "python examples/miniwob.py --seed 3",
        ),
    ],
    ids=["command", "module", "script"],
)
def test_the_command_that_is_recorded_can_be_run(argv, command):
    assert command_line(argv) == command


class SecondRank(World):
    """Rank 1 of two without the other process; `others` are the outcomes of rank 0."""

    def __init__(self, others):
        super().__init__({})
        self.rank, self.world_size, self.others = 1, 2, others

    def all_gather(self, value):
        return [self.others, value]


@pytest.fixture
def make_report(make_policy, executor, tmp_path):
    """A function that makes a report of a program without a generator."""

    def make(kind=Report, *path, world=None, env=ScriptedEnv, resume=False, **options):
        config = Config(output=str(tmp_path), max_turns=3, eval_episodes=6, **options)
        runtime = Runtime(
            config=config,
            world=world or World.single(),
            policy=make_policy(double=False, start=True),
            executor=executor,
            shutdown=Shutdown(),
            generator=None,
            pool=EnvPool(env, 4),
            decodings={"sampled": oracle_agent()},
            max_prompt_tokens=0,
        )
        bars = Bars(Console(file=io.StringIO(), width=120))
        return kind(runtime, bars, *path, **({"resume": True} if resume else {}))

    return make


async def test_success_is_averaged_over_the_trained_tasks(make_report, tmp_path):
    options = {"task": "click-word", "held_out_tasks": "click-two-words"}
    report = make_report(Report, tmp_path / "a.json", **options)
    await report.evaluate({"oracle": {"sampled": oracle_agent()}})
    summary = json.loads((tmp_path / "a.json").read_text())
    assert summary == report.summary
    assert list(summary["per_task"]) == ["click-word", "click-two-words"]
    assert summary["oracle"] == summary["per_task"]["click-word"]["oracle"]
    rate = summary["per_task"]["click-two-words"]["oracle"]["sampled"]
    assert (rate["solved"], rate["n"], rate["turns"]) == (6, 6, 2)
    assert "oracle, sampled      success 1.00 of 6" in report.console.file.getvalue()


async def test_agents_are_evaluated_side_by_side(make_report, tmp_path):
    begun = [asyncio.Event(), asyncio.Event()]

    def waiting(number, demonstrates):
        async def act(observation, seed, env):
            begun[number].set()
            await asyncio.wait_for(begun[1 - number].wait(), 10)
            return await oracle_agent()(observation, seed, env if demonstrates else None)

        return act

    report = make_report(Report, tmp_path / "a.json", task="click-word")
    oracle, idle = waiting(0, demonstrates=True), waiting(1, demonstrates=False)
    await report.evaluate({"oracle": {"sampled": oracle}, "idle": {"greedy": idle}})
    rates = report.summary["oracle"]["sampled"], report.summary["idle"]["greedy"]
    assert [(rate["solved"], rate["n"]) for rate in rates] == [(6, 6), (0, 6)]


async def test_a_benchmarks_own_verdict_is_in_the_summary(make_report, tmp_path):
    class Generous(ScriptedEnv):
        async def step(self, text):
            return replace(await super().step(text), success=False, info={"success_own": True})

    options = {"task": "click-word", "held_out_tasks": "click-two-words", "env": Generous}
    report = make_report(Report, tmp_path / "a.json", **options)
    await report.evaluate({"oracle": {"sampled": oracle_agent()}})
    summary = json.loads((tmp_path / "a.json").read_text())
    rates = [summary["oracle"], summary["per_task"]["click-two-words"]["oracle"]]
    for rate in rates:
        assert (rate["sampled"]["success"], rate["sampled"]["success_own"]) == (0.0, 1.0)


@pytest.mark.parametrize(("most", "per_task"), [(100, 4), (7, 3), (1, 1)])
async def test_of_many_tasks_fewer_episodes_each_are_recorded(
    make_report, tmp_path, monkeypatch, most, per_task
):
    monkeypatch.setattr("grpo.reporting.report.MOST_RECORDED", most)
    options = {"task": "click-word", "held_out_tasks": "click-two-words"}
    report = make_report(Report, tmp_path / "a.json", **options)
    await report.evaluate({"policy": {"sampled": oracle_agent()}})
    await report.record_episodes("policy", "evaluation")
    for name in ("click-word", "click-two-words"):
        assert len(list((tmp_path / "media/evaluation" / name).iterdir())) == per_task
    lines = report.console.file.getvalue().splitlines()
    assert lines[0] == "evaluate policy: 12 episodes"
    assert f"record: {2 * per_task} episodes" in lines


async def test_without_episodes_nothing_is_evaluated_or_recorded(make_report, tmp_path):
    report = make_report(Report, tmp_path / "a.json", task="click-word")
    report.held_out = []
    await report.evaluate({"oracle": {"sampled": oracle_agent()}})
    await report.record_episodes("oracle", "before")
    assert list(tmp_path.iterdir()) == []


async def test_a_resumed_report_keeps_what_the_file_holds(make_report, tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"untrained": 7, "command": "as it was", "task": "other"}))
    kept = make_report(Report, path, task="click-word", resume=True).summary
    assert (kept["untrained"], kept["command"], kept["task"]) == (7, "as it was", "click-word")
    assert "untrained" not in make_report(Report, path, task="click-word").summary


async def test_ranks_share_the_episodes_and_the_main_rank_writes(make_report, tmp_path):
    held_out = [Task("click-word", HELD_OUT + i) for i in range(6)]
    others = {("oracle", "sampled"): [Outcome(task, False, 3) for task in held_out[::2]]}
    played = []

    class Env(ScriptedEnv):
        async def reset(self, task, **options):
            played.append(task)
            return await super().reset(task, **options)

    options = {"world": SecondRank(others), "env": Env, "task": "click-word"}
    report = make_report(Report, tmp_path / "a.json", **options)
    await report.evaluate({"oracle": {"sampled": oracle_agent()}})
    assert sorted(played) == held_out[1::2]
    rate = report.summary["oracle"]["sampled"]
    assert (rate["solved"], rate["n"], rate["turns"]) == (3, 6, 2)
    await report.record_episodes("oracle", "before")
    assert list(tmp_path.iterdir()) == []


async def test_recorded_episodes_replace_those_of_an_earlier_program(make_report, tmp_path):
    stale = tmp_path / "media" / "before" / "click-word" / "7"
    stale.mkdir(parents=True)
    (stale / "episode.json").write_text("{}")
    report = make_report(Report, tmp_path / "a.json", task="click-word")
    await report.evaluate({"policy": {"sampled": oracle_agent()}})
    await report.record_episodes("policy", "before")
    seeds = [HELD_OUT + i for i in range(RECORDED)]
    folder = tmp_path / "media" / "before" / "click-word"
    assert sorted(int(path.name) for path in folder.iterdir()) == seeds
    assert (tmp_path / "media" / "index.html").is_file()


async def test_an_evaluations_report(make_report, tmp_path):
    report = make_report(EvaluationReport, task="click-word", seed=3, temperature=0.5)
    with report.timed("oracle"):
        await report.evaluate({"oracle": {"sampled": oracle_agent()}})
    report.finish()
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    names = ("task", "adapter", "seed", "max_turns", "max_new_tokens", "temperature")
    assert [summary[name] for name in names] == ["click-word", "", 3, 3, 24, 0.5]
    assert list(summary["seconds"]) == ["oracle"]
    assert summary["oracle"]["sampled"]["success"] == 1
    text = report.console.file.getvalue()
    assert "success on 6 held-out seeds per task" in text
    assert f"{tmp_path}/  evaluation.json, media/index.html" in text


async def test_an_evaluations_page(make_report, tmp_path):
    """It has the name, the state and the tally as soon as there is something to show."""

    def page():
        html = (tmp_path / "media" / "index.html").read_text()
        return json.loads(html.split('type="application/json">')[1].split("</script>")[0])

    seen = []

    class Env(ScriptedEnv):
        async def reset(self, task, **options):
            if (tmp_path / "media" / "index.html").is_file():
                seen.append(page()["state"])
            return await super().reset(task, **options)

    report = make_report(EvaluationReport, task="click-word,click-two-words", env=Env)
    await report.evaluate({"random": {"sampled": oracle_agent()}})
    await report.evaluate({"policy": {"sampled": oracle_agent()}})
    await report.record_episodes("policy", "evaluation")
    doing = ["evaluating policy", "recording episodes of policy"]
    assert list(dict.fromkeys(state["doing"] for state in seen)) == doing
    assert {(state["program"], state["phase"]) for state in seen} == {("evaluation", "running")}
    report.finish()
    last = page()
    assert (last["name"], last["state"]["phase"]) == (tmp_path.name, "finished")
    rates = last["overview"]["rates"]
    assert {agent: (rate["solved"], rate["n"]) for agent, rate in rates.items()} == {
        "random": (12, 12), "policy": (12, 12),
    }  # fmt: skip
    tasks = {task["task"]: task["rates"] for task in last["overview"]["tasks"]}
    assert {name: rates["policy"]["solved"] for name, rates in tasks.items()} == {
        "click-word": 6, "click-two-words": 6,
    }  # fmt: skip
    assert (last["overview"]["compared"], last["overview"]["changes"]) == ("", [])
    assert {e["tally"]["solved"] for e in last["episodes"]} == {6}
