"""A tiny GGUF file with quantised random weights, a tokenizer of letters and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "cd"]
CHAT = "{% for m in messages %}{{ m['role'] + m['content'] }} {% endfor %}"
DIM, HIDDEN, LAYERS = 32, 64, 2


def save_tiny_gguf(path: str | Path) -> None:
    """Write a Llama of two layers in Q8_0."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(DIM // 4)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * len(WORDS))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)
    random = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q8_0

    def add(name: str, *shape: int) -> None:
        values: Any = 0.1 * random.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, 1 + values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(WORDS), DIM)
    add("output_norm.weight", DIM)
    add("output.weight", len(WORDS), DIM)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        add(block + "attn_norm.weight", DIM)
        add(block + "ffn_norm.weight", DIM)
        add(block + "attn_q.weight", DIM, DIM)
        add(block + "attn_k.weight", DIM // 2, DIM)
        add(block + "attn_v.weight", DIM // 2, DIM)
        add(block + "attn_output.weight", DIM, DIM)
        add(block + "ffn_gate.weight", HIDDEN, DIM)
        add(block + "ffn_up.weight", HIDDEN, DIM)
        add(block + "ffn_down.weight", DIM, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
