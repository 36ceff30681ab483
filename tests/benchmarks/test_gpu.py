"""`benchmarks/gpu.py`: its tables, and what it says where there is no GPU."""

import sys

import pytest
import torch

from benchmarks import gpu


def test_a_machine_without_a_gpu_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 2
    assert "expected an NVIDIA or AMD GPU that torch can use, found none" in capsys.readouterr().err


def test_tables(capsys):
    machine = {"gpu": "Some GPU", "torch": "2.13.0", "tflops_bfloat16": 700.2}
    machine |= {
        "tflops_float32": 50.1,
        "gigabytes_per_second": 4000.0,
        "launch_microseconds": 5.5,
    }
    update = {
        "update": "tree",
        "dtype": "bfloat16",
        "seconds": 0.0271,
        "ratio": 1.0,
        "peak_gb": 1.1,
    }
    step = {"step": "bundled model", "graphs": True, "sample_seconds": 0.2, "update_seconds": 0.05}
    step |= {"tokens_per_second": 3000.0, "peak_gb": 2.5, "dollars_per_1000_steps": 0.174}
    engine = {"sync": "merged", "tokens_per_second": 9000.0, "sync_seconds": 0.1, "gap": 0.02}
    gpu.show({"machine": machine, "updates": [update], "steps": [step], "vllm": [engine]}, 2.5)
    text = capsys.readouterr().out
    for part in ("Some GPU", "700 TFLOP/s", "27.1", "bundled model", "0.17", "merged", "9000"):
        assert part in text
