"""A whole run on pages that try to command a terminal, on consoles that lack characters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.safe_output import printable

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = r"""
import sys
from dataclasses import replace

import grpo, grpo.runtime
from envs.base import EnvError
from envs.scripted import ScriptedEnv
from grpo.cli import exit_code
from grpo.rollouts.agents import random_agent
from tests.support.models import make_llama, make_tokenizer

HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \r \u202e \ud800 [red]x[/] <b>y</b> \u65e5\u672c"


class Env(ScriptedEnv):
    # Says hostile things, without a word that changes what is tokenised.
    async def reset(self, task, **options):
        if task.seed % 3 == 2 and not hasattr(self, "failed"):
            self.failed = True
            raise EnvError(HOSTILE)
        return self.changed(await super().reset(task, **options))

    async def step(self, text):
        result = await super().step(text)
        return replace(result, observation=self.changed(result.observation))

    def changed(self, observation):
        return replace(observation, goal=HOSTILE, error=observation.error and HOSTILE)


class Broken(ScriptedEnv):
    async def reset(self, task, **options):
        raise EnvError(HOSTILE + "\nerror: a second line")


def main():
    grpo.runtime.load_policy = lambda _: grpo.LoRAPolicy(make_llama(), make_tokenizer())
    small = {"group_size": 2, "groups_per_step": 2, "eval_episodes": 2, "max_turns": 2}
    config = grpo.Config(task="click-word", output=sys.argv[1], steps=2, max_new_tokens=2, **small)
    env = {"Env": Env, "Broken": Broken}[sys.argv[2]]
    grpo.train(config, env, baselines={HOSTILE: random_agent})


sys.exit(exit_code(main))
"""


def run(folder, env, **environ):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), env],
        cwd=ROOT, capture_output=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "", **environ},
    )  # fmt: skip


@pytest.mark.parametrize(
    "environ",
    [
        {"PYTHONIOENCODING": "utf-8"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["utf-8", "ascii", "C"],
)
def test_a_run_on_hostile_pages(tmp_path, environ):
    done = run(tmp_path / "a run", "Env", **environ)
    out, err = (text.decode() for text in (done.stdout, done.stderr))
    assert done.returncode == 0, err
    assert printable(out + err) == out + err
    assert "success while training  " in out
    assert "tensorboard --logdir '" in out  # the last line, after the sparkline
    assert (tmp_path / "a run" / "adapter" / "adapter_model.safetensors").is_file()
    completions = (tmp_path / "a run" / "completions.txt").read_text(encoding="utf-8")
    html = (tmp_path / "a run" / "media" / "index.html").read_text(encoding="utf-8")
    for text in (completions, html):
        assert printable(text) == text
        assert r"\x1b[2J" in text.replace("\\\\", "\\")
    assert "<b>y</b>" not in html
    assert "日本" in completions
    data = json.loads(html.split('type="application/json">')[1].split("</script>")[0])
    assert data["name"] == "a run"


def test_an_error_of_a_hostile_server_is_one_line(tmp_path):
    done = run(tmp_path, "Broken", PYTHONIOENCODING="utf-8")
    assert done.returncode == 1
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("error:")]
    (line,) = lines
    assert r"\x1b[2J\x1b]0;title\x07 \x9b31m \r \u202e \ud800 [red]x[/]" in line
    assert line.endswith("error: a second line")
    assert printable(done.stdout.decode()) == done.stdout.decode()
