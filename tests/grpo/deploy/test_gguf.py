"""GGUF files, read back by the readers of `gguf` and of `transformers`."""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from grpo.deploy.export_check import apply_adapter, read_back
from grpo.deploy.gguf_model import TYPES, write_adapter, write_model
from grpo.errors import ConfigError
from grpo.model.bundled import bundled_model_path
from tests.support.byte_level import CHATML, FAMILIES, make_byte_level, make_family

IDS = torch.tensor([[1, 40, 41, 42, 200, 250, 7, 40, 41]])
TEXTS = [
    "click('12') on the button", "fill('7', 'é 12345')\n\n 6", "  two  spaces ", "It's 10:30am",
    "<|im_start|>user\nGoal: x\n  1 2\t\t3<|im_end|>\n", "日本語 \U0001f600", "a\r\n\r\n\r\nb 1",
]  # fmt: skip


def write(path, policy, kind="f32"):
    config = policy.model.config
    write_model(path, config, policy.merged, policy.tokenizer, kind, policy.chat.end_id)
    return path


def tensors_of(path):
    """Return a file's tensors as float32, and the names of their types."""
    tensors = gguf.GGUFReader(path).tensors
    return (
        {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type)) for t in tensors},
        {t.name: t.tensor_type.name for t in tensors},
    )


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_same_model(family, family_policy, tmp_path):
    policy = family_policy(family)
    model, tokenizer = read_back(write(tmp_path / "model.gguf", policy), torch.float32)
    torch.testing.assert_close(logits(model), logits(policy.model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model), logits(make_family(family)), atol=0.1)
    assert tokenizer.chat_template == CHATML
    assert tokenizer.eos_token_id == policy.tokenizer.eos_token_id
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_the_file_of_its_base(family, family_policy, byte_level, tmp_path):
    """What llama.cpp does with it: W + alpha / r * B A, in its names and order of rows."""
    policy = family_policy(family)
    merged, _ = tensors_of(write(tmp_path / "merged.gguf", policy))
    base = make_family(family)
    path, config = tmp_path / "base.gguf", base.config
    write_model(path, config, lambda: base.state_dict().items(), byte_level, "f32", 2)
    write_adapter(tmp_path / "adapter.gguf", config, policy.layers(), "f32")
    found, _ = tensors_of(path)
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    fields = {name: reader.fields[name].contents() for name in reader.fields}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 16.0
    names = {"qwen2": "qwen2", "qwen3": "qwen3", "lfm2": "lfm2"}
    assert fields["general.architecture"] == names.get(family, "llama")
    low = {t.name: t.data for t in reader.tensors}
    assert len(low) == 2 * policy.lora_modules
    for name in found:
        if f"{name}.lora_a" in low:
            a, b = low[f"{name}.lora_a"], low[f"{name}.lora_b"]
            found[name] = found[name] + fields["adapter.lora.alpha"] / a.shape[0] * b @ a
    assert found.keys() == merged.keys()
    assert ("output.weight" in merged) != config.tie_word_embeddings
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, merged[name], rtol=1e-4, atol=1e-5, err_msg=name)
    apply_adapter(base, tmp_path / "adapter.gguf")
    torch.testing.assert_close(logits(base), logits(policy.model), rtol=1e-4, atol=1e-4)


def test_layers_with_other_alphas_share_one(family_policy, tmp_path):
    policy = family_policy()
    layers = policy.layers()
    last = list(layers)[-1]
    a, b, alpha = layers[last]
    layers[last] = (a, b / 3, 3 * alpha)
    write_adapter(tmp_path / "adapter.gguf", policy.model.config, layers, "f32")
    base = make_family("llama")
    apply_adapter(base, tmp_path / "adapter.gguf")
    torch.testing.assert_close(logits(base), logits(policy.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_types(kind, family_policy, tmp_path):
    policy = family_policy("llama", hidden_size=48, num_attention_heads=3, num_key_value_heads=1)
    exact, _ = tensors_of(write(tmp_path / "exact.gguf", policy))
    found, types = tensors_of(write(tmp_path / "model.gguf", policy, kind))
    wide, odd = "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"  # rows of 96 and of 48 numbers
    assert types[wide] == kind.upper()
    assert types[odd] == ("F16" if kind == "q8_0" else kind.upper())
    assert types["output_norm.weight"] == "F32"
    for name in (wide, odd):
        of = gguf.GGMLQuantizationType[types[name]]
        rounded = gguf.quants.dequantize(gguf.quants.quantize(exact[name], of), of)
        np.testing.assert_array_equal(found[name], rounded)
        assert np.abs(found[name] - exact[name]).max() < 0.02 * np.abs(exact[name]).max()


def test_the_bundled_tokenizer(family_policy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    policy = family_policy("llama tied", tokenizer, vocab_size=len(tokenizer) + 5)
    path = write(tmp_path / "model.gguf", policy)
    found = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in TEXTS:
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
    fields = gguf.GGUFReader(path).fields
    value = {name: fields[f"tokenizer.{name}"].contents() for name in (
        "ggml.model", "ggml.pre", "ggml.bos_token_id", "ggml.eos_token_id", "ggml.eot_token_id",
        "ggml.add_bos_token", "chat_template", "ggml.tokens", "ggml.token_type",
    )}  # fmt: skip
    assert (value["ggml.model"], value["ggml.pre"]) == ("gpt2", "gpt-2")
    assert [value[f"ggml.{name}_token_id"] for name in ("bos", "eos", "eot")] == [1, 2, 2]
    assert value["ggml.add_bos_token"] is False
    assert value["chat_template"] == tokenizer.chat_template
    assert value["ggml.tokens"][len(tokenizer)] == f"[PAD{len(tokenizer)}]"
    assert value["ggml.token_type"][:3] == [3, 3, 3]
    assert set(value["ggml.token_type"][17 : len(tokenizer)]) == {1}
    assert set(value["ggml.token_type"][len(tokenizer) :]) == {5}


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(regex):
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, plain])


def digits(individual):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual), byte_level])


@pytest.mark.parametrize(
    ("splits", "whole_words", "name"),
    [
        (None, False, "gpt-2"),
        (digits(True), False, "smollm"),
        (split_by(LLAMA_3), True, "llama-bpe"),
        (split_by(LLAMA_3.replace("{1,3}", "")), False, "qwen2"),
    ],
)
def test_how_text_is_split(splits, whole_words, name, family_policy, tmp_path):
    tokenizer = make_byte_level(splits)
    if whole_words:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["model"]["ignore_merges"] = True
        tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    policy = family_policy("llama", tokenizer, vocab_size=len(tokenizer))
    path = write(tmp_path / "model.gguf", policy)
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == name
    if name != "smollm":  # the reader of transformers does not know that one
        found = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        for text in TEXTS:
            assert found(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("splits", "got"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "BPE with"),
        (digits(False), "BPE with"),
        (split_by(LLAMA_3), "ignore_merges=False"),
        (split_by(r"\s+|\S+"), "BPE with"),
        (pre_tokenizers.WhitespaceSplit(), "BPE with"),
    ],
)
def test_other_tokenizers_are_refused(splits, got, family_policy, tmp_path):
    policy = family_policy("llama", make_byte_level(splits))
    with pytest.raises(ConfigError, match=rf"cannot write the tokenizer.*{got}.*convert_hf_to_ggu"):
        write(tmp_path / "model.gguf", policy)


def test_a_tokenizer_of_words_is_refused(family_policy, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="got WordLevel"):
        write(tmp_path / "model.gguf", family_policy("llama", tokenizer))


@pytest.mark.parametrize(
    ("family", "sizes", "got"),
    [
        ("llama", {"attention_bias": True}, "llama with attention_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "llama with hidden_act='gelu'"),
        ("mistral", {"sliding_window": 8}, "mistral with sliding_window=8"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
         "llama with rope_type='linear'"),
    ],
)  # fmt: skip
def test_other_models_are_refused(family, sizes, got, family_policy, tmp_path):
    policy = family_policy(family, **sizes)
    with pytest.raises(ConfigError, match=rf"cannot write a GGUF: {got}; run llama.cpp's convert_"):
        write(tmp_path / "model.gguf", policy)
    with pytest.raises(ConfigError, match=got):
        write_adapter(tmp_path / "a.gguf", policy.model.config, policy.layers(), "f32")


def test_another_type_of_model_is_refused(family_policy, tmp_path):
    policy = family_policy()
    policy.model.config.model_type = "granite"
    with pytest.raises(ConfigError, match=r"must be llama, .*, got 'granite'; run llama"):
        write(tmp_path / "model.gguf", policy)
