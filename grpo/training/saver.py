"""What a run learned goes to its folder: checkpoints on the way, the trained weights at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.files import begin_run, run_id
from grpo.model.policy import Policy
from grpo.training.checkpoint import (
    STATE_FILE,
    checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
    save_weights,
)

if TYPE_CHECKING:
    from grpo.config import Config

_STATE = {
    **{"step": int, "groups": int, "episodes": int, "version": int},
    **{"date": str, "seconds": dict, "failures": dict},
}
"""What the trainer's state must have, whoever wrote it; `restore` notices the rest."""

_log = logging.getLogger(__name__)


def can_resume(config: Config, earlier: str) -> bool:
    """Tell whether a program has left a checkpoint of its run.

    Args:
        config: of the program.
        earlier: the id of the run that its folder belonged to when the program began.
    """
    is_of_run = config.resume or run_id(config.folder) != earlier
    return is_of_run and bool(checkpoints(config.folder))


class Saver:
    """Saves a policy and its trainer's state, on the main rank.

    Attributes:
        run: id of the run, as in its files; "" before it has begun.
        failures: checkpoints that could not be written.
    """

    def __init__(self, config: Config, policy: Policy, world: World) -> None:
        """Make the saver of a run.

        Args:
            config: of the run; everything goes to its folder.
            policy: the policy that is trained.
            world: the processes that train together.
        """
        self.config, self.policy, self.world = config, policy, world
        self.run, self.failures = "", 0
        self._saved: int | None = None  # the step whose checkpoint is there

    def load(self, restore: Callable[[dict[str, Any]], None]) -> bool:
        """Load the newest checkpoint, if the run is to be resumed and has one.

        Args:
            restore: takes the trainer's state.

        Returns:
            True if there was one.

        Raises:
            ConfigError: see `grpo.training.checkpoint.load_checkpoint`; or the state is not one.
        """
        state = load_checkpoint(self.config, self.policy) if self.config.resume else None
        if state is None:
            return False
        wrong = [key for key, kind in _STATE.items() if not isinstance(state.get(key), kind)]
        if wrong or state["step"] < 0:
            raise ConfigError(
                f"cannot resume: {STATE_FILE} holds no valid {(wrong or ['step'])[0]}"
            )
        try:
            restore(state)
        except ConfigError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ConfigError(f"cannot resume: {STATE_FILE} cannot be used: {reason}") from error
        self.run, self._saved = run_id(self.config.folder), state["step"]
        return True

    def begin(self) -> None:
        """Give the folder to this run; where it has it already, remove what a kill has left."""
        if not self.world.is_main:
            return
        if not self.run:
            self.run = begin_run(self.config.folder)
        elif self._saved is not None:
            try:
                prune(self.config.folder, self._saved, self.config.keep_checkpoints)
            except OSError as error:
                _log.warning("an old checkpoint could not be removed: %s", error)

    def save(
        self, step: int, state: Callable[[], dict[str, Any]], *, anew: bool = False
    ) -> OSError | None:
        """Write a checkpoint, unless that of this step is there.

        A full disk costs this checkpoint and not the run: the older ones stay.

        Args:
            step: training steps done.
            state: returns the trainer's state.
            anew: True to replace that of this step.

        Returns:
            Why it could not be written.
        """
        if not self.world.is_main or (self._saved == step and not anew):
            return None
        try:
            save_checkpoint(self.config, step, self.policy, state())
        except OSError as error:
            self.failures += 1
            _log.warning("the checkpoint of step %d could not be saved: %s", step, error)
            return error
        self._saved = step
        return None

    def finish(self, step: int, state: Callable[[], dict[str, Any]], *, learned: bool) -> None:
        """Write what the run is for, the trained weights, and then its last checkpoint.

        Args:
            step: training steps done.
            state: returns the trainer's state.
            learned: False for a run that was stopped: its weights are in the checkpoint alone.

        Raises:
            OSError: one of the two could not be written; the other one is.
        """
        failure: OSError | None = None
        if learned and self.world.is_main:
            try:
                save_weights(self.policy, self.config.folder / self.policy.weights_dirname)
            except OSError as error:
                failure = error
                _log.warning("the trained weights could not be saved: %s", error)
        failure = self.save(step, state) or failure
        if failure is not None:
            raise failure
