"""vLLM's base is not quantised: it samples from a quantised policy if it gets merged weights."""

import asyncio

import pytest
import torch

from grpo.generators.base import GeneratorError
from grpo.generators.sync_check import check_sync
from grpo.generators.vllm.engine import VLLMEngine
from grpo.model.loading import load_model
from grpo.model.lora_policy import LoRAPolicy

pytest.importorskip("bitsandbytes", reason="needs the extra 'quantized'")


@pytest.mark.parametrize(("weight_sync", "is_right"), [("merged", True), ("adapter", False)])
def test_the_engine_of_a_quantised_policy(lfm2_path, weight_sync, is_right):
    options = {"device": "cpu", "dtype": torch.float32, "quantize": "4bit"}
    policy = LoRAPolicy(*load_model(str(lfm2_path), **options))
    engine = VLLMEngine(policy, max_new_tokens=8, weight_sync=weight_sync)

    async def check():
        try:
            return await check_sync(policy, engine)
        finally:
            await engine.close()

    if is_right:
        report = asyncio.run(check())
        assert report.gap < 1e-4  # 1e-6 is measured
        assert report.changed_gap < 1e-4
    else:
        with pytest.raises(GeneratorError, match="it does not compute the same model"):
            asyncio.run(check())
