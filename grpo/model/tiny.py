"""A tiny Llama with random weights and a tokenizer of one token per word, for checks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
}


def make_llama(**sizes: Any) -> Any:
    """Make a float32 Llama of two layers, always with the same random weights.

    Args:
        sizes: of the model's configuration, beside those in `SIZES` or in place of them.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **(SIZES | sizes))).eval()


def make_tokenizer(words: Sequence[str]) -> Any:
    """Make a tokenizer whose tokens are these words; its chat template is the messages' texts.

    Args:
        words: with "<eos>", which has id 0 as in `SIZES`, and "<unk>".
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=0,
    )
    texts = "{% for message in messages %}{{ message['content'] ~ '\n' }}{% endfor %}"
    tokenizer.chat_template = texts
    return tokenizer
