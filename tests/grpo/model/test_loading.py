import pytest
import torch

from grpo.config import Config
from grpo.errors import ConfigError
from grpo.model.device import choose_device
from grpo.model.full_policy import FullPolicy
from grpo.model.loading import find_adapter, load_model, load_policy
from grpo.model.lora_policy import LoRAPolicy


@pytest.fixture
def folder(base_model, tokenizer, tmp_path):
    """A tiny Llama with its tokenizer, as a hub holds it."""
    base_model().float().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def rejected(config):
    """Return the one line of the error."""
    with pytest.raises(ConfigError) as error:
        load_policy(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder(folder, make_policy, batch):
    policy = load_policy(Config(model=str(folder), dtype="float32", device="cpu", lora_r=2))
    assert policy.name == str(folder)
    assert policy.parameters()[0].shape[0] == 2
    assert policy.model.dtype == torch.float32
    expected = make_policy(start=True).logprobs(batch).logprobs.float()
    torch.testing.assert_close(policy.logprobs(batch).logprobs, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_default_is_bfloat16_where_the_device_has_it(folder, monkeypatch, native, dtype):
    monkeypatch.setattr("grpo.model.device._cpu_has_bfloat16", lambda: native)
    policy = load_policy(Config(model=str(folder), device="cpu"))
    assert policy.model.dtype == dtype
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_float16_is_loaded_with_a_warning(folder):
    with pytest.warns(UserWarning, match="no headroom"):
        load_model(str(folder), device="cpu", dtype=torch.float16)


def test_the_seed_decides_the_adapters_initial_values(folder):
    one, same, other = (
        load_policy(Config(model=str(folder), seed=seed)).parameters()[0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_adapter_to_start_from(folder, make_policy, tmp_path):
    saved = make_policy(double=False)
    saved.save(tmp_path / "adapter")
    policy = load_policy(Config(model=str(folder), adapter=str(tmp_path / "adapter")))
    for one, other in zip(policy.parameters(), saved.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./none", "no-such-model", "a/b/c", "none.gguf", "/none/model.gguf"]
)
def test_a_model_that_does_not_exist(name):
    assert rejected(Config(model=name)).startswith(f"no model at {name!r}: expected a folder")


def test_a_model_that_the_hub_does_not_have(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert rejected(Config(model="nobody/nothing")).startswith(
        "cannot load model 'nobody/nothing': "
    )


@pytest.mark.parametrize("content", [None, "{}", "no json", '{"model_type": "no-such-type"}'])
def test_a_folder_that_is_not_a_model(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert rejected(Config(model=str(tmp_path))).startswith(f"cannot load model '{tmp_path}': ")


def test_a_file_that_is_not_gguf(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    assert rejected(Config(model=str(path))).startswith(f"cannot load model '{path}': ")


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert rejected(Config(model=str(folder))).startswith(f"cannot load model '{folder}': ")


def test_a_model_without_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    assert rejected(Config(model=str(folder))) == (
        f"model '{folder}' has no chat template: expected an instruction-tuned model"
    )


def test_target_names_that_match_nothing(folder):
    message = rejected(Config(model=str(folder), lora_target_modules="q_proj, nothing_like_this"))
    assert message == (
        "target_modules ['nothing_like_this'] match no nn.Linear; there are: "
        "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


def test_target_names(folder):
    for names in ("q_proj,v_proj", ["q_proj", "v_proj"]):
        policy = load_policy(Config(model=str(folder), lora_target_modules=names))
        assert policy.lora_modules == 4
    assert load_policy(Config(model=str(folder), lora_target_modules="q_proj")).lora_modules == 2


def test_what_is_trained(folder):
    assert isinstance(load_policy(Config(model=str(folder))), LoRAPolicy)
    full = load_policy(Config(model=str(folder), train="full", forward="padded"))
    assert isinstance(full, FullPolicy)
    assert full.forward_mode == "padded"


def test_the_device(monkeypatch):
    for cuda, mps, device in (
        (True, True, "cuda"),
        (True, False, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert choose_device("auto") == device
    assert choose_device("cpu") == "cpu"
    for device in ("banana", "meta", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here") as error:
            choose_device(device)
        assert "\n" not in str(error.value)


def test_the_adapter_in_a_folder(make_policy, tmp_path):
    make_policy(double=False).save(tmp_path / "adapter")
    assert find_adapter(str(tmp_path / "adapter")) == tmp_path / "adapter"
    assert find_adapter(str(tmp_path)) == tmp_path / "adapter"  # of a run


def test_an_adapter_that_does_not_exist(folder, tmp_path):
    name = str(tmp_path / "no")
    assert rejected(Config(model=str(folder), adapter=name)) == (
        f"no adapter at {name!r}: expected a folder with adapter_config.json, or a hub id such as "
        "'user/name'"
    )


def test_a_folder_without_an_adapter(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    message = rejected(Config(model=str(folder), adapter=str(tmp_path / "empty")))
    assert "expected a folder with adapter_config.json" in message


def test_an_adapter_of_another_model(folder, make_policy, tmp_path):
    make_policy("lfm2", double=False).save(tmp_path / "adapter")
    rejected(Config(model=str(folder), adapter=str(tmp_path / "adapter")))
