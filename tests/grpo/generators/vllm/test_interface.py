"""The list of vLLM's names: it is complete, and a version that lacks one is told in one line."""

import ast
import os
import sys
import zipfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo.config import Config
from grpo.errors import ConfigError
from grpo.generators.vllm import interface, options
from grpo.generators.vllm.interface import ENGINE, MEMORY, OPTIONS, SERVER, check_interface
from grpo.generators.vllm.options import check_engine, engine_options, set_environment
from grpo.generators.vllm.serve import serve
from grpo.generators.vllm.sources import Sources

PACKAGE = Path(interface.__file__).parent
ARGS = "vllm.engine.arg_utils.EngineArgs"


def some_options(device, family="llama", lora_r=8, sleep=False):
    return engine_options(
        "model",
        model_config=SimpleNamespace(model_type=family),
        dtype="float32",
        device=device,
        memory=0.3,
        lora_r=lora_r,
        sleep=sleep,
    )


@pytest.fixture(autouse=True)
def no_rope(monkeypatch):
    monkeypatch.setattr(options, "short_rope_length", lambda config: 0)


def test_a_gpu_has_cuda_graphs_and_sleeps_if_asked_to():
    on_gpu = some_options("cuda", sleep=True)
    assert on_gpu["enable_sleep_mode"] is True
    assert on_gpu["gpu_memory_utilization"] == 0.3
    assert not {"enforce_eager", "compilation_config", "async_scheduling"} & set(on_gpu)
    assert some_options("cuda")["enable_sleep_mode"] is False
    assert some_options("cpu")["enforce_eager"] is True


def test_every_option_is_listed(monkeypatch):
    every = product(("cpu", "cuda"), ("llama", "lfm2"), (0, 8), (False, True))
    assert {name for run in every for name in some_options(*run)} == set(OPTIONS[ARGS].split())
    set_variables = set()
    monkeypatch.setattr(os.environ, "setdefault", lambda name, _: set_variables.add(name))
    for device, server in product(("cpu", "cuda"), (False, True)):
        set_environment(device, server=server)
    assert set_variables - {"TORCHDYNAMO_DISABLE"} == set(OPTIONS["vllm.envs"].split())


def test_every_import_is_listed():
    imported = {
        f"{node.module}.{alias.name}"
        for file in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm")
        for alias in node.names
    }
    listed = ENGINE.keys() | MEMORY.keys()
    assert len(imported) == 6
    assert {name for name in imported if not any(key.startswith(name) for key in listed)} == set()


FILES = {
    "vllm/__init__.py": "",
    "vllm/config/__init__.py": "from .model import Mode as Modes\nfrom vllm.config import model",
    "vllm/config/model.py": "Mode = Literal['raw', 'processed']",
    "vllm/engine/args.py": """
if TYPE_CHECKING:
    from ..other import Elsewhere
try:
    from vllm.config import Modes
except ImportError:
    Modes = None

class Base:
    host: str = ""

@dataclass
class Args(Base):
    model: str
    seed: int = 0

    def create(self, a, /, b, *, c=1):
        self.made = a

    async def anything(self, **options): ...
""",
    "vllm/other.py": "class Elsewhere:\n    field: int",
    "vllm/entrypoints/api.py": "@get('/quoted')\n@get(\"/health\")\ndef health(): ...",
}


def write(folder, files):
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def as_wheel(folder, files):
    with zipfile.ZipFile(folder / "vllm.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return zipfile.Path(folder / "vllm.whl")


@pytest.mark.parametrize("make", [write, as_wheel])
def test_what_is_missing_is_found(tmp_path, make):
    sources = Sources(make(tmp_path, FILES))
    there = {
        "vllm.config": "model Modes",
        "vllm.config.Modes": "raw processed",
        "vllm.engine.args": "Args Modes",
        "vllm.engine.args.Args": "host model seed create made",
        "vllm.engine.args.Args.create": "a b c",
        "vllm.engine.args.Args.anything": "whatever",
        "vllm.engine.args.Elsewhere": "field",
        "vllm.old.Args|vllm.engine.args.Args": "seed",
    }
    assert sources.missing(there) == []
    wanted = {
        "vllm.config.Modes": "processed_logprobs",
        "vllm.engine.args.Args": "seed rate",
        "vllm.engine.args.Args.create": "self d c",
        "vllm.engine.args.Elsewhere": "other",
        "vllm.old.Args|vllm.older.Args": "",
        "vllm.engine.args.Args.gone": "",
    }
    assert sources.missing(wanted) == [
        "Modes has no processed_logprobs (vllm.config)",
        "Args has no rate (vllm.engine.args)",
        "create has no d (vllm.engine.args.Args)",
        "Elsewhere has no other (vllm.engine.args)",
        "vllm.older has no Args",
        "vllm.engine.args.Args has no gone",
    ]
    assert sources.missing_routes(["/health", "/v1/models"]) == ["/v1/models"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a vLLM of certain files, which cannot be imported."""

    def install(files):
        write(tmp_path, {"vllm/__init__.py": "raise RuntimeError('imported')"} | files)
        (tmp_path / "vllm-0.99.0.dist-info").mkdir()
        (tmp_path / "vllm-0.99.0.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.99.0")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "vllm", raising=False)

    return install


def test_a_renamed_option_is_one_line_with_its_name_and_the_version(installed, monkeypatch):
    installed({"vllm/engine/arg_utils.py": "class EngineArgs:\n    model: str\n    seed: int"})
    monkeypatch.setattr(interface, "TESTED", "0.32")
    with pytest.raises(ConfigError) as told:
        check_interface({ARGS: "model seed dtype"})
    assert str(told.value) == (
        "vLLM 0.99.0 differs from the 0.32 that this was tested with: EngineArgs has no dtype "
        '(vllm.engine.arg_utils). Install the one that fits: pip install "vllm==0.32.*"'
    )
    check_interface({ARGS: "model seed"})


def test_another_vllm_is_refused_before_a_model_is_loaded(installed):
    installed({"vllm/engine/arg_utils.py": "class EngineArgs:\n    model: str"})
    with pytest.raises(
        ConfigError, match=r"EngineArgs has no compilation_config .*and [0-9]+ more"
    ):
        check_engine(Config(backend="vllm"))
    with pytest.raises(ConfigError, match="EngineArgs has no compilation_config"):
        serve(Config(model="no such model"))
    assert SERVER.keys() > OPTIONS.keys()
