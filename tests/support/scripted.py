"""A whole training run in seconds: a tiny random model on a page of four words, no browser.

All that decides the result is seeded, so that two runs of the same configuration leave the same
adapter, bit by bit, whatever happened to them on the way. Takes the options of
`examples/click_test.py`, and leaves `adapter/` (with `--train full` `model/`), `gradient.pt` (of
the first update) and `metrics.jsonl` in the run's folder.

    python tests/support/scripted.py --output runs/scripted --steps 20
    torchrun --nproc-per-node 2 tests/support/scripted.py --output runs/scripted --steps 20
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from envs.base import Env, Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.distributed import World
from grpo.generators.factory import open_generator
from grpo.model.loading import make_policy
from grpo.reporting.loggers import MetricsLog
from grpo.rollouts.rollout import Rollouts, model_agent
from grpo.rollouts.task_sampler import TaskSampler
from grpo.shutdown import GracefulShutdown, Stopped
from grpo.training.trainer import Trainer

# The one page: its four clicks are four of the words, so that chance is 1 in 16.
TASK = Task("click-word", 7)
PAGE = asyncio.run(ScriptedEnv().reset(TASK))
WORDS = ["<eos>", "<unk>", *PAGE.actions, "noop()", "Click", "Goal:", "Page:", "text"]
WORDS += ["[0]", "a", "b", "c", "d"]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
}
SETTINGS = {
    "task": TASK.name,
    "group_size": 8,
    "groups_per_step": 2,
    "max_turns": 1,
    "max_new_tokens": 1,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "beta": 0.05,  # so that there is something to learn in every step
    "eval_episodes": 0,
}


class OnePage(TaskSampler):
    """Draws the one page whose words the tokenizer knows."""

    def draw(self, step: int, count: int, attempt: int = 0) -> list[Task]:
        """The page, as often as asked for."""
        return [TASK] * count


def make_llama() -> Any:
    """A Llama of two layers, its random weights always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SIZES)).eval()


def make_tokenizer() -> Any:
    """A word a token; the chat is the text of its last message."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=0
    )
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    return tokenizer


async def run(
    config: Config,
    world: World,
    *,
    env: Callable[[], Env] = ScriptedEnv,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train, from the newest checkpoint if the configuration says so."""
    policy = make_policy(config, make_llama(), make_tokenizer())
    with ThreadPoolExecutor(1) as executor:
        async with (
            GracefulShutdown() as stop,
            open_generator(config, policy, executor) as generator,
        ):
            act = model_agent(generator, policy.tokenizer, temperature=config.temperature)
            pool = EnvPool(env, config.env_sessions)
            rollouts = Rollouts(pool, act, config.max_turns, config.valid_action_bonus)
            trainer = Trainer(config, policy, generator, rollouts, executor, world)
            trainer.sampler = OnePage([TASK.name])
            stop.ask = trainer.stop
            if world.is_main:
                log = MetricsLog(config.folder, keep_before_step=trainer.step + 1)
            async for metrics in trainer.train():
                if world.is_main:
                    log.log(trainer.step, metrics)
                    if trainer.step == 1:
                        gradient = [p.grad for p in policy.parameters()]
                        torch.save(gradient, config.folder / "gradient.pt")
                on_step(trainer.step)
            if stop.received:
                raise Stopped(stop.received[0])
    if world.is_main:
        policy.save(config.folder / policy.weights_dirname)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    arguments = [part for k, v in SETTINGS.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    given = sys.argv[1:] if argv is None else argv
    config = Config.from_command_line(
        [*arguments, *given], description=str(__doc__), configs=Path(__file__).parent
    )
    world = World()
    try:
        asyncio.run(run(config, world))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    world.close()
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
