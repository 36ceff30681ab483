"""Models and adapters as GGUF files, which llama.cpp and what is built on it read.

Names of tensors and of metadata come from the `gguf` package. One tensor is in memory at a time.
What is not written exactly is refused: llama.cpp's own converter knows more architectures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grpo.deploy.gguf_tokenizer import add_tokenizer
from grpo.errors import ConfigError

TYPES = ("f32", "f16", "bf16", "q8_0")
"""Types of a file's matrices; vectors are float32 in all."""

Named = Iterable[tuple[str, Tensor]]


class Architecture(NamedTuple):
    """How llama.cpp knows a model type of `transformers`.

    Attributes:
        name: llama.cpp's name.
        permuted: True if it rotates neighbouring numbers of a head, where `transformers` rotates
            the halves: rows of queries and keys change places.
        required: values of the configuration without which the model is another one.
    """

    name: str
    permuted: bool
    required: Mapping[str, Any]


ARCHITECTURES = {
    "llama": Architecture("llama", True, {"attention_bias": False, "mlp_bias": False}),
    "mistral": Architecture("llama", True, {"sliding_window": None}),
    "qwen2": Architecture("qwen2", False, {"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", False, {"use_sliding_window": False, "attention_bias": False}),
    "lfm2": Architecture("lfm2", False, {"conv_bias": False}),
}
"""Those of which a file was read back and compared, by model type."""


def use_converter(reason: str) -> ConfigError:
    """Make the error of what is not written here."""
    return ConfigError(
        f"cannot write a GGUF: {reason}; run llama.cpp's convert_hf_to_gguf.py on the folder of "
        "grpo export --to merged"
    )


def find_architecture(config: Any) -> Architecture:
    """Return how llama.cpp knows a model.

    Args:
        config: of the model, of `transformers`.

    Raises:
        ConfigError: its architecture is not written here.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise use_converter(f"model type must be {', '.join(ARCHITECTURES)}, got {kind!r}")
    required = {"hidden_act": "silu", **ARCHITECTURES[kind].required}
    rope = config.rope_parameters["rope_type"]
    given = {key: getattr(config, key, value) for key, value in required.items()}
    wrong = [f"{key}={value!r}" for key, value in given.items() if value != required[key]]
    if wrong or rope != "default":
        raise use_converter(f"{kind} with {', '.join(wrong) or f'rope_type={rope!r}'}")
    return ARCHITECTURES[kind]


class Layout:
    """A model's tensors under llama.cpp's names, in its order of rows."""

    def __init__(self, config: Any) -> None:
        """Read a configuration.

        Raises:
            ConfigError: its architecture is not written here.
        """
        import gguf

        self.architecture, self.config = find_architecture(config), config
        key = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == self.architecture.name)
        self._names = gguf.get_tensor_name_map(key, config.num_hidden_layers)

    def name(self, name: str) -> str:
        """Return llama.cpp's name of a tensor, such as `blk.0.attn_q.weight`.

        Raises:
            ConfigError: it has none.
        """
        found: str | None = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise use_converter(f"{self.architecture.name} has no place for {name}")
        return found

    def arrange(self, name: str, tensor: Tensor) -> Tensor:
        """Put the rows of a tensor into llama.cpp's order.

        Args:
            name: llama.cpp's, of the weight.
            tensor: [out, ...], a weight, or B of its adapter.
        """
        if name.endswith(".shortconv.conv.weight"):
            return tensor.squeeze(1)
        heads = {
            "attn_q": self.config.num_attention_heads,
            "attn_k": self.config.num_key_value_heads,
        }.get(name.split(".")[-2])
        if not self.architecture.permuted or heads is None:
            return tensor
        pairs = tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2)
        return pairs.reshape(tensor.shape)

    def tensors(self, named: Named) -> Iterator[tuple[str, Tensor]]:
        """Yield a model's tensors as a file has them, tied ones once."""
        for name, tensor in named:
            if name != "lm_head.weight" or not self.config.tie_word_embeddings:
                yield (own := self.name(name)), self.arrange(own, tensor)


def write_model(
    path: Path,
    config: Any,
    tensors: Callable[[], Named],
    tokenizer: Any,
    kind: str,
    end_id: int | None,
) -> None:
    """Write a model with its tokenizer.

    Args:
        path: of the file.
        config: the model's, of `transformers`.
        tensors: yields its tensors under their own names; called twice.
        tokenizer: its tokenizer.
        kind: one of `TYPES`.
        end_id: the token that ends the assistant's turn; None if there is none.

    Raises:
        ConfigError: the architecture or the tokenizer is not written here.
    """
    import gguf

    layout = Layout(config)
    writer = gguf.GGUFWriter(path, layout.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{Path(config.name_or_path).name or config.model_type}-grpo")
    _add_shape(writer, config, layout.tensors(tensors()))
    add_tokenizer(writer, tokenizer, vocab_size=config.vocab_size, end_id=end_id)
    _write(writer, lambda: layout.tensors(tensors()), kind)


def write_adapter(
    path: Path, config: Any, layers: Mapping[str, tuple[Tensor, Tensor, float]], kind: str
) -> None:
    """Write an adapter by itself, to be applied to a file of its base.

    Args:
        path: of the file.
        config: the base model's, of `transformers`.
        layers: A [r, in], B [out, r] and alpha by the layer's name: the correction is
            `alpha / r * B A`.
        kind: one of `TYPES`.

    Raises:
        ConfigError: the architecture is not written here.
    """
    import gguf

    layout = Layout(config)
    alpha = next(iter(layers.values()))[2]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, (a, b, own_alpha) in layers.items():
            own = layout.name(f"{name}.weight")
            yield f"{own}.lora_a", a
            yield f"{own}.lora_b", layout.arrange(own, b * (own_alpha / alpha))  # one for the file

    writer = gguf.GGUFWriter(path, layout.architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    _write(writer, tensors, kind)


def _add_shape(writer: Any, config: Any, tensors: Named) -> None:
    """Describe the model's shape."""
    hidden = next(t.shape[0] for name, t in tensors if name == "blk.0.ffn_gate.weight")
    kv_heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(hidden)  # the configuration's is adjusted in some models
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "lfm2":
        attends = [kind == "full_attention" for kind in config.layer_types]
        writer.add_head_count_kv([kv_heads if each else 0 for each in attends])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(kv_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(getattr(config, "norm_eps", None) or config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)


def _write(writer: Any, tensors: Callable[[], Named], kind: str) -> None:
    import gguf

    types, files = gguf.GGMLQuantizationType, gguf.LlamaFileType
    file_types = {"f32": files.ALL_F32, "f16": files.MOSTLY_F16, "bf16": files.MOSTLY_BF16}
    writer.add_file_type(file_types.get(kind, files.MOSTLY_Q8_0))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    def type_of(name: str, shape: torch.Size) -> Any:
        if len(shape) == 1 or name.endswith(".shortconv.conv.weight"):
            return types.F32
        chosen = types[kind.upper()]
        fits = shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] == 0
        return chosen if fits else types.F16  # as llama.cpp's converter does

    for name, tensor in tensors():
        shape, of = tensor.shape, type_of(name, tensor.shape)
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, of))
        writer.add_tensor_info(name, shape, _NO_BYTES.dtype, size, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors():
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        writer.write_tensor_data(gguf.quants.quantize(array, type_of(name, tensor.shape)))
    writer.close()


_NO_BYTES = torch.empty(0).numpy()
