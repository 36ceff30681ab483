import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from envs.base import EnvError, Observation, StepResult, Task, TaskError
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.generators.local import LocalGenerator
from grpo.rollouts.evaluation import random_agent
from grpo.rollouts.rollout import Rollouts, gather, model_agent, page_state, run_episode
from grpo.types import Completion

TASK, TWO = Task("click-word", 0), Task("click-two-words", 0)
NOTHING = Completion((1,), (2,), (-1.0,), 0, "stop")


async def solve(observation, seed):
    """Click the first word of the goal that is not clicked yet."""
    done = observation.messages[-1]["content"].rpartition("Done so far: ")[2]
    words = observation.goal.removeprefix("Click ").removesuffix(".").split(" and then ")
    for word in words:
        (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
        action = f"click('{line[1:3]}')"
        if action not in done:
            return action, NOTHING
    raise AssertionError("all words are clicked")


async def talk(observation, seed):
    return "hello", NOTHING


def failing(*fail_at):
    """A pool's factory: the k-th environment fails at its call fail_at[k], 0 for never."""
    left = list(fail_at)
    return lambda: ScriptedEnv(fail_at=left.pop(0) if left else 0)


def rollouts(factory=ScriptedEnv, act=solve, *, size=1, max_turns=3, **options):
    return Rollouts(EnvPool(factory, size), act, max_turns, **options)


async def test_an_episode():
    episode = await run_episode(ScriptedEnv(), TWO, solve, max_turns=5, seed=[0])
    assert (episode.reward, episode.success, episode.stop_reason) == (1.0, True, "done")
    assert [turn.valid_action for turn in episode.turns] == [True, True]
    assert episode.task == TWO
    assert episode.goal == (await ScriptedEnv().reset(TWO)).goal != ""


async def test_an_episode_ends_at_max_steps():
    episode = await run_episode(ScriptedEnv(), TASK, talk, max_turns=4, seed=[0])
    assert (episode.reward, episode.success, episode.stop_reason) == (0.0, False, "max_turns")
    assert [turn.valid_action for turn in episode.turns] == [False] * 4
    one = await run_episode(ScriptedEnv(), TWO, solve, max_turns=1, seed=[0])
    assert (len(one.turns), one.success, one.stop_reason) == (1, False, "max_turns")


async def test_valid_action_bonus():
    play = {"max_turns": 3, "seed": [0], "valid_action_bonus": 0.1}
    episode = await run_episode(ScriptedEnv(), TWO, solve, **play)
    assert episode.reward == pytest.approx(1.2)
    assert (await run_episode(ScriptedEnv(), TWO, talk, **play)).reward == 0.0


async def test_turns_have_their_own_rewards():
    async def talk_first(observation, seed):
        return await (solve if observation.error else talk)(observation, seed)

    play = {"max_turns": 3, "seed": [0], "valid_action_bonus": 0.1}
    episode = await run_episode(ScriptedEnv(), TASK, talk_first, **play)
    assert [turn.reward for turn in episode.turns] == [0.0, 1.1]
    episode = await run_episode(ScriptedEnv(), TWO, solve, **play)
    assert [turn.reward for turn in episode.turns] == [0.1, 1.1]
    assert episode.reward == sum(turn.reward for turn in episode.turns)


class Book(ScriptedEnv):
    """Two pages; "on" turns to the next one, behind the last one is the end."""

    async def reset(self, task, *, screenshot=False):
        self.page = 0
        return self.see()

    async def step(self, text):
        self.page += text == "on"
        return StepResult(self.see(), 0.0, done=self.page == 2)

    def see(self):
        return Observation(({"role": "user", "content": ""},), page=f"page {self.page}")


async def test_a_turns_state_is_the_page_that_it_answers_to():
    left, seen = ["stay", "on", "on"], []

    async def act(observation, seed):
        seen.append(page_state(observation))
        return left.pop(0), NOTHING

    episode = await run_episode(Book(), TASK, act, max_turns=5, seed=[0])
    assert [turn.state for turn in episode.turns] == seen
    assert seen[0] == seen[1] != seen[2]


def test_a_page_is_known_by_what_is_on_it():
    def seen(text, page="button 'OK' [12]", **other):
        return page_state(Observation(({"role": "user", "content": text},), page=page, **other))

    first = seen("Page: button 'OK' [12]", goal="Press OK.", url="http://one/")
    again = seen("Page: button 'OK' [12] Done so far: noop()", error="no", url="http://two/")
    assert first == again
    assert first != seen("Page: button 'OK' [12]", page="button 'OK' [13]")
    assert seen("one", page="") == seen("one", page="") != seen("two", page="")


async def test_every_turn_has_a_seed_of_its_own():
    seeds = []

    async def act(observation, seed):
        seeds.append(seed)
        return "hello", NOTHING

    for seed in ([0, 0], [0, 1], [0, 0]):
        await run_episode(ScriptedEnv(), TASK, act, max_turns=3, seed=seed)
    assert len(set(seeds)) == 6
    assert seeds[:3] == seeds[6:]


async def test_frames_are_what_was_seen_and_said():
    frames = []
    await run_episode(ScriptedEnv(), TWO, solve, max_turns=5, seed=[0], frames=frames)
    assert [bool(text) for _, text in frames] == [True, True, False]
    assert all(observation.page for observation, _ in frames)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
async def test_a_failure_is_retried_once(fail_at):
    seen = []
    play = rollouts(failing(fail_at), on_episode=seen.append)
    episode = await play.episode(TWO, [0])
    assert (episode.reward, len(episode.turns)) == (1.0, 2)
    assert play.counters == {"env_failures": 1, "episodes": 1}
    assert seen == [episode]
    assert play.pool.created == 2


async def test_a_retry_samples_what_the_first_try_did():
    seeds = []

    async def act(observation, seed):
        seeds.append(seed)
        return "hello", NOTHING

    await rollouts(failing(3), act, max_turns=2).episode(TASK, [4])
    assert seeds[:2] == seeds[2:]


async def test_two_failures_drop_the_episode():
    seen = []
    play = rollouts(failing(2, 2), on_episode=seen.append)
    assert await play.episode(TASK, [0]) is None
    assert play.counters == {"env_failures": 2, "episodes_dropped": 1}
    assert seen == [None]


async def test_a_group_goes_on_without_who_is_dropped():
    play = rollouts(failing(2, 0, 2))  # one session: the second try comes last, on the third
    group = await play.group(TASK, 3, [0])
    assert [episode.reward for episode in group.episodes] == [1.0, 1.0]  # and never a 0
    assert play.counters == {"env_failures": 2, "episodes_dropped": 1, "episodes": 2}


async def test_fewer_than_two_survivors_drop_the_group():
    # Two episodes fail, four end well on the third session, then the second tries of the two.
    play = rollouts(failing(1, 1, 0, 2, 1))
    groups = await play.collect([TASK, TWO], 3, [0])
    assert [group.task for group in groups] == [TWO]
    assert play.counters == {
        "env_failures": 4,
        "episodes_dropped": 2,
        "episodes": 4,
        "groups_dropped": 1,
    }


async def test_the_second_try_is_on_a_fresh_session():
    """A server that dies takes every idle session with it."""
    play = rollouts(size=4)
    async with AsyncExitStack() as leases:
        idle = [await leases.enter_async_context(play.pool.lease()) for _ in range(4)]
    for env in idle:
        await env.close()
    group = await play.group(TASK, 2, [0])
    assert [episode.reward for episode in group.episodes] == [1.0, 1.0]
    assert play.counters["episodes"] == 2
    assert play.counters["episodes_dropped"] == 0


async def test_a_pool_that_cannot_open_sessions():
    def refuse():
        raise EnvError("no server")

    play = rollouts(refuse)
    with pytest.raises(EnvError, match=r"no group of the step survived; .*: no server"):
        await play.collect([TASK], 2, [0])
    assert play.counters == {"env_failures": 4, "episodes_dropped": 2, "groups_dropped": 1}


async def test_an_unknown_task_is_no_failure_of_the_machinery():
    play = rollouts(size=4)
    with pytest.raises(TaskError, match="unknown task 'click-nothing'"):
        await play.collect([TASK, Task("click-nothing", 0)], 2, [0])
    assert play.counters["env_failures"] == 0


async def test_an_error_of_the_policy_is_raised_as_it_is():
    async def act(observation, seed):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await rollouts(act=act).collect([TASK], 2, [0])


async def test_the_first_error_cancels_the_rest():
    cancelled = []

    async def wait():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def fail():
        await asyncio.sleep(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await gather([wait(), fail(), wait()])
    assert cancelled == [True, True]
    assert await gather(asyncio.sleep(0, n) for n in range(3)) == [0, 1, 2]


class Slow:
    """Its step waits until someone allows it."""

    def __init__(self, allowed):
        self.allowed = allowed

    async def reset(self, task, *, screenshot=False):
        return Observation(({"role": "user", "content": ""},))

    async def step(self, text):
        await self.allowed.wait()
        return StepResult(await self.reset(TASK), 1.0, done=True, success=True)

    async def close(self):
        pass


async def test_a_slow_page_holds_nobody_up():
    allowed, finished = asyncio.Event(), asyncio.Event()
    made, seen = [], []

    def factory():
        made.append(Slow(allowed) if not made else ScriptedEnv())
        return made[-1]

    def on_episode(episode):
        seen.append(episode)
        if len(seen) == 3:
            finished.set()

    play = rollouts(factory, size=4, on_episode=on_episode, act=random_agent)
    group = asyncio.create_task(play.group(TASK, 4, [0]))
    await finished.wait()  # the other three, while the first one's step waits
    assert not group.done()
    allowed.set()
    assert len((await group).episodes) == 4
    assert seen[-1] is (await group).episodes[0]  # last to end, first in order


async def test_sampled_by_encodes_once_and_keeps_the_sampled_ids(make_policy):
    policy = make_policy()
    act = model_agent(LocalGenerator(policy, max_new_tokens=4), policy.tokenizer, temperature=1.0)
    observation = await ScriptedEnv().reset(Task("click-word", 7))
    stopped = Counter()
    for seed in range(40):
        text, completion = await act(observation, seed)
        prompt = policy.tokenizer.apply_chat_template(
            list(observation.messages), add_generation_prompt=True, return_dict=False
        )
        assert list(completion.prompt_ids) == prompt
        assert "<eos>" not in text
        words = policy.tokenizer.convert_ids_to_tokens(list(completion.completion_ids))
        assert text.split() == [word for word in words if word not in ("<eos>", "<unk>")]
        stopped[completion.finish_reason] += 1
    assert stopped["stop"] > 0


class Tokens:
    """One word, one token; the chat is its texts."""

    def apply_chat_template(self, messages, **_):
        return "\n".join(message["content"] for message in messages).split()

    def decode(self, ids, **_):
        return ""


class Reader:
    """Keeps the prompts that it is given."""

    def __init__(self):
        self.prompts = []

    async def generate(self, prompt_ids, **_):
        self.prompts.append(prompt_ids)
        return replace(NOTHING, prompt_ids=tuple(prompt_ids))


LINES = [f"link 'Item {i}' [{i}]" for i in range(40)]  # four words each
LONG = "\n".join(LINES)
HISTORY = "Done so far: click('3')\nError: nothing there"


def long_page():
    messages = [
        {"role": "system", "content": "click('id') fill('id', 'text')"},
        {"role": "user", "content": "Goal: a\nPage:\nlink 'Item 0' [0]"},  # a worked example
        {"role": "user", "content": f"Goal: Find it.\nPage:\n{LONG}\n{HISTORY}"},
    ]
    return Observation(messages=tuple(messages), goal="Find it.", page=LONG)


@pytest.mark.parametrize("limit", [200, 100, 57, 56, 55, 40, 25])
async def test_a_page_too_long_is_cut_between_elements(limit):
    reader, observation = Reader(), long_page()
    act = model_agent(reader, Tokens(), temperature=1.0, max_prompt_tokens=limit)
    _, completion = await act(observation, 0)
    (prompt,) = reader.prompts
    text = " ".join(prompt)
    whole = len(Tokens().apply_chat_template(observation.messages))
    if limit >= whole:
        assert (len(prompt), completion.lines_cut) == (whole, 0)
        return
    kept = 40 - completion.lines_cut
    assert limit - 3 <= len(prompt) <= limit or limit < 30  # one more element would not fit
    assert " ".join(LINES[:kept]) in text
    assert f"[{kept}]" not in text.split("Find")[1]
    assert f"({completion.lines_cut} more lines)" in text
    for part in (
        "fill('id', 'text')",
        "Goal: Find it.",
        "Done so far: click('3')",
        "nothing there",
    ):
        assert part in text


async def test_without_room_for_a_single_element_the_goal_stays():
    reader = Reader()
    act = model_agent(reader, Tokens(), temperature=1.0, max_prompt_tokens=1)
    _, completion = await act(long_page(), 0)
    assert completion.lines_cut == 40
    assert "Goal: Find it." in " ".join(reader.prompts[0])
    assert "Item 0' [0] Goal" in " ".join(reader.prompts[0])  # the worked example is whole


@pytest.mark.parametrize("page", ["", "not in the message"])
def test_a_page_that_cannot_be_cut_stays(page):
    observation = replace(long_page(), page=page)
    assert observation.cut(0) == observation


def test_cutting_keeps_what_comes_first():
    cut = long_page().cut(2)
    assert cut.page.splitlines() == [*LINES[:2], "(38 more lines)"]
    assert cut.messages[-1]["content"].startswith(f"Goal: Find it.\nPage:\n{cut.page}\nDone so far")
    assert cut.messages[:-1] == long_page().messages[:-1]
    assert long_page().cut(40) == long_page()
