"""The installed vLLM has every name that is used of it; `scripts/vllm_interface.py` has others."""

from grpo.generators.vllm.interface import (
    ENGINE,
    MEMORY,
    ROUTES,
    SERVER,
    TESTED,
    installed_root,
    installed_version,
)
from grpo.generators.vllm.sources import Sources


def test_the_installed_vllm_has_what_is_used():
    sources = Sources(installed_root())
    assert sources.missing(ENGINE | MEMORY | SERVER) == []
    assert sources.missing_routes(ROUTES) == []
    assert installed_version().startswith(f"{TESTED}.")


def test_another_name_is_missing():
    """The lists are compared with real sources, not with whatever is there."""
    used = {
        "vllm.engine.arg_utils.EngineArgs": "seed no_such_option",
        "vllm.v1.engine.llm_engine.LLMEngine.sleep": "level depth",
        "vllm.sampling_params.SamplingParams": "n best_of_all",
        "vllm.config.model.LogprobsMode": "tempered_logprobs",
    }
    assert Sources(installed_root()).missing(used) == [
        "EngineArgs has no no_such_option (vllm.engine.arg_utils)",
        "sleep has no depth (vllm.v1.engine.llm_engine.LLMEngine)",
        "SamplingParams has no best_of_all (vllm.sampling_params)",
        "LogprobsMode has no tempered_logprobs (vllm.config.model)",
    ]
