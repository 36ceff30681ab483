"""Environments that speak chat messages, and know nothing of tokens or training."""

from envs.base import (
    Demonstrator,
    Env,
    EnvError,
    Formatter,
    Observation,
    Renumberer,
    StepResult,
    Task,
    TaskError,
)
from envs.checker import check_env
from envs.pool import EnvPool

__all__ = [
    "Demonstrator",
    "Env",
    "EnvError",
    "EnvPool",
    "Formatter",
    "Observation",
    "Renumberer",
    "StepResult",
    "Task",
    "TaskError",
    "check_env",
]
