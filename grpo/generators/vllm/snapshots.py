"""Versions of a policy as folders that vLLM reads."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from grpo.generators.base import GeneratorError
from grpo.generators.vllm.lease import LOCK_FILE, is_abandoned
from grpo.generators.vllm.options import VERSIONS_KEPT, WeightSync

if TYPE_CHECKING:
    from grpo.model.policy import Policy


PREFIX = "grpo-"


@dataclass(frozen=True)
class PolicySnapshot:
    """A version of the policy that servers can load.

    Attributes:
        folder: the adapter, or with `weight_sync="merged"` the whole model.
        version: `Policy.version`.
        weight_sync: what servers load.
    """

    folder: Path
    version: int
    weight_sync: WeightSync

    @property
    def name(self) -> str:
        """The name that servers know it by, unique over all versions of all runs."""
        return self.folder.name


def new_name(policy: Policy) -> str:
    """Make up a name for the policy as it is now, a different one at every call.

    vLLM identifies an adapter, and what it has cached for it, by name alone. The version number
    would repeat itself: after a checkpoint is loaded, and in the next run on the same server.
    """
    return f"policy-v{policy.version}-{secrets.token_hex(4)}"


class PolicyFolders:
    """Folders that vLLM reads a policy from, the newest few kept.

    Attributes:
        root: the folder around them, locked while this process lives.
    """

    def __init__(self, root: str) -> None:
        """Make a folder inside `root`, which is best in memory (/dev/shm).

        Folders there of processes that were killed are removed.

        Raises:
            GeneratorError: the folder cannot be made.
        """
        try:
            root = os.path.abspath(root)  # servers run in folders of their own
            for folder in Path(root).glob(f"{PREFIX}*"):
                if os.path.exists(folder / LOCK_FILE) and is_abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            self._lock = (self.root / "new").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.root / "new").rename(self.root / LOCK_FILE)  # nobody sees it without its lock
        except OSError as error:
            raise GeneratorError(
                f"cannot make a folder for vLLM in {root!r} (vllm_folder): {error}"
            ) from error
        self._written: deque[Path] = deque()

    def write(self, policy: Policy, weight_sync: WeightSync) -> Path:
        """Write the policy into a folder with a new name and remove the oldest ones.

        Returns:
            The folder (see `PolicySnapshot.folder`).

        Raises:
            GeneratorError: the folder cannot be written.
        """
        folder = self.root / new_name(policy)
        while len(self._written) >= (VERSIONS_KEPT if weight_sync == "adapter" else 1):
            shutil.rmtree(self._written.popleft(), ignore_errors=True)
        try:
            if weight_sync == "merged":
                _save_merged(policy, folder)
            else:
                policy.save(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise GeneratorError(f"cannot write {folder} (vllm_folder): {error}") from error
        self._written.append(folder)
        return folder

    def remove(self) -> None:
        """Remove all folders."""
        shutil.rmtree(self.root, ignore_errors=True)
        self._lock.close()


def _save_merged(policy: Policy, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    distinct: dict[int, str] = {}  # tied weights are stored once: vLLM ties them itself
    tensors = dict(policy.merged())
    for name, tensor in tensors.items():
        distinct.setdefault(tensor.data_ptr(), name)
    merged = {name: tensors[name].contiguous() for name in distinct.values()}
    save_file(merged, folder / "model.safetensors")
    policy.model.config.save_pretrained(folder)
