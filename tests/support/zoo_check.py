"""Hold the library against a model's own forward pass, for one architecture of the zoo.

The truth uses no code of `grpo` or `lora`: the same weights in a fresh model with eager attention,
one row at a time, without a cache, in float32, the adapter merged by hand.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grpo.algorithm.batch import rows_from_completions, sort_batch, split_batch
from grpo.config import Config
from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.generators.local import LocalGenerator
from grpo.model.loading import load_policy
from grpo.model.policy import Policy
from grpo.training.updater import Updater
from grpo.types import Completion, TokenBatch
from tests.support.models import make_tokenizer
from tests.support.zoo import VOCABULARY, make

BOUND = 1e-3  # nats in float32, or of the largest gradient: more is wrong
LONGEST = 88  # tokens of the longest row
MEANINGS = 3, 2  # how many tokens at the start and at the end of the vocabulary have a meaning
OPTIONS = {"dtype": "float32", "device": "cpu", "lora_r": 2, "lora_alpha": 3.0, "log_kl": False}
SCALING = 1.5  # lora_alpha / lora_r

STEPS = (
    *("causal", "update", "gradients", "checkpointed", "merged", "generator", "reloaded"),
    *("full", "bfloat16"),
)
"""The comparisons, each a method of `Check`; "peft" is another, which needs PEFT."""
WITHOUT_ADAPTER = ("causal", "update", "generator", "full")

Row = tuple[list[int], list[int]]  # a prompt and its completion


@dataclass
class Outcome:
    """What became of one architecture.

    Attributes:
        name: the architecture's.
        refused: the one line with which it was refused; "" if it was accepted.
        mode: the policy's forward pass.
        use_cache: False if decoding computes every token again.
        max_length: of the policy.
        said: the warnings at load.
        notes: what is worth knowing and not wrong.
        faults: what is wrong, each with its size.
    """

    name: str
    refused: str = ""
    mode: str = ""
    use_cache: bool = True
    max_length: int = 0
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Truth:
    """A model's own log-probabilities.

    Attributes:
        model: with eager attention.
        plain: its weights without the adapter.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        named = model.named_parameters(remove_duplicate=False)
        self.plain = {name: p.detach().clone() for name, p in named}

    def merge(self, adapter: dict[str, Tensor]) -> None:
        """Set the weights to the plain ones plus scaling * B A."""
        for name, weight in merged_weights(self.plain, adapter).items():
            owner, _, leaf = name.rpartition(".")
            # A new parameter: another module may share the old one.
            setattr(self.model.get_submodule(owner), leaf, nn.Parameter(weight.detach()))

    def logits(self, ids: Sequence[int], weights: dict[str, Tensor] | None = None) -> Tensor:
        """Compute the logits [T, V] of one row, with some weights in place of the model's."""
        inputs = {"input_ids": torch.tensor([list(ids)]), "use_cache": False}
        output = functional_call(self.model, weights or {}, kwargs=inputs, tie_weights=False)
        logits: Tensor = output.logits[0].float()
        return logits

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> Tensor:
        """Compute the log-probability [T] of each token of a row, 0 for the first."""
        return pick(self.logits(ids), ids)

    def of_batch(self, batch: TokenBatch) -> Tensor:
        """Compute the log-probabilities [N, T] of a batch's completions."""
        result = torch.zeros(batch.input_ids.shape)
        for n, ids in enumerate(batch.rows()):
            result[n, : len(ids)] = self.logprobs(ids)
        return result * batch.completion_mask


def pick(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Pick the log-probability [T] of each token of a row, 0 for the first."""
    chosen = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
    return torch.cat([chosen.new_zeros(1), chosen])


def merged_weights(plain: dict[str, Tensor], adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute W + scaling * B A of every adapted weight, by its name."""
    names = {bare(name): name for name in plain}
    merged = {}
    for key in adapter:
        module, is_a, _ = key.partition(".lora_A.")
        if is_a:
            weight = names[bare(f"{module.removeprefix('base_model.model.')}.weight")]
            a, b = (adapter[f"{module}.lora_{part}.weight"] for part in "AB")
            merged[weight] = plain[weight] + SCALING * (b @ a)
    return merged


def bare(name: str) -> str:
    """Remove what a model of several modalities adds to the names of its language model."""
    return name.replace("language_model.", "").removeprefix("model.")


def some_tokens(length: int, seed: int) -> list[int]:
    """Draw tokens without a meaning."""
    random = torch.Generator().manual_seed(seed)
    first, last = MEANINGS
    return torch.randint(first, VOCABULARY - last, (length,), generator=random).tolist()


def some_rows(longest: int) -> list[Row]:
    """Make rows that share and part, of 5 to `longest` tokens."""
    stem = some_tokens(longest, 0)
    return [
        (stem[:3], stem[3:5]),
        (stem[:4], stem[4:9]),
        (stem[:9], some_tokens(8, 1)),
        (stem[:9], some_tokens(8, 2)),
        (stem[:20], stem[20:38]),
        (stem[:20], some_tokens(18, 3)),
        (stem[:26], some_tokens(longest - 26, 4)),
        (stem[: longest - 20], stem[longest - 20 :]),
    ]


def as_batch(rows: Sequence[Row]) -> TokenBatch:
    """Lay rows out for the update, with advantages."""
    done = [Completion(tuple(p), tuple(c), (0.0,) * len(c), 0, "stop") for p, c in rows]
    advantages = torch.randn(len(rows), generator=torch.Generator().manual_seed(5))
    weights = torch.full((len(rows),), 1 / sum(len(c) for _, c in rows))
    return sort_batch(rows_from_completions(done, advantages, weights))


class Check:
    """The comparisons of one architecture; each adds its faults to `outcome`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.outcome, self.folder = Outcome(name), folder
        self.truth = Truth(make(name, attn_implementation="eager"))
        self.truth.model.save_pretrained(folder / "base")
        make_tokenizer().save_pretrained(folder / "base")
        self.names = set(self.truth.model.state_dict())

    def load(self, *, perturbed: bool = False, **options: Any) -> Policy:
        """Load the policy as a run does, and give each tensor of its adapter a value other than 0.

        Raises:
            ConfigError: the model is refused.
        """
        policy = load_policy(Config(**({"model": str(self.folder / "base")} | OPTIONS | options)))
        if perturbed:
            random = torch.Generator().manual_seed(7)
            for p in policy.parameters():
                p.data += 0.2 * torch.randn(p.shape, generator=random)
        return policy

    def run(self, steps: Sequence[str]) -> Outcome:
        """Load the policy and do the comparisons of these names."""
        try:
            policy = self.accepted(perturbed=True)
        except ConfigError as error:
            return self.refused(error, [step for step in steps if step in WITHOUT_ADAPTER])
        except Exception:
            self.crashed("load")
            return self.outcome
        self.compare_all(policy, steps)
        return self.outcome

    def accepted(self, **options: Any) -> Policy:
        """Load the policy; lay out the rows, and compute what is true of them."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            policy = self.load(**options)
        said = [str(w.message) for w in caught if w.category is UserWarning]
        outcome = self.outcome
        outcome.said, outcome.max_length = list(dict.fromkeys(said)), policy.max_length
        outcome.mode, outcome.use_cache = policy.forward_mode, policy.use_cache
        self.adapter = policy.adapter() or {}
        self.truth.merge(self.adapter)
        self.rows = some_rows(min(LONGEST, policy.max_length))
        self.batch = as_batch(self.rows)
        self.expected = self.truth.of_batch(self.batch)
        return policy

    def compare_all(self, policy: Policy, steps: Sequence[str]) -> None:
        """Do the comparisons of these names; a traceback is a fault."""
        for step in steps:
            try:
                getattr(self, step)(policy)
            except Exception:
                self.crashed(step)

    def refused(self, error: ConfigError, steps: Sequence[str]) -> Outcome:
        """Require one line, and look if the model can be trained without an adapter."""
        outcome = self.outcome
        outcome.refused = str(error).replace(str(self.folder / "base"), outcome.name)
        if len(str(error).splitlines()) != 1:
            outcome.faults.append("refused, but not in one line")
        try:
            policy = self.accepted(train="full")
        except ConfigError:
            return outcome
        self.compare_all(policy, steps)
        outcome.notes.append("`train=full` is exact")
        return outcome

    def crashed(self, where: str) -> None:
        """Add a traceback's last line and place to the faults."""
        lines = [line.strip() for line in traceback.format_exc().strip().splitlines()]
        place = next(line for line in reversed(lines) if line.startswith("File"))
        last = next(line for line in reversed(lines) if "Error" in line)
        self.outcome.faults.append(f"{where}: {last[:160]} ({'/'.join(place.split('/')[-2:])})")

    def compare(self, what: str, ours: Tensor, truth: Tensor, bound: float = BOUND) -> None:
        """Add a fault if two tensors differ by the bound or more."""
        gap = float((ours.detach() - truth).abs().max())
        if not gap < bound:
            self.outcome.faults.append(f"{what}: {gap:.2g} off")

    def causal(self, policy: Policy) -> None:
        """A token's log-probability must not depend on the tokens after it."""
        row = [*self.rows[-1][0], *self.rows[-1][1]]
        whole = self.truth.logprobs(row)
        for length in (5, 17, 38, len(row) - 3):
            part = self.truth.logprobs(row[:length])
            self.compare(f"not causal at {length}", part, whole[:length])

    def update(self, policy: Policy) -> None:
        """The log-probabilities of whole batches, and of micro-batches with a shared prefix."""
        with torch.no_grad():
            self.compare("update", policy.logprobs(self.batch).logprobs, self.expected)
        self.compare("update in parts", torch.cat(self.in_parts(policy)), self.expected)
        apart = as_batch([*self.rows[:3], (some_tokens(6, 11), some_tokens(9, 12))])
        expected = self.truth.of_batch(apart)
        self.compare("rows without a prefix", policy.logprobs(apart).logprobs, expected)

    def in_parts(self, policy: Policy, factors: Tensor | None = None) -> list[Tensor]:
        """Compute the log-probabilities by micro-batches; propagate their sum times `factors`."""
        parts = split_batch(self.batch, 100, padded=policy.forward_mode == "padded")
        assert len(parts) > 1
        prefix = policy.shared_prefix(parts)
        results, start = [], 0
        for part in parts:
            logprobs = policy.logprobs(part, prefix=prefix).logprobs
            if factors is not None:
                (logprobs * factors[start : start + len(part)]).sum().backward()
            start += len(part)
            results.append(logprobs.detach())
        if prefix and factors is not None:
            prefix.backward()
        return results

    @property
    def factors(self) -> Tensor:
        """Random factors [N, T] of the log-probabilities in the sum that has the gradient."""
        return torch.randn(self.expected.shape, generator=torch.Generator().manual_seed(9))

    def true_gradient(self) -> dict[str, Tensor]:
        """Compute the gradient in A and B, row by row, through W + scaling * B A."""
        leaves = {name: x.clone().requires_grad_() for name, x in self.adapter.items()}
        weights = merged_weights(self.truth.plain, leaves)
        factors = self.factors * self.batch.completion_mask
        total = torch.zeros(())
        for n, ids in enumerate(self.batch.rows()):
            logprobs = pick(self.truth.logits(ids, weights), ids)
            total = total + (logprobs * factors[n, : len(ids)]).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }

    def gradients(self, policy: Policy) -> None:
        """The adapter's gradient of a weighted sum of log-probabilities."""
        self.gradient = self.true_gradient()
        self.compare_gradients("gradient", policy)

    def compare_gradients(self, what: str, policy: Policy) -> None:
        """Compare the gradient of a whole batch, and that of its micro-batches."""
        size = max(float(gradient.abs().max()) for gradient in self.gradient.values())
        for in_parts in (False, True):
            for p in policy.parameters():
                p.grad = None
            if in_parts:
                self.in_parts(policy, self.factors)
            else:
                (policy.logprobs(self.batch).logprobs * self.factors).sum().backward()
            errors = []
            for name, p in policy.named_parameters():
                true = self.gradient[f"base_model.model.{name}.weight"]
                gap = true if p.grad is None else p.grad - true
                errors.append((float(gap.abs().max()) / size, name))
            error, where = max(errors)
            if not error < BOUND:
                whole = " in parts" if in_parts else ""
                self.outcome.faults.append(f"{what}{whole}: {error:.2g} off, at {where}")

    def checkpointed(self, policy: Policy) -> None:
        """The gradient with activation checkpointing."""
        try:
            again = self.load(perturbed=True, activation_checkpointing=True)
        except ConfigError:
            self.outcome.notes.append("no activation checkpointing")
            return
        self.compare_gradients("gradient with activation checkpointing", again)

    def merged(self, policy: Policy) -> None:
        """The merged weights are the model's own, with W + scaling * B A."""
        try:
            ours = dict(policy.merged())
        except ConfigError:
            self.outcome.notes.append("no merged weights (its layers share them)")
            return
        if type(policy.model) is type(self.truth.model) and set(ours) != self.names:
            self.outcome.faults.append(f"merged: other names: {sorted(set(ours) ^ self.names)[:3]}")
        ours = {bare(name): tensor for name, tensor in ours.items()}
        for name, weight in merged_weights(self.truth.plain, self.adapter).items():
            self.compare(f"merged {name}", ours[bare(name)], weight, 1e-5)

    def generator(self, policy: Policy) -> None:
        """Sampled and greedy completions of several prompts at once, and a second wave."""
        stem = some_tokens(min(72, policy.max_length - 8), 0)
        prompts = [stem[:3], stem[:11], stem[:9] + some_tokens(20, 21), stem]
        for capacity in (4096, 100):
            generator = LocalGenerator(policy, cache_tokens=capacity, max_new_tokens=6)
            first = sample(generator, prompts, 1.0)
            self.judge(f"sampled ({capacity})", first, 1.0)
            later = [[*c.prompt_ids, *c.completion_ids[:2], 5, 6] for c in first[:6:3]]
            second = sample(generator, [*later, some_tokens(13, 22)], 0.7)
            self.judge(f"second wave ({capacity})", second, 0.7)
        greedy = sample(generator, prompts, 0.0)
        self.judge("greedy", greedy, 1.0, greedy=True)
        self.compare_with_generate(greedy[::3])

    def compare_with_generate(self, greedy: list[Completion]) -> None:
        """Note where the truth's own `generate`, which uses its cache, gives other tokens."""
        for c in greedy:
            ids, ours = torch.tensor([c.prompt_ids]), c.completion_ids[: text_length(c)]
            try:
                chain = self.truth.model.generate(ids, max_new_tokens=len(ours), do_sample=False)
            except Exception:
                self.outcome.notes.append("`generate` of transformers fails")
                return
            if tuple(chain[0, ids.shape[1] :].tolist()) != ours:
                self.outcome.notes.append("`generate` of transformers gives other tokens")
                return

    def judge(
        self, what: str, done: list[Completion], temperature: float, *, greedy: bool = False
    ) -> None:
        """Compare what was reported of completions with the truth."""
        gaps, behind = [0.0], [0.0]
        for c in done:
            start, length = len(c.prompt_ids), text_length(c)
            ids = [*c.prompt_ids, *c.completion_ids[:length]]
            with torch.no_grad():
                logits = self.truth.logits(ids) / temperature
            truth = pick(logits, ids)[start:]
            gaps += (torch.tensor(c.logprobs[:length]) - truth).abs().tolist()
            best = logits.log_softmax(-1).amax(-1)[start - 1 : -1]
            behind += (best - truth).tolist()
        if not max(gaps) < BOUND:
            self.outcome.faults.append(f"{what}: {max(gaps):.2g} off")
        if greedy and not max(behind) < BOUND:
            self.outcome.faults.append(f"{what}: {max(behind):.2g} below the likeliest token")

    def reloaded(self, policy: Policy) -> None:
        """An adapter that was saved gives the same log-probabilities."""
        policy.save(self.folder / "adapter")
        again = self.load(adapter=str(self.folder / "adapter"))
        with torch.no_grad():
            self.compare("reloaded adapter", again.logprobs(self.batch).logprobs, self.expected)

    def peft(self, policy: Policy) -> None:
        """PEFT reads the adapter as the same correction."""
        from peft import PeftModel

        policy.save(self.folder / "adapter")
        base = self.read("base", policy)
        theirs = Truth(PeftModel.from_pretrained(base, self.folder / "adapter"))
        self.compare("read by PEFT", theirs.of_batch(self.batch), self.expected)

    def read(self, name: str, policy: Policy, dtype: torch.dtype = torch.float32) -> Any:
        """Load a saved model with `transformers` alone."""
        options = {"attn_implementation": "eager", "dtype": dtype}
        return type(policy.model).from_pretrained(self.folder / name, **options)

    def full(self, policy: Policy) -> None:
        """A step of every weight, saved and loaded again."""
        options: dict[str, Any] = {"train": "full", "learning_rate": 1e-3, "warmup_steps": 0}
        try:
            trained = self.load(**options)
        except ConfigError:
            self.outcome.notes.append("no `train=full`")
            return
        updater = Updater(Config(**(OPTIONS | options)), trained, World.single())
        with torch.no_grad():
            before = trained.logprobs(self.batch).logprobs
            with torch.enable_grad():
                updater.update(self.batch)
            after = trained.logprobs(self.batch).logprobs
        if not (after - before).abs().max() > 1e-3:
            self.outcome.faults.append("full: the step changed nothing")
        trained.save(self.folder / "full")
        again = self.load(**options, model=str(self.folder / "full"))
        with torch.no_grad():
            self.compare("full, loaded again", again.logprobs(self.batch).logprobs, after)
        theirs = Truth(self.read("full", trained)).of_batch(self.batch)
        self.compare("full, read by transformers", theirs, after)

    def bfloat16(self, policy: Policy) -> None:
        """In bfloat16 the error is that of rounding: what the model's own forward has."""
        try:
            half = self.load(dtype="bfloat16")
        except ConfigError as error:
            self.refused_in_bfloat16(policy, str(error))
            return
        sampled = sample(LocalGenerator(half, max_new_tokens=6), [self.rows[4][0]] * 2, 1.0)
        ours = {"update": half.logprobs(self.batch).logprobs[self.batch.completion_mask].detach()}
        ours["sampled"] = torch.tensor([x for c in sampled for x in c.logprobs])
        model = self.read("base", half, torch.bfloat16)
        own = self.both(Truth(model), sampled)
        exact = self.both(Truth(model.float()), sampled)
        for what, logprobs in ours.items():
            # Medians: where rounding changes the choice of an expert, single tokens are far off.
            gap, rounding = (float((x - exact[what]).abs().median()) for x in (logprobs, own[what]))
            if not gap < 2 * rounding + 0.01:
                text = f"{what} in bfloat16: {gap:.2g} off, the model itself {rounding:.2g}"
                self.outcome.faults.append(text)
        if half.forward_mode != policy.forward_mode:
            self.outcome.faults.append(f"forward={half.forward_mode} in bfloat16")

    def both(self, truth: Truth, sampled: list[Completion]) -> dict[str, Tensor]:
        """Compute the truth of the update's rows and of what was sampled, one row at a time."""
        rows = [(len(c.prompt_ids), [*c.prompt_ids, *c.completion_ids]) for c in sampled]
        return {
            "update": truth.of_batch(self.batch)[self.batch.completion_mask],
            "sampled": torch.cat([truth.logprobs(ids)[start:] for start, ids in rows]),
        }

    def refused_in_bfloat16(self, policy: Policy, reason: str) -> None:
        """Refused in bfloat16 and not in float32: right if the model itself cannot do it."""
        try:
            self.read("base", policy, torch.bfloat16)(torch.tensor([[3, 4]]))
        except Exception:
            self.outcome.notes.append("float32 alone")
        else:
            self.outcome.faults.append(f"refused in bfloat16 alone: {reason}")


def text_length(completion: Completion) -> int:
    """Count the tokens up to the first that stands for a picture, which is read otherwise."""
    ids = completion.completion_ids
    return next((n + 1 for n, i in enumerate(ids) if i >= VOCABULARY - MEANINGS[1]), len(ids))


def sample(generator: LocalGenerator, prompts: list[list[int]], heat: float) -> list[Completion]:
    """Sample three completions of each prompt, all at once."""

    async def gather() -> list[Completion]:
        requests = [(prompt, seed) for prompt in prompts for seed in range(3)]
        tasks = [generator.generate(p, seed=s, temperature=heat) for p, s in requests]
        return list(await asyncio.gather(*tasks))

    return asyncio.run(gather())


def check(name: str, steps: Sequence[str] = STEPS) -> Outcome:
    """Hold the library against one architecture of the zoo."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        return Check(name, Path(folder)).run(steps)
