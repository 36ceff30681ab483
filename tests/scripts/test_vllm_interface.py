"""`scripts/vllm_interface.py`: what another version of vLLM lacks is printed."""

import zipfile

import pytest

from grpo.generators.vllm.interface import ROUTES
from scripts import vllm_interface
from scripts.vllm_interface import main

LACKING = {"engine": {"vllm.a.Args": "seed dtype"}, "server": {"vllm.a.Args": "port"}}
COMPLETE = {"engine": {"vllm.a.Args": "seed"}, "server": {}}


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "vllm-0.99.0-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("vllm/a.py", "class Args:\n    seed: int\n    port: int")
        file.writestr("vllm/entrypoints/b.py", "\n".join(f'"{route}"' for route in ROUTES))
    return str(path)


def test_what_a_version_lacks_is_printed(wheel, monkeypatch, capsys):
    monkeypatch.setattr(vllm_interface, "USED", LACKING)
    assert main([wheel]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "vllm-0.99.0",
        "  engine: Args has no dtype (vllm.a)",
        "  server: everything is there",
        "  paths of the server: everything is there",
    ]
    monkeypatch.setattr(vllm_interface, "USED", COMPLETE)
    assert main([wheel]) == 0
    monkeypatch.setattr(vllm_interface, "ROUTES", ["/sleep"])
    assert main([wheel]) == 1
    assert "paths of the server: /sleep" in capsys.readouterr().out
