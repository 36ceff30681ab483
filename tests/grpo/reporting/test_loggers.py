import json
import sys
import time

import pytest
import torch

from envs.base import Task
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.reporting.loggers import MetricsLog, read_metrics
from grpo.types import Episode, Group, Turn


def steps(path):
    return [line["step"] for line in read_metrics(path)]


def write(folder, numbers, **options):
    log = MetricsLog(folder, **options)
    for step in numbers:
        log.log(step, {"reward": step / 10})
    log.close()
    return log.path


def test_one_line_per_step(tmp_path):
    path = write(tmp_path / "run", [1, 2])
    assert path == tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == read_metrics(path)
    assert [(line["step"], line["reward"]) for line in lines] == [(1, 0.1), (2, 0.2)]
    assert lines[0]["time"] <= lines[1]["time"]


def test_a_file_that_does_not_exist(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("incomplete", ['{"step": 3, "rew', '{"step": 3', "{"])
def test_an_incomplete_last_line_is_left_out(tmp_path, incomplete):
    path = write(tmp_path, [1, 2])
    path.write_text(path.read_text() + incomplete)
    assert steps(path) == [1, 2]
    write(tmp_path, [3, 4], keep_before_step=3)
    assert steps(path) == [1, 2, 3, 4]


def test_a_resumed_run_drops_the_steps_that_it_repeats(tmp_path):
    path = write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3], keep_before_step=3)
    assert steps(path) == [1, 2, 3]


def test_a_new_run_drops_the_lines_of_the_old_one(tmp_path):
    path = write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert steps(path) == [1]


@pytest.fixture
def played(group_of):
    """Five groups of three episodes; the second one has two turns and a text like markup."""

    def episode(seed, reward, *texts):
        turn = group_of((1, ([1], [2]))).episodes[0].turns[0]
        turns = tuple(Turn(turn.completion, text, text.startswith("click")) for text in texts)
        return Episode(Task("click-button", seed), turns, reward, reward > 0, "done", "Click it.")

    return [
        Group(
            Task("click-button", seed),
            (
                episode(seed, 0.5, "click('1')"),
                episode(seed, 0.0, "The [b]ok[/b] | is\nhere", "click('3')"),
                episode(seed, 1.0, f"click('2{seed}')"),
            ),
        )
        for seed in range(5)
    ]


# Of five groups with three episodes of up to two turns.
ADVANTAGES = torch.tensor([[0.125, 0], [-1.5, 0.75], [1.0, 0]]).repeat(5, 1)


def rows(path):
    """Return the table of each step: of every row the first line of each cell."""
    tables = {}
    for line in path.read_text().splitlines():
        if line.startswith("step "):
            tables[int(line.split()[1])] = table = []
        elif line.startswith("click-button"):
            table.append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return tables


def test_tensorboard(tmp_path, played):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path)
    for step in (1, 2):
        log.log(step, {"approx_kl": 0, "entropy": 1, "completion_length": 2, "reward": step / 10})
        log.completions(step, played, ADVANTAGES)
    log.close()
    events = loader.EventAccumulator(str(tmp_path / "tensorboard" / tmp_path.name))
    events.Reload()
    # TensorBoard sorts by character code, so the three curves come first.
    assert sorted(events.Tags()["scalars"]) == [
        *("Overview/completion_length", "Overview/entropy", "Overview/reward", "approx_kl"),
    ]
    seen = [(event.step, round(event.value, 6)) for event in events.Scalars("Overview/reward")]
    assert seen == [(1, 0.1), (2, 0.2)]
    (table,) = events.Tensors("completions/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == [
        "| task | seed | goal | completions | reward | advantages |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    assert lines[3] == (
        "| click-button | 0 | Click it. "
        r"| The \[b\]ok\[/b\] \| is here  (not a valid action)<br>click('3') | 0 | -1.50<br>+0.75 |"
    )


def test_the_dashboard_names_a_run_by_its_folder(tmp_path, monkeypatch):
    """Also a run in the folder where the program was started."""
    pytest.importorskip("tensorboard")
    write(tmp_path / "a run", [1])
    assert [path.name for path in (tmp_path / "a run" / "tensorboard").iterdir()] == ["a run"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(".", [1])
    assert [path.name for path in (tmp_path / "here" / "tensorboard").iterdir()] == ["here"]


def test_completions_are_text_even_where_colours_are_forced(tmp_path, played, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = MetricsLog(tmp_path)
    log.completions(1, played, ADVANTAGES)
    log.close()
    assert "\x1b" not in (tmp_path / "completions.txt").read_text()


def test_completions_are_a_table_of_the_best_and_the_worst_episodes(tmp_path, played):
    path = tmp_path / "completions.txt"

    def write(steps, **options):
        log = MetricsLog(tmp_path, config=Config(log_completions=2), **options)
        for step in steps:
            log.log(step, {"reward": 0})
            log.completions(step, played, ADVANTAGES)
        log.close()

    write(range(1, 7))
    tables = rows(path)
    assert list(tables) == [1, 3, 5]
    assert [len(table) for table in tables.values()] == [8, 8, 8]  # four of the five groups
    assert tables[1][:2] == [
        ["click-button", "0", "Click it.", "click('20')", "1", "+1.00"],
        ["click-button", "0", "Click it.", "The [b]ok[/b] | is here", "(not a valid action)", "0",
         "-1.50"],
    ]  # fmt: skip
    # The second completion stands below the first, and its advantage as well.
    assert path.read_text().splitlines()[5].split() == ["click('3')", "+0.75"]
    write([4, 5], keep_before_step=4)  # resumed from step 3
    assert list(rows(path)) == [1, 3, 5]
    write([1])  # a new run in the folder
    assert list(rows(path)) == [1]

    log = MetricsLog(tmp_path / "none", config=Config(log_completions=0))
    log.completions(1, played, ADVANTAGES)
    MetricsLog(tmp_path / "none").completions(1, [], torch.zeros(0, 0))
    assert not (tmp_path / "none" / "completions.txt").exists()


def records(folder):
    """Yield the records in each file of W&B's offline runs, which are LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        data, at, part, found = path.read_bytes(), 7, b"", []
        while at < len(data):
            if 32768 - at % 32768 < 7:  # too little of the block for a record's header
                at += 32768 - at % 32768
                continue
            size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):  # whole, or the last part
                found.append(Record.FromString(part))
                part = b""
        yield found


@pytest.fixture
def wandb_env(tmp_path, monkeypatch):
    """W&B without a network, an account or this user's settings."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_PROJECT", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    wandb.teardown()  # it reads its environment once a process
    yield
    wandb.teardown()  # and leaves one behind


def test_wandb_offline(tmp_path, played, wandb_env):
    wandb = pytest.importorskip("wandb")
    folder = tmp_path / "my-run"

    def write(steps, **options):
        log = MetricsLog(
            folder, config=Config(logger="wandb", log_completions=2, seed=3), **options
        )
        for step in steps:
            log.log(step, {"reward": step / 10, "clip_ratio/low": 0.0})
            log.completions(step, played, ADVANTAGES)
        log.close()

    write([1, 2, 3])
    time.sleep(1.1)  # W&B names its folders by the second
    write([2, 3, 4], keep_before_step=2)  # resumed from step 1: 2 and 3 are repeated
    wandb.teardown()  # the files are complete when their writer has ended
    first, second = records(folder)
    assert steps(folder / "metrics.jsonl") == [1, 2, 3, 4]
    run_id = (folder / "wandb-id").read_text().strip()
    for found, expected in ((first, [1, 2, 3]), (second, [4])):
        (run, *_) = [r.run for r in found if r.HasField("run")]
        assert (run.run_id, run.project, run.display_name) == (run_id, "grpo-browser", "my-run")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert (config["seed"], config["task"]) == (3, ["click-test"])
        seen = {}
        for record in found:
            if record.HasField("history"):
                seen[record.history.step.num] = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
        assert [(step, line["reward"]) for step, line in seen.items()] == [
            (step, step / 10) for step in expected
        ]
        assert all(line["clip_ratio/low"] == 0 for line in seen.values())
        assert [step for step, line in seen.items() if "completions/path" in line] == (
            [1, 3] if 1 in expected else []
        )
    table, _ = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    table = json.loads(table.read_text())
    assert table["columns"] == ["task", "seed", "goal", "completions", "reward", "advantages"]
    assert table["data"][0] == ["click-button", 0, "Click it.", "click('20')", 1.0, "+1.00"]
    assert not (folder / "tensorboard").exists()

    write([1])  # a new run in the folder has its own id
    assert (folder / "wandb-id").read_text().strip() != run_id


def test_wandb_that_cannot_start_is_an_error_at_the_start(tmp_path, wandb_env, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def failure():
        with pytest.raises(ConfigError) as error:
            MetricsLog(tmp_path / "run", config=Config(logger="wandb"))
        assert "\n" not in str(error.value)
        return str(error.value)

    monkeypatch.setenv("WANDB_MODE", "sometimes")
    assert "W&B does not start: 1 validation error for Settings mode" in failure()
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "W&B does not start: No API key configured" in failure()
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert failure() == "logger=wandb needs wandb: install the extra 'wandb'"


def test_a_failure_of_wandb_while_training_is_a_warning(tmp_path, played, wandb_env, monkeypatch):
    log = MetricsLog(tmp_path, config=Config(logger="wandb"))
    log._dashboard._run.finish()  # from here on the real package refuses to log
    with pytest.warns(UserWarning, match="W&B failed: .*finished"):
        log.log(1, {"reward": 0.5})
    with pytest.warns(UserWarning, match="W&B failed: "):
        log.completions(1, played, ADVANTAGES)
    log.close()
    assert steps(log.path) == [1]
    assert list(rows(tmp_path / "completions.txt")) == [1]


def test_a_file_in_the_place_of_tensorboards_folder_is_one_line(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / tmp_path.name).touch()
    with pytest.raises(
        ConfigError, match=r"cannot write TensorBoard's events to '.*': File exists"
    ):
        MetricsLog(tmp_path)


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="install the extra 'tensorboard'"):
        path = write(tmp_path, [1])
    assert steps(path) == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
