"""A small byte-level BPE tokenizer with ChatML's template, and tiny models of several types."""

from __future__ import annotations

from typing import Any

import torch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama tied": ("LlamaConfig", {"tie_word_embeddings": True, "rope_theta": 5e5}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 128}),
    "lfm2": ("Lfm2Config", {"full_attn_idxs": [1], "block_auto_adjust_ff_dim": False}),
}


def make_byte_level(splits: Any = None) -> Any:
    """Make the tokenizer; `splits` is its pre-tokenizer, GPT-2's by default."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = splits or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["click('12') on the button of the page", "fill('7', 'the text') in the page"] * 9
    tokens.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token=CONTROL[1], eos_token=CONTROL[2], unk_token=CONTROL[0]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_family(family: str, **sizes: Any) -> Any:
    """Make a float32 model of one of `FAMILIES`, always with the same random weights."""
    import transformers

    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**(SIZES | {"vocab_size": 300} | own | sizes))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases: not all 1 and 0
            torch.nn.init.normal_(parameter, mean=parameter[0].item(), std=0.1)
    return model.eval()
