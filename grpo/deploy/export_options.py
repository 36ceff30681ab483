"""The options of `grpo export`. This file does not load torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from grpo.arguments import Parser, read_config
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.option_values import check_text, require_text

EXPORT = """Write a run's policy for other programs, and compare its greedy completions.

merged     a folder for transformers and vLLM, the adapter merged into the weights
gguf       a file for llama.cpp and Ollama, merged as well, with the tokenizer
lora-gguf  the adapter alone, for a GGUF file of its base

Beside it: a grammar of the actions (actions.gbnf, actions.regex), and for Ollama a Modelfile.
Then the recorded pages of the run are given to the trainer's policy and to what was written."""

TARGETS = {
    "merged": ("f32", "bf16", "f16"),
    "gguf": ("q8_0", "f32", "bf16", "f16"),
    "lora-gguf": ("f32", "bf16", "f16", "q8_0"),
}
"""What can be written, and the types of its numbers, the default first."""


class ExportOptions(NamedTuple):
    """What to export.

    Attributes:
        config: the run's options.
        run: the run's folder.
        to: one of `TARGETS`.
        folder: where the files go.
        kind: type of the numbers.
        prompts: a run's folder or a file of demonstrations, whose pages are compared.
        pages: number of pages to compare, 0 for none.
    """

    config: Config
    run: Path
    to: str
    folder: Path
    kind: str
    prompts: Path
    pages: int


def read_options(argv: Sequence[str]) -> ExportOptions:
    """Read the options of `grpo export`.

    Raises:
        ConfigError: one is unknown, its value is wrong, or the folder has no finished run.
    """
    parser = Parser(
        prog="grpo export",
        usage="grpo export RUN --to {merged,gguf,lora-gguf} [-o FOLDER] [options]",
        description=EXPORT,
        epilog="Other options replace the run's: --device, --model where its base has moved.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, or of an adapter")
    parser.add_argument("--to", required=True, choices=list(TARGETS), help="what to write")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="a new folder (default: RUN-merged, RUN-gguf, ...)"
    )
    parser.add_argument(
        "--type",
        choices=sorted({kind for kinds in TARGETS.values() for kind in kinds}),
        help="type of the numbers (default: q8_0 for gguf, else f32)",
    )
    parser.add_argument(
        "--compare", default="50", metavar="N", help="pages to compare, 0 for none (default: 50)"
    )
    parser.add_argument(
        "--prompts",
        metavar="PATH",
        help="a file of demonstrations, or another run, with the pages to compare",
    )
    own, others = parser.parse_known_args(argv)
    run = Path(_path(own.run))
    config = read_config(
        [f"--adapter={run}", *others], prog=parser.prog, description=EXPORT, of_run=True
    )
    kind = own.type or TARGETS[own.to][0]
    if kind not in TARGETS[own.to]:
        raise ConfigError(f"--to {own.to} takes --type {', '.join(TARGETS[own.to])}, got {kind}")
    if own.to == "lora-gguf" and not config.adapter:
        raise ConfigError("--to lora-gguf needs a run of train=lora: this one trained all weights")
    if own.to == "lora-gguf" and config.quantize != "none":
        raise ConfigError(
            f"--to lora-gguf: the adapter was trained on a base with quantize={config.quantize}, "
            "which no GGUF has; --to gguf writes both together"
        )
    if not own.compare.isascii() or not own.compare.isdigit():
        raise ConfigError(f"--compare must be a number of pages, got {own.compare!r:.60}")
    folder = Path(_path(own.output or f"{run.absolute()}-{own.to}"))
    prompts = Path(_path(own.prompts)) if own.prompts else run
    if not prompts.exists():
        raise ConfigError(f"--prompts: there is no file or folder {str(prompts)!r}")
    return ExportOptions(config, run, own.to, folder, kind, prompts, int(own.compare))


def _path(text: str) -> str:
    try:
        return require_text(check_text(text))
    except ValueError as error:
        raise ConfigError(f"a path {error}") from error
