"""`grpo export` of tiny runs: what is written, what is compared, and what is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.cli import main
from grpo.config import Config
from grpo.deploy import export as program
from grpo.deploy.export_check import compare
from grpo.deploy.export_merged import write_merged
from grpo.deploy.export_options import read_options
from grpo.model.chat import ChatTemplate
from grpo.model.full_policy import FullPolicy
from grpo.model.loading import load_policy
from tests.support.byte_level import make_byte_level, make_family

GRAMMARS = {"actions.gbnf", "actions.regex"}
PAGES = [f"Goal: Click {n}.\nPage:\nbutton 'Button {n}' [{n}]" for n in range(4)]


@pytest.fixture
def run(tmp_path, byte_level, perturb):
    """A function that makes the folder of a finished run, with pages that were recorded."""

    def make(**options):
        base = tmp_path / "base"
        model = make_family("llama")  # with numbers that bfloat16 does not have
        model.save_pretrained(base)
        byte_level.save_pretrained(base)
        folder = tmp_path / "run"
        options = {
            "device": "cpu",
            "max_new_tokens": 6,
            "output": str(folder),
            "lora_r": 4,
        } | options
        config = Config(model=str(base), **options)
        policy = load_policy(config)
        if config.train == "lora":
            perturb(policy, std=0.1)
        else:
            for parameter in policy.parameters():
                parameter.data += 0.01
        policy.save(folder / policy.weights_dirname)
        (folder / "config.yaml").write_text(config.to_yaml())
        episode = folder / "media" / "after" / "Click" / "7"
        episode.mkdir(parents=True)
        pages = [{"prompt": page} for page in PAGES]
        (episode / "episode.json").write_text(json.dumps({"pages": pages}))
        return folder

    return make


def exported(run, *argv):
    """Export a run; return the folder."""
    assert main(["export", str(run), *argv]) == 0
    return run.with_name(f"{run.name}-{argv[argv.index('--to') + 1]}")


@pytest.mark.parametrize("to", ["merged", "gguf", "lora-gguf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run(to, dtype, run, capsys):
    folder = exported(run(dtype=dtype), "--to", to, "--type", "f32")
    assert "4 of 4 greedy completions equal the trainer's\n" in capsys.readouterr().out
    weights = {"merged": "model.safetensors", "gguf": "model.gguf", "lora-gguf": "adapter.gguf"}
    names = {path.name for path in folder.iterdir()}
    assert {weights[to], "export.json"} | GRAMMARS <= names
    assert ("Modelfile" in names) == (to != "merged")
    facts = json.loads((folder / "export.json").read_text())
    assert (facts["to"], facts["type"], facts["compared"], facts["equal"]) == (to, "f32", 4, 4)
    assert list(folder.parent.glob("*.tmp*")) == []


def test_merged_is_the_trained_policy(run):
    """The base as the run rounded it, and a correction that nothing rounds."""
    folder = run(dtype="bfloat16")
    merged = load_file(exported(folder, "--to", "merged", "--compare", "0") / "model.safetensors")
    policy = load_policy(Config.from_yaml(folder / "config.yaml").replace(
        adapter=str(folder / "adapter")))  # fmt: skip
    name = "model.layers.1.mlp.down_proj"
    a, b, alpha = policy.layers()[name]
    base = policy.model.get_submodule(name).base_weight
    assert base.dtype == torch.bfloat16
    torch.testing.assert_close(merged[f"{name}.weight"], base.float() + alpha / 4 * b @ a)
    embedding = "model.embed_tokens.weight"
    torch.testing.assert_close(merged[embedding], policy.model.state_dict()[embedding].float())


def test_merged_in_bfloat16(run):
    folder = exported(run(), "--to", "merged", "--type", "bf16", "--compare", "0")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    given = model.generation_config
    assert (given.eos_token_id, given.max_new_tokens, given.do_sample) == ([2], 6, False)
    assert AutoTokenizer.from_pretrained(folder).chat_template == make_byte_level().chat_template


def test_a_run_of_all_weights(run, capsys):
    folder = run(train="full", dtype="float32")
    merged = load_file(exported(folder, "--to", "merged") / "model.safetensors")
    trained = load_file(folder / "model" / "model.safetensors")
    assert merged.keys() == trained.keys()
    assert all(torch.equal(merged[name], trained[name]) for name in trained)
    assert "4 of 4" in capsys.readouterr().out
    assert main(["export", str(folder), "--to", "lora-gguf"]) == 2
    assert "--to lora-gguf needs a run of train=lora" in capsys.readouterr().err


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantised_base(quantize, run, capsys):
    folder = run(quantize=quantize)
    exported(folder, "--to", "gguf", "--type", "f32")
    assert "4 of 4" in capsys.readouterr().out
    merged = load_file(exported(folder, "--to", "merged", "--compare", "0") / "model.safetensors")
    policy = load_policy(Config.from_yaml(folder / "config.yaml").replace(
        adapter=str(folder / "adapter")))  # fmt: skip
    for name, tensor in policy.merged():  # in bfloat16
        torch.testing.assert_close(merged[name], tensor.float(), rtol=2**-7, atol=2**-8)
    assert main(["export", str(folder), "--to", "lora-gguf"]) == 2
    assert f"a base with quantize={quantize}, which no GGUF has" in capsys.readouterr().err


TASKS = """
from envs.browser.web_task import WebTask

class Go(WebTask):
    site = "http://127.0.0.1:1"
    actions = ("goto", "answer")

    async def setup(self, page, rng):
        return "Go."

    async def evaluate(self, page):
        return False
"""


def test_actions_that_the_tasks_allow(run, tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    folder = run(task="Go", task_file=str(tmp_path / "tasks.py"))
    given = exported(folder, "--to", "lora-gguf", "--compare", "0")
    for name in GRAMMARS:
        text = (given / name).read_text()
        assert [word in text for word in ("goto", "answer", "go_back")] == [True, True, False]
        assert "click_at" in text  # any page may have a drawing
    assert re.fullmatch((given / "actions.regex").read_text(), "answer('it\\'s')")


def test_a_difference_is_shown(run, capsys, monkeypatch):
    def change(*arguments):
        write_merged(*arguments)
        path = arguments[1] / "model.safetensors"
        state = load_file(path)
        state["lm_head.weight"] = state["lm_head.weight"].roll(1, 0).contiguous()
        save_file(state, path, metadata={"format": "pt"})

    monkeypatch.setattr(program, "write_merged", change)
    folder = exported(run(), "--to", "merged")
    out = capsys.readouterr().out
    assert "0 of 4 greedy completions equal the trainer's\nthe first that differs: " in out
    assert json.loads((folder / "export.json").read_text())["equal"] == 0


def test_equality_is_of_every_token(byte_level):
    model, like = make_family("llama"), ChatTemplate(byte_level)
    chat = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    prompt = torch.tensor([like.prompt(chat)])
    ids = tuple(
        model.generate(prompt, do_sample=False, max_new_tokens=5)[0, prompt.shape[1] :].tolist()
    )
    given = (model, byte_level, [chat] * 3, [ids, ids[:-1], (*ids[:-1], 5)], like, [2], 5)
    assert compare(*given)[:2] == (3, 1)


def test_an_interrupt_leaves_nothing(run, monkeypatch):
    def interrupt(path, *_):
        path.write_text("half")
        raise KeyboardInterrupt

    folder = run()
    monkeypatch.setattr(program, "write_adapter", interrupt)
    before = sorted(folder.parent.iterdir())
    assert main(["export", str(folder), "--to", "lora-gguf"]) == 130
    assert sorted(folder.parent.iterdir()) == before


def test_an_export_is_replaced_and_another_folder_is_not(run, tmp_path, capsys):
    folder = run()
    first = exported(folder, "--to", "lora-gguf", "--compare", "0")
    (first / "notes.txt").write_text("old")
    assert not (exported(folder, "--to", "lora-gguf", "--compare", "0") / "notes.txt").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("kept")
    assert main(["export", str(folder), "--to", "lora-gguf", "-o", str(mine)]) == 2
    assert "mine is not empty, and no export" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_without_recorded_pages(run, tmp_path, capsys):
    folder = run()
    (folder / "media").rename(tmp_path / "media")
    exported(folder, "--to", "lora-gguf")
    assert "not compared: no recorded page in " in capsys.readouterr().out
    exported(folder, "--to", "lora-gguf", "--prompts", str(tmp_path), "--compare", "2")
    assert "2 of 2 greedy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--to", "merged", "--type", "q8_0"], "--to merged takes --type f32, bf16, f16, got q8_0"),
        (["--to", "gguf", "--compare", "-1"], "--compare must be a number of pages, got '-1'"),
        (["--to", "gguf", "--prompts", "no/such"], "there is no file or folder 'no/such'"),
        (["--to", "gguf", "-o", " x"], "a path must have no spaces around it"),
        (["--to", "gguf", "--devise", "cpu"], "--device"),
        (["--to", "zip"], "invalid choice: 'zip'"),
        ([], "--to"),
    ],
)
def test_wrong_options(argv, message, run, capsys):
    assert main(["export", str(run()), *argv]) == 2
    assert message in capsys.readouterr().err


def test_options(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    options = read_options([str(tmp_path), "--to", "gguf", "--dtype", "float32"])
    assert (options.kind, options.pages, options.prompts) == ("q8_0", 50, tmp_path)
    assert options.folder == tmp_path.with_name(f"{tmp_path.name}-gguf")
    assert options.config.dtype == "float32"


def test_a_policy_of_a_larger_model_is_refused(byte_level, tmp_path, monkeypatch):
    policy = FullPolicy(make_family("llama"), byte_level)
    monkeypatch.setattr("transformers.MODEL_FOR_CAUSAL_LM_MAPPING", {})
    with pytest.raises(ValueError, match="cannot export a LlamaForCausalLM"):
        write_merged(policy, tmp_path / "out", torch.float32, 5)
