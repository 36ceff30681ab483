"""The policies: a language model with a trained adapter, or one trained as a whole.

The only file that knows both the model and `lora`. What the two share, log-probabilities above
all, is in `grpo.model.policy`; here is what sets them apart: the parameters to train, the
reference policy, the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo.model.forward import ForwardMode
from grpo.model.policy import Policy
from lora import (
    adapter_state,
    apply_lora,
    disabled_adapters,
    load_adapter,
    merged_state,
    save_adapter,
)


class LoRAPolicy(Policy):
    """A language model whose LoRA adapter is trained and whose base stays frozen.

    Attributes:
        lora_modules: number of linear layers that carry an adapter.
    """

    weights_dirname = "adapter"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        lora_r: int = 8,
        lora_alpha: float = 16,
        lora_target_modules: str | Sequence[str] = "all-linear",
        adapter: str | Path | None = None,
        forward: ForwardMode | Literal["auto"] = "auto",
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
            forward: as of `Policy`.
            activation_checkpointing: as of `Policy`.
            seed: of A's random start.

        Raises:
            ValueError: the model does not fit the adapter, or not the road.
        """
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
        super().__init__(
            model, tokenizer, forward=forward, activation_checkpointing=activation_checkpointing
        )

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the adapter's parameters, float32: all that is trained."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def copy_masters_to_model(self) -> None:
        """Nothing to do: the model computes with the parameters themselves."""

    def reference(self) -> AbstractContextManager[None]:
        """Within it the policy is the reference policy: the same model, adapter off."""
        return disabled_adapters(self.model)

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


class FullPolicy(Policy):
    """A language model of which every weight is trained.

    A step of learning rate 1e-6 is below a bfloat16 weight's last digit and would be lost. So
    where the model has fewer digits than float32, the optimizer steps a float32 copy of each
    weight, its master, and `refresh` rounds the masters into the model (mixed precision
    training, arXiv 1710.03740). Gradients are added up in the masters' precision.
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
            keep_reference: hold a copy of the weights as they are now, in the model's dtype,
                for `reference`.
            forward: as of `Policy`.
            activation_checkpointing: as of `Policy`.

        Raises:
            ValueError: the model does not fit the road.
        """
        super().__init__(
            model, tokenizer, forward=forward, activation_checkpointing=activation_checkpointing
        )
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
        """Within it the policy is the reference policy: the weights that it started from.

        Raises:
            RuntimeError: they were not kept.
        """
        if self._start is None:
            raise RuntimeError("no weights were kept for the reference: keep_reference is False")
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
        """Write a folder as `transformers` reads it: config, safetensors, tokenizer.

        The weights are the masters: whatever dtype they are loaded in, no digit is lost.

        Raises:
            OSError: it could not be written.
        """
        from safetensors import SafetensorError

        state = self.model.state_dict()
        for name, p in self.model.named_parameters(remove_duplicate=False):
            state[name] = self._masters[p].detach()  # tied ones stay one tensor, written once
        try:
            self.model.save_pretrained(folder, state_dict=state)
            self.tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(f"cannot write {folder}: {error}") from error

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Read weights of the same shapes, as `save` wrote them.

        Raises:
            ValueError: they do not fit this policy; nothing was loaded.
        """
        own = dict(self.named_parameters())
        dtype = next(iter(own.values())).dtype
        try:
            model, report = type(self.model).from_pretrained(
                folder, dtype=dtype, output_loading_info=True
            )
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load the model in {str(folder)!r}: {reason}") from error
        theirs = {n: p for n, p in model.named_parameters() if n not in report["missing_keys"]}
        shapes, wanted = ({n: list(p.shape) for n, p in some.items()} for some in (theirs, own))
        if shapes != wanted:
            name = next(n for n in [*wanted, *shapes] if wanted.get(n) != shapes.get(n))
            raise ValueError(
                f"the model in {str(folder)!r} is another: {name} must be {wanted.get(name)}, "
                f"got {shapes.get(name)}"
            )
        for name, master in own.items():
            master.copy_(theirs[name])
        self.copy_masters_to_model()


def _master(p: nn.Parameter) -> nn.Parameter:
    """What the optimizer steps for a weight: itself, or a float32 copy that gets its gradient."""
    if p.dtype.itemsize >= torch.float32.itemsize:
        return p
    master = nn.Parameter(p.detach().float())

    def hand_over(p: Tensor) -> None:
        gradient, p.grad = p.grad, None
        assert gradient is not None
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    p.register_post_accumulate_grad_hook(hand_over)
    return master
