"""An agent whose episodes part ways: it follows the solver, errs, and talks."""

from __future__ import annotations

from envs.base import Env, Observation
from grpo.rollouts.agents import oracle_agent, random_agent
from grpo.types import Completion

_oracle = oracle_agent()


async def guess(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
    """Follow the solver on even seeds, act at random on odd ones, and talk on some of both."""
    text, completion = await (random_agent if seed % 2 else _oracle)(observation, seed, env)
    return "I am not sure." if seed % 7 == 0 else text, completion
