"""Tiny models of the architectures that `transformers` can load as a causal language model.

Each has two to four layers, so that every kind of layer of its family is there, and random weights
that are always the same, none of which is 0 or 1 throughout. `ZOO` is the table; the truth that
the library is held against is in `tests/support/zoo_check.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

VOCABULARY = 96
LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
MIXED = [SLIDING, FULL]

# A family gets those of these sizes that its configuration has. A window of 8 is shorter than most
# of the rows that are compared, 256 positions are more than the longest.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "max_seq_len": 256,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 32,  # with few, many scores are exactly 0 and equal
    "index_head_dim": 16,
    "index_topk": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "state_size": 8,
    "layerdrop": 0.0,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 2,
}
# The vision tower of a model of several modalities, and the wrapper around it.
VISION: dict[str, Any] = {key: SIZES[key] for key in ("hidden_size", "intermediate_size")} | {
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "attention_heads": 4,
    "num_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "depth": 1,
    "embed_dim": 32,
    "out_hidden_size": 32,
    "global_layers": 1,
    "num_global_layers": 1,
    "intermediate_layers_indices": [0],
    "vision_output_dim": 32,
    "output_channels": 16,
    "mlp_dim": 48,
    "window_size": 2,
    "head_dim": 8,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "projection_dim": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [],
    "base_channels": 32,
    "channel_multiplier": [1],
    "attn_resolutions": [],
    "num_res_blocks": 1,
    "codebook_size": 16,
}
WRAPPER: dict[str, Any] = {
    "image_token_id": VOCABULARY - 1,
    "image_token_index": VOCABULARY - 1,
    "video_token_id": VOCABULARY - 2,
    "tie_word_embeddings": False,
}
MLA = {"num_key_value_heads": 4}  # multi-head latent attention: a key for every head
PAD_UNUSED = {"pad_token_id": None}  # the family sets the token's embedding to 0 when it loads
DENSE_THEN_MOE = {"first_k_dense_replace": 1}


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        name: its model type in `transformers`, or that and what is different in this variant.
        changes: what its configuration has in place of `SIZES`.
        public: models of the hub that have this architecture.
        text: of a model of several modalities, the architecture of its `text_config`.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    public: str = ""
    text: str = ""

    @property
    def model_type(self) -> str:
        """The model type in `transformers`."""
        return self.name.partition(" ")[0]


def _rope(kind: str, theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LONGROPE = _rope(
    "longrope",
    original_max_position_embeddings=64,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[1.0, 2.0, 4.0, 8.0],
    factor=4.0,
)
LLAMA3 = _rope(
    "llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
MROPE = _rope("default", mrope_section=[2, 1, 1])
GRANITE = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.5,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.2,
}

_TABLE = [
    # Llama and what differs from it in sizes, norms and biases.
    Architecture("llama", {}, "Llama 2, TinyLlama, SmolLM, SmolLM2, Yi"),
    Architecture("llama llama3", LLAMA3, "Llama 3.1, 3.2, 3.3"),
    Architecture("llama linear", _rope("linear", factor=2.0), "Vicuna 16k"),
    Architecture(
        "llama dynamic",
        _rope("dynamic", factor=2.0) | {"max_position_embeddings": 64},
    ),
    Architecture(
        "llama yarn",
        _rope("yarn", factor=4.0, original_max_position_embeddings=64),
    ),
    Architecture("llama longrope", LONGROPE),
    Architecture("llama biases", {"attention_bias": True, "mlp_bias": True}),
    Architecture("llama tied", {"tie_word_embeddings": True}, "Llama 3.2 1B"),
    Architecture("apertus", {}, "Apertus"),
    Architecture("arcee", {}, "AFM 4.5B"),
    Architecture("aria_text", {"moe_num_experts": 4, "moe_topk": 2}, "Aria's language model"),
    Architecture("bitnet", {}, "BitNet b1.58 2B4T"),
    Architecture("cwm", {"layer_types": MIXED}, "Code World Model"),
    Architecture("diffllama", {}, "DiffLlama"),
    Architecture("doge", {"keep_window_size": 8}, "Doge"),
    Architecture(
        "doge moe",
        {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 4},
        "Doge MoE",
    ),
    Architecture("ernie4_5", {}, "ERNIE 4.5 0.3B"),
    Architecture("exaone4", {"layer_types": MIXED}, "EXAONE 4.0"),
    Architecture("glm", {"partial_rotary_factor": 0.5}, "GLM-4 9B"),
    Architecture("glm4", {"partial_rotary_factor": 0.5}, "GLM-4-0414"),
    Architecture("helium", {}, "Helium"),
    Architecture("hunyuan_v1_dense", {}, "Hunyuan dense"),
    Architecture("hyperclovax", {"logits_scaling": 2.5}, "HyperCLOVA X SEED"),
    Architecture("jais2", {}, "Jais 2"),
    Architecture("ministral", {"layer_types": MIXED}, "Ministral 8B"),
    Architecture("ministral3", {}),
    Architecture(
        "ministral3 yarn",
        _rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            llama_4_scaling_beta=0.1,
            mscale=1.0,
            mscale_all_dim=1.0,
            beta_fast=32.0,
            beta_slow=1.0,
        )
        | {"sliding_window": None},
        "Ministral 3 (as published)",
    ),
    Architecture("mistral", {"sliding_window": None}, "Mistral 7B v0.2, v0.3"),
    Architecture("mistral window", {}, "Mistral 7B v0.1"),
    Architecture("nanochat", {"final_logit_softcapping": 5.0}, "nanochat"),
    Architecture("nemotron", {}, "Nemotron 4, Minitron"),
    Architecture("olmo", {"clip_qkv": 1.0}, "OLMo"),
    Architecture("olmo2", {}, "OLMo 2"),
    Architecture("olmo3", {"layer_types": MIXED}, "OLMo 3"),
    Architecture("olmo3 late", {"num_hidden_layers": 4, "layer_types": [FULL] * 3 + [SLIDING]}),
    Architecture("phi", {"partial_rotary_factor": 0.5}, "Phi-1.5, Phi-2"),
    Architecture("phi3", {"sliding_window": None}, "Phi-3, Phi-4"),
    Architecture(
        "phi3 longrope",
        LONGROPE | {"original_max_position_embeddings": 64, "sliding_window": None},
        "Phi-3 128k, Phi-4-mini",
    ),
    Architecture("qwen2", {}, "Qwen2, Qwen2.5, R1-distills"),
    Architecture(
        "qwen2 window", {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
    ),
    Architecture(
        "qwen2 yarn", _rope("yarn", factor=4.0, original_max_position_embeddings=64), "Qwen2.5 128k"
    ),
    Architecture("qwen3", {}, "Qwen3"),
    Architecture("seed_oss", {}, "Seed-OSS"),
    Architecture("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}, "SmolLM3"),
    Architecture("smollm3 late", {"num_hidden_layers": 4, "no_rope_layer_interval": 4}),
    Architecture("stablelm", {"partial_rotary_factor": 0.5, "use_qkv_bias": True}, "StableLM 2"),
    Architecture(
        "stablelm parallel",
        {"use_parallel_residual": True, "qk_layernorm": True},
        "StableLM 2 12B",
    ),
    Architecture("starcoder2", {}, "StarCoder2"),
    Architecture("persimmon", {"partial_rotary_factor": 0.5}, "Persimmon"),
    # A scale or a cap between the output layer and the logits.
    Architecture("cohere", {"logit_scale": 0.3, "use_qk_norm": True}, "Command R"),
    Architecture(
        "cohere2",
        {"logit_scale": 0.3, "num_hidden_layers": 4},
        "Command R7B, Command A",
    ),
    Architecture(
        "cohere_compass_text",
        {"logit_scale": 0.3, "layer_types": MIXED}
        | {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
                for kind in MIXED
            }
        },
        "North-Micro's language model",
    ),
    Architecture("gemma", {}, "Gemma"),
    Architecture(
        "gemma2",
        {
            "layer_types": MIXED,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 8,
        },
        "Gemma 2",
    ),
    Architecture("gemma3_text", {"layer_types": MIXED, "query_pre_attn_scalar": 8}, "Gemma 3 1B"),
    Architecture(
        "gemma3_text cap",
        {"layer_types": MIXED, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    ),
    Architecture("granite", GRANITE, "Granite 3"),
    Architecture("granite_swa", GRANITE | {"layer_types": MIXED}, "Granite Swash 2B"),
    Architecture("minicpm3", MLA | {"dim_model_base": 16}, "MiniCPM3"),
    Architecture(
        "vaultgemma",
        {
            "layer_types": MIXED,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 8,
        },
        "VaultGemma",
    ),
    Architecture(
        "modernbert-decoder", {"layer_types": MIXED, "local_attention": 16}, "Ettin decoders"
    ),
    # Layers that read each other's keys, or several embeddings.
    Architecture(
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "layer_types": MIXED * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
            "final_logit_softcapping": 5.0,
        },
        "Gemma 3n's language model",
    ),
    Architecture(
        "gemma4_text",
        {
            "num_hidden_layers": 4,
            "layer_types": MIXED * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 16,
            "final_logit_softcapping": 5.0,
        },
        "Gemma 4 E2B's language model",
    ),
    Architecture(
        "gemma4_text moe",
        {
            "layer_types": MIXED,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCABULARY,
            "enable_moe_block": True,
            "top_k_experts": 2,
            "global_head_dim": 16,
        },
        "Gemma 4 26B-A4B's language model",
    ),
    Architecture(
        "gemma4_unified_text",
        {"layer_types": MIXED, "global_head_dim": 16},
        "Gemma 4 12B's language model",
    ),
    Architecture("hrm_text", {"H_cycles": 1, "L_cycles": 2, "initializer_range": 0.1}, "HRM-Text"),
    # Mixtures of experts.
    Architecture("afmoe", {"layer_types": MIXED, "num_shared_experts": 1}, "Trinity"),
    Architecture("axk1", MLA | DENSE_THEN_MOE, "A.X K1"),
    Architecture("axk2", MLA | {"gated_norm_rank": 4}, "A.X K2"),
    Architecture(
        "cohere2_moe",
        {"logit_scale": 0.3, "layer_types": MIXED, "num_shared_experts": 1}
        | {"mlp_layer_types": ["dense", "sparse"], "prefix_dense_intermediate_size": 48},
        "Command A+ (2026)",
    ),
    Architecture(
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 1.2},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "DBRX",
    ),
    Architecture("deepseek_v2", MLA | DENSE_THEN_MOE, "DeepSeek-V2"),
    Architecture("deepseek_v3", MLA | DENSE_THEN_MOE, "DeepSeek-V3, R1, Moonlight"),
    Architecture("deepseek_v3 late", MLA | {"first_k_dense_replace": 3, "num_hidden_layers": 5}),
    Architecture("deepseek_v32", MLA | DENSE_THEN_MOE, "DeepSeek-V3.2"),
    Architecture("deepseek_v4", {"num_key_value_heads": 1}, "DeepSeek-V4"),
    Architecture("dots1", DENSE_THEN_MOE | {"n_shared_experts": 1}, "dots.llm1"),
    Architecture(
        "ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_end_index": 1}, "ERNIE 4.5"
    ),
    Architecture("exaone_moe", DENSE_THEN_MOE | {"layer_types": MIXED}, "K-EXAONE"),
    Architecture("flex_olmo", {}, "FlexOlmo"),
    Architecture(
        "glm4_moe", DENSE_THEN_MOE | {"use_qk_norm": True, "partial_rotary_factor": 0.5}, "GLM-4.5"
    ),
    Architecture("glm4_moe_lite", MLA | {"mlp_layer_types": ["dense", "sparse"]}, "GLM-4.7-Flash"),
    Architecture("glm_moe_dsa", MLA | DENSE_THEN_MOE, "GLM-5"),
    Architecture("gpt_oss", {"layer_types": MIXED}, "gpt-oss"),
    Architecture("granitemoe", GRANITE, "Granite 3 1B-A400M, 3B-A800M"),
    Architecture("granitemoe_swa", GRANITE | {"layer_types": MIXED}, "Granite Swash 3B-A600M"),
    Architecture("granitemoeshared", GRANITE, "Granite 3 MoE with a shared expert"),
    Architecture("hunyuan_v1_moe", {"moe_topk": 2}, "Hunyuan A13B"),
    Architecture("hy_v3", {"mlp_layer_types": ["dense", "sparse"]}, "Hy3"),
    Architecture("hy_v4", {"num_hidden_layers": 3}, "Hy4"),
    Architecture("jetmoe", {"kv_channels": 8, "num_key_value_heads": 2}, "JetMoE"),
    Architecture(
        "laguna",
        {"layer_types": MIXED, "mlp_layer_types": ["dense", "sparse"]},
        "Laguna",
    ),
    Architecture("lfm2_moe", {"layer_types": ["conv", FULL], "num_dense_layers": 1}, "LFM2 8B-A1B"),
    Architecture(
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "no_rope_layer_interval": 2,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 48,
            "num_experts_per_tok": 1,
            "floor_scale": 16,
        },
        "Llama 4's language model",
    ),
    Architecture(
        "longcat_flash",
        MLA
        | {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "moe_topk": 2}
        | {"zero_expert_num": 2},
        "LongCat-Flash",
    ),
    Architecture("mellum", {"layer_types": MIXED}, "Mellum 2"),
    Architecture("mimo_v2_flash", {"layer_types": MIXED}, "MiMo-V2-Flash"),
    Architecture("minimax", {"layer_types": [LINEAR, FULL], "block_size": 8}, "MiniMax-Text-01"),
    Architecture("minimax_m2", {"rotary_dim": 4}, "MiniMax-M2"),
    Architecture(
        "minimax_m3_vl_text",
        {
            "layer_types": [FULL, "minimax_m3_sparse"],
            "mlp_layer_types": ["dense", "sparse"],
            "dense_intermediate_size": 48,
            "index_block_size": 4,
            "index_topk_blocks": 2,
        },
        "MiniMax-M3's language model",
    ),
    Architecture("mixtral", {"sliding_window": None}, "Mixtral"),
    Architecture("olmoe", {"clip_qkv": 1.0}, "OLMoE"),
    Architecture("phimoe", {"sliding_window": None}, "Phi-3.5-MoE"),
    Architecture("qwen2_moe", {"mlp_only_layers": [0]}, "Qwen1.5-MoE, Qwen2-57B-A14B"),
    Architecture("qwen3_moe", {"mlp_only_layers": [0]}, "Qwen3-30B-A3B"),
    Architecture("solar_open", {}, "Solar Open"),
    Architecture("youtu", MLA | PAD_UNUSED, "Youtu-LLM"),
    Architecture(
        "zaya",
        {
            "num_experts_per_tok": 1,
            "router_hidden_size": 16,
            "layer_types": ["hybrid", "hybrid_sliding"],
        },
        "ZAYA1",
    ),
    # Convolutions, linear attention, state spaces.
    Architecture(
        "bamba",
        {"mamba_n_heads": 4, "num_hidden_layers": 3, "attn_layer_indices": [1]},
        "Bamba",
    ),
    Architecture(
        "falcon_h1",
        {
            "mamba_d_ssm": 32,
            "lm_head_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "key_multiplier": 0.7,
            "attention_out_multiplier": 0.8,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.9,
        },
        "Falcon-H1",
    ),
    Architecture("falcon_mamba", {}, "Falcon-Mamba"),
    Architecture(
        "granitemoehybrid",
        GRANITE | {"num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"]},
        "Granite 4 H",
    ),
    Architecture(
        "inkling_text",
        {
            "layer_types": ["hybrid_sliding", "hybrid"],
            "mlp_layer_types": ["dense", "sparse"],
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": 8,
            "rel_extent": 16,
            "d_rel": 4,
            "logits_mup_width_multiplier": 2.0,
        },
        "Inkling's language model",
    ),
    Architecture(
        "jamba",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "use_mamba_kernels": False,
        },
        "Jamba",
    ),
    Architecture(
        "kimi_linear",
        MLA | {"layer_types": [LINEAR, FULL], "mlp_layer_types": ["dense", "sparse"]},
        "Kimi Linear",
    ),
    Architecture("lfm2", {"layer_types": ["conv", FULL, "conv"], "num_hidden_layers": 3}, "LFM2"),
    Architecture("mamba", {}, "Mamba"),
    Architecture("mamba2", {"num_heads": 8, "n_groups": 2}, "Mamba-2, Codestral Mamba"),
    Architecture(
        "nemotron_h",
        {
            "layers_block_type": [LINEAR, "moe", FULL, "mlp"],
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "moe_shared_expert_intermediate_size": 24,
            "use_mamba_kernels": False,
        },
        "Nemotron-H, Nemotron Nano 2 and 3",
    ),
    Architecture("olmo_hybrid", {"layer_types": [LINEAR, FULL]}, "OLMo Hybrid"),
    Architecture(
        "qwen3_5_text", {"layer_types": [LINEAR, FULL], "partial_rotary_factor": 0.5}, "Qwen3.5"
    ),
    Architecture("qwen3_5_moe_text", {"layer_types": [LINEAR, FULL]}, "Qwen3.5 MoE"),
    Architecture("qwen3_next", {"layer_types": [LINEAR, FULL]}, "Qwen3-Next, Qwen3-Coder-Next"),
    Architecture(
        "qwen4_exp_text",
        {
            "layer_types": [LINEAR, "indexed_attention"],
            "hc_count": 2,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        },
        "Qwen4-Exp",
    ),
    Architecture(
        "recurrent_gemma",
        {
            "num_hidden_layers": 3,
            "attention_window_size": 8,
            "logits_soft_cap": 5.0,
            "w_init_variance_scale": 1.0,
        }
        | PAD_UNUSED,
        "RecurrentGemma",
    ),
    Architecture("rwkv", {"context_length": 256}, "RWKV-4"),
    Architecture("xlstm", {"num_heads": 4, "output_logit_soft_cap": 5.0}, "xLSTM 7B"),
    Architecture(
        "zamba",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "n_mamba_heads": 2,
            "use_mamba_kernels": False,
            "attention_head_dim": 16,
            "num_key_value_heads": 4,
        },
        "Zamba",
    ),
    Architecture(
        "zamba2",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "use_mamba_kernels": False,
            "n_mamba_heads": 8,
            "adapter_rank": 4,
            "num_mem_blocks": 2,
            "num_key_value_heads": 4,
            "use_shared_attention_adapter": True,
            "use_mem_rope": True,
            "initializer_range": 0.15,  # with more its rounding errors grow to 1e-3
        },
        "Zamba2",
    ),
    # Older decoders: learned positions, alibi, parallel blocks.
    Architecture("biogpt", {}, "BioGPT"),
    Architecture("bloom", {}, "BLOOM"),
    Architecture("codegen", {}, "CodeGen"),
    Architecture("cpmant", {"prompt_length": 4, "dim_ff": 48, "dim_head": 8}, "CPM-Ant"),
    Architecture("ctrl", {"dff": 48}, "CTRL"),
    Architecture("falcon", {}, "Falcon 7B"),
    Architecture("falcon alibi", {"alibi": True, "parallel_attn": False}, "Falcon RW"),
    Architecture(
        "falcon new", {"new_decoder_architecture": True, "num_kv_heads": 2}, "Falcon 40B, Falcon 2"
    ),
    Architecture("gpt2", {}, "GPT-2"),
    Architecture("gpt_bigcode", {}, "StarCoder, SantaCoder"),
    Architecture(
        "gpt_neo",
        {"attention_types": [[["global", "local"], 1]], "window_size": 8},
        "GPT-Neo",
    ),
    Architecture("gpt_neox", {}, "Pythia, GPT-NeoX"),
    Architecture("gpt_neox_japanese", {}, "GPT-NeoX Japanese"),
    Architecture("gptj", {}, "GPT-J"),
    Architecture("moshi", {}, "Moshi's language model"),
    Architecture("mpt", {}, "MPT"),
    Architecture("openai-gpt", {}, "GPT"),
    Architecture("opt", {}, "OPT"),
    Architecture("opt projected", {"word_embed_proj_dim": 16}, "OPT 350M"),
    Architecture("xglm", {}, "XGLM"),
    # Wrappers of several modalities; their text sizes are in `text_config`.
    Architecture("emu3", {"vocabulary_map": {"<image>": VOCABULARY - 1}}, "Emu3", text="llama"),
    Architecture("gemma3", {}, "Gemma 3 4B, 12B, 27B", text="gemma3_text"),
    Architecture("gemma4", {}, "Gemma 4", text="gemma4_text"),
    Architecture("got_ocr2", {}, "GOT-OCR 2", text="qwen2"),
    Architecture("llama4", {}, "Llama 4 Scout, Maverick", text="llama4_text"),
    Architecture("mllama", {}, "Llama 3.2 Vision", text="mllama_text_model"),
    Architecture("qwen3_5", {}, "Qwen3.5", text="qwen3_5_text"),
    Architecture("qwen3_5_moe", {}, "Qwen3.5 MoE", text="qwen3_5_moe_text"),
    Architecture("aya_vision", {}, "Aya Vision", text="cohere2"),
    Architecture("internvl", {}, "InternVL 3", text="qwen2"),
    Architecture("lfm2_vl", {"projector_hidden_size": 32}, "LFM2-VL", text="lfm2"),
    Architecture("llava", {}, "LLaVA 1.5", text="llama"),
    Architecture("mistral3", {}, "Mistral Small 3.1", text="mistral"),
    Architecture("paligemma", {"projection_dim": 32}, "PaliGemma", text="gemma"),
    Architecture("qwen2_5_vl", {}, "Qwen2.5-VL", text="qwen2_5_vl_text"),
    Architecture("qwen3_vl", {}, "Qwen3-VL", text="qwen3_vl_text"),
    Architecture("smolvlm", {}, "SmolVLM", text="llama"),
    # Encoders and decoders of encoder-decoders that `AutoModelForCausalLM` takes all the same.
    Architecture("bert", {}, "BERT"),
    Architecture("bert decoder", {"is_decoder": True}),
    Architecture("roberta", {}, "RoBERTa"),
    Architecture("roberta decoder", {"is_decoder": True}),
    Architecture("electra", {"embedding_size": 16}, "ELECTRA"),
    Architecture("big_bird decoder", {"is_decoder": True, "attention_type": "original_full"}),
    Architecture("xlnet", {}, "XLNet"),
    Architecture("xlm", {"emb_dim": 32, "n_words": VOCABULARY} | PAD_UNUSED, "XLM"),
    Architecture(
        "reformer",
        {
            "is_decoder": True,
            "attn_layers": ["local", "lsh"],
            "axial_pos_shape": [16, 16],
            "axial_pos_embds_dim": [16, 16],
            "feed_forward_size": 48,
        },
        "Reformer",
    ),
    Architecture("bart", {}, "BART's decoder"),
    Architecture("t5", {"d_ff": 48, "num_heads": 4, "d_kv": 8}, "T5"),
    Architecture(
        "whisper",
        {"max_target_positions": 256, "max_source_positions": 16, "num_mel_bins": 8},
        "Whisper's decoder",
    ),
]
# What some of the wrappers have in `text_config` and what no model of its own has.
_TEXTS = [
    Architecture("mllama_text_model", {"cross_attention_layers": [1], "num_hidden_layers": 3}),
    Architecture("qwen2_5_vl_text", MROPE),
    Architecture("qwen3_vl_text", MROPE),
]

ZOO: dict[str, Architecture] = {a.name: a for a in _TABLE}


def make_config(name: str) -> Any:
    """Make the configuration of an architecture."""
    architecture = ZOO.get(name) or next(a for a in _TEXTS if a.name == name)
    config_class = _config_class(architecture.model_type)
    if not architecture.text:
        return config_class(**(_fields(config_class, SIZES) | architecture.changes))
    parts = {"text_config": make_config(architecture.text).to_dict()}
    for part in ("vision_config", "audio_config", "vq_config"):
        default = getattr(config_class(), part, None)
        if default is not None:
            parts[part] = _fields(type(default), VISION) | {"model_type": default.model_type}
    options = _fields(config_class, WRAPPER) | architecture.changes
    return config_class(**parts, **options)


def _config_class(model_type: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def _fields(config_class: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """Choose the sizes that a configuration has."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    return {key: value for key, value in sizes.items() if key in fields}


def make(name: str, **options: Any) -> Any:
    """Make the model of an architecture in float32, always with the same weights.

    Args:
        name: a key of `ZOO`.
        options: of `from_config`, such as the implementation of attention.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
    )

    config = make_config(name)
    autos = [AutoModelForImageTextToText] if ZOO[name].text else []
    autos += [AutoModelForCausalLM, AutoModelForSeq2SeqLM]
    auto = next(a for a in autos if type(config) in a._model_mapping)
    torch.manual_seed(0)
    return randomize(auto.from_config(config, **options)).eval()


@torch.no_grad()
def randomize(model: Any, std: float = 0.2) -> Any:
    """Add noise to every weight and to the routers' biases, so that none is trivial."""
    random = torch.Generator().manual_seed(1)
    saved = model.state_dict().keys()
    buffers = model.named_buffers()
    biases = [b for name, b in buffers if name.endswith("bias") and name in saved]
    for tensor in (*model.parameters(), *biases):
        if tensor.is_floating_point():
            tensor += std * torch.randn(tensor.shape, generator=random)
    return model
