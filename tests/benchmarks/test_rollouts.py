"""`benchmarks/rollouts.py` and `benchmarks/soak.py`: their counting, and short runs of both."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import rollouts, soak
from benchmarks.episodes import Episode, count, pss, windows
from benchmarks.rollouts import DEFAULTS, SERVER, TUNED, slope, summarize
from tests.support.processes import chromiums, freeze

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_window_begins_and_ends_with_episodes_of_its_session():
    ends = {0: (1.0, 2.0, 4.0, 6.0, 9.0), 1: (3.0, 5.0, 7.5)}
    episodes = [Episode(s, end, 1.0, reset=end, steps=(s, end)) for s in ends for end in ends[s]]
    # Every session has ended an episode at 3.0; windows begin there.
    assert windows(episodes, 2.0, 2) == {0: (4.0, 6.0), 1: (3.0, 5.0)}
    assert windows(episodes, 3.0, 2) == {0: (4.0, 9.0), 1: (3.0, 7.5)}
    assert windows(episodes, 5.0, 2) == {0: (4.0, 9.0)}
    assert windows(episodes, 2.0, 3) == {}
    counted = count(episodes, 3.0, 2)
    assert counted["rate"] == pytest.approx(2 / 5 + 2 / 4.5)
    assert sorted(counted["resets"]) == [5.0, 6.0, 7.5, 9.0]
    assert sorted(counted["steps"]) == [0, 0, 1, 1, 5.0, 6.0, 7.5, 9.0]
    assert (counted["wrong"], counted["lost"]) == (0, 0)


def test_sessions_that_end_together_count_in_full():
    # Ten sessions with episodes of 7 s that all end at nearly the same time.
    episodes = [Episode(s, 7 * n + 0.01 * s, 1.0) for n in range(1, 4) for s in range(10)]
    assert count(episodes, 5.0, 10)["rate"] == pytest.approx(10 / 7)


def test_wrong_and_lost_episodes_do_not_count_in_the_rate():
    rewards = (0.0, 1.0, None, 0.0, 1.0, None)
    counted = count([Episode(0, end, rewards[end], 0.5) for end in range(6)], 4.0, 1)
    assert counted["rate"] == 2 / 4
    assert counted["resets"] == [0.5, 0.5, 0.5]
    assert (counted["wrong"], counted["lost"]) == (2, 2)


def test_rounds_are_combined():
    def measured(rate, memory, wrong=0, lost=0):
        times = {"resets": [0.001 * i for i in range(101)], "steps": [rate]}
        return times | {"rate": rate, "memory": memory, "wrong": wrong, "lost": lost}

    result = summarize(
        {
            ("login-user", DEFAULTS, 1): [measured(r, 200) for r in (0.5, 0.6, 0.1)],
            ("login-user", TUNED, 1): [measured(1.0, 200, wrong=2)],
            ("login-user", SERVER, 1): [measured(2.0, 300)],
            ("login-user", SERVER, 4): [measured(5.0, 315, lost=1), measured(3.0, 325)],
        }
    )
    assert result["ratio_login_user"] == 4.0 / 0.5
    assert result["ratio_tuned_login_user"] == 4.0
    assert result["mb_per_session"] == pytest.approx(20 / 3)
    assert (result["wrong"], result["lost"]) == (2, 1)
    stock, *_, ours = result["points"]
    assert stock["rates"] == [0.5, 0.6, 0.1]
    assert (stock["reset_p50"], stock["reset_p95"]) == (pytest.approx(50), pytest.approx(95))
    assert stock["step_p50"] == 500
    assert (ours["sessions"], ours["rate"], ours["memory_mb"]) == (4, 4.0, 320)
    assert (ours["wrong"], ours["lost"]) == (0, 1)


def test_a_task_without_a_correct_episode_has_no_ratio():
    measured = {"rate": 0.0, "resets": [], "steps": [], "memory": 1.0, "wrong": 3, "lost": 0}
    result = summarize({("click-test", kind, 1): [measured] for kind in (DEFAULTS, TUNED, SERVER)})
    assert result["ratio_click_test"] is None
    assert result["points"][0]["reset_p95"] is None
    rollouts.show(result, workers=2)


def test_the_slope_of_memory():
    assert slope([(1, 10.0), (3, 14.0), (5, 18.0)]) == pytest.approx(2)
    assert slope([(1, 10.0), (1, 14.0)]) is None
    points = [(100, 9000.0), (500, 300.0), (1000, 302.0), (1500, 304.0)]
    assert soak.growth(points) == pytest.approx(4)  # MB per 1000 episodes after the warm-up
    assert soak.growth(points[:2]) is None


@linux
def test_memory_of_a_process():
    process = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(b'x' * 200_000_000); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    assert 200 < pss([process.pid]) < 260
    process.communicate(b"\n")
    assert pss([process.pid]) == 0


@linux
@pytest.mark.parametrize("end", ["timeout", "cancelled"])
async def test_a_frozen_process_resumes(end):
    process = subprocess.Popen(["sleep", "60"])

    def state():
        return Path(f"/proc/{process.pid}/stat").read_text().split()[2]

    task = asyncio.create_task(freeze(process.pid, 0.5 if end == "timeout" else 60))
    try:
        async with asyncio.timeout(10):
            while state() != "T":
                await asyncio.sleep(0.01)
            if end == "cancelled":
                task.cancel()
            await asyncio.wait([task])
        assert state() in ("S", "R")
    finally:
        process.kill()
        process.wait()


@linux
async def test_freeze_returns_when_the_process_is_killed():
    process = await asyncio.create_subprocess_exec("sleep", "60")
    task = asyncio.create_task(freeze(process.pid, 60))
    await asyncio.sleep(0.2)
    process.kill()
    await process.wait()
    async with asyncio.timeout(5):
        await task


@linux
def test_the_main_process_of_each_chromium():
    commands = (
        ("/lib/chromium", "--headless"),
        ("/lib/chromium", "--type=renderer"),
        ("/lib/chromium --type=zygote --headless",),
        ("python", "chromium"),
    )
    processes = [
        subprocess.Popen([name, "-c", "read line", *arguments], 0, "/bin/sh", subprocess.PIPE)
        for name, *arguments in commands
    ]
    pids = [process.pid for process in processes]
    assert chromiums(pids) == pids[:1]
    assert chromiums(pids, pages=True) == pids[1:2]
    for process in processes:
        process.communicate(b"\n")
    assert chromiums([processes[0].pid]) == []


@pytest.mark.browser
def test_a_short_benchmark(capsys):
    options = "--tasks click-test --sessions 2 --seconds 1 --rounds 1 --json"
    rollouts.main(options.split())
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["wrong"], result["lost"]) == (0, 0)
    assert result["ratio_click_test"] > 1
    kinds = [(point["kind"], point["sessions"]) for point in result["points"]]
    assert kinds == [(DEFAULTS, 1), (TUNED, 1), (SERVER, 2)]
    for point in result["points"]:
        assert point["rate"] > 0
        assert point["reset_p50"] > 0
        assert point["step_p50"] > 0
        assert point["memory_mb"] > 50


@pytest.mark.browser
def test_a_short_soak(capsys):
    options = "--sessions 3 --episodes 12 --every 4 --tasks click-test login-user --json"
    assert soak.main(options.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["episodes"] == 12
    assert (result["lost"], result["dropped"], result["wrong"]) == (0, 0, [])
    assert [episodes for episodes, _ in result["memory_mb"]] == [4, 8, 12]
    assert 0 < result["longest_call_s"] <= result["longest_attempt_s"]
    assert result["processes_left"] == 0


@pytest.mark.browser
def test_a_short_soak_with_faults(capsys):
    options = "--sessions 2 --workers 1 --episodes 80 --tasks click-test --json"
    options += " --gap 1 --faults kill-browser cut-connection"
    assert soak.main(options.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["faults"]
    assert result["lost"] > 0
    assert result["episodes"] + result["dropped"] == 80
    assert (result["wrong"], result["late"], result["processes_left"]) == ([], 0, 0)
