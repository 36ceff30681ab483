"""The interface of a policy: a causal language model, its log-probabilities, its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from grpo.model.chat import ChatTemplate
from grpo.model.forward import (
    ForwardMode,
    ForwardPlan,
    SharedPrefix,
    padded_hidden,
    recomputed_layers,
    tree_hidden,
)
from grpo.model.head import OutputHead, find_decoder
from grpo.model.logprobs import token_logprobs
from grpo.model.packed import packed_hidden
from grpo.transfer import to_device
from grpo.tree.token_tree import TokenTree, build_tree, common_prefix
from grpo.types import TokenBatch

if TYPE_CHECKING:
    from grpo.model.graphs import TreeGraphs


class TokenLogprobs(NamedTuple):
    """Per-token results, [N, T] each; 0 where there is no completion token."""

    logprobs: Tensor
    entropy: Tensor


class Policy(ABC):
    """A language model that is trained; a subclass decides which of its weights are.

    Attributes:
        model: the `transformers` model.
        tokenizer: its tokenizer, with a chat template.
        version: number of updates so far; generators drop their caches when it changes.
        forward_mode: "tree" computes every distinct prefix once, "padded" every row by itself.
        packed: True if padded rows are computed without their padding.
        use_cache: False if decoding has to compute every token again.
        conv_width: width of the model's short convolutions, 0 if it has none.
        head: the output layer with the model's scale and cap, [*, D] -> [*, V].
        max_length: the longest prompt and completion together, in tokens, that the model supports.
        graphs: the tree's passes as CUDA graphs; None to launch their kernels one by one.
        weights_dirname: name of the folder in a run or checkpoint that holds what `save` writes.
    """

    weights_dirname: ClassVar[str]

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        plan: ForwardPlan,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        """Take a model that a subclass has checked.

        Args:
            model: a `transformers` causal language model.
            tokenizer: its tokenizer.
            plan: how its log-probabilities are computed, from `grpo.model.check.check_model`.
            activation_checkpointing: keep only the layers' inputs for the backward pass and
                recompute the rest: a third more time, a fraction of the memory.
        """
        self.model = model.eval()  # no dropout: the sampled distribution is the trained one
        self.tokenizer = tokenizer
        self.version = 0
        self.activation_checkpointing = activation_checkpointing
        self.forward_mode: ForwardMode = plan.mode
        self.packed = plan.packed
        self.use_cache, self.conv_width = plan.use_cache, plan.conv_width
        self.head: OutputHead = plan.head
        self.max_length = plan.max_length
        self.graphs: TreeGraphs | None = None

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trained weights, float32 or wider, under the model's names."""

    def parameters(self) -> list[nn.Parameter]:
        """List the trained weights, for the optimizer."""
        return [parameter for _, parameter in self.named_parameters()]

    @abstractmethod
    def copy_masters_to_model(self) -> None:
        """Let the model compute with the parameters' new values; called after every change."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Within this context the policy is the reference policy: the model as it was loaded."""

    @abstractmethod
    def adapter(self) -> dict[str, Tensor] | None:
        """Copy the adapter's tensors, float32, under PEFT's names; None without an adapter."""

    @abstractmethod
    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's current tensors, any adapter merged in, in its names and dtypes."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the trained weights, in a format that other libraries read.

        Raises:
            OSError: it could not be written.
        """

    @abstractmethod
    def load(self, folder: str | Path) -> None:
        """Restore exactly what `save` wrote.

        Raises:
            ValueError: the files do not fit this policy.
        """

    @property
    def name(self) -> str:
        """The model's hub id or folder."""
        return str(self.model.name_or_path)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = self.model.device
        return device

    @property
    def decoder(self) -> nn.Module:
        """The model without its output head."""
        decoder: nn.Module = find_decoder(self.model)
        return decoder

    @cached_property
    def chat(self) -> ChatTemplate:
        """The model's chat template; `make_policy` sets the one with the run's options."""
        return ChatTemplate(self.tokenizer)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the model's, the tokenizer's and the template's own."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        ids = [*ids, self.tokenizer.eos_token_id, self.chat.end_id]
        return frozenset(i for i in ids if i is not None)

    def shared_prefix(self, batches: Sequence[TokenBatch]) -> SharedPrefix | None:
        """Compute the tokens that begin every row of the micro-batches, once for all of them.

        Returns:
            The prefix that `logprobs` takes for each micro-batch; call its `backward` after
            theirs. None for padded rows, for a single micro-batch, where rows share nothing, and
            with CUDA graphs, which compute whole trees.
        """
        if self.forward_mode == "padded" or len(batches) < 2 or self.graphs:
            return None
        tokens = common_prefix([row for batch in batches for row in batch.rows()])
        if not tokens:
            return None
        with self._layers():
            return SharedPrefix(self.decoder, torch.tensor(tokens), self.conv_width)

    def logprobs(
        self, batch: TokenBatch, *, temperature: float = 1.0, prefix: SharedPrefix | None = None
    ) -> TokenLogprobs:
        """Compute the log-probability of every completion token, and the entropy at each.

        Both forward passes give the same values and gradients: the tree holds each distinct
        prefix once, padded rows are the tree that shares nothing.

        Args:
            batch: N rows of up to T tokens.
            temperature: of the sampling distribution.
            prefix: what `shared_prefix` returned for this batch and others.

        Returns:
            logprobs and entropy, [N, T] each, in nats.
        """
        batch = batch.to(torch.device("cpu"))  # where indices are made without waiting for a GPU
        mask = batch.completion_mask
        if self.forward_mode == "tree":
            tree = build_tree(batch.rows())
            with self._layers():
                hidden = self._tree_hidden(tree, prefix)
            nodes, parents, tokens = tree.nodes, tree.parents, tree.tokens
        elif self.packed:
            with self._layers():
                hidden = packed_hidden(self.decoder, batch)
            nodes = batch.token_mask.flatten().cumsum(0).view(mask.shape) - 1
            parents, tokens = torch.arange(len(hidden)) - 1, batch.input_ids[batch.token_mask]
        else:
            width = int(batch.token_mask.sum(1).max())  # of the longest row
            with self._layers():
                hidden = padded_hidden(self.decoder, batch.to(self.device), width).flatten(0, 1)
            nodes = torch.arange(hidden.shape[0]).view(-1, width)
            parents, tokens = nodes.flatten() - 1, batch.input_ids[:, :width].flatten()
        # The distinct completion tokens, and the distinct prefixes that they continue. What is
        # computed is as wide as its longest row, a micro-batch as the batch it was cut from.
        wanted, where = torch.unique(nodes[mask[:, : nodes.shape[1]]], return_inverse=True)
        prefixes, position = torch.unique(parents[wanted], return_inverse=True)
        order = torch.argsort(position)
        places = mask.flatten().nonzero()[:, 0]
        indices = prefixes, torch.argsort(order)[where], position[where], places
        prefixes, token_at, prefix_at, places = to_device(indices, self.device)
        logprobs, entropy = token_logprobs(
            hidden[prefixes],
            self.head,
            position[order],
            tokens[wanted[order]],
            temperature=temperature,
        )
        blank = torch.zeros(mask.numel(), dtype=logprobs.dtype, device=self.device)
        return TokenLogprobs(
            blank.index_copy(0, places, logprobs[token_at]).view(mask.shape),
            blank.index_copy(0, places, entropy[prefix_at]).view(mask.shape),
        )

    def _tree_hidden(self, tree: TokenTree, prefix: SharedPrefix | None) -> Tensor:
        """Compute the last hidden states of a tree's nodes, and possibly more rows after them."""
        hidden = self.graphs.hidden(tree) if self.graphs and prefix is None else None
        return (
            tree_hidden(self.decoder, tree, self.conv_width, prefix) if hidden is None else hidden
        )

    def _layers(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass: with or without recomputed activations."""
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        return recomputed_layers(self.decoder) if recompute else nullcontext()
