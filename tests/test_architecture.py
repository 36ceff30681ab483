"""The import rules, read from the syntax tree of every file, and checked at run time."""

import ast
import functools
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("grpo", "envs", "lora")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PATHS = [str(path.relative_to(ROOT)) for path in FILES]
OURS = {*PACKAGES, "examples", "benchmarks", "tests", "scripts"}
OPTIONAL = {
    *("vllm", "modal", "wandb", "tensorboard", "matplotlib", "bitsandbytes"),
    *("browsergym", "openenv", "playwright", "gymnasium", "miniwob"),
}
SLOW = {"transformers", "huggingface_hub"}
"""Imported inside functions, so that `import grpo.run` is quick."""

BROWSER_SERVER = ("envs/browser/server/", "envs/browser/miniwob/")
"""These run in the server's process, which has every browser package."""

# From the bottom to the top: a file may import from its own layer and from those before it.
LAYERS = (
    (
        *("grpo.errors", "grpo.files", "grpo.safe_output", "grpo.threads", "grpo.transfer"),
        "grpo.types",
        *("grpo.algorithm", "grpo.tree"),
    ),
    (
        *("grpo.option_values", "grpo.yaml_file", "grpo.config", "grpo.arguments"),
        *("grpo.distributed", "grpo.shutdown", "grpo.blocking", "grpo.task_options"),
    ),
    ("grpo.model",),
    ("grpo.generators",),
    ("grpo.rollouts",),
    ("grpo.training",),
    ("grpo.runtime",),
    ("grpo.reporting",),
    (
        *("grpo.run", "grpo.inspect", "grpo.doctor", "grpo.deploy", "grpo.demos"),
        "grpo.record_options",
        "grpo.exits",
    ),
    ("grpo.cli",),
    ("grpo.__main__", "grpo.torchrun"),
)
MAX_CHAIN = 11
MAX_LINES = 250
LONG = {  # file -> why it is longer
    "envs/browser/env.py": "a session from its connection to its end",
    "envs/history_tree.py": "one argument about who waits for whom",
    "grpo/algorithm/losses.py": "every term of the loss beside its formula; half is docstrings",
    "grpo/cli.py": "one function per subcommand, and all that chooses the environment",
    "grpo/config.py": "every option with its bounds and its help text",
    "grpo/generators/vllm/engine_thread.py": "everything that happens on that one thread",
    "grpo/reporting/report.py": "the reports of both programs share their evaluation",
    "grpo/run.py": "two whole programs, each from its start to its end",
    "grpo/training/trainer.py": "the whole algorithm reads from top to bottom",
}

Import = tuple[str, bool, bool]
"""Dotted module, whether it is imported with the file, whether for annotations alone."""


def imports(source: str, path: str) -> Iterator[Import]:
    """Yield every module that a file imports, `from a import b` as both `a` and `a.b`."""
    package = path.removesuffix(".py").split("/")[:-1]

    def visit(node: ast.AST, top: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                up = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*up, *([child.module] if child.module else [])])
                yield module, top, typing
                yield from ((f"{module}.{alias.name}", top, typing) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, False, True)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, top and not function, typing)

    yield from visit(ast.parse(source), True, False)


def is_in(module: str, *allowed: str) -> bool:
    """Tell whether `module` is one of `allowed`, inside one, or a package on the way to one."""
    return any(
        f"{module}.".startswith(f"{a}.") or f"{a}.".startswith(f"{module}.") for a in allowed
    )


def broken_rules(source: str, path: str) -> list[str]:
    """Say which rules a file's imports break; `path` is relative to the checkout."""
    package, broken = path.split("/")[0], []
    pure = path.startswith("grpo/algorithm/") or path == "grpo/tree/token_tree.py"
    for module, top, _ in imports(source, path):
        first = module.split(".")[0]
        if first in OURS - set(PACKAGES):
            broken.append(f"the library may not import {module}")
        elif package in ("lora", "envs") and first in PACKAGES and first != package:
            broken.append(f"{package} may not import {module}")
        elif package == "grpo" and first == "envs":
            allowed = ["envs.base", "envs.demonstrations", "envs.pool", "envs.replay"]
            if path == "grpo/cli.py":  # chooses the environment
                allowed += ["envs.browser", "envs.scripted"]
            if not is_in(module, *allowed):
                broken.append(f"grpo may import {', '.join(allowed)} only, not {module}")
        elif package == "grpo" and first == "lora" and path != "grpo/model/lora_policy.py":
            broken.append(f"grpo/model/lora_policy.py alone may import {module}")
        outside = package == "envs" and not path.startswith("envs/browser/")
        if outside and f"{module}.".startswith("envs.browser."):
            broken.append(f"only envs/browser/ may know browsers, not {path}: {module}")
        in_lora = {"torch", "safetensors", "lora", "bitsandbytes"} | STDLIB
        if package == "lora" and first not in in_lora:
            broken.append(f"lora may import torch and safetensors only, not {module}")
        if pure and first not in {"torch", "numpy", "grpo"} | STDLIB:
            broken.append(f"{path} may import torch, numpy and grpo only, not {module}")
        formulas = ("grpo.algorithm", "grpo.tree.token_tree", "grpo.types")
        if pure and first == "grpo" and not is_in(module, *formulas):
            broken.append(f"{path} may not import {module}")
        if top and first in OPTIONAL and not path.startswith(BROWSER_SERVER):
            broken.append(f"{module} is optional: import it inside the function that needs it")
        if top and first in SLOW and path != "grpo/tree/short_conv.py":
            broken.append(f"{module} is slow: import it inside the function that needs it")
    return broken


STDLIB = set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", PATHS)
def test_imports_follow_the_rule(path: str) -> None:
    assert broken_rules((ROOT / path).read_text(), path) == []


@pytest.mark.parametrize("path", PATHS)
def test_a_long_file_has_a_reason(path: str) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= MAX_LINES or path in LONG, f"{path} has {lines} lines: split it, or say why"


@pytest.mark.parametrize("path", [path for path in PATHS if path.endswith("__init__.py")])
def test_an_init_only_exports(path: str) -> None:
    for node in ast.parse((ROOT / path).read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = [t for t in getattr(node, "targets", []) for t in ast.walk(t)]
        exports = {name.id for name in names if isinstance(name, ast.Name)}
        assert (
            docstring
            or isinstance(node, ast.Import | ast.ImportFrom)
            or (exports and exports <= {"__all__", "__getattr__", "__dir__"})
        ), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "path", [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")], ids=str
)
def test_nothing_imports_examples(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    assert not [m for m, *_ in imports(path.read_text(), relative) if is_in(m, "examples")]


def graph() -> dict[str, set[str]]:
    """Map every module of grpo to those of grpo that it imports, but for annotations."""
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in PATHS
        if path.startswith("grpo/")
    }
    edges = {}
    for module, path in modules.items():
        found = imports((ROOT / path).read_text(), path)
        edges[module] = {m for m, _, typing in found if m in modules and not typing} - {module}
    return edges


def packages_aside(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out packages: their `__init__` imports nothing of grpo."""
    packages = {path.removesuffix("/__init__.py").replace("/", ".") for path in PATHS}
    return {m: {d for d in deps if d not in packages} for m, deps in edges.items()}


def test_imports_point_down() -> None:
    layer = {module: n for n, modules in enumerate(LAYERS) for module in modules}

    def layer_of(module: str) -> int:
        (number,) = [n for name, n in layer.items() if f"{module}.".startswith(f"{name}.")]
        return number

    upward = [
        f"{module} -> {other}"
        for module, others in packages_aside(graph()).items()
        for other in others
        if module != "grpo" and layer_of(other) > layer_of(module)
    ]
    assert upward == []


def test_the_farthest_import_chain() -> None:
    edges = packages_aside(graph())
    running: list[str] = []

    @functools.cache
    def longest(module: str) -> tuple[str, ...]:
        assert module not in running, f"a cycle: {' -> '.join([*running, module])}"
        running.append(module)
        chains = [longest(other) for other in sorted(edges[module])]
        running.remove(module)
        return (module, *max(chains, key=len, default=()))

    chain = max(map(longest, sorted(edges)), key=len)
    print(f"{len(chain)} levels: {' -> '.join(chain)}")
    assert len(chain) <= MAX_CHAIN, chain


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora/layers.py", "import grpo"),
        ("lora/layers.py", "from envs.base import Env"),
        ("lora/layers.py", "import numpy"),
        ("envs/pool.py", "def f():\n    from lora import apply_lora"),
        ("envs/pool.py", "from ..grpo import losses"),
        ("envs/scripted.py", "from envs.browser.actions import parse_action"),
        ("grpo/rollouts/rollout.py", "from envs.browser.env import BrowserEnv"),
        ("grpo/rollouts/rollout.py", "from envs import scripted"),
        ("grpo/training/trainer.py", "from lora import apply_lora"),
        ("grpo/algorithm/losses.py", "from grpo.config import Config"),
        ("grpo/algorithm/losses.py", "import rich"),
        ("grpo/tree/token_tree.py", "import transformers"),
        ("grpo/model/loading.py", "import transformers"),
        ("grpo/generators/vllm/engine.py", "import vllm"),
        ("grpo/reporting/loggers.py", "try:\n    import wandb\nexcept ImportError:\n    pass"),
        ("envs/browser/env.py", "class A:\n    from openenv.core import EnvClient"),
        ("grpo/config.py", "import examples.click_test"),
    ],
)
def test_the_rule_sees_a_breach(path: str, source: str) -> None:
    assert broken_rules(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("grpo/rollouts/rollout.py", "from envs.base import Env\nfrom envs import pool"),
        ("grpo/cli.py", "def f():\n    from envs.browser.pool import BrowserPool"),
        ("grpo/model/lora_policy.py", "from lora import apply_lora, merge"),
        ("grpo/algorithm/losses.py", "import math\nimport torch\nimport numpy as np"),
        ("grpo/algorithm/batch.py", "from grpo.types import Turn"),
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


@pytest.mark.parametrize(
    ("program", "refused"),
    [
        ("import grpo, envs, lora", OPTIONAL | SLOW | {"gguf", "accelerate", "rich", "pydantic"}),
        ("import grpo; grpo.train, grpo.Trainer, grpo.LoRAPolicy", OPTIONAL | SLOW | {"pydantic"}),
        (
            "import grpo.cli, grpo.arguments; grpo.arguments.config_parser('', '', show_all=True)",
            SLOW | {"torch"},
        ),
    ],
    ids=["packages", "train", "help"],
)
def test_imports_without_what_is_not_needed(program: str, refused: set[str]) -> None:
    source = textwrap.dedent(
        f"""
        import sys
        refused = {refused}

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in refused:
                    raise ModuleNotFoundError(f"{{name}} must not be imported here", name=name)

        sys.meta_path.insert(0, Refuse())
        {program}
        """
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
