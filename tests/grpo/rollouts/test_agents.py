"""Agents: messages become tokens, tokens become text; oracle, random and blind agents."""

import threading
from collections import Counter
from dataclasses import replace

import pytest

from envs.base import Observation, Task, TaskError
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.generators.local import LocalGenerator
from grpo.model.chat import ChatTemplate
from grpo.rollouts.agents import (
    LONG_PAGE,
    blind_agent,
    model_agent,
    oracle_agent,
    random_agent,
    read_prompt,
)
from grpo.rollouts.evaluation import Success, evaluate
from grpo.rollouts.rollout import Rollouts
from grpo.types import Completion

NOTHING = Completion((1,), (2,), (-1.0,), 0, "stop")
NO_ENV = None  # only an oracle looks at the environment


async def test_a_model_agent_encodes_once_and_keeps_the_sampled_ids(make_policy):
    policy = make_policy()
    agent = model_agent(LocalGenerator(policy, max_new_tokens=4), policy.chat, temperature=1.0)
    env = ScriptedEnv()
    observation = await env.reset(Task("click-word", 7))
    stopped = Counter()
    for seed in range(40):
        text, completion = await agent(observation, seed, env)
        prompt = policy.tokenizer.apply_chat_template(
            list(observation.messages), add_generation_prompt=True, return_dict=False
        )
        assert list(completion.prompt_ids) == prompt
        words = policy.tokenizer.convert_ids_to_tokens(list(completion.completion_ids))
        assert text.split() == (words[:-1] if completion.finish_reason == "stop" else words)
        stopped[completion.finish_reason] += 1
    assert stopped["stop"] > 0


class Words:
    """A chat template: its texts, one token per word."""

    def prompt(self, messages):
        return "\n".join(message["content"] for message in messages).split()

    def read(self, completion):
        return ""


class Reader:
    """A generator that keeps the prompts that it is given."""

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
async def test_a_long_page_is_cut_between_elements(limit):
    reader, observation = Reader(), long_page()
    agent = model_agent(reader, Words(), temperature=1.0, max_prompt_tokens=limit)
    _, completion = await agent(observation, 0, NO_ENV)
    (prompt,) = reader.prompts
    text = " ".join(prompt)
    whole = len(Words().prompt(observation.messages))
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


async def test_without_space_for_a_single_element_the_goal_stays():
    reader = Reader()
    agent = model_agent(reader, Words(), temperature=1.0, max_prompt_tokens=1)
    _, completion = await agent(long_page(), 0, NO_ENV)
    assert completion.lines_cut == 40
    assert "Goal: Find it." in " ".join(reader.prompts[0])
    assert "Item 0' [0] Goal" in " ".join(reader.prompts[0])  # the worked example is whole


@pytest.mark.parametrize("page", ["", "not in the message"])
def test_a_page_that_cannot_be_cut_stays(page):
    observation = replace(long_page(), page=page)
    assert observation.cut(0) == observation


def test_cutting_keeps_the_first_lines():
    cut = long_page().cut(2)
    assert cut.page.splitlines() == [*LINES[:2], "(38 more lines)"]
    assert cut.messages[-1]["content"].startswith(f"Goal: Find it.\nPage:\n{cut.page}\nDone so far")
    assert cut.messages[:-1] == long_page().messages[:-1]
    assert long_page().cut(40) == long_page()


def test_read_prompt_counts_the_lines_left_out():
    ids, lines_cut = read_prompt(long_page(), Words())
    assert (len(ids), lines_cut) == (len(Words().prompt(long_page().messages)), 0)
    ids, lines_cut = read_prompt(long_page(), Words(), 100)
    assert len(ids) <= 100
    assert f"({lines_cut} more lines)" in " ".join(ids)


def with_actions(*actions):
    return Observation((), actions=actions)


async def test_the_random_agent_is_uniform():
    actions = [f"click('{i}')" for i in range(5)]
    page = with_actions(*actions)
    counts = Counter([(await random_agent(page, seed, NO_ENV))[0] for seed in range(5000)])
    assert set(counts) == set(actions)
    # Hoeffding and a union of ten tails: a share is 0.043 off with probability 1e-7 at most.
    assert max(abs(count / 5000 - 1 / 5) for count in counts.values()) < 0.043


async def test_the_random_agent_needs_no_tokens():
    text, completion = await random_agent(with_actions(), 0, NO_ENV)
    assert text == "noop()"
    assert completion.completion_ids == ()
    page = with_actions("a", "b")
    assert await random_agent(page, 3, NO_ENV) == await random_agent(page, 3, NO_ENV)


async def test_the_blind_agent_sees_everything_but_the_page():
    seen = []

    async def act(observation, seed, env):
        seen.append((observation, seed, env))
        return "noop()", NOTHING

    env = ScriptedEnv()
    observation = await env.reset(Task("click-word", 7))
    assert await blind_agent(act)(observation, 3, env) == ("noop()", NOTHING)
    ((hidden, seed, same_env),) = seen
    assert (hidden.page, seed, same_env) == ("(hidden)", 3, env)
    assert hidden.messages[-1]["content"] == f"Goal: {observation.goal}\nPage:\n(hidden)"


async def test_a_page_that_cannot_be_hidden():
    observation = Observation(({"role": "user", "content": "nothing here"},), page="button")
    with pytest.raises(TaskError, match="does not hold the page"):
        await blind_agent(random_agent)(observation, 0, NO_ENV)


async def test_the_oracle_solves_what_is_demonstrated():
    tasks = [Task(name, seed) for seed in range(5) for name in ("click-word", "click-two-words")]
    rollouts = Rollouts(EnvPool(ScriptedEnv, 4), oracle_agent(), 2)
    outcomes = (await evaluate({"sampled": rollouts}, tasks))["sampled"]
    assert Success.of(outcomes).solved == 10
    turns = {(outcome.task.name, outcome.turns) for outcome in outcomes}
    assert turns == {("click-word", 1), ("click-two-words", 2)}


async def test_the_tokens_of_a_demonstration(tokenizer):
    env = ScriptedEnv()
    observation = await env.reset(Task("click-word", 7))
    chat = ChatTemplate(tokenizer)
    text, completion = await oracle_agent(chat)(observation, 0, env)
    assert text == env.demonstrate() != ""
    prompt, _ = read_prompt(observation, chat)
    assert list(completion.prompt_ids) == prompt
    assert tokenizer.decode(completion.completion_ids[:-1]) == text
    assert completion.completion_ids[-1] == tokenizer.eos_token_id
    assert len(completion.logprobs) == len(completion.completion_ids)
    agent = oracle_agent(chat, max_prompt_tokens=30)
    _, shorter = await agent(observation, 0, env)
    assert len(shorter.prompt_ids) < len(prompt)
    assert (await oracle_agent()(observation, 0, env))[1].completion_ids == ()


async def test_the_oracle_of_an_environment_without_demonstrations():
    class Silent:
        """Not a `Demonstrator`."""

    class Ended(ScriptedEnv):
        def demonstrate(self):
            return ""

    for env in (Silent(), Ended()):
        text, completion = await oracle_agent()(with_actions("a"), 0, env)
        assert (text, completion.completion_ids) == ("noop()", ())


@pytest.mark.parametrize(("characters", "in_thread"), [(1_000, False), (LONG_PAGE + 1, True)])
async def test_a_long_page_is_tokenized_in_a_thread(characters, in_thread):
    threads = []

    class Chat:
        def prompt(self, messages):
            threads.append(threading.current_thread())
            return [1]

        def read(self, completion):
            return ""

    class Nothing:
        async def generate(self, *args, **options):
            return NOTHING

    page = "x" * characters
    observation = Observation(({"role": "user", "content": page},), page=page)
    await model_agent(Nothing(), Chat(), temperature=1.0)(observation, 0, NO_ENV)
    assert (threads[0] is not threading.main_thread()) is in_thread
