"""`grpo doctor` on a tiny model: every line passes, each fault fails its own line and no other."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from envs.scripted import ScriptedEnv
from grpo import cli
from grpo.config import Config
from grpo.doctor import attention, machine, rates
from grpo.doctor.breaks import FAULTS, VARIABLE
from grpo.doctor.context import Check, Failed, Skipped
from grpo.doctor.run import CHECKS, STYLES, doctor
from grpo.errors import ConfigError
from grpo.model.bundled import bundled_model_path
from grpo.tree.kernel_choice import Heads
from tests.support.models import make_llama, save_tiny_lfm2
from tests.test_architecture import OPTIONAL, ROOT

NAMES = [check.name for check in CHECKS]
WITH_BROWSER = ["chromium", "episodes"]
HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A tiny model as a folder that --model takes."""
    folder = tmp_path_factory.mktemp("model")
    make_llama(max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rates, "AT_LEAST_S", 0.001)
    monkeypatch.setattr(rates, "MEASURED", (torch.float32, torch.bfloat16))


def no_browser(config):
    raise ConfigError("no Chromium found: run `make setup`") from FileNotFoundError()


def findings(*names, model="", browsers=no_browser, device="cpu", **options):
    """Make the checks of these names; return what each found."""
    checks = [check for check in CHECKS if check.name in names]
    config = Config(model=model, device=device, **options)
    return {f.name: f for f in doctor(config, ScriptedEnv, browsers, checks=checks)}


def failed(found):
    return [name for name, finding in found.items() if finding.status == "fail"]


def lines(text):
    """Return the status and the rest of every line of a report, by the name of the check."""
    words = [line.split(maxsplit=2) for line in text.splitlines()]
    return {name: (status, rest) for status, name, rest in words if status in STYLES}


@pytest.mark.browser
def test_every_line_passes(capsys, folder):
    assert cli.main(["doctor", "--model", folder, "--json"]) == 0
    text = capsys.readouterr().out
    status = {name: status for name, (status, _) in lines(text).items()}
    assert list(status) == NAMES
    assert status.pop("vllm") == ("pass" if HAS_VLLM else "skipped")
    assert set(status.values()) == {"pass"}
    report = json.loads(text.splitlines()[-1])
    assert report["failed"] == []
    assert [check["name"] for check in report["checks"]] == NAMES
    measured = report["measured"]
    assert measured["reward_after"] > 0.5 > measured["reward_before"]
    assert measured["tree_nats"] < 1e-4
    assert {"float32_gflop_per_s", "memory_gb_per_s", "episodes_per_s"} < set(measured)


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in [*WITH_BROWSER, "vllm"]])
def test_a_fault_fails_its_line_alone(capsys, monkeypatch, folder, name):
    monkeypatch.setenv(VARIABLE, name)
    argv = ["doctor", "--model", folder, "--device", "cpu"]
    monkeypatch.setattr(cli, "_browser_pool", no_browser)
    assert cli.main(argv) == 1
    text = capsys.readouterr().out
    found = lines(text)
    assert [n for n, (status, _) in found.items() if status == "fail"] == [name]
    assert text.splitlines()[-1].startswith(f"failed: {name} (")
    for n, (status, rest) in found.items():
        dependent = any(need == name for check in CHECKS if check.name == n for need in check.needs)
        if dependent:
            assert (status, rest) == ("skipped", f"needs {name}, which failed")


@pytest.mark.browser
@pytest.mark.parametrize("name", WITH_BROWSER)
def test_a_fault_of_the_browser_fails_its_line_alone(monkeypatch, name):
    monkeypatch.setenv(VARIABLE, name)
    found = findings(*WITH_BROWSER, browsers=cli._browser_pool)
    assert failed(found) == [name]
    says = {"chromium": "the browser server", "episodes": "0 of 20 click-test episodes"}[name]
    assert found[name].detail.startswith(says)


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
@pytest.mark.parametrize("fault", ["", "vllm"])
def test_vllm_passes_or_fails_its_sync_check(monkeypatch, tmp_path, fault):
    from transformers import AutoTokenizer

    save_tiny_lfm2(tmp_path, AutoTokenizer.from_pretrained(bundled_model_path()))
    monkeypatch.setenv(VARIABLE, fault)
    found = findings("device", "model", "vllm", model=str(tmp_path), dtype="float32")
    assert failed(found) == [fault] * bool(fault)


def test_a_fault_that_does_not_exist(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "tree,trees")
    assert cli.main(["doctor"]) == 2
    assert "GRPO_DOCTOR_BREAK must name some of versions, device" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--dtype", "int8"], ["--task", "x"], ["extra"]])
def test_wrong_options_are_one_line(capsys, argv):
    assert cli.main(["doctor", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_what_ends_a_check_ends_no_other(capsys):
    def crash(context):
        raise RuntimeError("a\n\x1b[31mb")

    async def fail(context):
        raise Failed("one\ntwo")

    def skip(context):
        raise Skipped("install it")

    def find(context):
        return "found"

    checks = [
        *(Check("crash", crash), Check("after-crash", find, ("crash",)), Check("fail", fail)),
        *(Check("skip", skip), Check("after-skip", find, ("skip",)), Check("last", find)),
        Check("unmade", find, ("nothing",)),
    ]
    found = doctor(Config(), ScriptedEnv, no_browser, checks=checks)
    assert [(f.name, f.status, f.detail) for f in found] == [
        ("crash", "fail", r"a \x1b[31mb"),
        ("after-crash", "skipped", "needs crash, which failed"),
        ("fail", "fail", "one two"),
        ("skip", "skipped", "install it"),
        ("after-skip", "skipped", "needs skip, which was skipped"),
        ("last", "pass", "found"),
        ("unmade", "skipped", "needs nothing, which was not made"),
    ]
    assert len(capsys.readouterr().out.splitlines()) == len(checks) + 1


def test_packages_that_are_missing_are_skipped(monkeypatch):
    """Chromium, the packages of the browser and vLLM are options."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in OPTIONAL else find(name)
    )
    monkeypatch.delenv("GRPO_CHROMIUM", raising=False)
    found = findings("versions", *WITH_BROWSER, browsers=cli._browser_pool)
    assert found["versions"].status == "pass"
    assert found["chromium"].status == "skipped"
    assert "install the extra `browser`" in found["chromium"].detail
    assert found["episodes"].detail == "needs chromium, which was skipped"


@pytest.mark.browser
def test_a_machine_without_chromium_is_skipped(monkeypatch):
    monkeypatch.setattr("envs.browser.server.chromium.search_chromium", lambda environ: None)
    monkeypatch.delenv("GRPO_CHROMIUM", raising=False)
    found = findings("chromium", browsers=cli._browser_pool)["chromium"]
    assert found.status == "skipped"
    assert found.detail.startswith("no Chromium found: ")


def test_a_chromium_that_the_user_named_wrongly_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("GRPO_CHROMIUM", str(tmp_path))
    found = findings("chromium", browsers=cli._browser_pool)["chromium"]
    assert (found.status, found.detail[:13]) == ("fail", "GRPO_CHROMIUM")


def test_nothing_optional_is_imported():
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import grpo.doctor.run
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_gpu_that_torch_cannot_use(monkeypatch, tmp_path):
    """The driver is there and torch is a CPU build: training on the CPU is not what is wanted."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.82.07\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = findings("device", device="auto")["device"]
    assert found.status == "fail"
    assert "an NVIDIA GPU (driver 580.82.07) which torch" in found.detail
    assert findings("device", device="cpu")["device"].status == "pass"


@pytest.mark.parametrize(
    ("hip", "says"),
    [
        (None, "cuda: Big GPU, compute capability 9.0, driver unknown, CUDA 13.0"),
        ("7.1", "cuda: Big GPU, ROCm 7.1"),
    ],
)
def test_what_is_said_of_a_gpu(monkeypatch, hip, says):
    gpu = SimpleNamespace(name="Big GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 80 * 2**30))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setenv("PATH", "")
    found = findings("device", "memory", device="auto")
    assert found["device"].detail == says
    assert found["memory"].detail.startswith("1.0 of 80.0 GiB free on cuda, expected at least 2")


def test_figures_that_json_has_no_number_for(capsys):
    def measure(context):
        context.measured |= {"good": 1.0, "bad": float("nan")}
        return ""

    doctor(Config(), ScriptedEnv, no_browser, checks=[Check("measure", measure)], as_json=True)
    report = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    assert report["measured"] == {"good": 1.0, "bad": None}


def test_a_requirement_that_is_not_met_names_the_command(monkeypatch):
    monkeypatch.setattr(machine, "_requirements", lambda: ["torch<2", "absent>=1", "numpy"])
    found = findings("versions")["versions"]
    assert found.detail.startswith("pip install 'torch<2' (got 2.")
    assert "'absent>=1' (got none)" in found.detail
    assert "numpy" not in found.detail


def test_a_dtype_that_the_device_lacks(monkeypatch):
    """float64 is said to be lacking; the run's own dtype is a failure, with another to give."""
    lacking = {torch.float64, torch.bfloat16}

    def product(a, b):
        if a.dtype in lacking:
            raise TypeError(f"this device does not have {a.dtype}")
        return a @ b

    monkeypatch.setattr(machine, "product", product)
    found = findings("device", "dtypes", dtype="bfloat16")["dtypes"]
    assert found.status == "fail"
    assert found.detail.endswith("does not have torch.bfloat16): give --dtype float32")
    found = findings("device", "dtypes", dtype="float32")["dtypes"]
    assert found.detail == "float32, float16; not on this device: bfloat16, float64"


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_without_a_tree(monkeypatch, tmp_path, base_model, tokenizer, packed):
    """Packed rows are compared with padded rows; padded rows with nothing."""
    monkeypatch.setattr("grpo.model.check.may_pack", lambda model: packed)
    model = base_model("mistral", torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = findings("device", "model", "tree", "attention", model=str(tmp_path), dtype="float32")
    assert found["model"].status == found["attention"].status == "pass"
    assert "its sliding window" in found["model"].detail  # the warning of the run
    assert found["tree"].status == ("pass" if packed else "skipped")
    assert found["tree"].detail.startswith("packed rows: " if packed else "this model is computed")
    assert found["attention"].detail == (
        "packed rows, by packed_sdpa" if packed else "padded rows, by sdpa"
    )


def test_packed_rows_that_are_wrong_fail(monkeypatch, tmp_path, base_model, tokenizer):
    """The check at load time is one of values; that of the doctor is one of gradients as well."""
    from grpo.model import policy

    def hidden(decoder, batch):
        return packed_hidden(decoder, batch).detach()

    packed_hidden = policy.packed_hidden
    monkeypatch.setattr(policy, "packed_hidden", hidden)
    model = base_model("mistral", torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = findings("device", "model", "tree", model=str(tmp_path), dtype="float32")
    assert failed(found) == ["tree"]


class Gpu:
    """Timings of kernels on a pretended GPU, milliseconds by the number of nodes."""

    def __init__(self, monkeypatch, tmp_path, flex):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Big GPU")
        monkeypatch.setattr(attention, "difference", lambda heads, tree: 1e-7)
        monkeypatch.setattr(attention, "measure", self.measure)
        heads = Heads(torch.device("cuda", 0), torch.bfloat16, 9, 3, 64, 64)
        monkeypatch.setattr(attention, "_heads", lambda policy: [heads])
        self.flex = dict(zip(attention.SIZES, flex, strict=True))
        self.file = tmp_path / "grpo-browser" / "attention.json"

    def measure(self, heads, nodes):
        return attention.Timing(nodes, nodes / 1e6, self.flex[nodes] / 1e3, nodes / 1e5, 6.0)

    def check(self):
        policy = SimpleNamespace(forward_mode="tree", device=torch.device("cuda", 0))
        context = SimpleNamespace(policy=policy, measured={})
        return attention.attention(context), context.measured


@pytest.mark.parametrize(
    ("flex", "least", "says"),
    [
        ((2, 4, 10), 4096, "flex_attention from 4,096 nodes on (saved in "),
        ((1, 5, 10), 16384, "flex_attention from 16,384 nodes on (saved in "),
        ((1, 4, 17), None, "SDPA (saved in "),
        ((1, 4, 16), 1024, "flex_attention from 1,024 nodes on (saved in "),
    ],
)
def test_the_faster_kernel_of_a_gpu_is_chosen(monkeypatch, tmp_path, flex, least, says):
    gpu = Gpu(monkeypatch, tmp_path, flex)
    detail, measured = gpu.check()
    assert detail.startswith(f"{says}{gpu.file}); ")
    assert f"1,024 nodes 1.02, {flex[0]} and 10.2 ms" in detail
    assert detail.endswith("first calls 18 s; 1e-07 apart")
    assert list(json.loads(gpu.file.read_text()).values()) == [least]
    assert measured["attention_4096_sdpa_s"] == 4096e-6


def test_a_kernel_that_is_wrong_or_does_not_run_is_not_chosen(monkeypatch, tmp_path):
    gpu = Gpu(monkeypatch, tmp_path, (1, 1, 1))
    gpu.check()
    monkeypatch.setattr(attention, "difference", lambda heads, tree: float("nan"))
    with pytest.raises(Failed, match="flex_attention differs from SDPA by nan of its norm"):
        gpu.check()
    assert list(json.loads(gpu.file.read_text()).values()) == [None]

    def fail(heads, tree):
        raise RuntimeError("no compiler\n")

    monkeypatch.setattr(attention, "difference", fail)
    assert gpu.check()[0] == "SDPA; flex_attention does not run here (no compiler)"
    gpu.file.write_text("{}")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(attention, "difference", lambda heads, tree: 0.0)
    assert gpu.check()[0].startswith("flex_attention from 1,024 nodes on (not saved: ")


@pytest.mark.parametrize(
    ("update", "rate", "parts", "bound"),
    [
        (1.0, None, "browsers not measured, generation 2 s, update 1 s", "generation bounds"),
        (1.0, 8.0, "browsers 32 / 8.0 = 4 s, generation 2 s, update 1 s", "browsers bound"),
        (9.0, 8.0, "browsers 32 / 8.0 = 4 s, generation 2 s, update 9 s", "update bounds"),
    ],
)
def test_what_bounds_a_step(update, rate, parts, bound):
    def measure(context):
        context.measured |= {"generation_s": 2.0, "update_s": update}
        context.measured |= {"episodes_per_s": rate} if rate else {}
        return ""

    checks = [Check("speed", measure), *(check for check in CHECKS if check.name == "step")]
    found = doctor(Config(), ScriptedEnv, no_browser, checks=checks)[1].detail
    shape = "32 episodes (4 groups x 8, one turn of 12 tokens)"
    assert found == f"{shape}: {parts}: {bound} a step"


def test_seconds_per_call_ends_with_the_device(monkeypatch):
    """Work is timed between two synchronisations, not as it is launched."""
    log = []
    monkeypatch.setattr(rates, "synchronize", lambda device: log.append("sync"))
    monkeypatch.setattr(rates, "AT_LEAST_S", 0.0)
    assert rates.seconds_per_call(lambda: log.append("work"), "cuda") > 0
    assert log == ["sync", "work", "sync"] * 2
