"""The sources of a version of vLLM, and which names they define.

They are read, not imported: that takes a second instead of seven, needs no GPU, and works on a
version that is not installed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources.abc import Traversable


class Sources:
    """The sources of a version of vLLM."""

    def __init__(self, root: Traversable) -> None:
        """Read nothing yet.

        Args:
            root: the folder around vLLM's package; a `zipfile.Path` for that of a wheel.
        """
        self._root = root
        self._module = cache(self._read)

    def missing(self, used: Mapping[str, str]) -> list[str]:
        """Find what vLLM lacks.

        Args:
            used: as in `grpo.generators.vllm.interface.OPTIONS`.

        Returns:
            A phrase for each missing name, such as "EngineArgs has no seed (vllm.engine)".
        """
        phrases = []
        for places, wanted in used.items():
            where, found = places, None
            for where in places.split("|"):
                if (found := self._find(where)) is not None:
                    break
            parent, _, name = where.rpartition(".")
            if found is None:
                phrases.append(f"{parent} has no {name}")
                continue
            there = self._names(found, parent)
            lacking = [] if there is None else sorted(set(wanted.split()) - there)
            phrases += [f"{name} has no {missing} ({parent})" for missing in lacking]
        return phrases

    def missing_routes(self, routes: Iterable[str]) -> list[str]:
        """Find the paths that no file of vLLM's entrypoints names."""
        text = "".join(_texts(self._root / "vllm" / "entrypoints"))
        return [route for route in routes if f'"{route}"' not in text]

    def _read(self, name: str) -> ast.Module | None:
        """Parse a module; None if there is none of that name."""
        *folders, last = name.split(".")
        folder = self._root.joinpath(*folders)
        package, module = folder / last / "__init__.py", folder / f"{last}.py"
        file = package if package.is_file() else module
        return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None

    def _find(self, where: str) -> ast.AST | None:
        """Find a module, or a definition in one that may have imported it from another."""
        if (module := self._module(where)) is not None:
            return module
        parent, _, name = where.rpartition(".")
        scope = self._find(parent) if parent else None
        if not isinstance(scope, ast.Module | ast.ClassDef):
            return None
        for node in _statements(scope.body):
            if name in _bound(node):
                if isinstance(node, ast.ImportFrom):
                    original = {a.asname or a.name: a.name for a in node.names}[name]
                    return self._find(f"{self._absolute(node, parent)}.{original}")
                return node
        return None

    def _absolute(self, node: ast.ImportFrom, module: str) -> str:
        """Return the module that an import in another module names."""
        if not node.level:
            return node.module or ""
        is_package = self._root.joinpath(*module.split("."), "__init__.py").is_file()
        package = f"{module}.__init__" if is_package else module
        return ".".join([*package.split(".")[: -node.level], node.module or ""]).rstrip(".")

    def _names(self, node: ast.AST, parent: str) -> set[str] | None:
        """Return the names of a definition (see `missing`); None if it takes any."""
        if isinstance(node, ast.Module):
            return {name for each in _statements(node.body) for name in _bound(each)}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            return None if node.args.kwarg else {each.arg for each in given}
        if not isinstance(node, ast.ClassDef):
            return {str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)}
        names = {name for each in _statements(node.body) for name in _bound(each)}
        names |= {
            n.attr
            for n in ast.walk(node)
            if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
        }
        for base in node.bases:
            found = self._find(f"{parent}.{base.id}") if isinstance(base, ast.Name) else None
            names |= (self._names(found, parent) or set()) if found else set()
        return names


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, those of `if` and `try` included."""
    for node in body:
        yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
                yield from _statements(getattr(node, part, []))


def _bound(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _texts(folder: Traversable) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _texts(path)
        elif path.name.endswith(".py"):
            yield path.read_text(encoding="utf-8")
