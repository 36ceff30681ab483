"""Checkpoints: written atomically, the newest few kept, and resumed from exactly."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo.errors import ConfigError
from grpo.files import remove, replacing, run_id
from grpo.model.chat_date import save_date
from grpo.model.policy import Policy

if TYPE_CHECKING:
    from grpo.config import Config

FORMAT = 2
STATE_FILE = "trainer.pt"
MANIFEST = "manifest.json"
"""Written last: the format, the run's configuration, and each file's SHA-256."""

MAX_MANIFEST_BYTES = 10_000_000

_NAME = re.compile(r"step-[0-9]{6,9}")

_log = logging.getLogger(__name__)


def save_checkpoint(config: Config, step: int, policy: Policy, state: dict[str, Any]) -> Path:
    """Write `checkpoints/step-<step>/` with the policy and the trainer's state.

    A folder of that name is always complete: it is written under another name and then renamed.
    The newest `keep_checkpoints` stay; those of later steps belong to an earlier run and go.

    Args:
        config: of the run; the checkpoint goes to its folder.
        step: training steps done.
        policy: saved by its own `save`, in `adapter/` or `model/`.
        state: everything else (optimizer, schedule, counters) as tensors and plain values.

    Raises:
        OSError: it could not be written; the older checkpoints are unchanged.
    """
    folder = config.folder / "checkpoints" / f"step-{step:06d}"
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        policy.save(unfinished / policy.weights_dirname)
        buffer = io.BytesIO()  # torch's own writer would hide the disk's error
        torch.save(state, buffer)
        (unfinished / STATE_FILE).write_bytes(buffer.getbuffer())
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "run": run_id(config.folder),
            "step": step,
            "sha256": {str(path.relative_to(unfinished)): _sha256(path) for path in files},
            "config": config.model_dump(mode="json"),
        }
        text = json.dumps(manifest, indent=2) + "\n"
        (unfinished / MANIFEST).write_text(text, encoding="utf-8")
    for later in checkpoints(config.folder):
        if step_of(later) > step:
            remove(later)
    prune(config.folder, step, config.keep_checkpoints)
    return folder


def prune(run: Path, step: int, keep: int) -> None:
    """Remove the checkpoints before the newest ones, and what a kill has left unfinished.

    Args:
        run: the run's folder.
        step: checkpoints of later steps stay, and do not count.
        keep: how many stay up to that step.

    Raises:
        OSError: one could not be removed.
    """
    for older in [path for path in checkpoints(run) if step_of(path) <= step][:-keep]:
        remove(older)
    for suffix in (".tmp", ".old"):  # half written, half removed
        for left in (run / "checkpoints").glob(f"step-*{suffix}"):
            shutil.rmtree(left)


def save_weights(policy: Policy, folder: Path) -> None:
    """Write a policy with its tokenizer, for this and other libraries.

    Raises:
        OSError: it could not be written; what was in the folder is unchanged.
    """
    with replacing(folder) as unfinished:
        policy.save(unfinished)
        policy.tokenizer.save_pretrained(unfinished)
        save_date(unfinished, policy.chat.date)


def checkpoints(run: Path) -> list[Path]:
    """List the finished checkpoints of a run, oldest first; whatever else is there is left out."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the training steps done at a checkpoint, as its name says."""
    return int(checkpoint.name.removeprefix("step-"))


def load_checkpoint(config: Config, policy: Policy) -> dict[str, Any] | None:
    """Load the newest intact checkpoint's weights into the policy, and return the trainer's state.

    Checkpoints of another run than the one that the folder belongs to are left alone. A corrupt
    checkpoint (a file is missing or changed) is named in a warning and skipped.

    Returns:
        The state; None if the run has no checkpoint, so that it starts from the beginning.

    Raises:
        ConfigError: every checkpoint is corrupt, or the newest intact one has other settings.
    """
    found, run = checkpoints(config.folder), run_id(config.folder)
    corrupt: dict[str, Exception] = {}
    for folder in reversed(found):
        try:
            manifest = _read_manifest(folder)
        except (OSError, ValueError, RecursionError) as error:
            corrupt[folder.name] = error
            continue
        if manifest.get("run", "") != run:
            _log.warning("checkpoint %s belongs to an earlier run and is skipped", folder.name)
            continue
        _warn_of(corrupt)
        if mismatch := config_mismatch(manifest, config):
            raise ConfigError(f"cannot resume from {folder.name}: {mismatch}")
        try:
            policy.load(folder / policy.weights_dirname)
        except ValueError as error:
            raise ConfigError(f"cannot resume from {folder.name}: {error}") from error
        return _read_state(folder)
    if corrupt:
        name, reason = next(iter(corrupt.items()))
        raise ConfigError(
            f"cannot resume: all {len(corrupt)} checkpoints in {str(found[0].parent)!r} are "
            f"corrupt (the newest, {name}: {reason}); without --resume the run starts over"
        )
    return None


def _warn_of(corrupt: dict[str, Exception]) -> None:
    for name, reason in corrupt.items():
        _log.warning("checkpoint %s is corrupt (%s) and is skipped", name, reason)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest and hold its files against it.

    Raises:
        OSError, ValueError: a file is not as it was written, or the manifest is none.
    """
    file = _file_in(folder, MANIFEST)
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise ValueError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    keys = {"format": int, "sha256": dict, "config": dict}
    if not isinstance(manifest, dict) or any(
        not isinstance(manifest.get(key), kind) for key, kind in keys.items()
    ):
        raise ValueError(f"{MANIFEST} must hold {', '.join(keys)}")
    for name, digest in manifest["sha256"].items():
        if _sha256(_file_in(folder, name)) != digest:
            raise ValueError(f"{name} has changed")
    if manifest["format"] == FORMAT and STATE_FILE not in manifest["sha256"]:
        raise ValueError(f"{MANIFEST} does not name {STATE_FILE}")
    return manifest


def _file_in(folder: Path, name: str) -> Path:
    """Return a checkpoint's file, which another one, or a device, may not stand for.

    Raises:
        OSError, ValueError: it is not a regular file inside the folder.
    """
    path = (folder / name).resolve(strict=True)
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"{name!r} is not a file of the checkpoint")
    return path


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = torch.load(folder / STATE_FILE, weights_only=True)
    except (
        Exception
    ) as error:  # whatever the file makes of unpickling; torch's text advises to run it
        raise ConfigError(
            f"cannot resume from {folder.name}: {STATE_FILE} must hold tensors and plain values as "
            f"grpo train saves them, and holds something else ({type(error).__name__}); no code in "
            "it was run"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(
            f"cannot resume from {folder.name}: {STATE_FILE} must hold a dict, got "
            f"{type(state).__name__}"
        )
    return state


def config_mismatch(manifest: dict[str, Any], config: Config) -> str:
    """Say which settings of a checkpoint differ from this run's; "" if none does."""
    if manifest["format"] != FORMAT:
        return f"its format is {manifest['format']}, expected {FORMAT}"
    now = config.model_dump(mode="json")
    then = type(config)().model_dump(mode="json") | manifest["config"]  # options that are newer
    differ = [k for k in now if k not in config.resumable() and then[k] != now[k]]
    if not differ:
        return ""
    changes = ", ".join(f"{k} was {then[k]!r} and is {now[k]!r}" for k in differ[:4])
    more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
    return (
        f"{changes}{more}. A run is resumed with its own settings; for others start a new one "
        "from its adapter (--adapter) or model (--model)"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
