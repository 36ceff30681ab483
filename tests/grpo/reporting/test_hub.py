"""The real hub client against a substitute for the hub's HTTP API on this machine."""

import base64
import hashlib
import io
import json
import re
import shlex
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

from envs.scripted import ScriptedEnv
from grpo.cli import main
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.model.bundled import HUB_ID
from grpo.model.loading import find_adapter, load_policy
from grpo.reporting.hub import HubError, check_access, push_to_hub
from grpo.reporting.model_card import AGENTS, model_card
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.run import run_training
from grpo.safe_output import one_line, printable

REPO = "user/clicks"
PICTURES = tuple(
    f"{label}/click-test/1000000/{k}.png"
    for label, k in (("before", 0), ("after", 0), ("after", 1))
)

RATE = {"success": 0.98, "low": 0.93, "high": 0.9945, "n": 100, "solved": 98}
LOW = {"success": 0.21, "low": 0.1417, "high": 0.2998, "n": 100, "solved": 21}
SUMMARY = {
    "task": "click-test",
    "model": "/some/folder",
    "steps": 30,
    "episodes": 1960,
    "seconds": {"setup": 1.0, "eval": 60.0, "rollout": 100.0, "update": 140.0},
    "untrained": {"sampled": LOW, "greedy": RATE},
    "trained": {"sampled": RATE, "greedy": RATE},
}


class Hub(ThreadingHTTPServer):
    """The requests of the client to huggingface.co: repositories in memory, LFS, no xet.

    Attributes:
        repos: the files of each repository.
        stored: the objects that came by LFS, by their SHA-256.
        faults: beginning of a path -> status of the response, and the hub's error code.
        role: role of the user's token, which is "good".
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.stored, self.faults, self.role = {}, {}, {}, "write"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def end(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, hub = unquote(urlsplit(self.path).path), self.server
        for start, (status, code) in hub.faults.items():
            if path.startswith(start):
                return self.reply({"error": "no"}, status, X_Error_Code=code)
        token = self.headers.get("Authorization")
        if token not in (None, "Bearer good") or (token is None and self.command == "POST"):
            return self.reply({"error": "Invalid credentials"}, 401)
        if path == "/api/whoami-v2":
            auth = {"accessToken": {"role": hub.role}}
            return self.reply({"name": "user", "orgs": [{"name": "team"}], "auth": auth})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if name in hub.repos else 200
            hub.repos.setdefault(name, {})
            return self.reply({"url": f"{hub.url}/{name}", "id": name}, status)
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            hub.stored[path.removeprefix("/lfs/")] = body
            return self.reply()
        repo = "/".join(path.removeprefix("/api/models").split("/")[1:3]).removesuffix(".git")
        if repo not in hub.repos:
            return self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.repository(repo, hub.repos[repo], path, body)

    def repository(self, repo, files, path, body):
        hub, sha = self.server, hashlib.sha1(repr(files).encode()).hexdigest()
        if path == f"/api/models/{repo}/preupload/main":
            large = (".safetensors", ".png")
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply({"files": modes})
        if path == f"/{repo}.git/info/lfs/objects/batch":
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.reply({"transfer": "basic", "objects": objects})
        if path == f"/api/models/{repo}/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
            return self.reply({"commitUrl": f"{hub.url}/{repo}/commit/{sha}", "commitOid": sha})
        if path == f"/api/models/{repo}/revision/main":
            return self.reply({"id": repo, "sha": sha, "siblings": []})
        if path == f"/api/models/{repo}/tree/{sha}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            return self.reply(tree)
        data = files[path.split(f"/{repo}/resolve/{sha}/")[1]]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.reply(data, X_Repo_Commit=sha, ETag=etag)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url,  # read from HF_ENDPOINT when the client is imported
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "good")
    yield server
    server.end()


@pytest.fixture
def policy(make_policy):
    return make_policy(double=False)


@pytest.fixture
def run(tmp_path, policy, tokenizer):
    """The folder of a finished run of the bundled model."""
    folder = tmp_path / "a run"
    policy.save(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    for name in (*PICTURES, "after/click-test/1000000/episode.json"):
        path = folder / "media" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"a picture, {name}".encode())
    (folder / "curves.png").write_bytes(b"a picture")
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "config.yaml").write_text(Config().to_yaml())
    return folder


def change(folder, **values):
    (folder / "summary.json").write_text(json.dumps(SUMMARY | values))


def test_an_adapter_is_uploaded_and_loaded_again(hub, run, policy, base_model, tokenizer, tmp_path):
    assert push_to_hub(run, REPO) == f"{hub.url}/{REPO}"
    files = hub.repos[REPO]
    assert set(files) == {
        *("README.md", "config.yaml", "summary.json", "metrics.jsonl", "curves.png"),
        *("adapter_config.json", "adapter_model.safetensors"),
        *(path.name for path in (run / "adapter").iterdir()),
        *(f"media/{name}" for name in PICTURES),
        "media/after/click-test/1000000/episode.json",
    }
    assert "tokenizer.json" in files
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights
    assert hub.stored[hashlib.sha256(weights).hexdigest()] == weights  # by LFS, as on the hub
    assert files["README.md"] == (run / "README.md").read_bytes()
    # The uploaded configuration names a model that others have, the local one a folder here.
    ours = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert json.loads(files["adapter_config.json"]) == ours | {"base_model_name_or_path": HUB_ID}
    assert ours["base_model_name_or_path"] != HUB_ID

    base_model().float().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    loaded = load_policy(Config(model=str(tmp_path / "tiny"), adapter=REPO, dtype="float32"))
    for one, other in zip(loaded.parameters(), policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert {path.name for path in find_adapter(REPO).iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors")
    }

    push_to_hub(run, REPO)  # a second time: the repository exists


class Photographed(ScriptedEnv):
    """Takes screenshots where they are wanted."""

    async def reset(self, task, *, screenshot=False):
        self.screenshot = screenshot
        return await super().reset(task)

    def _observe(self, error):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        return replace(
            super()._observe(error), screenshot=file.getvalue() * self.screenshot or None
        )


async def test_one_run_leaves_adapter_pictures_dashboard_and_repository(
    hub, policy, monkeypatch, tmp_path
):
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: policy)
    folder, small = tmp_path / "run", {"group_size": 2, "groups_per_step": 1, "eval_episodes": 2}
    config = Config(task="click-word", output=str(folder), push_to_hub=REPO, max_turns=1,
                    max_new_tokens=2, steps=1, env_sessions=4, **small)  # fmt: skip
    await run_training(config, Photographed)
    pictures = [f"media/after/click-word/{HELD_OUT + i}/0.png" for i in range(2)]
    local = ["adapter/adapter_model.safetensors", "adapter/tokenizer.json", "media/index.html"]
    for name in (*local, *pictures, "summary.json", "curves.png", "completions.txt"):
        assert (folder / name).is_file(), name
    assert list((folder / "tensorboard" / "run").glob("events.out.*"))
    files = hub.repos[REPO]
    assert {"README.md", "adapter_model.safetensors", "tokenizer.json", *pictures} <= set(files)
    assert f"](media/after/click-word/{HELD_OUT}/0.png)" in files["README.md"].decode()


def test_the_card(run):
    card = model_card(run, REPO)
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()  # it is valid YAML
    assert card.data.base_model == HUB_ID
    assert (card.data.library_name, card.data.license) == ("peft", "apache-2.0")
    (result,) = card.data.eval_results
    assert result.metric_value == 0.98
    assert result.dataset_name == "MiniWoB click-test, 100 held-out seeds"
    for line in (
        "| untrained | 0.21 [0.14, 0.30] | 0.98 [0.93, 0.99] | before training |",
        "| trained | 0.98 [0.93, 0.99] | 0.98 [0.93, 0.99] | after training |",
        "![reward, completion length and entropy over the steps](curves.png)",
        "![the first page of an episode after training](media/after/click-test/1000000/0.png)",
        'model = PeftModel.from_pretrained(model, "user/clicks")',
        f"vllm serve {HUB_ID} --enable-lora --max-lora-rank 8 --lora-modules clicks={REPO}",
        "grpo eval --task click-test --adapter user/clicks",
    ):
        assert line in card.text.splitlines()
    assert "30 steps, 1,960 episodes, 4 minutes" in card.text
    assert "4-bit file `SmolLM2-135M-Instruct.Q4_1.gguf`" in card.text
    assert str(run) not in str(card)


def test_the_card_of_another_model_and_several_tasks(run, tmp_path):
    (run / "config.yaml").write_text(Config(task="a,b", model="some/model").to_yaml())
    tasks = {"a": {"trained": SUMMARY["trained"]}, "b": {"trained": SUMMARY["untrained"]}}
    change(run, task="a,b", per_task=tasks)
    card = model_card(run, REPO)
    assert (card.data.base_model, card.data.license) == ("some/model", None)
    assert [result.metric_value for result in card.data.eval_results] == [0.98, 0.21]
    assert card.text.count("| trained |") == 2
    assert "| untrained |" not in card.text
    assert "--task a,b --adapter user/clicks --model some/model" in card.text
    assert "4-bit" not in card.text
    assert "minutes, from the task's reward alone." in card.text
    (run / "config.yaml").write_text(Config(warm_start_steps=3).to_yaml())
    assert "after 3 updates of imitating a scripted solver." in model_card(run, REPO).text
    (run / "config.yaml").write_text(Config(demonstrations="demos.jsonl").to_yaml())
    assert "after 40 updates of imitating recorded demonstrations." in model_card(run, REPO).text
    (run / "config.yaml").write_text(Config(valid_action_bonus=0.25).to_yaml())
    assert "with a bonus of 0.25 for each valid action." in model_card(run, REPO).text

    (tmp_path / "mine").mkdir()
    (run / "config.yaml").write_text(Config(model=str(tmp_path / "mine")).to_yaml())
    (run / "adapter").rename(run / "model")
    (run / "model" / "config.json").write_text("{}")
    card = model_card(run, REPO)
    assert (card.data.base_model, card.data.library_name) == (None, "transformers")
    assert 'model = AutoModelForCausalLM.from_pretrained("user/clicks")' in card.text
    assert "grpo eval --task click-test --model user/clicks" in card.text
    assert "`mine` with every weight trained" in card.text
    assert "peft" not in str(card).lower()
    assert str(tmp_path) not in str(card)

    (run / "summary.json").write_text(
        json.dumps({k: v for k, v in SUMMARY.items() if "trained" not in k})
    )
    card = model_card(run, REPO)
    assert "It was not evaluated." in card.text
    assert card.data.eval_results is None


EVIL = "$x$ <img src=x onerror=alert(1)> [a](b) ` ``` | *c*; rm -rf ~"
WORSE = f"{EVIL}\n```\n# d \x1b[31m\u202e"


def test_the_card_of_a_quantised_base(run):
    (run / "config.yaml").write_text(Config(quantize="4bit").to_yaml())
    card = model_card(run, REPO)
    assert " The base was quantised to 4 bits meanwhile." in card.text
    assert "--adapter user/clicks --quantize 4bit\n" in card.text


def test_names_in_the_card_are_text(run):
    """Neither Markdown nor HTML, no end of a code block, no second command, no escape."""
    (run / "config.yaml").write_text(Config(task=EVIL, model=EVIL).to_yaml())
    folder = run / "media" / "after" / "(a) [b]"
    (run / "media" / "after" / "click-test").rename(folder)
    change(run, task=WORSE, per_task={WORSE: {"trained": SUMMARY["trained"]}})
    card = model_card(run, REPO)
    text = card.text
    assert printable(str(card)) == str(card)
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * 3
    assert not re.search(r"^# d", text, re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"(`{4,}).*?\1", "", prose)  # code in a line
    for part in ("<img", "[a]", "*c*", "$x$"):
        assert re.search(r"(?<!\\)" + re.escape(part), prose) is None, part
    (command,) = [line for line in text.splitlines() if line.startswith("vllm serve")]
    assert shlex.split(command)[:3] == ["vllm", "serve", one_line(EVIL)]
    (line,) = [line for line in text.splitlines() if line.startswith("grpo eval")]
    assert shlex.split(line)[2:4] == ["--task", one_line(EVIL)]
    (line,) = [line for line in text.splitlines() if "AutoModelForCausalLM.from_pre" in line]
    assert json.loads(line.split("from_pretrained(")[1][:-1]) == one_line(EVIL)
    assert "](media/after/%28a%29%20%5Bb%5D/1000000/0.png)" in text


def test_every_agent_of_a_run_is_explained_in_its_card(run):
    tasks = {"click-test": {name: {"sampled": RATE} for name in AGENTS}}
    change(run, per_task=tasks)
    rows = [line for line in model_card(run, REPO).text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {name}" for name in AGENTS]


def failure(run):
    """Return the one line of a failed upload, after which the run is as it was."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(HubError) as error:
        push_to_hub(run, REPO)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    after.pop(run / "README.md")
    assert after == before
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"the upload to {REPO} failed: ")
    assert f". The run is complete in {run}; to retry: grpo push " in line
    (run / "README.md").unlink()
    return line


def test_a_failed_upload_loses_nothing_and_its_message_says_how_to_retry(
    hub, run, monkeypatch, capsys
):
    for path, status in {
        "/api/repos/create": 401,
        f"/api/models/{REPO}/preupload": 403,
        f"/{REPO}.git/info/lfs": 404,
        f"/api/models/{REPO}/commit": 500,
    }.items():
        hub.faults = {path: (status, "")}
        assert f"{status} " in failure(run).split(". The run is complete")[0]
    hub.faults = {"/api/models/user/clicks/xet-write-token": (403, "")}
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert "xet-write-token" in failure(run)  # xet's own kind of error
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = failure(run)
    assert "Connection refused (http://127.0.0.1:9)" in line
    assert hub.repos[REPO] == {}

    # The command in the message, as it stands there, when the hub is back.
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    program, *argv = shlex.split(line.split("to retry: ")[1])
    assert program == "grpo"
    assert main(argv) == 0
    assert capsys.readouterr().out == f"{hub.url}/{REPO}\n"
    assert "adapter_model.safetensors" in hub.repos[REPO]


def test_grpo_push_rejects_a_folder_or_an_id_that_is_none(hub, run, tmp_path, capsys):
    for folder, repo, message in (
        (run, "clicks", "expected a hub id, user/name, got 'clicks'"),
        (tmp_path / "none", REPO, f"no finished run in {tmp_path / 'none'}: "),
    ):
        assert main(["push", str(folder), repo]) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")
    summary = json.loads((run / "summary.json").read_text())
    del summary["steps"]  # as it is before training
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="was written before training"):
        push_to_hub(run, REPO)
    assert hub.repos == {}


def test_the_exit_code_of_a_failed_upload(hub, run, capsys):
    hub.faults = {"/api/repos/create": (500, "")}
    assert main(["push", str(run), REPO]) == 1
    assert capsys.readouterr().err.startswith(f"error: the upload to {REPO} failed: ")


def test_access_is_checked_at_the_start(hub, monkeypatch):
    def failure(repo_id=REPO):
        with pytest.raises(ConfigError, match=f"^cannot push to {repo_id}: ") as error:
            check_access(repo_id)
        assert "\n" not in str(error.value)
        return str(error.value)

    check_access(REPO)
    check_access("team/clicks")
    assert "the token belongs to user, team" in failure("somebody/clicks")
    hub.role = "read"
    assert "expected a token that may write, got a read-only one" in failure()
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert "Invalid user token" in failure()
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in failure()
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    failure()


@pytest.mark.parametrize("repo", ["clicks", "a/b/c", "us er/clicks", "user/", "./runs", "a/b.git"])
def test_something_that_is_not_an_id_is_rejected_before_anything_runs(repo):
    with pytest.raises(ConfigError) as error:
        Config(push_to_hub=repo)
    assert str(error.value) == f"push_to_hub must be a hub id, user/name, got {repo!r}"


def test_an_adapter_that_does_not_exist(hub, tmp_path, monkeypatch):
    def failure(name=REPO):
        with pytest.raises(ConfigError) as error:
            find_adapter(name)
        assert "\n" not in str(error.value)
        start, end = f"no adapter at {name!r}: ", "or a hub id such as 'user/name'"
        assert str(error.value).startswith(
            f"{start}expected a folder with adapter_config.json, {end}"
        )
        return str(error.value).split(end)[1]

    assert failure(str(tmp_path)) == ""
    assert failure(str(tmp_path / "none")) == ""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "click-test").mkdir(parents=True)  # a run that has not finished
    assert failure("runs/click-test") == ""
    assert "404 " in failure()
    hub.repos[REPO] = {"README.md": b"no adapter"}
    assert failure() == "; got a repository without that file"
    hub.faults = {f"/api/models/{REPO}": (403, "GatedRepo")}
    assert "gated" in failure()
    hub.faults = {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure()
