"""The state of a run: no step twice, no other run resumed, nothing lost with a fault."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from envs.base import EnvError
from envs.scripted import ScriptedEnv
from grpo.distributed import PeerError, World, _Fault
from grpo.files import begin_run, run_id
from grpo.generators.base import GeneratorError
from grpo.training.checkpoint import checkpoints
from tests.support.training import equal, parameters, run, saved

ROOT = Path(__file__).resolve().parents[3]
WORKS = {"valid_action_bonus": 0.5, "beta": 0.05}  # every step has a gradient


def state_of(trainer, step):
    path = trainer.config.folder / "checkpoints" / f"step-{step:06d}" / "trainer.pt"
    return torch.load(path)


async def test_a_sync_that_fails_costs_no_step_and_repeats_none(make_trainer, tmp_path):
    """The 4th one: four steps are logged, counted and saved; two more end with six updates."""
    trainer = make_trainer(steps=6, **WORKS)
    syncs, logged = [], []

    async def sync():
        syncs.append(trainer.step)
        if len(syncs) == 4:
            raise GeneratorError("the sampler is gone")

    trainer.generator.sync = sync

    async def train():
        async for step in trainer.train():
            logged.append(step.step)

    with pytest.raises(GeneratorError, match="the sampler is gone"):
        await train()
    assert syncs == logged == [1, 2, 3, 4]
    state = state_of(trainer, 4)
    assert (state["step"], state["version"], state["episodes"]) == (4, 4, 64)
    resumed = make_trainer(steps=6, resume=True, **WORKS)
    await run(resumed)
    assert (resumed.step, resumed.policy.version, resumed.episodes) == (6, 6, 96)
    whole = make_trainer(steps=6, output=str(tmp_path / "whole"), **WORKS)
    await run(whole)
    assert equal(parameters(whole), parameters(resumed))


async def test_a_step_is_saved_before_the_generator_has_its_policy(make_trainer):
    trainer = make_trainer(steps=2, save_every=1, **WORKS)
    seen = []

    async def sync():
        seen.append(saved(trainer)[-1])

    trainer.generator.sync = sync
    await run(trainer)
    assert seen == ["step-000001", "step-000002"]


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_passes_before_a_failing_one_are_a_step_that_is_not_repeated(
    make_trainer, tmp_path, failing
):
    """Of three passes: what they changed is saved with the step counted, or with nothing done."""
    trainer = make_trainer(steps=3, updates_per_batch=3, **WORKS)
    accumulate, passes = trainer.updater.accumulate, []

    def fail(batch):
        passes.append(batch)
        if len(passes) == 3 + failing:  # in the second step
            raise RuntimeError("can't allocate memory")
        return accumulate(batch)

    trainer.updater.accumulate = fail
    trainer.updater.with_oom_retry = lambda work, batch: work(batch)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        await run(trainer)
    step = 1 if failing == 1 else 2
    state = state_of(trainer, step)
    assert (state["step"], state["version"]) == (step, 3 + failing - 1)
    assert state["episodes"] == 16 * step
    assert saved(trainer) == [f"step-{step:06d}"]


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, OSError, EnvError])
async def test_any_error_saves_what_was_learned(make_trainer, kind):
    class Broken(ScriptedEnv):
        async def reset(self, task, **options):
            if trainer.step == 2:
                raise kind("of the environment")
            return await super().reset(task, **options)

    trainer = make_trainer(Broken, steps=9, save_every=0, **WORKS)
    with pytest.raises(kind):
        await run(trainer)
    assert saved(trainer) == ["step-000002"]


async def test_what_a_step_that_fails_has_played_is_not_counted(make_trainer):
    """Its episodes are played again by the resumed run; another rank may have failed, say."""
    trainer = make_trainer(steps=3, **WORKS)
    update = trainer.updater.update

    def fail(*args):
        if trainer.step == 2:
            raise PeerError("rank 1 has failed")
        return update(*args)

    trainer.updater.update = fail
    with pytest.raises(PeerError):
        await run(trainer)
    assert trainer.rollouts.counters["episodes"] == 48
    assert state_of(trainer, 2)["failures"] == {"episodes": 32}
    resumed = make_trainer(steps=3, resume=True, **WORKS)
    await run(resumed)
    assert state_of(resumed, 3)["failures"] == {"episodes": 48}


async def test_an_error_of_whoever_reads_the_steps_saves_them(make_trainer):
    trainer = make_trainer(steps=9, save_every=0, **WORKS)
    steps = trainer.train()
    await anext(steps)
    await anext(steps)
    await steps.aclose()  # as `aclosing` does where the loop's body has failed
    assert saved(trainer) == ["step-000002"]


async def test_a_checkpoint_of_step_0_is_one_that_was_resumed(make_trainer, make_policy):
    """A fault in the first step, after a warm start say: its policy reaches the generator."""
    policy = make_policy(double=False)  # its adapter is not that of a new run
    trainer = make_trainer(lambda: ScriptedEnv(fail_at=1), steps=2, policy=policy, **WORKS)
    with pytest.raises(EnvError, match="no group of the step survived"):
        await run(trainer)
    assert saved(trainer) == ["step-000000"]
    resumed = make_trainer(steps=2, resume=True, **WORKS)
    assert (resumed.resumed, resumed.step) == (True, 0)
    assert equal(parameters(resumed), parameters(trainer))
    synced = []

    async def sync():
        synced.append(resumed.step)

    resumed.generator.sync = sync
    await run(resumed)
    assert synced == [0, 1, 2]
    assert not make_trainer(steps=2, output=f"{trainer.config.folder}-new", resume=True).resumed


async def test_a_new_run_that_was_killed_is_not_continued_as_the_old_one(make_trainer, caplog):
    old = make_trainer(steps=3, **WORKS)
    await run(old)
    new = make_trainer(steps=5, seed=0, **WORKS)
    steps = new.train()
    await anext(steps)  # killed before its first checkpoint
    assert saved(new) == ["step-000003"]
    assert new.saver.run == run_id(new.config.folder) != old.saver.run
    resumed = make_trainer(steps=5, resume=True, **WORKS)
    assert (resumed.resumed, resumed.step) == (False, 0)
    assert "step-000003 belongs to an earlier run" in caplog.text
    await run(resumed)
    manifest = resumed.config.folder / "checkpoints" / "step-000005" / "manifest.json"
    newest = resumed.saver.run
    assert json.loads(manifest.read_text())["run"] == newest == run_id(resumed.config.folder)
    again = make_trainer(steps=6, resume=True, **WORKS)
    assert (again.step, again.saver.run) == (5, newest)


async def test_a_replacement_that_cannot_be_played_costs_a_group(make_trainer, caplog):
    """Not the run: the step has others."""
    trainer = make_trainer(steps=2, max_resamples=2, valid_action_bonus=0.0)
    play, calls = trainer.rollouts.collect, []

    async def collect(tasks, *args, **options):
        calls.append(options["first"])
        if options["first"] >= 2:
            raise EnvError("no group of the step survived; the last error: it is gone")
        return await play(tasks, *args, **options)

    trainer.rollouts.collect = collect
    steps = await run(trainer)
    assert len(steps) == trainer.step == 2
    assert max(calls) >= 2
    assert "no group could be replaced" in caplog.text


class Peers(World):
    """Rank 0 of two; the other one gives `given` at its next exchanges."""

    def __init__(self, *given):
        super().__init__({})
        self.world_size, self.given, self.sent = 2, list(given), []

    def exchange(self, values, value):
        self.sent.append(value)
        values[0] = value
        values[1] = self.given.pop(0) if self.given else value


@pytest.fixture
def peers(monkeypatch):
    def make(*given):
        world = Peers(*given)
        monkeypatch.setattr(torch.distributed, "all_gather_object", world.exchange)
        return world

    return make


def test_a_rank_that_fails_tells_the_others(peers):
    world = peers()
    error = EnvError("the browser is gone")
    world.tell(error)
    world.tell(error)  # on its way out
    world.tell(PeerError("rank 1 has failed"))
    assert world.sent == [_Fault("EnvError: the browser is gone")]
    with pytest.raises(PeerError, match=r"^rank 1 has failed: EnvError: no browser$"):
        peers(_Fault("EnvError: no browser")).all_gather(3)


def test_a_rank_that_has_ended_is_one_line(monkeypatch):
    def closed(values, value):
        raise RuntimeError("[gloo/pair.cc] Connection closed\nby peer")

    monkeypatch.setattr(torch.distributed, "all_gather_object", closed)
    with pytest.raises(PeerError, match=r"^another rank has ended: .* Connection closed by peer$"):
        Peers().all_gather(3)


RANK_FAILS = """
import asyncio, os, sys
from envs.base import EnvError
from envs.scripted import ScriptedEnv
from grpo.cli import exit_code
from grpo.config import Config
from grpo.distributed import World
from grpo.training.checkpoint import checkpoints
from tests.support.scripted import SETTINGS, run
import torch

torch.set_num_threads(1)
rank, done = int(os.environ["RANK"]), []

class Env(ScriptedEnv):
    async def reset(self, task, **options):
        if rank == 1 and len(done) == 2:
            raise KeyError("of rank 1") if sys.argv[2] == "bug" else EnvError("of rank 1")
        return await super().reset(task, **options)

def program():
    config = Config(**SETTINGS, output=sys.argv[1], steps=9, save_every=0)
    asyncio.run(run(config, World(), env=Env, on_step=done.append))

code = exit_code(program)
print(f"rank {rank} ended with {code}", flush=True)
sys.stdout.flush()
os._exit(code)
"""


@pytest.mark.parametrize("kind", ["bug", "fault"])
def test_the_leader_saves_when_another_rank_fails(tmp_path, kind):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(RANK_FAILS))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(program), str(tmp_path / "run"), kind],
        cwd=ROOT, capture_output=True, text=True, timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    names = [path.name for path in checkpoints(tmp_path / "run")]
    if kind == "bug":
        assert names == ["step-000002"], done.stderr
        assert "error: rank 1 has failed: KeyError: 'of rank 1'" in done.stderr
        assert "rank 0 ended with 1" in done.stdout
    else:  # rank 1 has no group, rank 0 has: the step goes on
        assert names == ["step-000009"], done.stderr
        assert "rank 0 ended with 0" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_an_ignored_one_does_nothing(tmp_path, number):
    program = textwrap.dedent(f"""
        import asyncio, os, signal, sys
        from grpo.config import Config
        from grpo.distributed import World
        from grpo.shutdown import Stopped
        from tests.support.scripted import SETTINGS, run

        ignored = sys.argv[2] == "ignored"  # whatever this test was started with, e.g. by nohup
        signal.signal({int(number)}, signal.SIG_IGN if ignored else signal.SIG_DFL)

        def on_step(step):
            if step == 2:
                os.kill(os.getpid(), {int(number)})

        config = Config(**SETTINGS, output=sys.argv[1], steps=4, save_every=0)
        try:
            asyncio.run(run(config, World.single(), on_step=on_step))
        except Stopped as stopped:
            sys.exit(stopped.exit_code)
    """)
    for how, steps, code in (("handled", {2, 3}, 128 + number), ("ignored", {4}, 0)):
        folder = tmp_path / how
        command = [sys.executable, "-c", program, str(folder), how]
        done = subprocess.run(command, cwd=ROOT, timeout=120, check=False)
        assert done.returncode == code
        assert {int(path.name[5:]) for path in checkpoints(folder)} <= steps


def test_a_run_has_another_id_each_time(tmp_path):
    assert run_id(tmp_path) == ""
    assert begin_run(tmp_path) != begin_run(tmp_path) == run_id(tmp_path)
