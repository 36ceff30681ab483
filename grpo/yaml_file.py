"""Reading a configuration's YAML file: plain keys and values, and nothing that surprises.

YAML 1.1 has more: aliases, which can make a short file fill the memory; tags, which make objects;
`no` that is False, 010 that is 8, 1:30 that is 90. Each of these is an error here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from grpo.errors import ConfigError
from grpo.option_values import short

MAX_BYTES = 1_000_000

_STRING = "tag:yaml.org,2002:str"
_PLAIN = {
    "bool": (r"true|false", "write true or false, or quote a text"),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "write a decimal number, or quote a text"),
    "float": (r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.(inf|nan)",
              "write a decimal number, or quote a text"),
    "timestamp": (r"(?!)", "dates are not options; quote a text"),
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Raises where YAML's reading of a file would not be obvious."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            _refuse("anchors and aliases (& and *) are not supported; quote a text", event)
        if getattr(event, "tag", None) is not None:
            _refuse("tags (!) are not supported; quote a text", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _STRING:
                _refuse(f"keys are names, got {short(key.value)}", key)
            if key.value in seen:
                _refuse(f"the key {short(key.value)} appears twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.rpartition(":")[2]
        pattern, hint = _PLAIN[kind]
        if not re.fullmatch(pattern, node.value, re.IGNORECASE):
            _refuse(f"{short(node.value)} is not read as it is written: {hint}", node)
        return getattr(self, f"construct_yaml_{kind}")(node)


for _kind in _PLAIN:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_plain)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse(problem: str, where: Any) -> None:
    raise yaml.constructor.ConstructorError(None, None, problem, where.start_mark)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that maps option names to values.

    Raises:
        ConfigError: the file cannot be read, holds something else, or something ambiguous.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_BYTES + 1) if is_file else b""
        if not is_file or len(content) > MAX_BYTES:
            raise ConfigError(
                f"config {str(path)!r} must be a regular file of at most {MAX_BYTES} bytes"
            )
        options = yaml.load(content.decode(), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())  # YAML's own is several lines
        raise ConfigError(f"cannot read config {str(path)!r}: {reason}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"config {str(path)!r} must map keys to values, got {short(options)}")
    return options
