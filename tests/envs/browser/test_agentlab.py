"""AgentLab's traces are data: what has a counterpart is read, and nothing in a file is run."""

import gzip
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from envs.base import Task
from envs.browser import inert_pickle
from envs.browser.agentlab import read_trace, to_actions
from envs.browser.element_ids import page_id

TASK = Task("click-dialog", 14)


@pytest.fixture
def layout(monkeypatch):
    """AgentLab's classes, in modules that only exist while a trace is written.

    As in `agentlab.experiments.loop`, `agentlab.agents` and `browsergym.experiments.agent`.
    """

    def module(name, **fields_of):
        parts = name.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(parts[i - 1]))
        made = ModuleType(name)
        for class_name, names in fields_of.items():
            fields = [(each, object, field(default=None)) for each in names.split()]
            made.__dict__[class_name] = make_dataclass(class_name, fields)
            made.__dict__[class_name].__module__ = name
        monkeypatch.setitem(sys.modules, name, made)
        return made

    loop = module(
        "agentlab.experiments.loop",
        EnvArgs="task_name task_seed max_steps headless task_kwargs",
        ExpArgs="agent_args env_args exp_dir exp_name err_msg",
        StepInfo="step obs reward terminated truncated action agent_info stats profiling",
        StepTimestamps="env_start env_stop",
    )
    agents = module("agentlab.agents.generic_agent.generic_agent", GenericAgentArgs="agent_name")
    info = module("browsergym.experiments.agent", AgentInfo="think markup_page stats extra_info")

    def write(folder, steps, *, name="miniwob.click-dialog", seed=14, **options):
        folder.mkdir(parents=True)
        env = loop.EnvArgs(name, seed, max_steps=10, **options)
        agent = agents.GenericAgentArgs("GenericAgent-gpt-4o-mini")
        exp = loop.ExpArgs(agent, env, exp_dir=folder)
        (folder / "exp_args.pkl").write_bytes(pickle.dumps(exp))
        error = ""
        for i, (action, error_after, think) in enumerate([*steps, (None, "", None)]):
            obs = {
                "goal": "Close the dialog.", "last_action_error": error,
                "open_pages_urls": ("file:///a",), "elapsed_time": np.array([0.5]),
            }  # fmt: skip
            step = loop.StepInfo(
                i, obs, 1.0, action is None, False, action, info.AgentInfo(think, "", {}, {}),
                {}, loop.StepTimestamps(0.5, 1.5),
            )  # fmt: skip
            error = error_after
            with gzip.open(folder / f"step_{i}.pkl.gz", "wb") as file:
                pickle.dump(step, file)
        return folder

    return write


def test_a_trace_is_read(layout, tmp_path):
    steps = [
        ("click('20')", "", "Close it."),
        ("click('99')", "ValueError: no element 99", "Again."),
        ("fill(bid='a12', value='it\\'s')\nnoop(wait_ms=500)", "", "Write into bid 'a12'."),
        ("scroll(0, 100)", "", None),
    ]
    found = read_trace(layout(tmp_path / "one", steps))
    one, two = page_id(TASK, "20"), page_id(TASK, "a12")
    assert found.task == TASK
    assert (found.goal, found.source) == ("Close the dialog.", "GenericAgent-gpt-4o-mini")
    assert found.actions == (
        f"click('{one}')",
        f"fill('{two}', \"it's\")",
        "noop()",
        "scroll(0, 100)",
    )
    assert found.thoughts == ("Close it.", "", "", "")  # not what names BrowserGym's ids


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("click('1', button='left')", ["click"]),
        ("# press it\nclick('1')", ["click"]),
        ("select_option('1', ['blue'])", ["select_option"]),
        ("select_option(bid='1', options='blue')", ["select_option"]),
        ("drag_and_drop(from_bid='1', to_bid='2')", ["drag_and_drop"]),
        ("press('1', 'Control+a')\nclear('1')", ["press", "clear"]),
        ("fill('1', 'x', False)", ["fill"]),
    ],
)
def test_actions_with_a_counterpart(text, kinds):
    assert [each.partition("(")[0] for each in to_actions(text, TASK)] == kinds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mouse_click(3, 4)", "mouse_click has no counterpart"),
        ("send_msg_to_user('done')", "send_msg_to_user has no counterpart"),
        ("click('1', 'right')", "click with button='right' has no counterpart"),
        ("click('1', modifiers=['Shift'])", r"click with modifiers=\['Shift'\] has no counterpart"),
        ("fill('1', 'x', True)", "fill with enable_autocomplete_menu=True has no counterpart"),
        ("select_option('1', ['a', 'b'])", "select_option has other arguments: expected select"),
        ("click()", "click: expected bid, got no arguments"),
        ("noop(1, 2)", "noop: expected wait_ms, got 2 arguments"),
        ("fill('1')", "fill: expected bid, value"),
        ("click(f())", "click: expected plain arguments"),
        ("click('1', **{'a': 1})", "click with None={'a': 1} has no counterpart"),
        ("click('1'); x = 2", "expected actions such as"),
        ("os.system('true')", "expected actions such as"),
        ("I click.", "expected actions such as"),
        (7, "expected actions such as"),
        ("[" * 100_000, "expected actions such as"),
    ],
)
def test_actions_without_one_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        to_actions(text, TASK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "webarena.310"}, "expected a task of MiniWoB, got 'webarena.310'"),
        ({"name": "miniwob.../x"}, "expected a task of MiniWoB"),
        ({"seed": None}, "expected a task and its seed, got 'miniwob.click-dialog' and None"),
        ({"seed": -1}, "expected a task and its seed"),
        ({"task_kwargs": {"episode_max_time": 3}}, "the task has arguments"),
    ],
)
def test_episodes_without_a_counterpart(layout, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read_trace(layout(tmp_path / "one", [("noop()", "", None)], **options))


def test_folders_that_are_not_traces(layout, tmp_path):
    folder = layout(tmp_path / "one", [("noop()", "", None)])
    (folder / "step_0.pkl.gz").unlink()
    with pytest.raises(ValueError, match=r"expected step_0.pkl.gz and those after it, .* got 1"):
        read_trace(folder)
    with pytest.raises(ValueError, match="it has no action"):
        read_trace(layout(tmp_path / "two", []))
    with pytest.raises(OSError, match="No such file"):
        read_trace(tmp_path)


# Hostile files.


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@dataclass
class Loud:
    """Pickles as an instance, whose class Python would import."""

    file: str


def nested(depth):
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


def as_key(depth):
    """A dictionary whose key is nested tuples: hashing it overflows C's stack."""
    return b"\x80\x04}N" + b"\x85" * depth + b"Ns."


FILE = "/tmp/agentlab-test-was-run"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Call(os.system, f"touch {FILE}")), "it names posix.system"),
        (pickle.dumps(Call(eval, f"open('{FILE}', 'w')")), "it names builtins.eval"),
        (pickle.dumps(Call(exec, "1")), "it names builtins.exec"),
        (pickle.dumps(Call(getattr, [], "append")), "it names builtins.getattr"),
        (pickle.dumps(Call(subprocess.Popen, ["true"])), "it names subprocess.Popen"),
        (pickle.dumps(Call(__import__, "os")), "it names builtins.__import__"),
        (b"cos\nsystem\n(S'true'\ntR.", "it names os.system"),
        (b"(S'true'\nios\nsystem\n.", "it names os.system"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "is not data of a trace"),
        (b"\x80\x04Nr\xff\xff\xff\xff0N.", "expected a task and its seed"),  # a large memo index
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.", "is not data of a trace"),  # bytearray
        (b"\x80\x02Nc__main__\nX\n\x82\x01.", "is not data of a trace"),
        (b"Pperson\n.", "is not data of a trace"),
        (nested(1_000_000), "expected a task and its seed"),
        (as_key(1_000_000), "expected a task and its seed"),
        (b"", "is not data of a trace"),
        (b"\xff" * 100, "is not data of a trace"),
        (pickle.dumps(7), "expected a task and its seed"),
    ],
)
def test_a_pickle_is_not_run(tmp_path, data, message):
    Path(FILE).unlink(missing_ok=True)
    (tmp_path / "exp_args.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        read_trace(tmp_path)
    assert not Path(FILE).exists()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_step_is_not_run_either(layout, tmp_path):
    folder = layout(tmp_path / "one", [("noop()", "", None)])
    with gzip.open(folder / "step_0.pkl.gz", "wb") as file:
        pickle.dump(Call(os.system, "true"), file)
    with pytest.raises(ValueError, match=r"step_0.pkl.gz is not data .* posix.system"):
        read_trace(folder)
    (folder / "step_0.pkl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"step_0.pkl.gz is not packed with gzip, or cut off"):
        read_trace(folder)


def test_a_file_that_unpacks_to_gigabytes_is_not_unpacked(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_BYTES", 1_000_000)
    folder = layout(tmp_path / "one", [("noop()", "", None)])
    with gzip.open(folder / "step_0.pkl.gz", "wb") as file:
        for _ in range(100):
            file.write(bytes(1_000_000))
    with pytest.raises(ValueError, match=r"step_0.pkl.gz is larger than 1000000 bytes"):
        read_trace(folder)


def test_no_class_of_a_file_is_imported(tmp_path):
    (tmp_path / "exp_args.pkl").write_bytes(
        pickle.dumps(Loud("x")).replace(
            __name__.encode(), b"antigravity_".ljust(len(__name__), b"_")
        )
    )
    with pytest.raises(ValueError, match="expected a task and its seed"):
        read_trace(tmp_path)
