"""The policy: a Hugging Face causal language model, with LoRA on its linear layers.

The only file that knows both the model and `lora`. It offers what the algorithm needs:
log-probabilities of sampled tokens, the reference policy (the adapter switched off), the
parameters to train, and the adapter's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from grpo.logprobs import token_logprobs
from grpo.roads import Road, Trunk, choose_road, padded_hidden, recomputed_layers, tree_hidden
from grpo.tree import build_tree, common_prefix
from grpo.types import TokenBatch
from lora import (
    adapter_state,
    apply_lora,
    disabled_adapters,
    load_adapter,
    lora_parameters,
    merged_state,
    save_adapter,
)


class TokenLogprobs(NamedTuple):
    """Per-token results, [N, T] each, 0 where no completion token stands."""

    logprobs: Tensor
    entropy: Tensor


class LoRAPolicy:
    """A language model whose LoRA adapter is trained and whose base stays frozen.

    Attributes:
        model: the `transformers` model, its linear layers replaced by `LoRALinear`.
        tokenizer: its tokenizer, with a chat template.
        version: number of updates so far; generators drop their caches when it changes.
        road: "tree" computes every distinct prefix once, "padded" one row at a time.
        conv_width: taps of the model's short convolutions, 0 if it has none.
        lora_modules: number of linear layers that carry an adapter.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        lora_r: int = 8,
        lora_alpha: float = 16,
        lora_target_modules: str | Sequence[str] = "all-linear",
        adapter: str | Path | None = None,
        road: Road | Literal["auto"] = "auto",
        activation_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        """Put an adapter on a model.

        Args:
            model: a `transformers` causal language model.
            tokenizer: its tokenizer.
            lora_r: rank of the adapter.
            lora_alpha: the adapter's output is scaled by alpha / r.
            lora_target_modules: "all-linear" (all but the output head) or module names.
            adapter: a folder with an adapter in PEFT's format to start from; its own
                rank, alpha and modules then count.
            road: how the update computes log-probabilities; "auto" takes the tree where the
                model supports it, and says so where it does not.
            activation_checkpointing: keep only the layers' inputs for the backward pass and
                compute the rest again: a third more time, a fraction of the memory.
            seed: of A's random start.

        Raises:
            ValueError: the model does not fit the adapter, or not the road.
        """
        self.model = model.eval()  # no dropout: the sampled distribution is the trained one
        self.tokenizer = tokenizer
        self.version = 0
        self.activation_checkpointing = activation_checkpointing
        if adapter is not None:
            self.lora_modules = load_adapter(model, adapter)
        else:
            self.lora_modules = apply_lora(
                model,
                lora_target_modules,
                r=lora_r,
                alpha=lora_alpha,
                generator=torch.Generator().manual_seed(seed),
            )
        self.road, self.conv_width = choose_road(model, road)

    @property
    def name(self) -> str:
        """The model's hub id or folder."""
        return str(self.model.name_or_path)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.device

    @property
    def decoder(self) -> nn.Module:
        """The model without its output head."""
        return self.model.get_decoder()

    @property
    def head(self) -> nn.Module:
        """The output layer, [*, D] -> [*, V]."""
        return self.model.get_output_embeddings()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @property
    def caches_tree(self) -> bool:
        """True if keys and values are all that a token leaves to its descendants."""
        return self.road == "tree" and not self.conv_width

    @property
    def max_length(self) -> int:
        """Tokens of prompt and completion together that the model was made for."""
        return int(self.model.config.max_position_embeddings)

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, float32: all that is trained."""
        return list(lora_parameters(self.model))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the policy is the reference policy: the same model, adapter off."""
        with disabled_adapters(self.model):
            yield

    def adapter(self) -> dict[str, Tensor]:
        """A copy of the adapter's tensors, float32, under PEFT's names."""
        return adapter_state(self.model)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """The model's tensors under their own names, with the adapter merged in."""
        return merged_state(self.model)

    def save(self, folder: str | Path) -> None:
        """Write the adapter as PEFT and vLLM read it."""
        save_adapter(self.model, folder, base_model_name_or_path=self.name)

    def load(self, folder: str | Path) -> None:
        """Read an adapter of the same shape, as `save` or PEFT wrote it.

        Raises:
            ValueError: it does not fit this policy.
        """
        load_adapter(self.model, folder)

    def trunk(self, batches: Sequence[TokenBatch]) -> Trunk | None:
        """Compute what begins every row of the micro-batches, once for all of them.

        Returns:
            What `logprobs` takes for each of them; call its `backward` after theirs. None on
            the padded road, for a single micro-batch, and where the rows share nothing.
        """
        if self.road == "padded" or len(batches) < 2:
            return None
        tokens = common_prefix([row for batch in batches for row in batch.rows()])
        if not tokens:
            return None
        with self._layers():
            return Trunk(self.decoder, torch.tensor(tokens), self.conv_width)

    def logprobs(
        self, batch: TokenBatch, *, temperature: float = 1.0, trunk: Trunk | None = None
    ) -> TokenLogprobs:
        """Log-probability of every completion token, and the entropy it was drawn with.

        Both roads give the same values and gradients: the tree holds each distinct prefix
        once, padded rows are the tree that shares nothing.

        Args:
            batch: N rows of up to T tokens.
            temperature: of the sampling distribution.
            trunk: of this batch and others, as `trunk` gave it.

        Returns:
            logprobs and entropy, [N, T] each, in nats.
        """
        batch = batch.to(self.device)
        mask = batch.completion_mask
        if self.road == "tree":
            tree = build_tree(batch.rows())
            with self._layers():
                hidden = tree_hidden(self.decoder, tree, self.conv_width, trunk)
            tree = tree.to(self.device)
            nodes, parents, tokens = tree.nodes, tree.parents, tree.tokens
        else:
            with self._layers():
                hidden = padded_hidden(self.decoder, batch).flatten(0, 1)
            nodes = torch.arange(hidden.shape[0], device=self.device).view(mask.shape)
            parents, tokens = nodes.flatten() - 1, batch.input_ids.flatten()
        # Of the completion tokens the distinct ones, and of their prefixes likewise. A tree is
        # as wide as its longest row, a micro-batch as the batch that it was cut from.
        wanted, where = torch.unique(nodes[mask[:, : nodes.shape[1]]], return_inverse=True)
        prefixes, position = torch.unique(parents[wanted], return_inverse=True)
        order = torch.argsort(position)
        sorted_logprobs, entropy = token_logprobs(
            hidden[prefixes],
            self.head,
            position[order],
            tokens[wanted[order]],
            temperature=temperature,
        )
        logprobs = sorted_logprobs[torch.argsort(order)]
        blank = torch.zeros(mask.shape, dtype=logprobs.dtype, device=self.device)
        return TokenLogprobs(
            blank.masked_scatter(mask, logprobs[where]),
            blank.masked_scatter(mask, entropy[position][where]),
        )

    def _layers(self) -> AbstractContextManager[None]:
        """How a forward treats its activations."""
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        return recomputed_layers(self.decoder) if recompute else nullcontext()
