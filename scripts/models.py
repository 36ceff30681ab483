"""Hold the library against every architecture of the zoo, and write docs/models.md.

python -m scripts.models                    # all of them, and the page
python -m scripts.models llama "llama yarn" # these alone; prints what was found
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.zoo_check import Outcome

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
HEAD = """\
# Models

{count} architectures of `transformers` {version}, each as a tiny model with random weights, held
against the model's own forward pass: eager attention, one row at a time, no cache, float32, the
adapter merged by hand. {exact} are exact, {refused} are refused in one line. Exact means that less
than 0.001 nats lie between the truth and

- the log-probabilities of the update: whole batches, micro-batches with a shared prefix, rows of 5
  to 88 tokens that share and part, longer than windows and original lengths of rotary embeddings;
- what the local generator reports of its samples, for many requests at once and a second wave of
  them; greedy completions are the likeliest tokens;
- an adapter that was saved and loaded, also by PEFT; every weight after a step of `train=full`,
  saved and loaded, also by `transformers`;

that the gradients of A and B are those of autograd through the truth, within 0.1 % of the largest,
with and without activation checkpointing; and that in bfloat16 the error is that of rounding.

The same comparison, with fewer rows, is made on every model that is loaded (`grpo/model/check.py`),
so a model that is not listed here is exact or refused as well.

| word | meaning |
| --- | --- |
| tree | every distinct prefix of a step is computed once, in the update and in the generator |
| padded | every row of the update is computed by itself: as exact, and slower |
| cache | where padded: completions are decoded with the model's own cache |
| recomputed | its cache is not right or not there: every token is computed again at each step |
| refused | one line instead of a training run |

`make test-zoo` repeats the comparison. This page is written by `scripts/models.py`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check the architectures; write the page if all of them are right. Return 1 if one is not."""
    from tests.support.zoo import ZOO

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="architectures; all if none is named")
    parser.add_argument("--processes", type=int, default=2, help="checks at a time")
    parser.add_argument("--write", type=Path, default=PAGE, help="file to write")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in ZOO]:
        parser.error(f"no such architecture: {', '.join(unknown)}")

    outcomes = []
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for outcome in pool.map(_check, arguments.names or ZOO):
            outcomes.append(outcome)
            print(row(outcome), *outcome.faults, sep="\n    FAULT ", flush=True)
    if any(outcome.faults for outcome in outcomes):
        return 1
    if not arguments.names:
        arguments.write.write_text(page(outcomes))
    return 0


def _check(name: str) -> Outcome:
    import torch

    from tests.support.zoo_check import check

    torch.set_num_threads(1)
    return check(name)


def page(outcomes: Sequence[Outcome]) -> str:
    """Format the page: what the words mean, the exact models, the refused ones."""
    import transformers

    exact = [outcome for outcome in outcomes if not outcome.refused]
    refused = [outcome for outcome in outcomes if outcome.refused]
    head = HEAD.format(
        count=len(outcomes),
        version=transformers.__version__,
        exact=len(exact),
        refused=len(refused),
    )
    lines = [head, "## Exact", ""]
    lines += ["| architecture | such as | update | decoding | notes |", "| --- |" + " --- |" * 4]
    lines += sorted(row(outcome) for outcome in exact)
    lines += ["", "## Refused", "", "| architecture | such as | reason |", "| --- |" + " --- |" * 2]
    lines += sorted(row(outcome) for outcome in refused)
    return "\n".join(lines) + "\n"


def row(outcome: Outcome) -> str:
    """Format an outcome as a row of its table."""
    from tests.support.zoo import ZOO

    start = f"| `{outcome.name}` | {ZOO[outcome.name].public} |"
    if outcome.refused:
        return f"{start} {'; '.join([short(outcome.refused), *outcome.notes])} |"
    decoding = "cache" if outcome.use_cache else "recomputed"
    decoding = "tree" if outcome.mode == "tree" else decoding
    notes = [short(text) for text in outcome.said] + outcome.notes
    return f"{start} {outcome.mode} | {decoding} | {'; '.join(notes)} |"


def short(warning: str) -> str:
    """Leave out of a warning what the other columns say, and what holds for a tiny model alone."""
    text = re.sub(r"^\w+: ", "", warning)
    text = re.sub(r"; every row is computed by itself.*", "", text)
    text = re.sub(r": \d+% of the parameters.*", "", text)
    text = re.sub(r" \([^()]*nats\b[^()]*\)", "", text)
    return re.sub(r"[\w.]+\.\*\.", "", text)


if __name__ == "__main__":
    sys.exit(main())
