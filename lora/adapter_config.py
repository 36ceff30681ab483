"""PEFT's `adapter_config.json`: read and checked, and the modules that it targets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.targets import in_layers, matching

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 4_000_000

# The keys that are read here, and those that do not affect how trained tensors are used. Every
# other key that is set asks for a feature that is not supported.
_READ = {
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "target_modules",
    "use_rslora",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says, checked.

    Attributes:
        path: the file.
        r: rank of every layer.
        alpha: the correction is multiplied by `alpha / r`; rsLoRA's scaling is contained.
        dropout: in [0, 1).
        target_modules: names, a regular expression or "all-linear".
        exclude_modules: names or a regular expression of modules to leave out.
        layers_to_transform: numbers of the layers to take; empty for all.
        layers_pattern: what stands before the number; empty for anything.
    """

    path: Path
    r: int
    alpha: float
    dropout: float
    target_modules: str | list[str]
    exclude_modules: str | list[str]
    layers_to_transform: list[int]
    layers_pattern: list[str]

    def targets(self, names: Sequence[str], linear: Sequence[str]) -> list[str]:
        """Choose the modules that get LoRA.

        Args:
            names: the full names of all modules of the model.
            linear: those that "all-linear" stands for.

        Returns:
            Those of `names` that are targeted, in the same order.

        Raises:
            ValueError: a pattern is not a regular expression, or takes too long.
        """
        excluded = self._apply("exclude_modules", matching, self.exclude_modules, names)
        if isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear":
            chosen = set(linear)
        else:
            chosen = self._apply("target_modules", matching, self.target_modules, names)
        if self.layers_to_transform:
            full = chosen & set(self.target_modules)  # a full name counts in every layer
            some = [name for name in names if name in chosen - full]
            layers, patterns = self.layers_to_transform, self.layers_pattern
            chosen = full | self._apply("layers_pattern", in_layers, some, layers, patterns)
        chosen -= excluded
        return [name for name in names if name in chosen]

    def _apply(self, key: str, choose: Callable[..., set[str]], *args: Any) -> set[str]:
        try:
            return choose(*args)
        except ValueError as error:
            value = shortened(getattr(self, key))
            raise ValueError(f"{self.path}: {key} {value} {error}") from error


def read_config(path: Path) -> AdapterConfig:
    """Read and check an adapter's configuration.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a regular file, not valid, or asks for what is not supported.
    """
    config = _read_object(path)

    def read(key: str, valid: Callable[[Any], bool], expected: str, default: Any = None) -> Any:
        value = config.get(key, default)
        if not valid(value):
            raise ValueError(f"{path}: {key} must be {expected}, got {shortened(value)}")
        return value

    read("peft_type", lambda v: v == "LORA", "'LORA'")
    r = read("r", lambda v: _is_integer(v) and v > 0, "a positive integer")
    alpha = read("lora_alpha", _is_finite, "a number")
    read("lora_alpha", lambda v: v > 0, "above 0")
    dropout = read("lora_dropout", lambda v: _is_finite(v) and 0 <= v < 1, "in [0, 1)", 0.0)
    rslora = read("use_rslora", lambda v: v in (None, True, False), "true or false")
    targets = read("target_modules", _is_names, "a list or a string")
    excluded = read("exclude_modules", lambda v: not v or _is_names(v), "a list or a string")
    layers = read("layers_to_transform", _is_layers, "a list of integers")
    pattern = read("layers_pattern", lambda v: v is None or _is_names(v), "a list or a string")
    if isinstance(targets, str) and (layers is not None or pattern is not None):
        raise ValueError(
            f"{path}: layers_to_transform and layers_pattern need a list as target_modules, "
            f"got {shortened(targets)}"
        )
    if pattern and layers is None:
        raise ValueError(f"{path}: layers_pattern needs layers_to_transform")
    _require_supported(path, config)
    return AdapterConfig(
        path,
        r,
        alpha * (math.sqrt(r) if rslora else 1),
        dropout,
        targets,
        excluded or [],
        [layers] if isinstance(layers, int) else layers or [],
        [pattern] if isinstance(pattern, str) and pattern else list(pattern or []),
    )


def _read_object(path: Path) -> dict[str, Any]:
    require_file(path, MAX_CONFIG_BYTES)
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, got {type(config).__name__}")
    return config


def require_file(path: Path, max_bytes: int | None = None) -> None:
    """Check that a file can be read: not a folder, a device or a pipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, cannot be read or is too large.
    """
    try:
        if not path.is_file():
            path.stat()  # raises if there is nothing
            raise ValueError(f"{path} is not a regular file")
        with path.open("rb"):
            size = path.stat().st_size
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{path} must be at most {max_bytes} bytes, got {size}")


def _require_supported(path: Path, config: dict[str, Any]) -> None:
    # Other initialisations change the base weight too, which the adapter does not contain.
    unsupported = {
        key: value
        for key, value in config.items()
        if key not in _READ | _WITHOUT_EFFECT
        and not (value is None or value is False or value in ({}, [], "none"))
    }
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        unsupported["init_lora_weights"] = config["init_lora_weights"]
    if unsupported:
        raise ValueError(
            f"{path} asks for features that are not supported: {shortened(unsupported)}"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # false for NaN; an integer may be too large for a float


def _is_names(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) for name in names)


def _is_layers(value: Any) -> bool:
    layers = value if isinstance(value, list) else [value]
    return value is None or all(_is_integer(layer) for layer in layers)


def shortened(value: Any) -> str:
    """Write a value from a file in one line of limited length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
