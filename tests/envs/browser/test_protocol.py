"""BrowserEnv with OpenEnv's own wire format, and with servers that misbehave."""

import asyncio
import copy
import json
import re
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient
from openenv.core.env_server import Action, Environment, Observation, State, create_app
from websockets.asyncio.server import serve

from envs.base import EnvError, Task, TaskError
from envs.browser.element_ids import page_id
from envs.browser.env import BrowserEnv

CLICK = Task("click-test", 0)
CLICK_TREE = "RootWebArea 'Click Test Task', focused\n\t[13] button 'Click Me!'"
URL = "http://127.0.0.1:8888/miniwob/click-test.html"
FIXTURES = Path(__file__).parent / "fixtures"


# The models of OpenEnv's envs/browsergym_env/models.py, field by field (unchanged since 2025).


class UpstreamAction(Action):
    action_str: str


class UpstreamObservation(Observation):
    text: str = ""
    url: str = ""
    screenshot: list[list[list[int]]] | None = None
    goal: str = ""
    axtree_txt: str = ""
    pruned_html: str = ""
    error: str = ""
    last_action_error: bool = False


class UpstreamState(State):
    benchmark: str = ""
    task_name: str = ""
    task_id: str | None = None
    goal: str = ""
    current_url: str = ""
    max_steps: int | None = None
    cum_reward: float = 0.0


class UpstreamEnvironment(Environment):
    """Plays click-test as upstream's server does: the first click is half right, later ones solve.

    Its reward is BrowserGym's, 1 for half a reward of MiniWoB. `noop()` breaks it.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = UpstreamState()
        self._raw = 0.5

    def reset(self, seed=None, episode_id=None, task_name=None):
        self._state = UpstreamState(episode_id=episode_id, task_name=task_name, benchmark="miniwob")
        return self._observation(done=False, reward=0.0, raw=0)

    def step(self, action):
        self._state.step_count += 1
        if action.action_str == "noop()":  # upstream's response to an exception in BrowserGym
            return UpstreamObservation(
                goal="Click the button.", error="Target crashed", last_action_error=True, reward=0.0
            )
        raw, self._raw = self._raw, 1.0
        return self._observation(done=True, reward=1.0, raw=raw)

    @property
    def state(self):
        return self._state

    def _observation(self, done, reward, raw):
        return UpstreamObservation(
            text=CLICK_TREE,
            url=URL,
            screenshot=[[[255, 0, 0], [0, 255, 0]]],
            goal="Click the button.",
            axtree_txt=CLICK_TREE + "\n\t\tInlineTextBox 'Click Me!'",
            done=done,
            reward=reward,
            metadata={
                "browsergym_obs": {"goal": "Click the button.", "last_action_error": ""},
                "browsergym_info": {"task_info": {"RAW_REWARD_GLOBAL": raw}},
            },
        )


@pytest.fixture
async def upstream():
    """Yield the address of a server made by OpenEnv's own code from upstream's models."""
    app = create_app(
        UpstreamEnvironment, UpstreamAction, UpstreamObservation, max_concurrent_envs=4
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await serving


@asynccontextmanager
async def serving(handler):
    async with serve(handler, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def replaying(recording):
    """Yield the address of a server that gives the recorded responses to the recorded messages.

    A reset may have more options than the recorded one: servers ignore those they do not know.
    """
    exchanges = json.loads((FIXTURES / recording).read_text())["exchanges"]
    exchanges = [one for one in exchanges if one["sent"]["type"] != "state"]

    async def handler(connection):
        for exchange in exchanges:
            sent = json.loads(await connection.recv())
            sent["data"].pop("final_page", None)  # newer than the recordings
            assert sent == exchange["sent"]
            await connection.send(json.dumps(exchange["received"]))

    async with serving(handler) as url:
        yield url


async def test_openenv_0_10_as_recorded():
    task = Task("choose-list", 0)
    names = {bid: page_id(task, bid) for bid in ("13", "14", "18", "19")}
    async with replaying("openenv-0.10.json") as url:
        env = BrowserEnv(url)
        observation = await env.reset(task)
        assert observation.goal == "Select Ertha from the list and click Submit."
        assert observation.url == "http://127.0.0.1:8888/miniwob/choose-list.html"
        lines = observation.page.splitlines()
        assert lines[0] == f"combobox [{names['13']}], value='Ertha'"
        assert lines[1] == f"option 'Ertha' [{names['14']}], selected"
        assert lines[-1] == f"button 'Submit' [{names['19']}]"
        assert len(lines) == 7  # no InlineTextBox
        assert observation.screenshot is None

        result = await env.step(f"click({names['18']!r})")
        assert result.observation.error == "click failed: the element is not visible"
        assert (result.reward, result.done, result.valid_action) == (0.0, False, True)
        assert result.info == {"raw_reward": 0.0, "success_browsergym": False}
        result = await env.step(f"select_option({names['13']!r}, 'Ertha')")
        assert result.observation.error == ""
        result = await env.step(f"click({names['19']!r})")
        assert (result.reward, result.done, result.success) == (1.0, True, True)
        assert result.info == {"raw_reward": 1.0, "success_browsergym": True}

        with pytest.raises(TaskError, match=r"click-test"):
            await env.reset(Task("clik-test", 0))
        await env.close()


async def test_openenv_core_0_3_as_recorded():
    async with replaying("openenv-core-0.3.json") as url:
        env = BrowserEnv(url)
        with pytest.raises(TaskError, match=r"'click-button', got the page .*click-test\.html"):
            await env.reset(Task("click-button", 0))
        observation = await env.reset(CLICK, screenshot=True)
        button = page_id(CLICK, "13")
        assert observation.page == f"button 'Click Me!' [{button}]"
        assert observation.screenshot.startswith(b"\x89PNG")
        assert observation.screenshot[16:24] == (3).to_bytes(4) + (2).to_bytes(4)

        env._bids["10"] = "99"  # the recorded action names an element that does not exist
        result = await env.step("click('10')")
        assert result.observation.error == "the action failed"  # it gives no reason
        failed, solved = {"success_browsergym": False}, {"success_browsergym": True}
        assert (result.reward, result.done, result.info) == (0.0, False, failed)
        result = await env.step(f"click({button!r})")
        # It sends no raw reward: BrowserGym's verdict is all that is known.
        assert (result.reward, result.success, result.info) == (1.0, True, solved)
        await env.close()


async def test_upstreams_models_through_openenvs_server(upstream):
    env = BrowserEnv(upstream)
    observation = await env.reset(Task("miniwob.click-test", 3))
    assert len(observation.actions) == 1
    assert observation.screenshot is None  # nobody asked
    result = await env.step(observation.actions[0])
    assert (result.reward, result.done, result.success) == (0.0, True, False)  # half is not all
    assert result.info == {"raw_reward": 0.5, "success_browsergym": True}
    observation = await env.reset(CLICK, screenshot=True)
    assert observation.screenshot[:4] == b"\x89PNG"
    result = await env.step(observation.actions[0])
    assert (result.reward, result.success) == (1.0, True)
    assert result.acted_on == ()  # it sends no boxes
    with pytest.raises(TaskError, match="click-button"):
        await env.reset(Task("click-button", 0))
    await env.close()


async def test_an_exception_in_upstreams_step_is_not_a_reward_of_zero(upstream):
    env = BrowserEnv(upstream)
    await env.reset(CLICK)
    with pytest.raises(EnvError, match="no axtree_txt: Target crashed"):
        await env.step("noop()")
    with pytest.raises(EnvError, match="is dead"):
        await env.reset(CLICK)
    await env.close()


class UpstreamClient(EnvClient):
    """Upstream's client: the messages it sends, and the fields it reads."""

    def _step_payload(self, action):
        return {"action_str": action.action_str, "metadata": action.metadata}

    def _parse_result(self, payload):
        data = payload.get("observation", {})
        names = ("url", "goal", "axtree_txt", "error", "last_action_error", "metadata")
        observation = UpstreamObservation(
            **{name: data[name] for name in names if name in data},
            screenshot=data.get("screenshot"),
            done=payload.get("done", False),
            reward=payload.get("reward"),
        )
        return StepResult(observation, reward=payload.get("reward"), done=payload.get("done"))

    def _parse_state(self, payload):
        return UpstreamState(**payload)


@pytest.mark.browser
async def test_upstreams_client_drives_our_server(server):
    async with UpstreamClient(base_url=server.url) as client:
        result = await client.reset(seed=3, task_name="click-test")
        assert (result.reward, result.done) == (0.0, False)
        assert result.observation.goal == "Click the button."
        assert "button 'Click Me!'" in result.observation.axtree_txt
        state = await client.state()
        assert (state.task_name, state.seed, state.step_count) == ("click-test", 3, 0)
        result = await client.step(UpstreamAction(action_str="click('13')"))
        assert (result.reward, result.done) == (1.0, True)
        assert (await client.state()).step_count == 1


GOOD = {
    "observation": {
        "axtree_txt": CLICK_TREE,
        "goal": "Click the button.",
        "url": URL,
        "screenshot": None,
        "error": "",
        "last_action_error": False,
        "metadata": {},
    },
    "reward": 0.0,
    "done": False,
}
SLOW = "TimeoutError: Locator.click: Timeout 500ms exceeded.\nCall log:\n  - waiting for element"
REMOVED = object()


def changed(path, value):
    """Return the good response with one field changed or removed."""
    response = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = response
    for name in parents:
        place = place[name]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    return response


def responding(*responses):
    """Return a handler of connections that gives these responses in order."""

    async def handler(connection):
        for response in responses:
            await connection.recv()
            text = response if isinstance(response, str | bytes) else None
            data = {"type": "observation", "data": response}
            await connection.send(text or json.dumps(data))
        await connection.wait_closed()

    return handler


OTHER = {"axtree_txt": "RootWebArea 'One Stop Market'\n\t[7] link 'Tea'", "goal": "Find tea."}


@pytest.mark.parametrize("name", ["webarena.4", "4", "openended", "AddTodo"])
async def test_the_address_of_another_benchmarks_page_does_not_name_the_task(name):
    asked = []

    async def handler(connection):
        asked.append(json.loads(await connection.recv())["data"]["task_name"])
        response = copy.deepcopy(GOOD)
        response["observation"] |= OTHER | {"url": "http://shop.example.com:7770/tea.html"}
        await connection.send(json.dumps({"type": "observation", "data": response}))

    async with serving(handler) as url:
        env = BrowserEnv(url)
        observation = await env.reset(Task(name, 0))
        await env.close()
    assert observation.goal == "Find tea."
    assert asked == [name]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("webarena.4", URL),  # a server that has one task of MiniWoB's for every name
        ("clik-test", URL),
        ("click-test", "http://shop.example.com:7770/tea.html"),
        ("click-test", "http://shop.example.com:7770/"),
    ],
)
async def test_a_page_of_another_task_where_miniwob_is_one_of_the_two(name, address):
    async with serving(responding(changed("observation.url", address))) as url:
        env = BrowserEnv(url)
        with pytest.raises(TaskError, match=f"asked for task '{name}', got the page"):
            await env.reset(Task(name, 0))
        await env.close()


@pytest.mark.parametrize(
    "message",
    [
        "unknown task 'webarena.4': No module named 'browsergym.webarena'",
        "cannot make task 'NoAddress': TypeError: no start_url",
        "Failed to create BrowserGym environment 'browsergym/webarena.9999': Environment "
        "`webarena.9999` doesn't exist in namespace browsergym.",
    ],
)
async def test_a_task_that_the_server_does_not_have(message):
    async def handler(connection):
        await connection.recv()
        error = {"message": message, "code": "EXECUTION_ERROR"}
        await connection.send(json.dumps({"type": "error", "data": error}))

    async with serving(handler) as url:
        env = BrowserEnv(url)
        with pytest.raises(TaskError, match=re.escape(message)):
            await env.reset(Task("webarena.4", 0))
        await env.close()


async def fails_and_is_dead(env, call, message):
    with pytest.raises(EnvError, match=message):
        await call
    for dead in (env.reset(CLICK), env.step("noop()")):
        with pytest.raises(EnvError, match="is dead"):
            await dead
    await env.close()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("observation.axtree_txt", REMOVED, "no axtree_txt"),
        ("observation.axtree_txt", "", "no axtree_txt"),
        ("observation.axtree_txt", 7, "axtree_txt must be a str, got '7'"),
        ("observation.axtree_txt", "\t\t", "expected a line of an accessibility tree"),
        ("observation.axtree_txt", "[a_1] button 'x'", "bid must be letters and digits"),
        ("observation", REMOVED, "observation must be a dict, got 'None'"),
        ("observation.metadata", [1], "metadata must be a dict"),
        ("observation.metadata", {"browsergym_obs": {"last_action_error": SLOW}}, "too slow"),
        ("observation.metadata", {"names": [1]}, "names must be a dict"),
        ("observation.metadata", {"names": {"3": 7}}, "the name of 3 must be a str, got '7'"),
        ("observation.metadata", {"boxes": [1]}, "boxes must be a dict"),
        ("observation.metadata", {"boxes": {"3": 7}}, "the box of 3 must be a list, got '7'"),
        ("observation.metadata", {"boxes": {"3": [1, 2, 3]}}, "box of 3 must be 4 numbers, got 3"),
        ("observation.metadata", {"boxes": {"3": [1, 2, 3, "4"]}}, "must be a finite number"),
        ("observation.screenshot", "no base64", "base64|padding|characters"),
        ("observation.screenshot", [[1, 2], [3]], "inhomogeneous"),
        ("observation.screenshot", [[[1, 2, 300]]], "not a list of pixels"),
        ("observation.screenshot", [[1, 2], [3, 4]], r"must be \[H, W, 3\], got \[2, 2\]"),
        ("reward", REMOVED, "reward must be a finite number, got None"),
        ("reward", None, "reward must be a finite number, got None"),
        ("reward", float("nan"), "reward must be a finite number, got nan"),
        ("reward", "1.0", "reward must be a finite number, got '1.0'"),
        ("done", REMOVED, "done must be a bool"),
        ("done", "false", "done must be a bool"),
    ],
)
async def test_a_step_whose_response_is_not_an_outcome(path, value, message):
    async with serving(responding(GOOD, changed(path, value))) as url:
        env = BrowserEnv(url)
        await env.reset(CLICK, screenshot=True)
        await fails_and_is_dead(env, env.step("noop()"), message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("observation.axtree_txt", REMOVED, "no axtree_txt"),
        ("observation.goal", "", "no goal"),
        ("done", True, "over before its first action"),
    ],
)
async def test_a_reset_whose_response_starts_no_episode(path, value, message):
    async with serving(responding(changed(path, value))) as url:
        env = BrowserEnv(url)
        await fails_and_is_dead(env, env.reset(CLICK), message)


async def test_only_the_finished_page_may_be_left_out():
    finished = changed("done", True) | {"reward": 1.0}
    finished["observation"]["axtree_txt"] = ""
    ours = copy.deepcopy(finished)
    ours["observation"]["metadata"] = {"success": True, "raw_reward": 1.0}
    async with serving(responding(GOOD, ours)) as url:
        env = BrowserEnv(url)
        await env.reset(CLICK)
        result = await env.step("noop()")
        assert (result.reward, result.done, result.info["raw_reward"]) == (1.0, True, 1.0)
        assert result.observation.page == ""
        await env.close()
    for broken in (finished, ours | {"done": False}):
        async with serving(responding(GOOD, broken)) as url:
            env = BrowserEnv(url)
            await env.reset(CLICK)
            await fails_and_is_dead(env, env.step("noop()"), "no axtree_txt")


@pytest.mark.parametrize(
    ("metadata", "reward", "success", "by_browsergym"),
    [
        # A server that sends BrowserGym's verdict has decided what the whole task is.
        ({"success": False, "success_browsergym": True, "raw_reward": 0.8}, 0.0, False, True),
        ({"success": True, "success_browsergym": True, "raw_reward": 1.0}, 1.0, True, True),
        # One of ours before that verdict was sent: its success was BrowserGym's.
        ({"success": True, "raw_reward": 0.8}, 0.0, False, True),
        # A task of the user's own with the name of one of MiniWoB's.
        ({"success": True, "raw_reward": 0.8, "task_name": "click-test"}, 0.8, True, None),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
async def test_what_is_a_success(metadata, reward, success, by_browsergym, partial):
    sent = 1.0 if by_browsergym else 0.8
    last = changed("done", True) | {"reward": float(metadata["success"]) * sent}
    last["observation"]["metadata"] = metadata
    async with serving(responding(GOOD, last)) as url:
        env = BrowserEnv(url, partial_reward=partial)
        await env.reset(CLICK)
        result = await env.step("noop()")
        assert result.reward == (metadata["raw_reward"] if partial and by_browsergym else reward)
        assert (result.success, result.info.get("success_browsergym")) == (success, by_browsergym)
        await env.close()


async def test_a_reset_may_have_no_reward():
    async with serving(responding(changed("reward", None))) as url:
        env = BrowserEnv(url)
        assert (await env.reset(CLICK)).goal == "Click the button."
        await env.close()


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("\n  - click action done\n  - waiting for navigations", ""),
        ("\n  - <div> intercepts pointer events", "click failed: another element covers it"),
    ],
)
async def test_a_timeout_of_an_action_that_was_done_or_refused(log, error):
    metadata = {"browsergym_obs": {"last_action_error": SLOW + log}}
    async with serving(responding(GOOD, changed("observation.metadata", metadata))) as url:
        env = BrowserEnv(url)
        await env.reset(CLICK)
        assert (await env.step("noop()")).observation.error == error
        await env.close()


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("Bad Gateway", "its response is not JSON"),
        ('{"type": "observation", "data": {"rew', "its response is not JSON"),
        ("[1, 2]", "not an OpenEnv message"),
        ('{"type": "observation"}', "observation must be a dict"),
        ('{"type": "observation", "data": null}', "the response must be a dict"),
        ('{"type": "error", "data": {"message": "boom", "code": "EXECUTION_ERROR"}}', "boom"),
    ],
)
async def test_a_malformed_response(response, message):
    async with serving(responding(GOOD, response)) as url:
        env = BrowserEnv(url)
        await env.reset(CLICK)
        await fails_and_is_dead(env, env.step("noop()"), message)


async def test_a_late_response_is_never_taken_for_the_next_one():
    sessions, late = 0, asyncio.Event()

    async def handler(connection):
        nonlocal sessions
        sessions += 1
        for reward in (0.0, 1.0, 0.0):
            await connection.recv()
            if reward:
                await late.wait()
            response = {"type": "observation", "data": changed("reward", reward)}
            await connection.send(json.dumps(response))

    async with serving(handler) as url:
        env = BrowserEnv(url)
        await env.reset(CLICK)
        env.deadline_s = 0.2
        with pytest.raises(EnvError, match=r"no response within 0\.2 s"):
            await env.step("noop()")
        late.set()
        await asyncio.sleep(0.1)  # the response has been sent by now
        for call in (env.step("noop()"), env.reset(CLICK)):
            with pytest.raises(EnvError, match="is dead"):
                await call
        await env.close()
        assert sessions == 1


@pytest.mark.parametrize("when", ["before the step", "at the step"])
async def test_a_server_that_closes_in_the_middle_of_an_episode(when):
    sessions = 0

    async def handler(connection):
        nonlocal sessions
        sessions += 1
        await connection.recv()
        await connection.send(json.dumps({"type": "observation", "data": GOOD}))
        if when == "at the step":
            await connection.recv()

    async with serving(handler) as url:
        env = BrowserEnv(url)
        await env.reset(CLICK)
        await asyncio.sleep(0.05 if when == "before the step" else 0.0)
        await fails_and_is_dead(env, env.step("noop()"), "it closed the connection: .*1000")
        assert sessions == 1  # no new session, which would never have been reset
