"""The page of results: every figure on it is one of a run's own."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from grpo.config import Config

ROOT = Path(__file__).resolve().parents[1]


def rate(success, n=100):
    solved = round(success * n)
    return {"success": success, "low": success - 0.1, "high": success + 0.1, "n": n,
            "solved": solved, "steps": 1.25}  # fmt: skip


def a_run(folder, **options):
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "config.yaml").write_text(Config(max_steps=2, **options).to_yaml())
    rates = {
        "random": {"sampled": rate(0.5)},
        "untrained": {"sampled": rate(0.25), "greedy": rate(0.75)},
        "blind": {"sampled": rate(0.125), "greedy": rate(0)},
        "trained": {"sampled": rate(0.95), "greedy": rate(1)},
    }
    summary = {
        "command": "examples/miniwob.py --suite easy",
        "steps": 30,
        "episodes": 1920,
        "seconds": {"rollout": 500.0, "update": 80.0, "sync": 20.0, "eval": 999.0},
        "per_task": {"click-link": rates, "unicode-test": rates},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_page(tmp_path):
    runs = [
        a_run(tmp_path / "easy", task="click-link", held_out_tasks="unicode-test"),
        a_run(tmp_path / "warm", task="click-link,unicode-test", warm_start_steps=4),
    ]
    page = tmp_path / "results.md"
    command = [sys.executable, "scripts/results.py", *runs, "--hardware", "2 cores"]
    subprocess.run([*map(str, command), "--write", str(page)], cwd=ROOT, check=True, timeout=120)
    lines = page.read_text().splitlines()
    reward, warm = (line for line in lines if "2 cores" in line)
    assert reward.startswith(
        "From the environment's reward alone: 30 steps, 1,920 episodes, 10 min"
    )
    assert warm.startswith("After 4 updates of imitating the oracle (a warm start): 30 steps")
    assert hashlib.sha256(b"weights").hexdigest()[:16] in reward
    assert "100 held-out seeds a task" in reward
    assert lines.count("python examples/miniwob.py --suite easy") == 2
    cells = "| 0.50 | 0.12 [0.02, 0.23] (0.00) | 0.25 [0.15, 0.35] (0.75) |"
    trained = " **0.95** [0.85, 1.05] (1.00) | 1.2 |"
    rows = [line for line in lines if line.startswith(("| click-link", "| unicode-test"))]
    assert rows[0] == f"| click-link {cells}{trained}"
    assert rows[1] == f"| unicode-test (never trained on) {cells}{trained}"
    assert rows[3] == f"| unicode-test {cells}{trained}"
