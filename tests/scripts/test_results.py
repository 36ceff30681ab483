"""`scripts/results.py`: every figure on the page comes from a run's files."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from grpo.config import Config

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
