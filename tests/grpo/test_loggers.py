import json

import pytest

from grpo.loggers import MetricsLog, read_metrics


def steps(path):
    return [line["step"] for line in read_metrics(path)]


def write(folder, numbers, **options):
    log = MetricsLog(folder, **options)
    for step in numbers:
        log.log(step, {"reward": step / 10})
    log.close()
    return log.path


def test_a_line_a_step(tmp_path):
    path = write(tmp_path / "run", [1, 2])
    assert path == tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == read_metrics(path)
    assert [(line["step"], line["reward"]) for line in lines] == [(1, 0.1), (2, 0.2)]
    assert lines[0]["time"] <= lines[1]["time"]


def test_no_file(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("torn", ['{"step": 3, "rew', '{"step": 3', "{"])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    path = write(tmp_path, [1, 2])
    path.write_text(path.read_text() + torn)
    assert steps(path) == [1, 2]
    write(tmp_path, [3, 4], keep_before_step=3)
    assert steps(path) == [1, 2, 3, 4]


def test_a_resumed_run_drops_the_future_that_did_not_happen(tmp_path):
    path = write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3], keep_before_step=3)
    assert steps(path) == [1, 2, 3]


def test_a_new_run_starts_anew(tmp_path):
    path = write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert steps(path) == [1]


def test_tensorboard(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, [1, 2])
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    seen = [(event.step, round(event.value, 6)) for event in events.Scalars("reward")]
    assert seen == [(1, 0.1), (2, 0.2)]


def test_without_tensorboard(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="install the extra 'tensorboard'"):
        path = write(tmp_path, [1])
    assert steps(path) == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
