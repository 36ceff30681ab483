"""A tiny model for programs whose point is not what the bundled model does."""

import pytest

from tests.support.models import make_llama


@pytest.fixture(scope="session")
def bundled_path():
    from grpo.model.bundled import bundled_model_path

    return bundled_model_path()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory, bundled_path):
    """The folder of a Llama of two layers, with the tokenizer and template of the bundled model."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(bundled_path)
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    make_llama(**words, max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
