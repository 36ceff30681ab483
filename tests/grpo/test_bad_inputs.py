"""Whatever a user asks for that cannot be had: one line that says why, and an exit code.

A row is a command line as a shell reads it, the exit code (2: asked for the impossible, 1: the
infrastructure), and a part of the line. `{name}` is a path of `place` or an address of
`tests.support.bad_servers`. Nothing is replaced: the rows go through `grpo.cli.main`, with a tiny
model and real files and sockets. Rows of single options are in `test_config_values.py`.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil

import huggingface_hub.constants
import pytest
import torch
from torch import nn

import grpo
import lora
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.cli import main
from grpo.config import Config
from grpo.errors import ConfigError
from tests.support.bad_servers import bad_servers
from tests.support.models import make_model, make_tokenizer

LONG = "x" * 5000
MAX_LINE = 1200  # characters: a path or a reason in it may be long, a file is not


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder with the files that the rows name; its addresses are of servers that are none."""
    folder = tmp_path_factory.mktemp("place")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_model("llama").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    shutil.copytree(folder / "model", folder / "other_model")
    shutil.copytree(folder / "model", folder / "no_weights")
    (folder / "no_weights" / "model.safetensors").unlink()
    make_model("lfm2").save_pretrained(folder / "lfm2")
    make_tokenizer().save_pretrained(folder / "lfm2")
    options = {"task": "click-word", "model": str(folder / "model"), "max_turns": 1,
               "max_new_tokens": 1, "group_size": 2, "groups_per_step": 1, "steps": 1,
               "env_sessions": 2, "dtype": "float32"}  # fmt: skip
    for name, more in {"run": {}, "run_lfm2": {"model": str(folder / "lfm2")}}.items():
        config = Config(**options | more, eval_episodes=0, output=str(folder / name))
        grpo.train(config, ScriptedEnv)
    _write_files(folder)
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to(folder / "nowhere")
    for name in ("tensorboard", "media", "checkpoints", "adapter"):
        (folder / f"with_{name}").mkdir()
        (folder / f"with_{name}" / name).touch()
    (folder / "loop").symlink_to(folder / "loop")
    with bad_servers() as servers:
        yield {path.name: str(path) for path in folder.iterdir()} | servers | {"at": str(folder)}
    torch.set_num_threads(threads)


def _write_files(folder):
    for name in ("empty", "unfinished", "half_adapter"):
        (folder / name).mkdir()
    shutil.copy(folder / "run" / "config.yaml", folder / "unfinished")
    shutil.copy(folder / "run" / "adapter" / "adapter_config.json", folder / "half_adapter")
    for name, content in {
        "file": b"x", "void": b"", "binary": bytes(range(256)), "huge": b"#" * 1_000_001,
        "utf16": "steps: 1".encode("utf-16"), "it.gguf": b"GGUF" + bytes(60),
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)


@pytest.fixture
def refused(place, capsys, caplog, monkeypatch, tmp_path):
    """A function that runs a command line, and checks that it ends with one clear line."""
    # What HF_HUB_OFFLINE=1 and HF_ENDPOINT set, which are read once per process.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://{place['dead']}")
    monkeypatch.chdir(tmp_path)

    def refused(command, code, part):
        argv = [word.format(**place, long=LONG) for word in shlex.split(command)]
        try:
            got = main(argv)
        except SystemExit as done:  # of argparse
            got = done.code
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert not warnings, caplog.text  # outside of pytest they are lines as well
        assert err.startswith("error: "), err
        assert part.format(**place, long=LONG) in err, err
        assert "secret" not in err, err
        assert len(err) < MAX_LINE + 2 * max(map(len, argv), default=0), err
        assert got == code, err

    return refused


def rows(*table):
    """Parametrize a test by the rows of a table, under the command line's name."""
    ids = [row[0].replace(LONG, "long")[:70].encode("unicode_escape").decode() for row in table]
    return pytest.mark.parametrize(("command", "code", "part"), table, ids=ids)


@rows(
    ("''", 2, "invalid choice: ''"),
    ("tran", 2, "invalid choice: 'tran' (choose from 'train', "),
    ("Train", 2, "invalid choice: 'Train'"),
    ("serve env", 2, "invalid choice: 'serve'"),
    ("serve_env", 2, "invalid choice: 'serve_env'"),
    ("'train\n'", 2, r"invalid choice: 'train\n'"),
    ("--steps 3", 2, "expected one of train, eval, act, inspect, demos, record, doctor, new,"),
    ("-x train", 2, "before options, got '-x'"),
    ("--version", 2, "before options, got '--version'"),
    ("train train", 2, "unknown task 'train'"),
    ("train {long}", 2, "task must be at most 4096 characters long, got 5000"),
    ("train --steps", 2, "argument --steps: expected one argument"),
    ("train --steps=", 2, "steps must be an integer, got ''"),
    ("train --resume=yes", 2, "argument --resume/--no-resume: ignored explicit argument 'yes'"),
    ("train --blind no", 2, "unknown task 'no'"),
    ("train -- --steps 3", 2, "unexpected argument '3'"),
    ("train ---steps 3", 2, "unknown option ---steps; did you mean --steps?"),
    ("train -", 2, "unknown task '-'"),
    ("train --no-steps", 2, "unknown option --no-steps; did you mean --steps?"),
    ("train --Steps 3", 2, "unknown option --Steps; did you mean --steps?"),
    ("train --help=3", 2, "ignored explicit argument '3'"),
    ("train --task a b", 2, "expected 'b' or --task, got both"),
    ("train --dtype bf16", 2, "dtype must be one of auto, bfloat16, float32, float16, got 'bf16'"),
    ("train --backend vLLM", 2, "backend must be one of local, vllm, vllm-server, got 'vLLM'"),
    ("train --seed -1", 2, "seed must be at least 0, got -1"),
    ("train --chat-template-kwargs '[1]'", 2, "chat_template_kwargs must be a JSON object"),
    ("eval --config", 2, "argument --config: expected one argument"),
    ("eval --adaptor x", 2, "unknown option --adaptor; did you mean --adapter?"),
    ("train a b", 2, "unexpected argument 'b'"),
    ("eval x", 2, "unknown task 'x'"),
    ("inspect x", 2, "unknown task 'x'"),
    ("inspect --episodes many", 2, "eval_episodes must be an integer, got 'many'"),
    ("inspect --episode 3", 2, "unknown option --episode; did you mean --eval-epis"),
    ("new", 2, "the following arguments are required: folder"),
    ("new a b", 2, "unrecognized arguments: b"),
    ("new {file}", 2, "expected a new or empty folder, got a file: '{file}'"),
    ("new {run}", 2, "expected a new or empty folder, got one with files in it: '{run}'"),
    ("new ''", 2, "folder must not be empty"),
    ("new {file}/x", 2, "Not a directory"),
    ("new 'a\0b'", 2, "folder must have no spaces around it and no control"),
    ("eval --model 'a\0b'", 2, "model must have no spaces around it and no control characters"),
    ("serve-vllm --port 80", 2, "unknown option --port"),
    ("serve-vllm 80", 2, "unexpected argument '80'"),
    ("serve-vllm --dtype int8", 2, "dtype must be one of"),
    ("serve-env --prot 80", 2, "unrecognized arguments: --prot"),
    ("serve-env x", 2, "expected a Python file of tasks, got "),
    ("serve-env --port", 2, "argument --port: expected one argument"),
    ("serve-env --port 65536", 2, "must be from 0 to 65535, got 65536"),
    ("serve-env --port -1", 2, "-1"),
    ("serve-env --port http", 2, "argument --port: invalid"),
    ("serve-env --workers 0", 2, "must be greater than 0, got 0"),
    ("serve-env --workers 1.5", 2, "argument --workers: invalid int value: '1.5'"),
    ("serve-env --deadline-s nan", 2, "must be greater than 0, got nan"),
    ("serve-env --idle-s inf", 2, "must be greater than 0, got inf"),
    ("serve-env --host ''", 2, "must not be empty"),
    ("serve-env --host no-such-host.invalid", 2, "cannot listen on no-such-host.invalid:0"),
    ("serve-env --host 'a\0b'", 2, "cannot listen on a"),
    ("serve-env --host {long}", 2, "cannot listen on xxx"),
    ("push", 2, "the following arguments are required: folder, repo_id"),
    ("push x", 2, "the following arguments are required: repo_id"),
    ("push x user/name more", 2, "unrecognized arguments: more"),
    ("push x user/name --token y", 2, "unrecognized arguments: --token y"),
)
def test_commands_and_options(refused, command, code, part):
    refused(command, code, part)


def test_no_command(refused):
    refused("", 2, "the following arguments are required: command")


@rows(
    ("train --delta 1", 2, "delta must be above 1 + epsilon_high"),
    ("train --delta 5 --loss cispo", 2, "not with loss=cispo, got delta=5.0"),
    ("train --gap-stop 1 --gap-warning 5", 2, "gap_stop must be 0 or at least gap_warning=5"),
    ("train --train full --adapter x", 2, "adapter must be empty with train=full, got 'x'"),
    ("train --push-to-hub x", 2, "push_to_hub must be a hub id, user/name, got 'x'"),
    ("train --task a,a", 2, "must name tasks, each once, got ['a', 'a'] and []"),
    ("train --task a --held-out-tasks a", 2, "each once, got ['a'] and ['a']"),
    ("train --task ' , '", 2, "must name tasks, each once, got [] and []"),
    ("train --task 'a\nb'", 2, r"task must have no spaces around it and no control characters, "),
    ("train --task 'a\0b'", 2, r"got 'a\x00b'"),
    ("train --task {long}", 2, "task must be at most 4096 characters long, got 5000"),
    ("eval --task 'a\tb'", 2, r"got 'a\tb'"),
    ("train --task clik-test", 2, "unknown task 'clik-test'; close names: click-test"),
    ("train --task click-test,nope", 2, "unknown task 'nope'"),
    ("train --held-out-tasks clickbutton", 2, "unknown task 'clickbutton'; close names: "),
    ("train --output {at}/new --task ../click-test", 2, "unknown task '../click-test'"),
    ("train --output {at}/new --task click-test/", 2, "unknown task 'click-test/'"),
    ("eval --task clik-test", 2, "unknown task 'clik-test'; close names: click-test"),
    ("eval --eval-episodes 0", 2, "eval_episodes must be at least 1 to evaluate, got 0"),
)
def test_contradictions_and_tasks(refused, command, code, part):
    refused(command, code, part)


@rows(
    ("train --config {at}/missing.yaml", 2, "cannot read config '{at}/missing.yaml': [Errno 2]"),
    ("eval --config {at}/missing.yaml", 2, "No such file or directory"),
    ("serve-vllm --config {at}/missing.yaml", 2, "No such file or directory"),
    ("train --config ''", 2, "cannot read config ''"),
    ("train --config {empty}", 2, "cannot read config '{empty}': "),
    ("train --config {file}/x", 2, "Not a directory"),
    ("train --config {void}", 2, "must map keys to values, got None"),
    ("train --config {file}", 2, "must map keys to values, got 'x'"),
    ("train --config {binary}", 2, "'utf-8' codec can't decode byte 0x80"),
    ("train --config {utf16}", 2, "'utf-8' codec can't decode byte 0xff"),
    ("train --config {huge}", 2, "must be a regular file of at most 1000000 bytes"),
    ("train --config {pipe}", 2, "must be a regular file of at most 1000000 bytes"),
    ("train --config /dev/null", 2, "config '/dev/null' must be a regular file"),
    ("train --config /dev/zero", 2, "config '/dev/zero' must be a regular file"),
    ("train --config {dangling}", 2, "No such file or directory"),
    ("train --config {loop}", 2, "Too many levels of symbolic links"),
    ("train --config {at}/{long}", 2, "File name too long"),
    ("train --config 'a\0b'", 2, r"cannot read config 'a\x00b': embedded null byte"),
    ("train --config 'a\nb'", 2, r"cannot read config 'a\nb': "),
)
def test_configuration_files(refused, command, code, part):
    refused(command, code, part)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1, 2]", "must map keys to values, got [1, 2]"),
        ("task: {a: b}", "task must be a list of names, got {{'a': 'b'}}"),
        ("task: [[a]]", "task must be a string, got ['a']"),
        ("task:", "task must be a list of names, got None"),
        ("task: a\ntask: b", "the key 'task' appears twice"),
        ("steps: abc", "steps must be an integer, got 'abc'"),
        ("steps: 1.0", "steps must be an integer, got 1.0"),
        ("steps: 1e3", "steps must be an integer, got "),
        ("resume: 1", "resume must be true or false, got 1"),
        ("group-size: 4", "unknown option 'group-size'; did you mean 'group_size'?"),
        ("config: x.yaml", "unknown option 'config'"),
        ("chat_template_kwargs: [1]", "chat_template_kwargs must be a JSON object"),
        ("env_url: http://x:99999", "env_url must be addresses such as"),
        ("output: \"a\\0b\"", "output must have no spaces around it and no control characters"),
        ("{", "while parsing a flow"),
        ("\tsteps: 1", "cannot start any token"),
        ("a: 1: 2", "mapping values are not allowed here"),
        ("x: " + "{a: " * 2000, "cannot read config"),
        ("%YAML 9.9\n---\nsteps: 1", "incompatible YAML document"),
    ],
)  # fmt: skip
def test_yaml(refused, tmp_path, text, part):
    (tmp_path / "it.yaml").write_text(text)
    refused("train --config it.yaml", 2, part)


# Options of a run that loads the tiny model, and would ask a server that is not there.
TINY = (
    "--model {model} --dtype float32 --task click-test --env-url http://{dead} --env-deadline 0.5 "
    "--eval-episodes 0 --group-size 2 --groups-per-step 1 --max-new-tokens 4 "
)
CANNOT = "cannot write to the run's folder "


@rows(
    ("train --output {file}", 2, CANNOT + "'{file}': it is not a folder"),
    ("train --output {file}/run", 2, "it is not a folder, or inside a file"),
    ("train --output {dangling}", 2, CANNOT + "'{dangling}'"),
    ("train --output {loop}/run", 2, "Too many levels of symbolic links"),
    ("train --output {pipe}", 2, "it is not a folder"),
    ("train --output /dev/null", 2, "it is not a folder"),
    ("train --output /proc/run", 2, CANNOT + "'/proc/run': No such file or directory"),
    ("train --output /sys", 2, CANNOT + "'/sys'"),
    ("train --output {at}/" + "x" * 300, 2, "File name too long"),
    ("train --output {with_tensorboard}", 2, "its tensorboard must be a folder, and is"),
    ("train --output {with_media}", 2, "its media must be a folder, and is something else"),
    ("train --output {with_checkpoints} --resume", 2, "its checkpoints must be a folder, and is"),
    ("train --output {with_adapter}", 2, "its adapter must be a folder, and is something else"),
    ("eval --eval-episodes 1 --output {with_media}", 2, "its media must be a folder, and is"),
    ("train --output 'a\0b'", 2, "output must have no spaces around it and no control"),
    ("train --output 'a\nb'", 2, r"got 'a\nb'"),
    ("train --output ' run'", 2, "output must have no spaces around it"),
    ("train --task ../x", 2, "output must name the run's folder: runs/<task> is not possible"),
    ("train --task " + ",".join(f"click-test-{i}" for i in range(30)), 2, "output must name"),
    ("eval --eval-episodes 1 --output {file}", 2, CANNOT + "'{file}': it is not a folder"),
    ("eval --eval-episodes 1 --output /proc/run", 2, CANNOT + "'/proc/run'"),
)
def test_outputs(refused, command, code, part):
    name, _, options = command.partition(" ")
    refused(f"{name} {TINY} {options}", code, part)


@rows(
    ("--model {empty}", 2, "cannot load model '{empty}': "),
    ("--model {no_weights}", 2, "cannot load model '{no_weights}': "),
    ("--model {at}/it.gguf", 2, "cannot load model '{at}/it.gguf': "),
    ("--model nobody/nothing", 2, "cannot load model 'nobody/nothing': "),
    ("--model {file}", 2, "no model at '{file}': expected a folder, a .gguf file or a hub id"),
    ("--device cuda:99", 2, "device 'cuda:99' cannot be used here: expected one of auto"),
    ("--device banana", 2, "device 'banana' cannot be used here: expected one of auto"),
    ("--lora-r 33", 2, "lora_r must be at most 32 with this model's layers, got 33"),
    ("--lora-target-modules nothing", 2, "target_modules ['nothing'] match no nn.Linear"),
    ("--lora-target-modules ''", 2, "target_modules must name at least one module, got none"),
    ("--max-new-tokens 128", 2, "max_new_tokens must be below the 128 tokens"),
    ("--adapter {empty}", 2, "no adapter at '{empty}': expected a folder"),
    ("--adapter {file}", 2, "no adapter at '{file}': expected a folder"),
    ("--adapter {at}/nowhere", 2, "no adapter at '{at}/nowhere'"),
    ("--adapter user/name", 2, "no adapter at 'user/name': expected a folder"),
    ("--adapter a/b/c", 2, "no adapter at 'a/b/c': "),
    ("--adapter {unfinished}", 2, "got a run without one: has it finished?"),
    ("--adapter {half_adapter}", 2, "adapter_model.safetensors"),
    ("--adapter {run_lfm2}", 2, "the adapter does not fit the model: "),
    ("--backend vllm-server --train full", 2, "backend=vllm-server needs train=lora"),
    ("--backend vllm-server --vllm-url ''", 2, "vllm_url must name at least one server"),
    ("--backend vllm-server --vllm-folder {file}", 1, "cannot make a folder for vLLM in '{file}'"),
    ("--push-to-hub user/name", 2, "cannot push to user/name: "),
)
def test_models_and_adapters(refused, command, code, part):
    refused(f"train {TINY} {command}", code, part)


def test_an_evaluation_of_an_unfinished_run(refused):
    refused("eval --adapter {unfinished}", 2, "expected adapter/ or model/ in {unfinished}: has")


def resumed_run(place, tmp_path, change):
    """Copy the run, and change its checkpoint."""
    shutil.copytree(place["run"], tmp_path / "copy")
    change(tmp_path / "copy" / "checkpoints" / "step-000001")
    return str(tmp_path / "copy")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--learning-rate 0.5", "learning_rate was 0.0002 and is 0.5. A run is resumed with its"),
        ("--model {other_model}", "model was '{model}' and is '{other_model}'"),
        ("--task click-test", "task was ['click-word'] and is ['click-test']"),
        ("--train full", "train was 'lora' and is 'full'"),
        ("--lora-r 4", "lora_r was 8 and is 4"),
        ("--groups-per-step 2", "a step had 1 groups over all ranks, and has 2 now"),
        ("--seed 1", "seed was 0 and is 1"),
    ],
)
def test_a_run_that_is_resumed_with_other_options(refused, place, tmp_path, options, part):
    copy = resumed_run(place, tmp_path, lambda folder: None)
    command = f"train --config {copy}/config.yaml --output {copy} --env-url http://{{dead}} "
    refused(f"{command} --resume {options}", 2, part)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "trainer.pt").write_bytes(b"x"),
        lambda folder: (folder / "trainer.pt").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: shutil.rmtree(folder / "adapter"),
    ],
    ids=["other bytes", "no state", "no manifest", "a list", "no adapter"],
)
def test_a_checkpoint_that_is_corrupt(refused, place, tmp_path, change):
    copy = resumed_run(place, tmp_path, change)
    command = f"train --config {copy}/config.yaml --output {copy} --resume"
    refused(f"{command} --env-url http://{{dead}}", 2, "cannot resume: all 1 checkpoints in ")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"step": "x"}, "trainer.pt holds no valid step"),
        ({"step": -1}, "trainer.pt holds no valid step"),
        ({"seconds": 3}, "trainer.pt holds no valid seconds"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "cannot be used: ValueError: "),
        ({"optimizer": 3}, "trainer.pt cannot be used: "),
        ({"tasks": {}}, "trainer.pt cannot be used: KeyError: 'seeds'"),
        ({"failures": 3}, "trainer.pt holds no valid failures"),
        ({"scheduler": None}, "trainer.pt cannot be used: "),
        ({"seconds": {}}, "trainer.pt cannot be used: KeyError: 'rollout'"),
        ({"failures": {"env_failures": "many"}}, "trainer.pt cannot be used: ValueError: "),
        ({"date": "today"}, "trainer.pt cannot be used: ValueError: Invalid isoformat string"),
        ({"date": None}, "trainer.pt holds no valid date"),
        ({"tasks": {"seeds": [], "rates": {}}}, "trainer.pt cannot be used: KeyError: 'click-"),
        ({"tasks": {"seeds": [["a", 1, 2.0]], "rates": {}}}, "rates between 0 and 1"),
    ],
    ids=str,
)
def test_a_checkpoint_that_another_program_wrote(refused, place, tmp_path, changes, part):
    def change(state):
        return state | changes

    refused_with_state(refused, place, tmp_path, change, part)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda optimizer: optimizer["param_groups"][0].update(lr="x"), "must have the options"),
        (lambda optimizer: optimizer["param_groups"][0].update(betas=(2, 3)), "have the options"),
        (lambda optimizer: optimizer["state"][0].update(exp_avg=torch.ones(3)), "have the shape"),
        (lambda optimizer: optimizer["state"][0].update(exp_avg=None), "exp_avg must have the"),
    ],
)
def test_a_checkpoint_of_another_optimizer(refused, place, tmp_path, change, part):
    def save(state):
        of_first = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(8, 32)}
        state["optimizer"]["state"][0] = of_first | {"exp_avg_sq": torch.zeros(8, 32)}
        change(state["optimizer"])
        return state

    refused_with_state(refused, place, tmp_path, save, part)


def refused_with_state(refused, place, tmp_path, change, part):
    def save(folder):
        path = folder / "trainer.pt"
        torch.save(change(torch.load(path, weights_only=True)), path)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"]["trainer.pt"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    copy = resumed_run(place, tmp_path, save)
    command = f"train --config {copy}/config.yaml --output {copy} --resume"
    refused(f"{command} --env-url http://{{dead}}", 2, part)


class Code:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "state", [Code, lambda path: {"step": Code(path)}, lambda path: [Config(output=path)]]
)
def test_a_checkpoint_with_code_in_it(refused, place, tmp_path, state):
    made = tmp_path / "made"
    part = "trainer.pt must hold tensors and plain values as grpo train saves them, and holds "
    refused_with_state(refused, place, tmp_path, lambda _: state(str(made)), part)
    assert not made.exists()


def test_a_checkpoint_that_is_a_list(refused, place, tmp_path):
    refused_with_state(refused, place, tmp_path, lambda _: [1], "must hold a dict, got list")


PLAYED = "no group of the step survived; the last error: browser server "


@rows(
    ("--env-url http://{dead}", 1, PLAYED + "http://{dead}: ConnectionError: no connection: "),
    ("--env-url http://{silent}", 1, PLAYED + "http://{silent}: no response within 0.5 s"),
    ("--env-url https://{silent}", 1, "no response within 0.5 s"),
    ("--env-url http://{closing}", 1, "did not receive a valid HTTP response"),
    ("--env-url https://{closing}", 1, "no connection: "),
    ("--env-url ws://{resetting}", 1, "no connection: "),
    ("--env-url http://{garbage}", 1, "did not receive a valid HTTP response"),
    ("--env-url http://{page}", 1, "HTTP 200 and no WebSocket: is this the address of a browser"),
    ("--env-url http://{missing}", 1, "HTTP 404: nothing is served there"),
    ("--env-url http://{broken}", 1, "HTTP 500 and no WebSocket"),
    ("--env-url http://{starting}", 1, "HTTP 503 until the deadline"),
    ("--env-url http://{moved}", 1, "a redirect to http://127.0.0.1:1/: use that address"),
    ("--env-url http://no-such-host.invalid:80", 1, PLAYED + "http://no-such-host.invalid:80: "),
    ("--env-url http://" + "a" * 300, 1, "label"),
    ("--env-url http://127.0.0.1:1/#x", 2, "env_url must be addresses without ?query and #"),
    ("--env-url http://user:secret@{dead}", 2, "without a user and password, which every file of"),
    ("--env-url user:secret@{dead}", 2, "env_url must be addresses such as"),
    ("--env-url http://xn--a", 1, PLAYED + "http://xn--a: "),
    ("--env-url http://{dead} --warm-start-steps 1", 1, "no demonstration could be played: "),
    ("--env-url 127.0.0.1:80", 2, "env_url must be addresses such as http://127.0.0.1:8000"),
    ("--env-url http://127.0.0.1:65536", 2, "env_url must be addresses such as"),
    ("--env-url http://127.0.0.1:0", 2, "env_url must be addresses such as"),
    ("--env-url http://{dead},ftp://{dead}", 2, "got 'ftp://{dead}'"),
)
def test_environment_servers(refused, command, code, part):
    refused(f"train {TINY} {command}", code, part)


def test_an_evaluation_without_a_server(refused):
    refused(f"eval {TINY} --eval-episodes 1", 1, "no episode could be played; the last error: ")


UNAVAILABLE = "has been unavailable for "


@rows(
    ("http://{dead}", 1, UNAVAILABLE),
    ("http://{silent}", 1, UNAVAILABLE),
    ("http://{closing}", 1, UNAVAILABLE),
    ("http://{resetting}", 1, UNAVAILABLE),
    ("http://{garbage}", 1, UNAVAILABLE),
    ("http://{starting}", 1, UNAVAILABLE),
    ("http://no-such-host.invalid:80", 1, UNAVAILABLE),
    ("http://{page}", 1, "vLLM at http://{page}"),
    ("http://{list}", 1, "vLLM at http://{list}"),
    ("http://{missing}", 1, "vLLM at http://{missing}"),
    ("http://{moved}", 1, "HTTP 302"),
    ("ws://{dead}", 2, "vllm_url must be addresses such as"),
    ("http://xn--a", 2, "vllm_url 'http://xn--a' is not an address: Codepoint U+0080"),
    ("http://user:secret@{dead}", 2, "vllm_url must be addresses without a user and password"),
    ("http://127.0.0.1:99999", 2, "vllm_url must be addresses such as"),
)
def test_vllm_servers(refused, command, code, part):
    options = f"--backend vllm-server --vllm-deadline 0.5 --vllm-url {command}"
    refused(f"train {TINY} {options}", code, part)


@rows(
    ("push {empty} user/name", 2, "no finished run in {empty}: expected adapter/ or model/ in it"),
    ("push {file} user/name", 2, "no finished run in {file}: "),
    ("push {at}/nowhere user/name", 2, "no finished run in {at}/nowhere: "),
    ("push {unfinished} user/name", 2, "no finished run in {unfinished}: "),
    ("push {half_adapter} user/name", 2, "no finished run in {half_adapter}: "),
    ("push 'a\0b' user/name", 2, "no finished run in "),
    ("push {run} name", 2, "expected a hub id, user/name, got 'name'"),
    ("push {run} ''", 2, "expected a hub id, user/name, got ''"),
    ("push {run} a/b/c", 2, "got 'a/b/c'"),
    ("push {run} 'user/na me'", 2, "got 'user/na me'"),
    ("push {run} 'user/name\n'", 2, r"got 'user/name\n'"),
    ("push {run} user/..", 2, "got 'user/..'"),
    ("push {run} https://huggingface.co/user/name", 2, "expected a hub id, user/name, got "),
    ("push {run} user/{long}", 2, "expected a hub id, user/name, got "),
    ("push {run} -x/y", 2, "the following arguments are required: repo_id"),
    ("push {run} user/name", 1, "the upload to user/name failed: "),
)
def test_uploads(refused, command, code, part):
    refused(command, code, part)


@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "adapter/adapter_config.json"])
@pytest.mark.parametrize("text", ["", "null", "[1]", '{"steps": 0.5}', "\0"])
def test_uploads_of_foreign_files(refused, place, tmp_path, name, text):
    shutil.copytree(place["run"], tmp_path / "copy")
    (tmp_path / "copy" / name).write_text(text)
    refused("push copy user/name", 2, name)


RENDEZVOUS = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
DEAD = "no group of the step survived"


@pytest.mark.parametrize(
    ("variables", "code", "part"),
    [
        ({"RANK": "x"}, 2, "torchrun's variables must be numbers, got RANK='x'"),
        ({"RANK": "-1"}, 2, "must be numbers, got RANK='-1'"),
        ({"RANK": ""}, 2, "must be numbers, got RANK=''"),
        ({"WORLD_SIZE": "two"}, 2, "WORLD_SIZE='two'"),
        ({"WORLD_SIZE": "2.0"}, 2, "WORLD_SIZE='2.0'"),
        ({"LOCAL_RANK": "gpu"}, 2, "LOCAL_RANK='gpu'"),
        ({"WORLD_SIZE": "0"}, 2, "RANK must be below WORLD_SIZE"),
        ({"RANK": "1"}, 2, "RANK must be below WORLD_SIZE"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, 2, "RANK must be below WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, 2, "needs RANK, MASTER_ADDR, MASTER_PORT: start with torchrun"),
        (RENDEZVOUS, 2, "WORLD_SIZE above 1 needs MASTER_PORT: start with torchrun"),
        (RENDEZVOUS | {"MASTER_PORT": "x"}, 1, "the ranks do not find each other: "),
        (RENDEZVOUS | {"MASTER_PORT": "99999"}, 1, "the ranks do not find each other: "),
        ({"HF_TOKEN": "a\nb"}, 1, DEAD),
        ({"HF_TOKEN": "\u00e9"}, 1, DEAD),
        ({"TMPDIR": "/nowhere"}, 1, DEAD),
        ({"CUDA_VISIBLE_DEVICES": "banana"}, 1, DEAD),
        ({"OMP_NUM_THREADS": "many"}, 1, DEAD),
        ({"COLUMNS": "wide", "TERM": "banana"}, 1, DEAD),
        ({"HTTP_PROXY": "x://y", "ALL_PROXY": "socks9://z"}, 1, DEAD),
    ],
    ids=str,
)
def test_environment_variables(refused, monkeypatch, variables, code, part):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(f"train {TINY}", code, part)


@pytest.mark.parametrize("token", ["a\nb", "\u00e9", "hf_nobody"])
def test_tokens(refused, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    refused("push {run} user/name", 1, "the upload to user/name failed: ")
    refused(f"train {TINY} --push-to-hub user/name", 2, "cannot push to user/name: ")


class Model(nn.Module):
    """A model of one linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)


ROW = torch.ones(2, 3)
GROUPS = torch.tensor([0, 0])
CALLS = {
    "a mapping as config": (lambda: grpo.train({}, ScriptedEnv), "config must be a grpo.Config"),
    "no config": (lambda: grpo.evaluate(None, ScriptedEnv), "config must be a grpo.Config"),
    "the class of configs": (lambda: grpo.train(Config, ScriptedEnv), "config must be a"),
    "no environment": (lambda: grpo.train(Config(), None), "env must be a pool, a class"),
    "one environment": (lambda: grpo.train(Config(), ScriptedEnv()), "env must be a pool"),
    "its name": (lambda: grpo.train(Config(), "env"), "function, got 'env'"),
    "a list of agents": (lambda: grpo.train(Config(), ScriptedEnv, baselines=["a"]), "baselines"),
    "agents as text": (lambda: grpo.evaluate(Config(), ScriptedEnv, baselines="a"), "baselines"),
    "no episodes": (lambda: grpo.evaluate(Config(eval_episodes=0), ScriptedEnv), "at least 1 to"),
    "a number as text": (lambda: Config(steps="3"), "steps must be an integer, got '3'"),
    "an unknown option": (lambda: Config(step=3), "unknown option 'step'; did you mean 'steps'?"),
    "a long name": (lambda: Config(task="x" * 300).folder, "output must name the run's folder"),
    "an empty pool": (lambda: EnvPool(ScriptedEnv, 0), "size must be at least 1, got 0"),
    "half a pool": (lambda: EnvPool(ScriptedEnv, 1.5), "size must be an integer, got 1.5"),
    "a size as text": (lambda: EnvPool(ScriptedEnv, "3"), "size must be an integer, got '3'"),
    "a pool of nothing": (lambda: EnvPool(None, 3), "factory must be a class or a function"),
    "no turns": (lambda: grpo.Rollouts(EnvPool(ScriptedEnv, 1), None, 0), "max_turns must be at"),
    "no model": (lambda: lora.apply_lora(None), "model must be a torch.nn.Module, got NoneType"),
    "a model's name": (lambda: lora.apply_lora("llama"), "torch.nn.Module, got str"),
    "an unknown layer": (lambda: lora.apply_lora(Model(), ["q"]), "['q'] match no nn.Linear; the"),
    "a pattern": (lambda: lora.apply_lora(Model(), "linear"), "must be 'all-linear' or a list"),
    "no names": (lambda: lora.apply_lora(Model(), []), "must name at least one module, got none"),
    "None as names": (lambda: lora.apply_lora(Model(), None), "a list of names, got None"),
    "half a rank": (lambda: lora.apply_lora(Model(), r=1.5), "r must be an integer, got 1.5"),
    "no rank": (lambda: lora.apply_lora(Model(), r=0), "r must be at least 1, got 0"),
    "no alpha": (lambda: lora.apply_lora(Model(), alpha=0), "alpha must be a positive number"),
    "all dropped": (lambda: lora.apply_lora(Model(), dropout=1), "dropout must be in [0, 1)"),
    "nothing to merge": (lambda: lora.merge(Model()), "no LoRA layers: call apply_lora first"),
    "no adapter": (lambda: lora.load_adapter(Model(), "/nowhere"), "/nowhere/adapter_config.json"),
    "rewards in two dimensions": (
        lambda: grpo.group_advantages(ROW, GROUPS), "rewards must be [N] with N > 0, got [2, 3]"
    ),
    "too few groups": (
        lambda: grpo.group_advantages(torch.ones(3), GROUPS), "group_ids must be [N]=[3], got [2]"
    ),
    "a group of one": (
        lambda: grpo.group_advantages(torch.ones(2), torch.tensor([0, 1])), "at least 2 rewards"
    ),
    "a reward without an end": (
        lambda: grpo.group_advantages(torch.ones(2) / 0, GROUPS), "rewards must be finite"
    ),
    "an unknown estimator": (lambda: grpo.kl_estimate(ROW, ROW, "k4"), "got 'k4'"),
    "a reference of another shape": (
        lambda: grpo.kl_estimate(ROW, ROW[:, :2], "k3"), "ref_logprobs must be [N, T]=[2, 3], got"
    ),
    "a mask of numbers": (
        lambda: grpo.importance_weights(ROW, ROW, ROW), "mask must be torch.bool, got torch.float32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_python(name):
    call, part = CALLS[name]
    with pytest.raises((ConfigError, TypeError, ValueError, FileNotFoundError)) as error:
        call()
    assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1
