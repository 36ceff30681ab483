"""One word, one meaning: words that were replaced do not come back (CONTRIBUTING, "Words")."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REPLACED = re.compile(
    r"\b(roads?|trunks?|machinery|examines?|middling|torn|fitting|canary|max_steps)\b"
)
HABITS = re.compile(r"sys\.path\.insert|noqa: E402")
ALLOWED = {
    "CHANGELOG.md",  # says what the names were
    "grpo/config.py",  # names the old options
    "tests/envs/browser/test_agentlab.py",  # AgentLab's environments, too
    "tests/envs/browser/test_protocol.py",  # OpenEnv's own server has a field max_steps
    "tests/test_words.py",
    "tests/grpo/test_cli.py",
    "tests/grpo/test_config.py",
}


def tracked():
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    return files.stdout.split()


@pytest.mark.parametrize("pattern", [REPLACED, HABITS], ids=["words", "habits"])
def test_replaced_words_do_not_come_back(pattern):
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in tracked()
        if path not in ALLOWED
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []
