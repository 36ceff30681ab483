"""A tokenizer as metadata of a GGUF file.

Byte-level BPE alone, with those ways of splitting text that llama.cpp has a name for: another one
would tokenize some texts differently, in silence.
"""

from __future__ import annotations

import json
from typing import Any

from grpo.errors import ConfigError

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}{{1,3}}{_REST}": ("llama-bpe", True),
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}{_REST}": ("qwen2", False),
}
"""Regular expressions by llama.cpp's name, and whether whole words are looked up before merges."""


def add_tokenizer(writer: Any, tokenizer: Any, *, vocab_size: int, end_id: int | None) -> None:
    """Describe a tokenizer and its chat template.

    Args:
        writer: a `gguf.GGUFWriter`.
        tokenizer: of `transformers`.
        vocab_size: number of rows of the embedding; ids without a token get names.
        end_id: the token that ends the assistant's turn; None if there is none.

    Raises:
        ConfigError: it is of a kind that is not written here.
    """
    import gguf

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(state)
    special = {token["id"]: token["special"] for token in state["added_tokens"]}
    words = {i: word for word, i in tokenizer.get_vocab().items() if i < vocab_size}
    kinds = gguf.TokenType

    def kind(i: int) -> int:
        if i in special:
            return int(kinds.CONTROL if special[i] else kinds.USER_DEFINED)
        return int(kinds.NORMAL if i in words else kinds.UNUSED)

    merges = state["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types([kind(i) for i in range(vocab_size)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    # The template writes every token of a prompt, the first one too.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    ids = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
        writer.add_eot_token_id: end_id,
    }
    for add, token_id in ids.items():
        if token_id is not None:
            add(token_id)
    writer.add_chat_template(tokenizer.get_chat_template())


def _pre_tokenizer(state: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer splits text before it merges.

    Raises:
        ConfigError: it has none, or the tokenizer does something else that llama.cpp does not.
    """
    model, normalizer = state["model"], state["normalizer"]
    parts = state["pre_tokenizer"] or {}
    parts = parts.get("pretokenizers", [parts])
    *first, last = [(part.get("type"), part) for part in parts]
    name, whole_words = "", False
    if last[0] == "ByteLevel" and not last[1]["add_prefix_space"]:
        if last[1]["use_regex"] and not first:
            name = "gpt-2"
        elif last[1]["use_regex"] and [kind for kind, _ in first] == ["Digits"]:
            name = "smollm" if first[0][1]["individual_digits"] else ""
        elif not last[1]["use_regex"] and [kind for kind, _ in first] == ["Split"]:
            split = first[0][1]
            if split["behavior"] == "Isolated" and not split["invert"]:
                regex = split["pattern"].get("Regex", "")
                name, whole_words = _SPLITS.get(regex, ("", False))
    expected = {"dropout": False, "byte_fallback": False, "ignore_merges": whole_words}
    wrong = [f"{k}={model[k]!r}" for k, v in expected.items() if bool(model.get(k)) != v]
    strips = [t["content"] for t in state["added_tokens"] if t["lstrip"] or t["rstrip"]]
    if model["type"] != "BPE" or not name:
        wrong.append(f"{model['type']} with {json.dumps(parts)[:200]}")
    if normalizer is not None and normalizer["type"] != "NFC":  # llama.cpp leaves NFC out
        wrong.append(f"normalizer {normalizer['type']}")
    if strips:
        wrong.append(f"a token that takes white space, {strips[0]!r}")
    if wrong:
        raise ConfigError(
            f"cannot write the tokenizer to a GGUF: got {'; '.join(wrong)}; run llama.cpp's "
            "convert_hf_to_gguf.py on the folder of grpo export --to merged"
        )
    return name
