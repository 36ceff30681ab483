"""Pickles of other programs, read as data.

A pickle is a program that may call anything. Here nothing is imported and nothing is called: every
class is replaced by a stand-in that only holds attributes.
"""

from __future__ import annotations

import gzip
import io
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any, ClassVar

MAX_BYTES = 50_000_000
"""Largest unpacked file of a trace."""

DATA = {
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath"),
    *("datetime.datetime", "datetime.timedelta", "collections.OrderedDict"),
    *("collections.defaultdict", "copyreg._reconstructor", "builtins.object"),
    *("enum.Enum", "builtins.dict", "builtins.list", "builtins.set", "builtins.tuple"),
}
"""What a trace may name of the standard library; stand-ins take their place as well."""


class _Inert:
    """Stands in for an instance of any class: holds attributes, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    def append(self, item: Any) -> None:
        """Drop an item of a subclass of list."""

    def extend(self, items: Any) -> None:
        """Drop items of a subclass of list."""


_InPython: Any = pickle._Unpickler


class _Reader(_InPython):  # type: ignore[misc]
    """Reads a pickle without running it.

    It is the one in Python, whose opcodes can be replaced, and whose memo is a dictionary: a file
    cannot make it reserve memory by naming a large index.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> type[_Inert]:
        """Return a stand-in, unless the name is of Python's own functions."""
        package = module.partition(".")[0]
        if f"{module}.{name}" not in DATA and package in {*sys.stdlib_module_names, "posix", "nt"}:
            raise pickle.UnpicklingError(f"it names {module:.40}.{name:.40}")
        return _Inert

    def _set(self, key: Any, value: Any) -> None:
        holder = self.stack[-1]
        if isinstance(holder, dict) and isinstance(key, str | int | float | None):
            holder[key] = value  # no other key is ever looked up, and hashing one may not end

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def _set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=False):
            self._set(key, value)

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        for key, value in zip(items[::2], items[1::2], strict=False):
            self._set(key, value)

    def _drop_items(self) -> None:
        self.pop_mark()

    def _make_frozenset(self) -> None:
        self.pop_mark()
        self.stack.append(frozenset())

    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.DICT[0]] = _make_dict
    dispatch[pickle.ADDITEMS[0]] = _drop_items
    dispatch[pickle.FROZENSET[0]] = _make_frozenset
    for opcode in (
        *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.INT, pickle.LONG),
    ):
        del dispatch[opcode[0]]


def read_pickle(path: Path, *, packed: bool) -> Any:
    """Read a pickle of at most `MAX_BYTES` as plain values and stand-ins.

    Raises:
        ValueError: it is larger, names what no trace does, or is not a pickle.
    """
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name} is not packed with gzip, or cut off") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES} bytes")
    try:
        return _Reader(io.BytesIO(data)).load()
    except Exception as error:  # whatever a file makes of reading it
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(
            f"{path.name} is not data of a trace ({reason}); nothing in it was run"
        ) from error


def attributes_of(value: Any) -> dict[str, Any]:
    """Return what a stand-in or a dictionary holds; {} for anything else."""
    if isinstance(value, _Inert):
        return value.attributes
    return value if isinstance(value, dict) else {}
