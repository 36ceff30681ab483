"""Give the policy's weights to a vLLM engine in this process."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.vllm.interface import MEMORY, check_interface
from grpo.generators.vllm.options import VERSIONS_KEPT, WeightSync
from grpo.generators.vllm.snapshots import PolicyFolders, new_name

if TYPE_CHECKING:
    from grpo.model.policy import Policy


def adapter_config(policy: Policy) -> dict[str, Any]:
    """Return the adapter's configuration in PEFT's format: rank, alpha, modules."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        config: dict[str, Any] = json.loads(Path(folder, "adapter_config.json").read_text())
    return config


@contextmanager
def keep_process_group(kept: Any) -> Iterator[None]:
    """Within this context vLLM does not destroy the process group that the ranks train in.

    An engine uses the default group that it finds, or makes one, and destroys it when it shuts
    down. Since an engine here is one process, it never communicates in that group.

    Args:
        kept: the default group as it was before the engine; None if there was none.
    """
    destroy = dist.destroy_process_group

    def destroy_another(group: dist.ProcessGroup | None = None) -> None:
        if (group or dist.group.WORLD) is not kept:
            destroy(group)

    if kept is not None:
        dist.destroy_process_group = destroy_another
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


class EngineWeights:
    """Gives an engine the policy's weights, as an adapter or merged."""

    def __init__(
        self,
        engine: Any,
        policy: Policy,
        weight_sync: WeightSync,
        adapter: dict[str, Any],
        process_group: Any = None,
    ) -> None:
        """Prepare the engine for updates.

        Args:
            engine: vLLM's `LLMEngine`.
            policy: the source of the weights.
            weight_sync: give the adapter alone, or the weights with it merged in.
            adapter: the result of `adapter_config`; not used by "merged".
            process_group: the default group as it was before the engine (`keep_process_group`).
        """
        self._process_group = process_group
        self.engine, self.policy, self.weight_sync = engine, policy, weight_sync
        self._count = 0
        self._memory: AdapterMemory | None = None
        self._folders: PolicyFolders | None = None
        if weight_sync == "adapter":
            try:
                check_interface(MEMORY)
                self._memory = AdapterMemory(engine, adapter)
            except (AttributeError, ConfigError) as error:
                warnings.warn(
                    f"this vLLM takes no adapters from memory ({error}); they are passed as files",
                    stacklevel=2,
                )
                self._folders = PolicyFolders(tempfile.gettempdir())

    def update(self) -> Any:
        """Give the engine the policy as it is now.

        Returns:
            The `LoRARequest` that new requests pass to vLLM; None for merged weights.

        Raises:
            ConfigError: the adapter has modules for which vLLM does not support LoRA.
            GeneratorError: vLLM kept its cache of the older weights.
        """
        if self.weight_sync == "merged":
            core = self.engine.engine_core
            core.collective_rpc("reload_weights", kwargs={"weights_iterator": self.policy.merged()})
            if not self.engine.reset_prefix_cache():
                raise GeneratorError("vLLM kept the prefix cache of the older weights")
            return None
        from vllm.lora.request import LoRARequest

        self._count += 1  # vLLM wants a unique number beside the name
        if self._memory:
            name, tensors = new_name(self.policy), self.policy.adapter()
            assert tensors is not None
            request = LoRARequest(name, self._count, self._memory.put(name, tensors))
        else:
            assert self._folders is not None
            folder = self._folders.write(self.policy, "adapter")
            request = LoRARequest(folder.name, self._count, str(folder))
        self.engine.engine_core.add_lora(request)
        return request

    def close(self) -> None:
        """Shut the engine down and remove the files written for it."""
        with keep_process_group(self._process_group):
            self.engine.engine_core.shutdown()
        if self._folders:
            self._folders.remove()


class AdapterMemory:
    """Adapters in memory, which vLLM's LoRA manager loads where it expects a path.

    vLLM's public interface takes a folder. This class uses names that vLLM does not promise to
    keep (`grpo.generators.vllm.interface.MEMORY`).
    """

    def __init__(self, engine: Any, adapter: dict[str, Any]) -> None:
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        manager = engine.model_executor.driver_worker.model_runner.lora_manager
        self._served = manager._adapter_manager.modules, manager._adapter_manager.packed_modules
        self._make = LoRAModel.from_lora_tensors
        self._peft = PEFTHelper.from_dict(adapter)
        self._peft.validate_legal(manager.lora_config)
        mapper = getattr(manager._adapter_manager.model, "hf_to_vllm_mapper", None)
        self._mapper = mapper.get_rename_mapper() if mapper else None
        self._dtype = manager.lora_config.lora_dtype
        self._tensors: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        manager._load_adapter = self._load  # of this manager alone, not of its class

    def put(self, name: str, tensors: dict[str, Tensor]) -> str:
        """Keep an adapter's tensors and return a "path" under which vLLM can load them."""
        self._tensors[name] = tensors
        if len(self._tensors) > VERSIONS_KEPT:
            self._tensors.popitem(last=False)
        return f"memory:{name}"

    def _load(self, request: Any) -> Any:
        """Replace `WorkerLoRAManager._load_adapter`: make the `LoRAModel` of a request."""
        model = self._make(
            lora_model_id=request.lora_int_id,
            tensors=self._tensors[request.lora_name],
            peft_helper=self._peft,
            device="cpu",
            dtype=self._dtype,
            weights_mapper=self._mapper,
        )
        modules, packed = self._served
        served = {part for name in modules for part in packed.get(name, [name])}
        if unserved := sorted(set(model.loras) - served):  # vLLM would ignore them
            raise ConfigError(
                f"vLLM does not support LoRA on {', '.join(unserved[:4])}"
                + (f" and {len(unserved) - 4} more" if len(unserved) > 4 else "")
                + ": leave them out of lora_target_modules, or use vllm_sync=merged"
            )
        return model
