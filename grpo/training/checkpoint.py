"""Checkpoints: written whole or not at all, the newest few kept, exact to resume from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from grpo.config import Config, ConfigError
from grpo.model.policy import Policy

FORMAT = 1
STATE_FILE = "trainer.pt"
MANIFEST = "manifest.json"
"""Written last: the format, the run's configuration, and each file's SHA-256."""

RESUMABLE = frozenset(
    {
        *("output", "adapter", "steps", "minutes", "eval_episodes", "groups_per_step"),
        *("save_every", "keep_checkpoints", "resume", "max_bad_updates"),
        *("env_url", "env_workers", "env_sessions", "env_deadline"),
        *("cache_tokens", "sampling_threads", "device", "activation_checkpointing"),
        *("max_tokens_per_microbatch", "vllm_memory", "vllm_sleep", "vllm_sync", "vllm_url"),
        *("vllm_folder", "vllm_deadline", "max_logp_difference"),
        *("push_to_hub", "logger", "log_completions"),
    }
)
"""Options that may differ when a run goes on: they decide where and how long, not what.

`groups_per_step` is a rank's, and their number may differ too: the trainer checks the product.
"""

_log = logging.getLogger(__name__)


def save_checkpoint(config: Config, step: int, policy: Policy, state: dict[str, Any]) -> Path:
    """Write `checkpoints/step-<step>/` with the policy and the trainer's state.

    A folder of that name is always complete: it is written under another name and renamed. The
    `keep_checkpoints` newest stay; those of later steps are of an earlier run and go.

    Args:
        config: of the run; its folder is where to.
        step: training steps done.
        policy: saved as it saves itself, in `adapter/` or `model/`.
        state: the rest (optimizer, schedule, counters): tensors and plain values.

    Raises:
        OSError: it could not be written; the older checkpoints are as they were.
    """
    folder = config.folder / "checkpoints" / f"step-{step:06d}"
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        policy.save(unfinished / policy.weights_dirname)
        buffer = io.BytesIO()  # torch's own writer would turn the disk's error into another
        torch.save(state, buffer)
        (unfinished / STATE_FILE).write_bytes(buffer.getbuffer())
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "step": step,
            "sha256": {str(path.relative_to(unfinished)): _sha256(path) for path in files},
            "config": asdict(config),
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in [*unfinished.rglob("*"), unfinished]:
            _fsync(path)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)  # what it holds of a full disk
        raise
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    _fsync(folder.parent)
    found = checkpoints(config.folder)
    kept = [path for path in found if path.name <= folder.name][-config.keep_checkpoints :]
    for other in found:
        if other not in kept:
            shutil.rmtree(other)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.suffix != ".tmp")


def load_checkpoint(config: Config, policy: Policy) -> dict[str, Any] | None:
    """Load the newest whole checkpoint's weights into the policy, and the trainer's state.

    A torn one (a file missing or not what was written) is named in a warning and passed over.

    Returns:
        The state; None if the run has no checkpoint, so that it begins at the beginning.

    Raises:
        ConfigError: every checkpoint is torn, or the newest whole one is another run's.
    """
    found = checkpoints(config.folder)
    for folder in reversed(found):
        if fault := _fault(folder):
            _log.warning("checkpoint %s is torn (%s): it is passed over", folder.name, fault)
            continue
        manifest = json.loads((folder / MANIFEST).read_text())
        if mismatch := config_mismatch(manifest, config):
            raise ConfigError(f"cannot resume from {folder.name}: {mismatch}")
        try:
            policy.load(folder / policy.weights_dirname)
        except ValueError as error:
            raise ConfigError(f"cannot resume from {folder.name}: {error}") from error
        return torch.load(folder / STATE_FILE, weights_only=True)
    if found:
        raise ConfigError(
            f"cannot resume: all {len(found)} checkpoints in {str(found[0].parent)!r} are torn; "
            "without --resume the run begins anew"
        )
    return None


def _fault(folder: Path) -> str:
    """Say what of a checkpoint is not what was written, "" if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest["sha256"].items():
            if _sha256(folder / name) != digest:
                return f"{name} has changed"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def config_mismatch(manifest: dict[str, Any], config: Config) -> str:
    """Say in what a checkpoint is not of this run, "" if it is."""
    if manifest["format"] != FORMAT:
        return f"its format is {manifest['format']}, expected {FORMAT}"
    then, now = manifest["config"], asdict(config)
    differ = [k for k in now if k not in RESUMABLE and then.get(k) != now[k]]
    if not differ:
        return ""
    changes = ", ".join(f"{k} was {then.get(k)!r} and is {now[k]!r}" for k in differ[:4])
    more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
    return (
        f"{changes}{more}. A run goes on with its own settings; for others begin a new one "
        "from its adapter (--adapter) or model (--model)"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
