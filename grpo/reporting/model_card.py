"""The model card of a finished run: the training, its success rates, and how to load it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from grpo.errors import ConfigError
from grpo.files import CARD_MARK
from grpo.generators.vllm.options import max_lora_rank
from grpo.model.bundled import GGUF_FILE, HUB_ID
from grpo.reporting.progress import rate_text
from grpo.safe_output import code, markdown, one_line

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from grpo.config import Config

AGENTS = {
    "random": "a random action of those that the page allows",
    "oracle": "a scripted solver",
    "untrained": "before training",
    "warm_started": "after imitation, before training",
    "blind": "the trained policy with the page hidden",
    "trained": "after training",
}

_LORA = """\
With PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({python_base})
model = PeftModel.from_pretrained(model, "{repo_id}")
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
```

With vLLM:

```sh
vllm serve {shell_base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={repo_id}
```

With grpo-browser and its prompts, to evaluate it (`grpo train` trains it further):

```sh
grpo eval --task {shell_task} --adapter {repo_id}{options}
```
"""

_FULL = """\
With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo_id}")
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
```

With vLLM:

```sh
vllm serve {repo_id}
```

With grpo-browser and its prompts, to evaluate it (`grpo train` trains it further):

```sh
grpo eval --task {shell_task} --model {repo_id}
```
"""


def model_card(folder: Path, repo_id: str) -> ModelCard:
    """Write the card of a run, with the figures of its `summary.json`.

    Args:
        folder: the run's folder.
        repo_id: the repository of the card, `user/name`.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    from grpo.config import is_hub_id

    summary, lora = _summary(folder), trained_weights(folder).name == "adapter"
    config = _config(folder)
    base, name = base_model(folder), repo_id.split("/")[1]
    results = [
        EvalResult(
            task_type="reinforcement-learning",
            dataset_type="miniwob",
            dataset_name=f"MiniWoB {one_line(task)}, "
            f"{rates['trained']['sampled']['n']} held-out seeds",
            metric_type="success_rate",
            metric_name="success rate, sampled",
            metric_value=round(rates["trained"]["sampled"]["success"], 4),
        )
        for task, rates in _rates(summary).items()
        if "trained" in rates
    ]
    data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        library_name="peft" if lora else "transformers",
        license="apache-2.0" if base == HUB_ID else None,  # of another model it is unknown
        pipeline_tag="text-generation",
        tags=["grpo", "browser-agent", "browsergym", "miniwob", *(["lora"] if lora else [])],
        model_name=name,
        eval_results=results or None,
    )
    parts = [f"# {name}", _what_it_is(summary, config, base, lora), "## Success", _success(summary)]
    parts += [*_pictures(folder), "## How to load it", _loading(folder, repo_id, base)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts))


def base_model(folder: Path) -> str:
    """Return the hub id of a run's base model; the last part of a path on this machine."""
    model = _config(folder).model
    return (Path(model).name if Path(model).exists() else model) if model else HUB_ID


def trained_weights(folder: Path) -> Path:
    """Return the folder of a run's weights: `adapter`, or `model` where all were trained.

    Raises:
        ConfigError: there is neither.
    """
    for name, file in (("adapter", "adapter_config.json"), ("model", "config.json")):
        if (folder / name / file).is_file():
            return folder / name
    raise ConfigError(f"no finished run in {folder}: expected adapter/ or model/ in it")


def _config(folder: Path) -> Config:
    from grpo.config import Config

    return Config.from_yaml(folder / "config.yaml")


def read_object(folder: Path, name: str, *keys: str) -> dict[str, Any]:
    """Read a file of a finished run that holds a JSON object with these keys.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        read = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"no finished run in {folder}: {name}: {error}") from error
    missing = [key for key in keys if not isinstance(read, dict) or key not in read]
    if missing:
        raise ConfigError(f"no finished run in {folder}: {name} lacks {', '.join(missing)}")
    return dict(read)


def _summary(folder: Path) -> dict[str, Any]:
    summary = read_object(folder, "summary.json", "task")
    if "steps" not in summary:
        raise ConfigError(
            f"no finished run in {folder}: its summary.json was written before training"
        )
    return summary


def _rates(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the success rates by task."""
    return summary.get("per_task") or {summary["task"]: summary}


def _what_it_is(summary: dict[str, Any], config: Config, base: str, lora: bool) -> str:
    what = f"A LoRA adapter of {code(base)}" if lora else f"{code(base)} with every weight trained"
    minutes = (summary["seconds"]["rollout"] + summary["seconds"]["update"]) / 60
    text = (
        f"{what} that acts in a browser: it reads a page's accessibility tree and answers with "
        f"one action, `click('57')`. Trained with GRPO, {CARD_MARK}, on MiniWoB's "
        f"{markdown(summary['task'])}: {summary['steps']} steps, {summary['episodes']:,} episodes, "
        f"{minutes:.0f} minutes"
    )
    if config.imitation_length:
        shown = "recorded demonstrations" if config.demonstrations else "a scripted solver"
        text += f", after {config.imitation_length} of imitating {shown}."
    elif config.valid_action_bonus:
        text += f", with a bonus of {config.valid_action_bonus:g} for each valid action."
    else:
        text += ", from the task's reward alone."
    if base == HUB_ID:
        text += f" The base's weights were those of its 4-bit file `{GGUF_FILE}`."
    if config.quantize != "none":
        text += f" The base was quantised to {config.quantize[0]} bits meanwhile."
    return text


def _success(summary: dict[str, Any]) -> str:
    """Write one table per task."""
    tables = []
    for task, rates in _rates(summary).items():
        rows = {name: rates[name] for name in AGENTS if name in rates}
        if not rows:
            continue
        n = max(rate["n"] for row in rows.values() for rate in row.values())
        lines = [f"On {n} held-out seeds of {markdown(task)} [95 % interval]:", ""]
        lines += ["| agent | sampled | greedy | what it is |", "| --- | --- | --- | --- |"]
        for name, row in rows.items():
            cells = [name, *(rate_text(row.get(d)) for d in ("sampled", "greedy"))]
            lines.append(f"| {' | '.join(cells)} | {AGENTS[name]} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables) or "It was not evaluated."


def _pictures(folder: Path) -> list[str]:
    shots = sorted((folder / "media" / "after").glob("*/*/*.png"))
    pictures = {"reward, completion length and entropy over the steps": folder / "curves.png"}
    if shots:
        pictures["the first page of an episode after training"] = shots[0]
    return [
        f"![{what}]({quote(path.relative_to(folder).as_posix())})"
        for what, path in pictures.items()
        if path.exists()
    ]


def _loading(folder: Path, repo_id: str, base: str) -> str:
    config, weights = _config(folder), trained_weights(folder)
    base, task = one_line(base), one_line(",".join(config.task))
    words = {"repo_id": repo_id, "name": repo_id.split("/")[1], "python_base": json.dumps(base)}
    words |= {"shell_base": shlex.quote(base), "shell_task": shlex.quote(task)}
    if weights.name == "model":
        return _FULL.format(**words)
    r = read_object(folder, "adapter/adapter_config.json", "r")["r"]
    options = f" --model {shlex.quote(base)}" if config.model else ""
    options += f" --quantize {config.quantize}" if config.quantize != "none" else ""
    return _LORA.format(**words, rank=max_lora_rank(r), options=options)
