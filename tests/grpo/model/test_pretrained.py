"""Files of others: a model comes whole and right, or is refused in one line with exit code 2."""

import json
import shutil
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo import cli
from grpo.arguments import read_config
from grpo.cli import exit_code
from grpo.config import Config
from grpo.errors import MAX_REASON, ConfigError, one_line_reason
from grpo.model.loading import load_model, load_policy
from tests.support.gguf_file import save_tiny_gguf
from tests.support.models import make_model

WEIGHTS = "model.safetensors"
O_PROJ = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def original(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of a tiny Llama with its tokenizer, to be broken."""
    return shutil.copytree(original, tmp_path / "tiny")


def rejected(capsys, *argv):
    """Return the one line of `grpo train` for a command line that cannot be had."""
    capsys.readouterr()
    run = partial(read_config, argv, prog="", description="")
    assert exit_code(lambda: load_policy(run())) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert (out, len(line) < 800) == ("", True)
    return line


def set_config(file="config.json", **values):
    """Return a function that changes a JSON file of a folder; None deletes a key."""

    def change(folder):
        content = json.loads((folder / file).read_text()) | values
        content = {key: value for key, value in content.items() if value is not None}
        (folder / file).write_text(json.dumps(content))

    return change


def set_weights(edit):
    def change(folder):
        weights = load_file(folder / WEIGHTS)
        edit(weights)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return change


def cut(size):
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def index(**content):
    def change(folder):
        (folder / WEIGHTS).unlink()
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))

    return change


def quantised(method, **more):
    return set_config(quantization_config={"quant_method": method, "bits": 4} | more)


def add_word(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens("beyond")
    tokenizer.save_pretrained(folder)


def drop_end_tokens(folder):
    set_config(eos_token_id=None)(folder)
    (folder / "generation_config.json").write_text("{}")
    set_config("tokenizer_config.json", eos_token=None)(folder)


def fill(name, value):
    return set_weights(lambda weights: weights[name].view(-1)[5:6].fill_(value))


def scale(name, factor):
    return set_weights(lambda weights: weights[name].mul_(factor))


BROKEN = {
    "a tensor is missing": (set_weights(lambda w: w.pop(O_PROJ)), f"its files lack {O_PROJ}"),
    "the head is missing": (set_weights(lambda w: w.pop("lm_head.weight")),
                            "its files lack lm_head.weight"),
    "the embeddings are missing": (set_weights(lambda w: w.pop("model.embed_tokens.weight")),
                                   "its files lack model.embed_tokens.weight"),
    "a layer is missing": (set_config(num_hidden_layers=3), "and 6 more tensors"),
    "everything is missing": (set_weights(lambda w: w.clear()), "its files lack"),
    "a layer is too many": (set_config(num_hidden_layers=1),
                            "for which the model has no place: does its config.json"),
    "a bias is too many": (
        set_weights(lambda w: w.update({O_PROJ.replace("weight", "bias"): torch.ones(32)})),
        "o_proj.bias, for which the model has no place"),
    "other shapes": (set_config(intermediate_size=64), "must be [32, 64], got [32, 48]"),
    "another vocabulary": (set_config(vocab_size=20), "must be [20, 32], got [16, 32]"),
    "a NaN": (fill(O_PROJ, float("nan")), f"{O_PROJ} is not finite in"),
    "an infinity": (fill(O_PROJ, float("inf")), f"{O_PROJ} is not finite in"),
    "too large for float16": (fill(O_PROJ, 1e6), f"{O_PROJ} is not finite in float16"),
    "logits that overflow": (scale("lm_head.weight", 1e37), "not finite"),
    "no bytes": (cut(0), "header"),
    "half a header": (cut(100), "header"),
    "cut by a byte": (cut(-1), "incomplete"),
    "weights that are text": (write(WEIGHTS, "not found" * 9), "header"),
    "an index without weights": (index(weight_map={"a": "b.safetensors"}), "metadata"),
    "an index without a map": (index(), "weight_map"),
    "an index of missing files": (
        index(metadata={}, weight_map={"a": "b.safetensors"}), "b.safetensors"),
    "bitsandbytes": (quantised("bitsandbytes", load_in_4bit=True), "quantised (bitsandbytes)"),
    "gptq": (quantised("gptq"), "quantised (gptq)"),
    "awq": (quantised("awq"), "quantised (awq)"),
    "fp8": (quantised("fp8"), "quantised (fp8)"),
    "mxfp4": (quantised("mxfp4"), "quantised (mxfp4)"),
    "compressed-tensors": (quantised("compressed-tensors"), "quantised (compressed-tensors)"),
    "another method": (quantised("of-tomorrow"), "quantised (of-tomorrow)"),
    "no method": (set_config(quantization_config={}), "quantised (unknown method)"),
    "a method that is no mapping": (set_config(quantization_config="gptq"), "AttributeError"),
    "no JSON": (write("config.json", "{"), "config.json"),
    "a list": (write("config.json", "[1]"), "model_type"),
    "no type": (set_config(model_type=None), "Should have a `model_type` key"),
    "an unknown type": (set_config(model_type="no-such"), "model type `no-such`"),
    "own code": (set_config(model_type="no-such", auto_map={"AutoConfig": "a.B"}),
                 "it comes with its own code, which is never run"),
    "own tokenizer code": (
        lambda folder: (set_config("tokenizer_config.json", tokenizer_class="Own",
                                   auto_map={"AutoTokenizer": ["a.B", None]})(folder),
                        set_config(model_type="no-such")(folder)), "cannot load model"),
    "a text for a number": (set_config(hidden_size="many"), "'hidden_size' expected int"),
    "a negative size": (set_config(hidden_size=-4), "negative dimension"),
    "no heads": (set_config(num_attention_heads=0), "cannot load model"),
    "an unknown activation": (set_config(hidden_act="banana"), "KeyError: 'banana'"),
    "an unknown rope": (set_config(rope_parameters={"rope_type": "banana", "rope_theta": 1.0}),
                        "KeyError: 'banana'"),
    "an encoder-decoder": (set_config(model_type="t5", architectures=None), "encoder-decoder, t5"),
    "half an encoder-decoder": (set_config(model_type="bart", architectures=None),
                                "encoder-decoder, bart"),
    "images": (set_config(model_type="vit", architectures=None), "model, got vit"),
    "speech": (set_config(model_type="wav2vec2", architectures=None), "model, got wav2vec2"),
    "a wrapper that is not loaded alone": (set_config(model_type="llava", architectures=None),
                                           "model, got llava"),
    "a classifier": (set_config(architectures=["LlamaForSequenceClassification"]),
                     "expected a causal language model, got LlamaForSequenceClassification"),
    "a masked model": (set_config(architectures=["BertForMaskedLM"], model_type="bert"),
                       "expected a causal language model, got BertForMaskedLM"),
    "no tokenizer": (lambda folder: [p.unlink() for p in folder.glob("tokenizer*")], "tokenizer"),
    "half a tokenizer": (write("tokenizer.json", "{"), "line 1 column 2"),
    "an empty tokenizer": (write("tokenizer.json", "{}"), "KeyError"),
    "a tokenizer's list": (write("tokenizer_config.json", "[]"), "AttributeError"),
    "a word beyond the embeddings": (add_word, "ids up to 16, expected less than the model's 16"),
    "no end token": (drop_end_tokens, "no end token"),
    "a short context": (set_config(max_position_embeddings=16),
                        "max_new_tokens must be below the 16 tokens that the model supports"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_one_line(folder, capsys, case):
    change, expected = BROKEN[case]
    change(folder)
    dtype = "float16" if "float16" in case else "float32"
    assert expected in rejected(capsys, "--model", str(folder), "--dtype", dtype)


@pytest.mark.parametrize("case", ["a tensor is missing", "gptq", "cut by a byte"])
def test_training_every_weight_refuses_them_alike(folder, capsys, case):
    change, expected = BROKEN[case]
    change(folder)
    assert expected in rejected(capsys, "--model", str(folder), "--train", "full")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_command_refuses_a_model_before_it_starts_a_browser(
    folder, capsys, monkeypatch, tmp_path, command
):
    (folder / WEIGHTS).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, "--model", str(folder), "--steps", "1"]) == 2
    assert [line[:24] for line in capsys.readouterr().err.splitlines()][-1] == (
        "error: cannot load model"
    )


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        *(("banana", "Expected one of cpu"), ("cuda:99", ""), ("meta", "meta"), ("CPU", "")),
        *(("cpu:banana", "Invalid device"), ("cpu:999999999999", ""), ("xla", ""), ("hpu", "")),
        *(("privateuseone", ""), ("cuda:-1", "Invalid device"), ("cuda:", "")),
    ],
)
def test_devices_that_are_not_there(capsys, folder, device, reason):
    line = rejected(capsys, "--model", str(folder), "--device", device)
    assert f"device '{device}' cannot be used here: expected one of auto, cpu" in line
    assert reason in line


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--lora-r", "33"], "lora_r must be at most 32 with this model's layers, got 33"),
        (["--lora-r", "4096"], "lora_r must be at most 32 with this model's layers, got 4096"),
        (
            ["--lora-r", "17", "--lora-target-modules", "k_proj,self_attn.v_proj"],
            "lora_r must be at most 16 with this model's layers, got 17",
        ),
        (["--max-new-tokens", "128"], "max_new_tokens must be below the 128 tokens"),
        (["--max-new-tokens", "900000"], "max_new_tokens must be below the 128 tokens"),
    ],
)
def test_numbers_that_the_model_bounds(capsys, folder, argv, expected):
    assert expected in rejected(capsys, "--model", str(folder), *argv)
    assert load_policy(Config(model=str(folder), lora_r=32, max_new_tokens=127)).max_length == 128


@pytest.mark.parametrize("name", ["x" * 300, "/" + "x" * 300, "a/" + "x" * 300, "./a", "a b/c"])
def test_names_that_no_model_has(capsys, name):
    assert "error: " in rejected(capsys, "--model", name)


def test_a_folder_that_is_no_model_says_all_of_the_reason(capsys, tmp_path):
    assert "config.json" in rejected(capsys, "--model", str(tmp_path))


def test_nothing_is_asked_on_standard_input(folder, capsys, monkeypatch):
    class Refuse:
        def readline(self, *_):
            raise AssertionError("standard input was read")

    monkeypatch.setattr(sys, "stdin", Refuse())
    set_config(model_type="no-such", auto_map={"AutoModelForCausalLM": "a.B"})(folder)
    rejected(capsys, "--model", str(folder))


def test_a_known_type_is_loaded_without_its_own_code(folder):
    set_config(auto_map={"AutoConfig": "a.A", "AutoModelForCausalLM": "a.B"})(folder)
    model, _ = load_model(str(folder), device="cpu", dtype=torch.float32)
    assert type(model).__module__.startswith("transformers.")


def test_weights_of_another_part_are_a_warning(folder):
    extra = {"vision_tower.patch.weight": torch.ones(2), "score.weight": torch.ones(2)}
    set_weights(lambda weights: weights.update(extra))(folder)
    with pytest.warns(UserWarning, match="not used of the model's files: score.weight, vision_"):
        load_model(str(folder), device="cpu", dtype=torch.float32)


def test_tied_weights_are_not_missing(folder):
    make_model("llama", tie_word_embeddings=True).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    model, _ = load_model(str(folder), device="cpu", dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    set_weights(lambda weights: weights.pop("model.embed_tokens.weight"))(folder)
    with pytest.raises(ConfigError, match="its files lack "):
        load_model(str(folder), device="cpu", dtype=torch.float32)


def test_an_encoder_whose_files_do_not_say_so(folder, capsys):
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "initializer_range": 0.2}  # fmt: skip
    bert = BertLMHeadModel(BertConfig(**sizes, is_decoder=True, eos_token_id=0))
    bert.save_pretrained(folder)
    load_model(str(folder), device="cpu", dtype=torch.float32)  # a decoder
    set_config(is_decoder=False)(folder)
    line = rejected(capsys, "--model", str(folder), "--dtype", "float32")
    assert "its output layer does not read its last hidden states" in line


def test_an_architecture_without_sdpa_uses_eager_attention(folder):
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(
        BloomConfig(vocab_size=16, hidden_size=32, n_layer=1, n_head=4, eos_token_id=0)
    ).save_pretrained(folder)
    model, _ = load_model(str(folder), device="cpu", dtype=torch.float32)
    assert model.config._attn_implementation == "eager"


@pytest.mark.filterwarnings("ignore")  # what its parts cannot have is said in warnings
def test_a_multimodal_wrapper_is_loaded_or_refused(folder, capsys):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
            "max_position_embeddings": 128, "eos_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16, "image_size": 8, "patch_size": 4}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, eos_token_id=0,
                          mm_tokens_per_image=4, image_token_index=15, boi_token_index=14,
                          eoi_token_index=13)  # fmt: skip
    torch.manual_seed(0)
    wrapper = Gemma3ForConditionalGeneration(config)
    wrapper.save_pretrained(folder)
    code = exit_code(lambda: load_policy(Config(model=str(folder), dtype="float32")))
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) in ((0, 0), (2, 1)), lines


def test_a_long_reason_is_cut_and_is_one_line():
    reason = one_line_reason(ValueError("one\n two:\n" + "x" * 2000))
    assert reason.startswith("one two: xxx")
    assert len(reason) == MAX_REASON
    assert one_line_reason(KeyError("a")) == "KeyError: 'a'"
    assert one_line_reason(MemoryError()) == "MemoryError"
    assert one_line_reason(OSError("a: b.")) == "a: b"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_is_trained_as_a_whole_saved_and_loaded(tmp_path, dtype):
    """One step, then the same bits from the files, also in a policy from the GGUF file."""
    save_tiny_gguf(tmp_path / "tiny.gguf")
    config = Config(model=str(tmp_path / "tiny.gguf"), train="full", dtype=dtype)
    policy = load_policy(config)
    before = [p.detach().clone() for p in policy.parameters()]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    policy.model(input_ids=torch.arange(3, 12)[None]).logits.float().logsumexp(-1).sum().backward()
    optimizer.step()
    policy.copy_masters_to_model()
    assert not any(torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))
    policy.save(tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "model/config.json").read_text())

    for again, folder in (
        (load_policy(config), tmp_path / "model"),
        (load_policy(config.replace(model=str(tmp_path / "model"), dtype="float32")), None),
    ):
        if folder:
            again.load(folder)
        for one, other in zip(again.parameters(), policy.parameters(), strict=True):
            assert torch.equal(one, other)
    for folder, message in ((tmp_path / "none", "cannot load"), (tmp_path, "cannot load")):
        with pytest.raises(ValueError, match=message) as error:
            again.load(folder)
        assert "\n" not in str(error.value)


def test_a_truncated_gguf_file(tmp_path, capsys):
    path = tmp_path / "tiny.gguf"
    save_tiny_gguf(path)
    content = path.read_bytes()
    for size in (0, 3, 100, len(content) // 2):
        path.write_bytes(content[:size])
        assert "cannot load model" in rejected(capsys, "--model", str(path))
