"""What every policy is: a Hugging Face causal language model and its log-probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from grpo.model.forward import (
    ForwardMode,
    SharedPrefix,
    choose_forward,
    padded_hidden,
    recomputed_layers,
    tree_hidden,
)
from grpo.model.logprobs import token_logprobs
from grpo.tree.token_tree import build_tree, common_prefix
from grpo.types import TokenBatch


class TokenLogprobs(NamedTuple):
    """Per-token results, [N, T] each, 0 where no completion token stands."""

    logprobs: Tensor
    entropy: Tensor


class Policy(ABC):
    """A language model that is trained; what of it is trained, the subclass says.

    Attributes:
        model: the `transformers` model.
        tokenizer: its tokenizer, with a chat template.
        version: number of updates so far; generators drop their caches when it changes.
        road: "tree" computes every distinct prefix once, "padded" one row at a time.
        conv_width: taps of the model's short convolutions, 0 if it has none.
        weights_dirname: name of the folder that `save` is given in a run or a checkpoint.
    """

    weights_dirname: ClassVar[str]

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        forward: ForwardMode | Literal["auto"] = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        """Choose the road; a subclass has put its adapter on before.

        Args:
            model: a `transformers` causal language model.
            tokenizer: its tokenizer.
            forward: how the update computes log-probabilities; "auto" takes the tree where the
                model supports it, and says so where it does not.
            activation_checkpointing: keep only the layers' inputs for the backward pass and
                compute the rest again: a third more time, a fraction of the memory.

        Raises:
            ValueError: the model does not fit the road.
        """
        self.model = model.eval()  # no dropout: the sampled distribution is the trained one
        self.tokenizer = tokenizer
        self.version = 0
        self.activation_checkpointing = activation_checkpointing
        self.forward_mode, self.conv_width = choose_forward(model, forward)

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, float32 or wider, under the model's names."""

    def parameters(self) -> list[nn.Parameter]:
        """List what is trained: what the optimizer is given."""
        return [parameter for _, parameter in self.named_parameters()]

    @abstractmethod
    def copy_masters_to_model(self) -> None:
        """Let the model compute with the parameters as they are now, after a change of them."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Within it the policy is the reference policy: the model as it was loaded."""

    @abstractmethod
    def adapter(self) -> dict[str, Tensor] | None:
        """Copy the adapter's tensors, float32, under PEFT's names; None without an adapter."""

    @abstractmethod
    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's tensors as they are now, under its own names, in its dtypes."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write what is trained, in a format that others read too.

        Raises:
            OSError: it could not be written.
        """

    @abstractmethod
    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote, bit by bit.

        Raises:
            ValueError: it does not fit this policy.
        """

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
    def max_length(self) -> int:
        """Tokens of prompt and completion together that the model was made for."""
        return int(self.model.config.max_position_embeddings)

    def shared_prefix(self, batches: Sequence[TokenBatch]) -> SharedPrefix | None:
        """Compute what begins every row of the micro-batches, once for all of them.

        Returns:
            What `logprobs` takes for each of them; call its `backward` after theirs. None on
            the padded road, for a single micro-batch, and where the rows share nothing.
        """
        if self.forward_mode == "padded" or len(batches) < 2:
            return None
        tokens = common_prefix([row for batch in batches for row in batch.rows()])
        if not tokens:
            return None
        with self._layers():
            return SharedPrefix(self.decoder, torch.tensor(tokens), self.conv_width)

    def logprobs(
        self, batch: TokenBatch, *, temperature: float = 1.0, prefix: SharedPrefix | None = None
    ) -> TokenLogprobs:
        """Log-probability of every completion token, and the entropy it was drawn with.

        Both roads give the same values and gradients: the tree holds each distinct prefix
        once, padded rows are the tree that shares nothing.

        Args:
            batch: N rows of up to T tokens.
            temperature: of the sampling distribution.
            prefix: of this batch and others, as `prefix` gave it.

        Returns:
            logprobs and entropy, [N, T] each, in nats.
        """
        batch = batch.to(self.device)
        mask = batch.completion_mask
        if self.forward_mode == "tree":
            tree = build_tree(batch.rows())
            with self._layers():
                hidden = tree_hidden(self.decoder, tree, self.conv_width, prefix)
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
