"""A policy of which every weight is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo.errors import one_line_reason
from grpo.model.check import check_model, check_weights_stay
from grpo.model.forward import ForwardMode
from grpo.model.policy import Policy
from grpo.model.pretrained import quiet_transformers


class FullPolicy(Policy):
    """A language model of which every weight is trained.

    A step at learning rate 1e-6 is smaller than the precision of a bfloat16 weight and would be
    lost. So where the model has less than float32 precision, the optimizer steps a float32 copy of
    each weight, its master, and `copy_masters_to_model` rounds the masters into the model (mixed
    precision training, arXiv 1710.03740). Gradients are summed in the masters' precision.
    """

    weights_dirname = "model"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        keep_reference: bool = True,
        forward: ForwardMode | Literal["auto"] = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        """Make every weight of a model trainable.

        Args:
            model: a `transformers` causal language model.
            tokenizer: its tokenizer.
            keep_reference: keep a copy of the initial weights, in the model's dtype, for
                `reference`.
            forward: how log-probabilities are computed; "auto" is the tree where the model
                supports it, and warns where it does not.
            activation_checkpointing: see `Policy`.

        Raises:
            ValueError: the model does not support the forward pass.
        """
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # the text part of a larger model
            raise ValueError(
                f"train=full needs a model that can be loaded again: a saved "
                f"{type(model).__name__} has the type {model.config.model_type!r}, which "
                "transformers does not load; use train=lora"
            )
        check_weights_stay(model)
        plan = check_model(model, forward, activation_checkpointing=activation_checkpointing)
        super().__init__(model, tokenizer, plan, activation_checkpointing=activation_checkpointing)
        model.requires_grad_(True)
        self._masters = {p: _master(p) for p in model.parameters()}  # tied weights come once
        self._start = [p.detach().clone() for p in self._masters] if keep_reference else None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every weight's master under the weight's name."""
        return ((name, self._masters[p]) for name, p in self.model.named_parameters())

    @torch.no_grad()
    def copy_masters_to_model(self) -> None:
        """Round the masters into the model."""
        for p, master in self._masters.items():
            if p is not master:
                p.copy_(master)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context the policy has the weights that it started from.

        Raises:
            RuntimeError: the initial weights were not kept.
        """
        if self._start is None:
            raise RuntimeError("the reference's weights were not kept: keep_reference is False")
        now = [p.data for p in self._masters]
        for p, start in zip(self._masters, self._start, strict=True):
            p.data = start
        try:
            yield
        finally:
            for p, data in zip(self._masters, now, strict=True):
                p.data = data

    def adapter(self) -> None:
        """None: the weights themselves are trained."""

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """The model's tensors under their own names."""
        return iter(self.model.state_dict().items())

    def save(self, folder: str | Path) -> None:
        """Write a folder that `transformers` reads: config, safetensors, tokenizer.

        The weights are the masters, in full precision.

        Raises:
            OSError: it could not be written.
        """
        from safetensors import SafetensorError

        state = self.model.state_dict()
        for name, p in self.model.named_parameters(remove_duplicate=False):
            state[name] = self._masters[p].detach()  # tied weights stay one tensor, written once
        try:
            with quiet_transformers():
                self.model.save_pretrained(folder, state_dict=state)
            self.tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(f"cannot write {folder}: {error}") from error

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Read weights of the same shapes, as `save` wrote them.

        Raises:
            ValueError: the files do not fit this policy; nothing was loaded.
        """
        own = dict(self.named_parameters())
        dtype = next(iter(own.values())).dtype
        try:
            with quiet_transformers():
                model, report = type(self.model).from_pretrained(
                    folder, dtype=dtype, output_loading_info=True
                )
        except Exception as error:  # of broken files, of many kinds
            reason = one_line_reason(error)
            raise ValueError(f"cannot load the model in {str(folder)!r}: {reason}") from error
        theirs = {n: p for n, p in model.named_parameters() if n not in report["missing_keys"]}
        shapes, wanted = ({n: list(p.shape) for n, p in some.items()} for some in (theirs, own))
        if shapes != wanted:
            name = next(n for n in [*wanted, *shapes] if wanted.get(n) != shapes.get(n))
            raise ValueError(
                f"the model in {str(folder)!r} is a different one: {name} must be "
                f"{wanted.get(name)}, got {shapes.get(name)}"
            )
        for name, master in own.items():
            master.copy_(theirs[name])
        self.copy_masters_to_model()


def _master(p: nn.Parameter) -> nn.Parameter:
    """Return what the optimizer steps for a weight: the weight itself, or a float32 copy."""
    if p.dtype.itemsize >= torch.float32.itemsize:
        return p
    master = nn.Parameter(p.detach().float())

    def move_gradient(p: Tensor) -> None:
        gradient, p.grad = p.grad, None
        assert gradient is not None
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    p.register_post_accumulate_grad_hook(move_gradient)
    return master
