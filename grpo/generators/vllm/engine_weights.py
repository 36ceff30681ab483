"""How the policy's weights reach a vLLM engine that lives in this process."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor

from grpo.config import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.vllm.options import VERSIONS_KEPT, PolicyFolders, Sync, new_name
from grpo.model.lora_policy import LoRAPolicy
from grpo.model.policy import Policy


def adapter_config(policy: Policy) -> dict[str, Any]:
    """Read what PEFT's file says of the policy's adapter: rank, alpha, modules."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        return json.loads(Path(folder, "adapter_config.json").read_text())


class EngineWeights:
    """Gives an engine the policy's weights, as an adapter or merged."""

    def __init__(self, engine: Any, policy: Policy, sync: Sync, adapter: dict[str, Any]) -> None:
        """Prepare the road.

        Args:
            engine: vLLM's `LLMEngine`.
            policy: whose weights are given.
            sync: the adapter alone, or the weights with it merged in.
            adapter: what `adapter_config` gave; not read on the merged road.
        """
        self.engine, self.policy, self.sync = engine, policy, sync
        self._count = 0
        self._memory: AdapterMemory | None = None
        self._folders: PolicyFolders | None = None
        if sync == "adapter":
            try:
                self._memory = AdapterMemory(engine, adapter)
            except AttributeError as error:
                warnings.warn(
                    f"this vLLM takes no adapters from memory ({error}); they go through files",
                    stacklevel=2,
                )
                self._folders = PolicyFolders(tempfile.gettempdir())

    def update(self) -> Any:
        """Give the engine the policy as it is now.

        Returns:
            vLLM's `LoRARequest` that new requests are made with; None on the merged road.

        Raises:
            ConfigError: the adapter has modules that vLLM does not serve.
            GeneratorError: vLLM kept something of the older weights.
        """
        if self.sync == "merged":
            core = self.engine.engine_core
            core.collective_rpc("reload_weights", kwargs={"weights_iterator": self.policy.merged()})
            if not self.engine.reset_prefix_cache():
                raise GeneratorError("vLLM kept the prefix cache of the older weights")
            return None
        from vllm.lora.request import LoRARequest

        assert isinstance(self.policy, LoRAPolicy)
        self._count += 1  # vLLM wants a number of its own beside the name
        if self._memory:
            name = new_name(self.policy)
            request = LoRARequest(name, self._count, self._memory.put(name, self.policy.adapter()))
        else:
            assert self._folders is not None
            folder = self._folders.write(self.policy, "adapter")
            request = LoRARequest(folder.name, self._count, str(folder))
        self.engine.engine_core.add_lora(request)
        return request

    def close(self) -> None:
        """End the engine and remove what was written for it."""
        self.engine.engine_core.shutdown()
        if self._folders:
            self._folders.remove()


class AdapterMemory:
    """Adapters that vLLM's LoRA manager finds in memory where it looks for a path.

    vLLM's public road is a folder. Everything of this class leans on names that vLLM does not
    promise; a version without them raises AttributeError when it is made.
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
        """Keep an adapter's tensors; returns the "path" that leads to them."""
        self._tensors[name] = tensors
        if len(self._tensors) > VERSIONS_KEPT:
            self._tensors.popitem(last=False)
        return f"memory:{name}"

    def _load(self, request: Any) -> Any:
        """Stand in for `WorkerLoRAManager._load_adapter`: a request to a `LoRAModel`."""
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
        if unserved := sorted(set(model.loras) - served):  # vLLM would pass over them in silence
            raise ConfigError(
                f"vLLM serves no LoRA on {', '.join(unserved[:4])}"
                + (f" and {len(unserved) - 4} more" if len(unserved) > 4 else "")
                + ": leave them out of lora_target_modules, or use vllm_sync=merged"
            )
        return model
