"""One flat configuration: its fields are the YAML keys and the command-line options."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from grpo.algorithm.advantages import Baseline, Scale
from grpo.algorithm.credit import Credit, CreditRule
from grpo.algorithm.losses import Aggregation, Bound, KLKind, Loss
from grpo.rollouts.task_sampler import SamplerKind


class ConfigError(ValueError):
    """What the user asked for cannot be done; the message is one line and says why."""


AT_LEAST_ONE = (
    *("groups_per_step", "max_turns", "max_new_tokens", "env_sessions", "env_workers"),
    *("updates_per_batch", "lora_r", "max_tokens_per_microbatch", "keep_checkpoints"),
    "max_bad_updates",
)
NOT_NEGATIVE = (
    "beta",
    "max_resamples",
    "max_prompt_tokens",
    "step_weight",
    "warm_start_steps",
    "log_completions",
)


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Each field's help text is its documentation."""

    # What is learned, and where it goes.
    task: str = _option("click-test", "MiniWoB task, or several, commas between")
    held_out_tasks: str = _option("", "tasks that are evaluated and never trained on")
    model: str = _option("", "Hugging Face id, folder or .gguf file; empty: the bundled model")
    train: Literal["lora", "full"] = _option("lora", "a LoRA adapter, or every weight")
    adapter: str = _option("", "LoRA adapter to start from: a folder or a Hugging Face id")
    output: str = _option("", "folder of the run; empty: runs/<task>")
    push_to_hub: str = _option("", "user/name on the Hugging Face hub: where the run goes")
    seed: int = _option(0, "of everything random in the run")

    # Rollouts.
    group_size: int = _option(8, "episodes of one task and seed, G; at least 2")
    groups_per_step: int = _option(4, "groups of one training step")
    max_turns: int = _option(10, "browser actions an episode at most")
    max_new_tokens: int = _option(24, "tokens an answer at most")
    max_prompt_tokens: int = _option(
        0, "lines at a page's end are left out of longer prompts; 0: the model's limit"
    )
    temperature: float = _option(1.0, "of the sampled and of the trained distribution")
    valid_action_bonus: float = _option(0.0, "reward for an answer that is a valid action")

    # The sampler.
    backend: Literal["local", "vllm", "vllm-server"] = _option("local", "which generator samples")
    cache_tokens: int = _option(4096, "distinct tokens the local generator keeps")
    sampling_threads: int = _option(1, "CPU threads of the local generator; 0: all")
    vllm_memory: float = _option(0.3, "share of the GPU's memory for vLLM; on a CPU GiB of cache")
    vllm_sleep: bool = _option(False, "vLLM gives its GPU memory back while the update runs")
    vllm_sync: Literal["auto", "adapter", "merged"] = _option(
        "auto", "what vLLM gets after an update: the adapter, or the weights with it merged in"
    )
    vllm_url: str = _option("http://127.0.0.1:8001", "vLLM servers, commas between")
    vllm_folder: str = _option("/dev/shm", "where vLLM servers read adapters from; seen by all")
    vllm_deadline: float = _option(120.0, "seconds that a vLLM server may stay away")
    max_logp_difference: float = _option(
        0.0, "mean gap to vLLM's log-probabilities that the start-up test allows; 0: the dtype's"
    )

    # The environment.
    env_url: str = _option(
        "", "OpenEnv servers, or Spaces' pages, commas between; empty: start one here"
    )
    env_workers: int = _option(2, "Chromiums of the server started here")
    env_sessions: int = _option(16, "browser sessions at once")
    env_deadline: float = _option(30.0, "seconds until an env call counts as failed")

    # The algorithm.
    steps: int = _option(20, "training steps at most")
    minutes: float = _option(0.0, "training time at most; 0: no limit")
    updates_per_batch: int = _option(1, "optimizer steps on one batch of rollouts")
    loss: Loss = _option("grpo", "clipped surrogate")
    aggregation: Aggregation = _option("dapo", "how tokens are averaged")
    scale_rewards: Scale = _option("group", "what advantages are divided by")
    baseline: Baseline = _option("mean", "what is subtracted from rewards")
    credit: Credit = _option("episode", "which turns a reward is put down to")
    discount: float = _option(0.95, "of later rewards, for credit=discounted and credit=steps")
    step_weight: float = _option(1.0, "of the comparison at equal pages, for credit=steps")
    epsilon_low: float = _option(0.2, "the ratio is clipped at 1 - epsilon_low")
    epsilon_high: float = _option(0.2, "the ratio is clipped at 1 + epsilon_high")
    delta: float = _option(0.0, "dual clip: bound on the ratio where the advantage is negative")
    beta: float = _option(0.0, "weight of the KL penalty to the reference; 0: none")
    kl: KLKind = _option("k3", "estimator of the penalty")
    max_staleness: int = _option(
        0, "1: the next step's rollouts are played during the update, by the policy before it"
    )
    importance: Literal["auto", "none", "token", "sequence"] = _option(
        "auto", "weights for the gap to what sampled; auto: token, where sampler or version differ"
    )
    importance_bound: Bound = _option("cap", "weights beyond the cap are cut to it, or to 0")
    importance_cap: float = _option(2.0, "bound of the weights")
    task_sampler: SamplerKind = _option(
        "uniform",
        "learnability: more of the tasks and seeds that succeed sometimes; curriculum: one task after "
        "the other",
    )
    warm_start_steps: int = _option(
        0, "updates towards a scripted solver's episodes, before the training; 0: none"
    )
    max_resamples: int = _option(
        0, "times that groups without an advantage are replaced by new ones in a step"
    )
    max_bad_updates: int = _option(3, "updates in a row that may be infinite or NaN")
    log_kl: bool = _option(True, "measure the KL even where beta is 0: one more forward")

    # The optimizer.
    learning_rate: float = _option(2e-4, "of AdamW; train=full wants about 1e-6")
    warmup_steps: int = _option(2, "updates until the learning rate is reached")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm; 0: not")
    lora_r: int = _option(8, "rank of the adapter")
    lora_alpha: float = _option(16.0, "the adapter's output is scaled by alpha / r")
    lora_target_modules: str = _option(
        "all-linear", "all-linear, or names of linear layers with commas between"
    )

    # The machine.
    device: str = _option("auto", "auto, cpu, cuda, ...")
    dtype: Literal["bfloat16", "float32", "float16"] = _option("bfloat16", "of the model's weights")
    forward: Literal["auto", "tree", "padded"] = _option("auto", "how the update computes")
    activation_checkpointing: bool = _option(False, "less memory for a third more time")
    max_tokens_per_microbatch: int = _option(4096, "distinct tokens of one forward")

    # What is kept and shown.
    eval_episodes: int = _option(100, "held-out seeds a task of an evaluation; 0: none")
    blind: bool = _option(True, "evaluate with the page hidden, too")
    save_every: int = _option(10, "steps between checkpoints; 0: only the last")
    keep_checkpoints: int = _option(2, "checkpoints that are kept")
    logger: Literal["tensorboard", "wandb"] = _option("tensorboard", "where curves are drawn")
    log_completions: int = _option(5, "steps between tables of a few answers; 0: none")
    resume: bool = _option(False, "go on from the run's newest checkpoint")

    def __post_init__(self) -> None:
        """Check what can be checked without a model or a browser."""
        if self.group_size < 2:
            raise ConfigError(
                f"group_size must be at least 2, got {self.group_size}: advantages compare the "
                "episodes of a group"
            )
        if not self.tasks or len(set(self.evaluated_tasks)) < len(self.evaluated_tasks):
            raise ConfigError(
                f"task and held_out_tasks must name tasks, each once, got {self.task!r} and "
                f"{self.held_out_tasks!r}"
            )
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("temperature", "learning_rate", "env_deadline"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount must be above 0 and at most 1, got {self.discount}")
        if self.max_staleness not in (0, 1):
            raise ConfigError(f"max_staleness must be 0 or 1, got {self.max_staleness}")
        if self.importance_cap <= 1:
            raise ConfigError(f"importance_cap must be above 1, got {self.importance_cap}")
        if self.delta and (self.loss == "cispo" or self.delta <= 1 + self.epsilon_high):
            raise ConfigError(
                "delta must be above 1 + epsilon_high, and not with loss=cispo, got "
                f"delta={self.delta}, epsilon_high={self.epsilon_high}, loss={self.loss}"
            )
        if self.push_to_hub and not is_hub_id(self.push_to_hub):
            raise ConfigError(f"push_to_hub must be a hub id, user/name, got {self.push_to_hub!r}")
        if self.train == "full" and self.adapter:
            raise ConfigError(
                f"adapter must be empty with train=full, got {self.adapter!r}: to go on from a "
                "model that was trained as a whole, give its folder as model"
            )
        for name, (_, choices) in _types(type(self)).items():
            value = getattr(self, name)
            if choices and value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    @property
    def tasks(self) -> list[str]:
        """The tasks that `task` names."""
        return _names(self.task)

    @property
    def evaluated_tasks(self) -> list[str]:
        """Those that are trained, then those that are held out."""
        return [*self.tasks, *_names(self.held_out_tasks)]

    @property
    def env_urls(self) -> list[str]:
        """The servers that `env_url` names."""
        return _names(self.env_url)

    @property
    def vllm_urls(self) -> list[str]:
        """The servers that `vllm_url` names."""
        return _names(self.vllm_url)

    @property
    def importance_level(self) -> Literal["none", "token", "sequence"]:
        """Whether the update weights tokens or sequences for the gap to what sampled."""
        if self.importance != "auto":
            return self.importance
        return "token" if self.backend != "local" or self.max_staleness else "none"

    @property
    def credit_rule(self) -> CreditRule:
        """How turns get their advantages."""
        return CreditRule(self.credit, self.discount, self.step_weight)

    @property
    def uses_reference(self) -> bool:
        """Whether the update asks for the reference policy's log-probabilities."""
        return self.beta > 0 or self.log_kl

    @property
    def folder(self) -> Path:
        """Where the run keeps its files."""
        return Path(self.output or f"runs/{'+'.join(self.tasks)}")

    def to_yaml(self) -> str:
        """The configuration as YAML that `from_mapping` reads."""
        return yaml.safe_dump(asdict(self), sort_keys=False)

    @classmethod
    def from_mapping(cls, values: dict[str, Any], source: str = "config") -> Config:
        """Make a configuration from YAML's keys and values.

        Raises:
            ConfigError: a key is unknown (the nearest name is suggested) or a value's type
                or range is wrong.
        """
        types = {name: kind for name, (kind, _) in _types(cls).items()}
        for key, value in values.items():
            if key not in types:
                near = difflib.get_close_matches(str(key), types, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown key {key!r} in {source}{hint}")
            if types[key] is float and type(value) in (int, str):
                try:
                    values = {**values, key: float(value)}  # YAML reads 1e-5 as a text
                    continue
                except ValueError:
                    pass  # a text that is no number: the error below
            if type(value) is not types[key]:
                raise ConfigError(f"{key} in {source} must be {types[key].__name__}, got {value!r}")
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a YAML file.

        Raises:
            ConfigError: there is no such file, or it is no mapping of known keys.
        """
        try:
            values = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())  # YAML's own is several lines
            raise ConfigError(f"cannot read config {str(path)!r}: {reason}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"config {str(path)!r} must map keys to values, got {values!r}")
        return cls.from_mapping(values, str(path))

    @classmethod
    def from_command_line(
        cls, argv: Sequence[str] | None, description: str, configs: Path
    ) -> Config:
        """Read `--config`, else the task's own file in `configs`, then the other options.

        Args:
            argv: the arguments; None for the program's own.
            description: shown by `--help`.
            configs: folder in which `<task>.yaml` is looked for when no `--config` is given.

        Raises:
            ConfigError: as `from_yaml`; what argparse refuses exits with code 2.
        """
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--config", help="YAML file with any of the keys below")
        types = _types(cls)
        for f in fields(cls):
            kind, choices = types[f.name]
            parser.add_argument(
                "--" + f.name.replace("_", "-"),
                **(
                    {"action": argparse.BooleanOptionalAction}
                    if kind is bool
                    else {"type": kind, "choices": choices or None}
                ),
                default=argparse.SUPPRESS,
                help=f"{f.metadata['help']} (default: {f.default!r})".replace("%", "%%"),
            )
        given = vars(parser.parse_args(argv))
        path = given.pop("config", None)
        own = configs / f"{given.get('task', cls.task)}.yaml"
        if path is None and own.is_file():
            path = own
        return replace(cls.from_yaml(path) if path else cls(), **given)


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `user/name` of a repository on the Hugging Face hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text  # the hub's own, without a user, are nobody's to write


def _names(text: str) -> list[str]:
    """The names in a text with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _types(config: type[Config]) -> dict[str, tuple[type, tuple[str, ...]]]:
    """Of each field its plain type, and the choices of a `Literal`."""
    hints = get_type_hints(config).items()
    return {k: (str, get_args(h)) if get_origin(h) is Literal else (h, ()) for k, h in hints}
