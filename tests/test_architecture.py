"""The import rule of the house, read from the syntax tree of every file, and seen at run time."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("grpo", "envs", "lora")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OURS = {*PACKAGES, "examples", "benchmarks", "tests", "scripts"}
OPTIONAL = {
    *("vllm", "modal", "wandb", "tensorboard", "matplotlib"),
    *("browsergym", "openenv", "playwright", "gymnasium", "miniwob"),
}
PURE = {"grpo/algorithm/losses.py", "grpo/algorithm/advantages.py", "grpo/tree/token_tree.py"}
MAX_LINES = 250
EXCUSED = {  # file -> why it is longer
    "grpo/config.py": "every option in a line or two, with its help text",
    "grpo/algorithm/losses.py": "every term of the loss beside its formula; half of it is docstrings",
}

Import = tuple[str, bool]  # dotted module, whether it is imported when the file is


def imports(source: str, path: str) -> Iterator[Import]:
    """Yield every module that a file imports, `from a import b` as both `a` and `a.b`."""
    package = path.removesuffix(".py").split("/")[:-1]

    def visit(node: ast.AST, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                up = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*up, *([child.module] if child.module else [])])
                yield module, top
                yield from ((f"{module}.{alias.name}", top) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, False)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, top and not function)

    yield from visit(ast.parse(source), True)


def is_in(module: str, *allowed: str) -> bool:
    """Tell whether `module` is one of `allowed`, inside one, or a package on the way to one."""
    return any(
        f"{module}.".startswith(f"{a}.") or f"{a}.".startswith(f"{module}.") for a in allowed
    )


def broken_rules(source: str, path: str) -> list[str]:
    """Say which rules a file's imports break; `path` is relative to the checkout."""
    room, broken = path.split("/")[0], []
    for module, top in imports(source, path):
        first = module.split(".")[0]
        if first in OURS - set(PACKAGES):
            broken.append(f"the library may not import {module}")
        elif room in ("lora", "envs") and first in PACKAGES and first != room:
            broken.append(f"{room} may not import {module}")
        elif room == "grpo" and first == "envs" and not is_in(module, "envs.base", "envs.pool"):
            broken.append(f"grpo may import envs.base and envs.pool only, not {module}")
        elif room == "grpo" and first == "lora" and path != "grpo/model/lora_policy.py":
            broken.append(f"grpo/model/lora_policy.py alone may import {module}")
        if path in PURE and first not in {"torch", "numpy", *sys.stdlib_module_names}:
            broken.append(f"a pure file may import torch, numpy and the stdlib only, not {module}")
        if top and first in OPTIONAL and not path.startswith("envs/browser/server/"):
            broken.append(f"{module} is optional: import it inside the function that needs it")
    return broken


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_rule(path: Path) -> None:
    assert broken_rules(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES or str(path.relative_to(ROOT)) in EXCUSED


@pytest.mark.parametrize(
    "path", [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
)
def test_nobody_imports_examples(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    assert not [m for m, _ in imports(path.read_text(), relative) if is_in(m, "examples")]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora/layers.py", "import grpo"),
        ("lora/layers.py", "from envs.base import Env"),
        ("envs/pool.py", "def f():\n    from lora import apply_lora"),
        ("envs/pool.py", "from ..grpo import losses"),
        ("grpo/rollouts/rollout.py", "from envs.browser.env import BrowserEnv"),
        ("grpo/rollouts/rollout.py", "from envs.browser import prompts"),
        ("grpo/training/trainer.py", "from lora import apply_lora"),
        ("grpo/algorithm/losses.py", "from grpo.types import Turn"),
        ("grpo/algorithm/losses.py", "from . import types"),
        ("grpo/tree/token_tree.py", "import transformers"),
        ("grpo/generators/vllm/engine.py", "import vllm"),
        (
            "grpo/reporting/loggers.py",
            "try:\n    import wandb\nexcept ImportError:\n    wandb = None",
        ),
        ("envs/browser/env.py", "class A:\n    from openenv.core import EnvClient"),
        ("grpo/config.py", "import examples.click_test"),
    ],
)
def test_the_rule_sees_a_breach(path: str, source: str) -> None:
    assert broken_rules(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "grpo/rollouts/rollout.py",
            "from envs.base import Env, Task\nfrom envs import pool\nimport envs.pool",
        ),
        ("grpo/model/lora_policy.py", "from lora import apply_lora, merge"),
        (
            "grpo/algorithm/losses.py",
            "import math\nimport torch\nfrom torch import Tensor\nimport numpy as np",
        ),
        ("grpo/reporting/loggers.py", "def f():\n    import wandb"),
        ("grpo/generators/local.py", "from ..types import Completion"),
        ("envs/browser/server/app.py", "from openenv.core.env_server import create_app"),
        (
            "envs/browser/env.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import openenv",
        ),
    ],
)
def test_the_rule_lets_the_rest_pass(path: str, source: str) -> None:
    assert broken_rules(source, path) == []


def test_packages_import_with_torch_and_numpy_alone() -> None:
    program = textwrap.dedent(
        """
        import sys
        refused = {refused}

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in refused:
                    raise ModuleNotFoundError(f"{{name}} is not to be imported here", name=name)

        sys.meta_path.insert(0, Refuse())
        import grpo, envs, lora
        """
    ).format(refused=OPTIONAL | {"transformers", "huggingface_hub", "gguf", "accelerate", "rich"})
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
