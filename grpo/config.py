"""One flat configuration: its fields are the YAML keys and the command-line options.

A field declares the type, bounds, help text and theme of its option, and whether the option may
change when a run is resumed. This file does not load torch, so `grpo train --help` is quick.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grpo.algorithm.choices import (
    WITHOUT_DELTA,
    Aggregation,
    Baseline,
    Bound,
    Credit,
    KLKind,
    Loss,
    Scale,
    TaskSampling,
)
from grpo.errors import ConfigError
from grpo.option_values import (
    EnvUrls,
    Float,
    JsonObject,
    Names,
    RequiredText,
    ServerUrls,
    Text,
    short,
)
from grpo.yaml_file import read_yaml

RENAMED = {
    **{"max_steps": "max_turns", "road": "forward"},
    **{"suite": "config", "tasks": "task", "episodes": "eval_episodes"},
}
"""Keys and options of version 0.1, and what they are called now."""

RENAMED_VALUES = {"middling": "learnability"}

MAX = 10_000_000
"""More steps, tokens or the like than any run has."""

DAY_S = 86_400

IMITATION_STEPS = 40
"""Updates that imitate demonstrations, where the configuration does not say."""

IMITATION_FACTOR = 10
"""Learning rate of imitation over that of GRPO, where the configuration does not say."""

MAX_FOLDER_NAME = 200
"""Bytes; file systems take 255, and files are written beside it under longer names."""


def option(
    default: Any,
    help: str,
    *,
    theme: str,
    common: bool = False,
    resumable: bool = False,
    **bounds: Any,
) -> Any:
    """Describe a field of `Config`.

    Args:
        default: its value where none is given.
        help: must be understandable by itself.
        theme: the heading that `--help` shows it under.
        common: True to show it in `--help`; the others appear in `--help-all` alone.
        resumable: True if it may differ when a run is resumed.
        bounds: pydantic's `ge`, `gt`, `le`, `lt`.
    """
    extra: dict[str, Any] = {"theme": theme, "common": common, "resumable": resumable}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


_run = partial(option, theme="Task and model")
_rollouts = partial(option, theme="Rollouts")
_generator = partial(option, theme="Generator")
_environment = partial(option, theme="Environment", resumable=True)
_algorithm = partial(option, theme="Algorithm")
_optimizer = partial(option, theme="Optimizer and adapter")
_hardware = partial(option, theme="Hardware")
_output = partial(option, theme="Evaluation and output", resumable=True)


class Config(BaseModel):
    """Everything a run depends on. Each field's help text is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # Task and model.
    task: Names = _run(("click-test",), "tasks to train on, separated by commas", common=True)
    held_out_tasks: Names = _run(
        (), "tasks to evaluate on and never train on, separated by commas", resumable=True
    )
    task_file: Text = _run(
        "",
        "Python file that the tasks are in (empty: they are BrowserGym's); a relative path in a "
        "configuration starts from the folder of that",
        resumable=True,
    )
    model: Text = _run(
        "",
        "Hugging Face id, folder or .gguf file of the model (empty: the bundled model)",
        common=True,
    )
    chat_template_kwargs: JsonObject = _run(
        "{}",
        "options of the model's chat template, as a JSON object (YAML: a mapping)",
        validate_default=True,
    )
    train: Literal["lora", "full"] = _run("lora", "train a LoRA adapter, or every weight")
    quantize: Literal["none", "8bit", "4bit"] = _run(
        "none",
        "hold the frozen linear layers' weights in 8 or 4 bits (train=lora; needs the extra "
        "'quantized')",
    )
    adapter: Text = _run(
        "", "LoRA adapter to start from: a folder or a Hugging Face id", resumable=True
    )
    output: Text = _run("", "folder of the run (empty: runs/<task>)", common=True, resumable=True)
    seed: int = _run(0, "random seed of everything in the run", ge=0, le=2**63 - 1)

    # Rollouts.
    group_size: int = _rollouts(
        8, "episodes per group, which share one task and seed (G)", ge=2, le=4096, common=True
    )
    groups_per_step: int = _rollouts(
        4, "groups per training step and process", ge=1, le=4096, common=True, resumable=True
    )
    max_turns: int = _rollouts(
        10, "maximum number of completions per episode", ge=1, le=1000, common=True
    )
    answer: Literal["action", "think"] = _rollouts(
        "action",
        "what a completion must be: one action, or one line of thought and an action below it",
    )
    prompt: Text = _rollouts(
        "",
        "file.py:Class of your own answer format, in place of answer (empty: none); a relative "
        "path in a configuration starts from the folder of that",
    )
    max_new_tokens: int = _rollouts(
        24,
        "maximum number of tokens per completion, without those for its thought",
        ge=1,
        le=1_000_000,
    )
    max_thought_tokens: int = _rollouts(
        40,
        "tokens that a completion may have besides, for its thought (answer=think)",
        ge=1,
        le=1_000_000,
    )
    max_prompt_tokens: int = _rollouts(
        0,
        "maximum length of a prompt; a longer page is cut at its end (0: the model's limit)",
        ge=0,
        le=MAX,
    )
    temperature: Float = _rollouts(
        1.0, "temperature of sampling, and of the trained distribution", ge=0.01, le=100
    )
    valid_action_bonus: Float = _rollouts(0.0, "extra reward for each valid action", ge=0, le=1000)
    reward: Literal["success", "partial"] = _rollouts(
        "success",
        "reward of MiniWoB's tasks: 1 for the whole task, else 0 (success), or what MiniWoB pays, "
        "which is above 0 for a part of some tasks, and 0 where that is negative (partial); a "
        "success is the whole task either way, and tasks of your own decide their reward",
    )

    # Generator.
    backend: Literal["local", "vllm", "vllm-server"] = _generator(
        "local",
        "where completions are sampled: the trainer's model, vLLM in this process, vLLM servers",
        common=True,
    )
    cache_tokens: int = _generator(
        4096,
        "maximum number of distinct tokens in the local generator's cache",
        ge=1,
        le=32_768,
        resumable=True,
    )
    sampling_threads: int = _generator(
        0,
        "CPU threads of the local generator (0: two where OpenMP's threads are bound to cores, "
        "as the command binds them, else one)",
        ge=0,
        le=1024,
        resumable=True,
    )
    vllm_memory: Float = _generator(
        0.0,
        "share of the GPU's whole memory for vLLM, or on a CPU GiB for its cache (0: chosen by "
        "what is free)",
        ge=0,
        le=10_000,
        resumable=True,
    )
    vllm_sleep: bool = _generator(False, "release vLLM's GPU memory during updates", resumable=True)
    vllm_sync: Literal["auto", "adapter", "merged"] = _generator(
        "auto",
        "what vLLM receives after an update: the adapter, or the weights with it merged in",
        resumable=True,
    )
    vllm_url: ServerUrls = _generator(
        ("http://127.0.0.1:8001",), "vLLM servers, separated by commas", resumable=True
    )
    vllm_folder: RequiredText = _generator(
        "/dev/shm", "folder that vLLM servers read the policy from", resumable=True
    )
    vllm_deadline: Float = _generator(
        120.0,
        "seconds to wait for a vLLM server that does not respond",
        gt=0,
        le=DAY_S,
        resumable=True,
    )
    max_logp_difference: Float = _generator(
        0.0,
        "largest mean gap to vLLM's log-probabilities, in nats, that the sync check at the start "
        "accepts (0: what rounding in the dtype explains)",
        ge=0,
        le=100,
        resumable=True,
    )
    gap_warning: Float = _generator(
        5.0,
        "warn of a step whose mean gap between generator and trainer is this many times what the "
        "sync check at the start accepts (0: never)",
        ge=0,
        le=1e6,
        resumable=True,
    )
    gap_stop: Float = _generator(
        20.0,
        "end the run before it learns from a step whose mean gap between generator and trainer is "
        "this many times what the sync check at the start accepts (0: never)",
        ge=0,
        le=1e6,
        resumable=True,
    )

    # Environment.
    env_url: EnvUrls = _environment(
        (), "OpenEnv servers or pages of Spaces, separated by commas (empty: start a server here)"
    )
    env_workers: int = _environment(
        2, "number of Chromiums of the server that is started here", ge=1, le=256
    )
    env_sessions: int = _environment(16, "number of concurrent browser sessions", ge=1, le=4096)
    share_episodes: bool = _environment(
        True,
        "execute once what the episodes of a group do alike, where the task is deterministic",
        resumable=True,
    )
    env_deadline: Float = _environment(
        30.0, "seconds after which a call to the environment counts as failed", gt=0, le=DAY_S
    )

    # Algorithm.
    steps: int = _algorithm(
        20, "maximum number of training steps", ge=0, le=MAX, common=True, resumable=True
    )
    minutes: Float = _algorithm(
        0.0, "maximum minutes of training (0: no limit)", ge=0, le=1_000_000, resumable=True
    )
    updates_per_batch: int = _algorithm(1, "optimizer steps per batch of rollouts", ge=1, le=1000)
    loss: Loss = _algorithm("grpo", "policy loss")
    aggregation: Aggregation = _algorithm("dapo", "how the loss averages over tokens")
    scale_rewards: Scale = _algorithm("group", "what advantages are divided by")
    baseline: Baseline = _algorithm("mean", "what is subtracted from rewards")
    credit: Credit = _algorithm(
        "episode",
        "how rewards become advantages of turns: every turn gets its episode's (episode), its "
        "discounted return (discounted), or the episode's plus a comparison of turns on equal "
        "pages (steps)",
    )
    discount: Float = _algorithm(
        0.95, "discount of later rewards, for credit=discounted and credit=steps", gt=0, le=1
    )
    step_weight: Float = _algorithm(
        1.0, "weight of the comparison on equal pages, for credit=steps", ge=0, le=1000
    )
    epsilon_low: Float = _algorithm(
        0.2, "the policy ratio is clipped below at 1 - epsilon_low", ge=0, le=1
    )
    epsilon_high: Float = _algorithm(
        0.2, "the policy ratio is clipped above at 1 + epsilon_high", ge=0, le=100
    )
    delta: Float = _algorithm(
        0.0,
        "dual clip: upper bound of the policy ratio for negative advantages (0: none)",
        ge=0,
        le=1000,
    )
    beta: Float = _algorithm(
        0.0, "weight of the KL penalty to the reference (0: none)", ge=0, le=1000
    )
    kl: KLKind = _algorithm("k3", "estimator of the KL penalty")
    max_staleness: int = _algorithm(
        0,
        "1 to play the next step's rollouts during the update, with the policy before it",
        ge=0,
        le=1,
    )
    importance: Literal["auto", "none", "token", "sequence"] = _algorithm(
        "auto",
        "level of the importance weights between trainer and generator (auto: token with vLLM or "
        "stale rollouts, else none)",
    )
    importance_bound: Bound = _algorithm(
        "cap", "importance weights above the cap are reduced to it (cap) or set to 0 (mask)"
    )
    importance_cap: Float = _algorithm(2.0, "largest importance weight", gt=1, le=1000)
    task_sampler: TaskSampling = _algorithm(
        "uniform",
        "how tasks are drawn: uniformly, more often if they are solved sometimes (learnability), "
        "or one after the other (curriculum)",
    )
    demonstrations: Text = _algorithm(
        "",
        "file of demonstrations (grpo record, grpo demos) to imitate before the training",
    )
    warm_start_steps: int = _algorithm(
        0,
        "number of updates that imitate the demonstrations, or a scripted solver, before the "
        f"training (0: none, or {IMITATION_STEPS} where demonstrations are given)",
        ge=0,
        le=MAX,
    )
    imitation_epochs: int = _algorithm(
        0,
        "how often the demonstrations are gone through, in place of a number of updates "
        "(0: warm_start_steps updates)",
        ge=0,
        le=MAX,
    )
    imitation_batch: int = _algorithm(
        0,
        "demonstrations per update that imitates and process (0: groups_per_step)",
        ge=0,
        le=1_000_000,
        resumable=True,
    )
    imitation_held_out: Float = _algorithm(
        0.1,
        "part of the demonstrations that is not imitated, to measure the loss on; at least one "
        "per task with several (0, or fewer than 10 demonstrations: none)",
        ge=0,
        le=0.5,
    )
    imitation_learning_rate: Float = _algorithm(
        0.0,
        "learning rate of the first of these updates, from which it falls linearly to 0 "
        f"(0: {IMITATION_FACTOR} times learning_rate)",
        ge=0,
        le=1,
    )
    max_resamples: int = _algorithm(
        0, "how often per step groups without an advantage are replaced by new ones", ge=0, le=1000
    )
    max_bad_updates: int = _algorithm(
        3,
        "end the run after this many updates in a row with an infinite or NaN gradient",
        ge=1,
        le=1000,
        resumable=True,
    )
    log_kl: bool = _algorithm(
        True, "measure the KL to the reference even if beta is 0; costs one more forward pass"
    )

    # Optimizer and adapter.
    learning_rate: Float = _optimizer(
        2e-4, "learning rate of AdamW; train=full needs about 1e-6", gt=0, le=1, common=True
    )
    warmup_steps: int = _optimizer(
        2, "number of updates over which the learning rate rises to its value", ge=0, le=MAX
    )
    max_grad_norm: Float = _optimizer(
        1.0, "gradients are clipped to this norm (0: no clipping)", ge=0, le=1_000_000
    )
    lora_r: int = _optimizer(8, "rank of the adapter", ge=1, le=4096)
    lora_alpha: Float = _optimizer(
        16.0, "the adapter's output is scaled by lora_alpha / lora_r", gt=0, le=1_000_000
    )
    lora_target_modules: Names = _optimizer(
        ("all-linear",), "all-linear, or names of linear layers separated by commas"
    )

    # Hardware.
    device: RequiredText = _hardware(
        "auto", "auto (cuda or ROCm, else mps, else cpu), cpu, cuda:1, mps, ...", resumable=True
    )
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = _hardware(
        "auto",
        "dtype of the model's weights (auto: bfloat16 where the device computes in it, else "
        "float32)",
    )
    forward: Literal["auto", "tree", "padded"] = _hardware(
        "auto", "forward pass of the update: over the token tree, or over padded rows"
    )
    activation_checkpointing: bool = _hardware(
        False,
        "recompute activations in the backward pass: less memory, a third slower",
        resumable=True,
    )
    cuda_graphs: bool = _hardware(
        True, "on a GPU, launch the token tree's passes as CUDA graphs (train=lora)", resumable=True
    )
    max_tokens_per_microbatch: int = _hardware(
        4096, "maximum number of distinct tokens per forward pass", ge=1, le=MAX, resumable=True
    )

    # Evaluation and output.
    eval_episodes: int = _output(
        100, "number of held-out seeds per task and evaluation (0: no evaluation)", ge=0, le=100_000
    )
    blind: bool = _output(True, "also evaluate the trained policy with the page hidden")
    save_every: int = _output(10, "steps between checkpoints (0: only the last one)", ge=0, le=MAX)
    keep_checkpoints: int = _output(2, "number of checkpoints to keep", ge=1, le=10_000)
    logger: Literal["tensorboard", "wandb"] = _output("tensorboard", "dashboard for the curves")
    log_completions: int = _output(
        5, "steps between tables of a few completions (0: none)", ge=0, le=MAX
    )
    gallery_every: int = _output(
        5,
        "steps between the best and the worst episode shown in media/index.html (0: none)",
        ge=0,
        le=MAX,
    )
    push_to_hub: Text = _output(
        "", "user/name of the Hugging Face repository that receives the finished run"
    )
    resume: bool = _output(False, "continue from the run's newest checkpoint", common=True)

    if not TYPE_CHECKING:  # type checkers keep the fields' own signature

        def __init__(self, /, **options: Any) -> None:
            """Check the options.

            Raises:
                ConfigError: an option is unknown, or its value is wrong; one line.
            """
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise ConfigError(_explain(error)) from None

        # pydantic's other ways to make or copy a model check the options alike.

        @classmethod
        def model_validate(cls, obj: Any, **_: Any) -> Config:
            """Check a mapping, as `from_mapping` does."""
            return obj if isinstance(obj, cls) else cls.from_mapping(obj)

        @classmethod
        def model_validate_json(cls, json_data: str | bytes, **_: Any) -> Config:
            """Check a mapping in JSON, as `from_mapping` does."""
            try:
                options = json.loads(json_data)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"config is not JSON: {error}") from error
            return cls.from_mapping(options)

        @classmethod
        def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Config:
            """Check the options, as `Config(...)` does."""
            return cls(**values)

        def model_copy(self, *, update: Mapping[str, Any] | None = None, **_: Any) -> Config:
            """Return a checked copy, as `replace` does."""
            return self.replace(**(update or {}))

        copy = model_copy

    @model_validator(mode="after")
    def _check(self) -> Config:
        """Check what depends on several fields, and what pydantic has no bound for."""
        evaluated = self.evaluated_tasks
        if not self.task or len(set(evaluated)) < len(evaluated):
            raise ValueError(
                f"task and held_out_tasks must name tasks, each once, got {short(list(self.task))} "
                f"and {short(list(self.held_out_tasks))}"
            )
        no_delta = self.loss in WITHOUT_DELTA
        if self.delta and (no_delta or self.delta <= 1 + self.epsilon_high):
            raise ValueError(
                f"delta must be above 1 + epsilon_high, and not with loss={'|'.join(WITHOUT_DELTA)}"
                f", got delta={self.delta}, epsilon_high={self.epsilon_high}, loss={self.loss}"
            )
        if self.imitation_epochs and (self.warm_start_steps or not self.demonstrations):
            raise ValueError(
                "imitation_epochs needs demonstrations, and stands in place of warm_start_steps, "
                f"got imitation_epochs={self.imitation_epochs}, "
                f"warm_start_steps={self.warm_start_steps}, demonstrations={self.demonstrations!r}"
            )
        if self.gap_stop and self.gap_stop < self.gap_warning:
            raise ValueError(
                f"gap_stop must be 0 or at least gap_warning={self.gap_warning:g}, got "
                f"{self.gap_stop:g}"
            )
        if self.prompt and self.answer != "action":
            raise ValueError(
                f"prompt names the answer format itself: expected no answer beside it, got "
                f"prompt={short(self.prompt)} and answer={self.answer}"
            )
        if self.push_to_hub and not is_hub_id(self.push_to_hub):
            raise ValueError(
                f"push_to_hub must be a hub id, user/name, got {short(self.push_to_hub)}"
            )
        if self.train == "full" and self.adapter:
            raise ValueError(
                f"adapter must be empty with train=full, got {self.adapter!r}: to continue from a "
                "model that was trained as a whole, give its folder as model"
            )
        if self.quantize != "none" and self.train == "full":
            raise ValueError(
                f"quantize must be none with train=full, got {self.quantize}: only frozen weights "
                "can be quantised"
            )
        if self.quantize != "none" and self.backend != "local" and self.vllm_sync != "merged":
            raise ValueError(
                f"quantize={self.quantize} with backend={self.backend} needs vllm_sync=merged, got "
                f"{self.vllm_sync}: vLLM's own base is not quantised, so an adapter alone would "
                "not be the policy there"
            )
        return self

    @property
    def evaluated_tasks(self) -> list[str]:
        """The trained tasks, then the held-out ones."""
        return [*self.task, *self.held_out_tasks]

    @property
    def task_in_words(self) -> str:
        """The trained tasks for a line of text: their names, of many the first three."""
        names = list(self.task)
        more = len(names) - 3
        return ", ".join(names if more <= 1 else [*names[:3], f"and {more} more"])

    @property
    def max_completion_tokens(self) -> int:
        """Maximum number of tokens of a completion, its thought included."""
        return self.max_new_tokens + self.max_thought_tokens * (self.answer == "think")

    @property
    def importance_level(self) -> Literal["none", "token", "sequence"]:
        """The level of the update's importance weights, "auto" resolved."""
        if self.importance != "auto":
            return self.importance
        return "token" if self.backend != "local" or self.max_staleness else "none"

    @property
    def imitation_steps(self) -> int:
        """Number of updates before the training that imitate demonstrations; 0 if by epochs."""
        default = IMITATION_STEPS if self.demonstrations and not self.imitation_epochs else 0
        return self.warm_start_steps or default

    @property
    def imitation_length(self) -> str:
        """How long demonstrations are imitated, in words; "" for not at all."""
        number, noun = self.imitation_steps, "update"
        if self.imitation_epochs:
            number, noun = self.imitation_epochs, "epoch"
        return f"{number} {noun}{'s' * (number > 1)}" if number else ""

    @property
    def imitation_rate(self) -> float:
        """Learning rate of the first update that imitates, from which it falls to 0."""
        return self.imitation_learning_rate or min(1.0, IMITATION_FACTOR * self.learning_rate)

    @property
    def uses_reference(self) -> bool:
        """True if the update needs the reference policy's log-probabilities."""
        return self.beta > 0 or self.log_kl

    @property
    def folder(self) -> Path:
        """The folder of the run's files.

        Raises:
            ConfigError: output is empty, and a folder cannot have the tasks' names for its name.
        """
        if self.output:
            return Path(self.output)
        name = "+".join(self.task)
        if "/" in name or name in (".", "..") or len(name.encode()) > MAX_FOLDER_NAME:
            raise ConfigError(
                "output must name the run's folder: runs/<task> is not possible with task="
                f"{short(name)}"
            )
        return Path("runs", name)

    @classmethod
    def resumable(cls) -> set[str]:
        """Name the options that may differ when a run is resumed.

        They determine where and how long the run continues, what is evaluated and what is shown,
        but not what is learned. `groups_per_step` is per process, and the number of processes may
        change as well: the trainer checks their product.
        """
        return {name for name in cls.model_fields if field_extra(name)["resumable"]}

    def replace(self, **changes: Any) -> Config:
        """Return a copy with some options changed, and checked again."""
        return type(self)(**(dict(self) | changes))

    def to_yaml(self) -> str:
        """Return the configuration as YAML that `from_yaml` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any], source: str = "config") -> Config:
        """Make a configuration from YAML's keys and values.

        Raises:
            ConfigError: an option is unknown, or its value is wrong; the line names the source.
        """
        if not isinstance(options, Mapping):
            raise ConfigError(f"{source} must map keys to values, got {short(options)}")
        try:
            return cls(**{str(key): value for key, value in options.items()})
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a YAML file; a relative `task_file` or `prompt` starts from the file's folder.

        Raises:
            ConfigError: there is no such file, or it does not map known options to their values.
        """
        options = read_yaml(path)
        for name in ("task_file", "prompt"):
            if (file := options.get(name)) and isinstance(file, str):
                options[name] = os.path.abspath(Path(path).parent / Path(file).expanduser())
        return cls.from_mapping(options, str(path))


def field_extra(name: str) -> dict[str, Any]:
    """Return theme, common and resumable of a field."""
    extra = Config.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra


def unknown_option(name: str, *, typed: str = "", spell: Callable[[str], str] = repr) -> str:
    """Say that there is no such option, and which one was probably meant.

    Args:
        name: as in a YAML file, with underscores.
        typed: what the user typed, if that differs.
        spell: how names appear in the message.
    """
    typed = typed or spell(name)
    if name in RENAMED:
        return f"{typed} is now called {spell(RENAMED[name])}"
    near = difflib.get_close_matches(name, Config.model_fields, n=1)
    return f"unknown option {typed}" + (f"; did you mean {spell(near[0])}?" if near else "")


def is_hub_id(text: str) -> bool:
    """Tell whether a text has the form `user/name` of a repository on the Hugging Face Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text  # repositories without a user are the hub's own


_EXPECTED = {
    "int_type": "be an integer",
    "float_type": "be a number",
    "finite_number": "be a finite number",
    "bool_type": "be true or false",
    "string_type": "be a string",
    "sequence_str": "be a list of names",
    "list_type": "be a list of names",
    "is_instance_of": "be a list of names",
    "greater_than_equal": "be at least {ge:.12g}",
    "greater_than": "be above {gt:.12g}",
    "less_than_equal": "be at most {le:.12g}",
    "less_than": "be below {lt:.12g}",
}


def _explain(error: ValidationError) -> str:
    """Turn pydantic's first error into one line that says what was expected and what came."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if not first["loc"]:  # of several fields
        return str(context["error"])
    name, got = short(first["loc"][0]).strip("'"), short(first["input"])
    if kind == "value_error":
        return f"{name} {context['error']}"
    if kind == "extra_forbidden":
        return unknown_option(name)
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ")
        now = RENAMED_VALUES.get(got.strip("'"))
        hint = f", which is now called {now}" if now else ""
        return f"{name} must be one of {choices}, got {got}{hint}"
    expected = _EXPECTED.get(kind, "be valid ({kind})").format(kind=kind, **context)
    return f"{name} must {expected}, got {got}"
