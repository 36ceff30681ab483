"""`scripts/results.py`: every figure on the page comes from a run's files."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from envs.browser.miniwob.names import MINIWOB_TASKS
from grpo.config import Config
from scripts.protocol import MAX_TURNS, SEEDS, protocol_section
from scripts.results import main, trained_tasks

ROOT = Path(__file__).resolve().parents[2]


def rate(success, n=100):
    solved = round(success * n)
    return {"success": success, "low": success - 0.1, "high": success + 0.1, "n": n,
            "solved": solved, "turns": 1.25}  # fmt: skip


def make_run(folder, success=(0, 0), **options):
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "config.yaml").write_text(Config(max_turns=2, **options).to_yaml())
    rates = {
        "random": {"sampled": rate(0.5)},
        "untrained": {"sampled": rate(0.25), "greedy": rate(0.75)},
        "blind": {"sampled": rate(0.125), "greedy": rate(0)},
        "trained": {"sampled": rate(0.95), "greedy": rate(1)},
    }
    summary = {
        "command": "python examples/miniwob.py --config easy.yaml",
        "steps": 30,
        "episodes": 1920,
        "seconds": {"rollout": 500.0, "update": 80.0, "sync": 20.0, "eval": 999.0},
        "per_task": {"click-link": rates, "unicode-test": rates},
    }
    summary["trained"] = rates["trained"]
    (folder / "summary.json").write_text(json.dumps(summary))
    steps = ({"step": n, "success": p} for n, p in enumerate(success, 1))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    return folder


def write(page, *arguments):
    command = [sys.executable, "-m", "scripts.results", *arguments]
    command += ["--hardware", "2 cores", "--write", page]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, timeout=120)
    return page.read_text().splitlines()


def test_the_page(tmp_path):
    runs = [
        make_run(tmp_path / "easy", task="click-link", held_out_tasks="unicode-test"),
        make_run(tmp_path / "warm", task="click-link,unicode-test", warm_start_steps=4),
    ]
    page = tmp_path / "results.md"
    lines = write(page, *runs)
    reward, warm = (line for line in lines if "2 cores" in line)
    assert reward.startswith(
        "From the environment's reward alone: 30 steps, 1,920 episodes, 10 min"
    )
    assert warm.startswith("After 4 updates that imitate the oracle (a warm start): 30 steps")
    assert hashlib.sha256(b"weights").hexdigest()[:16] in reward
    assert "at most 2 turns per episode; 100 held-out seeds per task" in reward
    assert lines.count("python examples/miniwob.py --config easy.yaml") == 2
    cells = "| 0.50 | 0.12 [0.02, 0.23] (0.00) | 0.25 [0.15, 0.35] (0.75) |"
    trained = " **0.95** [0.85, 1.05] (1.00) | 1.2 |"
    rows = [line for line in lines if line.startswith(("| click-link", "| unicode-test"))]
    assert rows[0] == f"| click-link {cells}{trained}"
    assert rows[1] == f"| unicode-test (never trained on) {cells}{trained}"
    assert rows[3] == f"| unicode-test {cells}{trained}"
    assert "The ceiling: Of BrowserGym's 125 MiniWoB tasks, " in page.read_text()


def test_sections_of_other_runs_stay(tmp_path):
    page, easy = tmp_path / "results.md", make_run(tmp_path / "easy", task="click-link")
    first = write(page, easy, make_run(tmp_path / "forms", task="enter-text"))
    assert write(page) == first
    (easy / "notes.md").write_text("Two runs came before it.\n")
    before, _, after = "\n".join(first).partition("\n```sh")
    assert write(page, easy) == f"{before}\nTwo runs came before it.\n\n```sh{after}".split("\n")
    assert write(page, make_run(tmp_path / "logins", task="login-user"))[-3:] == first[-3:]
    titles = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert titles == ["## easy", "## forms", "## logins"]


def test_two_runs_of_one_name_are_refused(tmp_path, capsys):
    runs = [str(tmp_path / folder / "easy") for folder in ("one", "other")]
    with pytest.raises(SystemExit, match="2"):
        main([*runs, "--hardware", "2 cores", "--write", str(tmp_path / "results.md")])
    assert "must have different names, got easy, easy" in capsys.readouterr().err
    assert not (tmp_path / "results.md").exists()


def test_the_start_of_a_run_and_a_comparison(tmp_path):
    # Thirds of seven steps are steps 1-2, 3-4 and 5-7.
    episode = make_run(
        tmp_path / "a", (0, 0.5, 0, 0, 1, 1, 0.25), task="click-link", adapter="runs/b"
    )
    steps = make_run(tmp_path / "b", (1,) * 7, task="click-link", adapter="runs/b", credit="steps",
                  resume=True)  # fmt: skip
    lines = write(tmp_path / "results.md", episode, "--compare", episode, steps)
    (reward,) = (line for line in lines if line.startswith("From the environment's reward alone"))
    assert "alone, starting from the adapter `runs/b` (`untrained` below): 30 steps" in reward
    end = lines[lines.index("## Compared on click-link: credit") :]
    assert end[-2] == "| episode | 0.25 | 0.00 | 0.75 | **0.95** [0.85, 1.05] (1.00) | 10 |"
    assert end[-1] == "| steps | 1.00 | 1.00 | 1.00 | **0.95** [0.85, 1.05] (1.00) | 10 |"


def test_a_comparison_on_several_tasks(tmp_path):
    tasks = "click-link,unicode-test"
    reward = make_run(tmp_path / "a", (0, 0.5, 1), task=tasks)
    imitation = make_run(tmp_path / "b", (), task=tasks, warm_start_steps=8)
    summary = json.loads((imitation / "summary.json").read_text())
    summary["seconds"]["imitation"] = 300.0
    summary["per_task"]["unicode-test"] = {"trained": {"sampled": rate(0.5)}}
    (imitation / "summary.json").write_text(json.dumps(summary))
    lines = write(tmp_path / "results.md", "--compare", reward, imitation)
    start = lines.index("## Compared on click-link, unicode-test: warm_start_steps")
    assert lines[start + 4].endswith("| last | trained | click-link | unicode-test | minutes |")
    rate_of_all = "**0.95** [0.85, 1.05] (1.00)"
    assert lines[-2:] == [
        f"| 0 | 0.00 | 0.50 | 1.00 | {rate_of_all} | 0.95 | 0.95 | 10 |",
        f"| 8 |  |  |  | {rate_of_all} | 0.95 | 0.50 | 15 |",
    ]


def evaluation(folder, tasks, max_turns=10, n=5, **rates):
    folder.mkdir(exist_ok=True)
    rate = {"success": 0.4, "success_browsergym": 0.6, "n": n, **rates}
    summary = {
        "max_turns": max_turns,
        "per_task": {name: {"policy": {"sampled": rate}} for name in tasks},
    }
    (folder / "evaluation.json").write_text(json.dumps(summary))
    return folder


def test_the_protocol_counts_what_was_not_played_as_failures(tmp_path):
    run = evaluation(tmp_path / "few", ["click-test", "odd-or-even", "a-task-of-ours"])
    lines = write(tmp_path / "results.md", "--protocol", run)
    start = lines.index("## BrowserGym's protocol: 125 tasks, 5 seeds")
    assert "at most 10 actions per episode" in lines[start + 2]
    ours, paper, *_ = (line for line in lines[start:] if line.startswith(("| few", "| GPT")))
    # 4 and 6 of 625 episodes, with Wilson's intervals.
    theirs, whole = "0.010 [0.004, 0.021]", "0.006 [0.002, 0.016]"
    assert ours == f"| few: policy, sampled | {theirs} | {whole} | 2 |  |"
    assert paper.startswith("| GPT-4o-mini | 0.566 [0.527, 0.605] | | 125 | [BrowserGym's paper](")


def test_lost_episodes_count_as_unsolved(tmp_path):
    run = evaluation(tmp_path / "some", ["click-test", "odd-or-even"])
    summary = json.loads((run / "evaluation.json").read_text())
    lost = {"success": 1 / 3, "success_browsergym": 2 / 3, "n": 3}
    summary["per_task"]["odd-or-even"]["policy"]["sampled"] |= lost
    (run / "evaluation.json").write_text(json.dumps(summary))
    # 3 + 2 and 2 + 1 of 625 episodes.
    row = "| some: policy, sampled | 0.008 [0.003, 0.019] | 0.005 [0.002, 0.014] | 2, 2 lost |  |"
    assert row in protocol_section([run], "2 cores").splitlines()


def test_every_task_of_the_protocol(tmp_path):
    config = Config.from_yaml(ROOT / "examples" / "configs" / "miniwob_125.yaml")
    assert set(config.task) == MINIWOB_TASKS
    assert (config.eval_episodes, config.max_turns) == (SEEDS, MAX_TURNS)
    run = evaluation(tmp_path / "all", config.task)
    assert "| all: policy, sampled | 0.600 [" in protocol_section([run], "2 cores")
    assert "] | 0.400 [" in protocol_section([run], "2 cores")


def test_a_run_that_took_the_place_of_the_one_before_it(tmp_path):
    run = make_run(tmp_path / "run", task="click-test", adapter=str(tmp_path / "run"))
    assert trained_tasks(run) == ["click-test"]


@pytest.mark.parametrize("named", ["run", "run/adapter"])
def test_an_evaluation_of_an_adapter(tmp_path, named):
    before = tmp_path / "before"
    make_run(before, task="enter-text", adapter=str(tmp_path / "gone"))
    make_run(tmp_path / "run", task="click-test", adapter=str(before / "checkpoints" / "step-1"))
    names = ["click-test", "enter-text", "odd-or-even"]
    run = evaluation(tmp_path / "suite", names, turns=1.5, low=0, high=1)
    summary = json.loads((run / "evaluation.json").read_text())
    summary |= {"adapter": str(tmp_path / named), "command": "grpo eval"}
    (run / "evaluation.json").write_text(json.dumps(summary))
    (run / "notes.md").write_text("Of 125 tasks.")
    lines = write(tmp_path / "results.md", run)
    end = lines[lines.index("## suite") :]
    assert end[2] == (
        "Evaluated on 2 cores; at most 10 turns per episode; 5 held-out seeds per task. "
        f"Adapter: sha256 `{hashlib.sha256(b'weights').hexdigest()[:16]}`."
    )
    assert end[4] == "Of 125 tasks."
    cells = "**0.40** | 0.60 | 1.5 |"
    assert end[-5:] == [
        "| task | policy | policy, by BrowserGym | turns |",
        "| --- | --- | --- | --- |",
        f"| click-test | {cells}",
        f"| enter-text | {cells}",
        f"| odd-or-even (never trained on) | {cells}",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_turns": 11}, "expected at most 10 turns per episode, got 11"),
        ({"n": 4}, "click-test: expected 5 episodes, got 4"),
        ({"tasks": ["a-task-of-ours"]}, "expected tasks of MiniWoB, got a-task-of-ours"),
    ],
)
def test_what_did_not_keep_to_the_protocol(tmp_path, options, message):
    run = evaluation(tmp_path, **({"tasks": ["click-test"]} | options))
    with pytest.raises(ValueError, match=message):
        protocol_section([run], "2 cores")


def test_an_evaluation_without_browsergyms_verdict(tmp_path):
    run = evaluation(tmp_path, ["click-test"])
    old = (run / "evaluation.json").read_text().replace("success_browsergym", "other")
    (run / "evaluation.json").write_text(old)
    with pytest.raises(ValueError, match="click-test: expected success_browsergym beside success"):
        protocol_section([run], "2 cores")


def test_browsergyms_verdict_has_a_column_where_it_differs(tmp_path):
    run = make_run(tmp_path / "easy", task="click-link", held_out_tasks="unicode-test")
    summary = json.loads((run / "summary.json").read_text())
    summary["per_task"]["click-link"]["trained"]["sampled"]["success_browsergym"] = 0.99
    (run / "summary.json").write_text(json.dumps(summary))
    lines = write(tmp_path / "results.md", run)
    assert (
        "| task | random | blind | untrained | trained | trained, by BrowserGym | turns |" in lines
    )
    (row,) = (line for line in lines if line.startswith("| click-link"))
    assert row.endswith("**0.95** [0.85, 1.05] (1.00) | 0.99 | 1.2 |")
    (other,) = (line for line in lines if line.startswith("| unicode-test"))
    assert other.endswith("(1.00) |  | 1.2 |")
