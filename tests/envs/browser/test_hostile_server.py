"""The client of servers that send anything: an outcome or one EnvError, soon, and never more."""

import asyncio
import base64
import copy
import io
import json
import math
import os
import threading
import time
import zlib
from itertools import product

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from websockets.asyncio.server import serve

import envs.browser.connection
import envs.browser.env
from envs.base import EnvError, Observation, Task, TaskError
from envs.browser.actions import parse_action
from envs.browser.connection import client_class
from envs.browser.env import BrowserEnv
from envs.browser.limits import (
    MAX_ACTIONS,
    MAX_FRAMES,
    MAX_GOAL,
    MAX_LINE,
    MAX_LINES,
    MAX_PAGE,
    MAX_RESPONSE,
)
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.page_text import simplify_axtree
from envs.browser.prompts import ActionPrompt

CLICK = Task("click-test", 0)
ROLES = ("button", "text", "textbox", "link", "radio", "option", "checkbox", "cell", "spinbutton")
TAB = "\t"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1000"))  # 5000 take half a minute
CPU_S = 3.0  # of the processor, which a busy machine makes up to three times slower
client_class()  # imports OpenEnv, which takes seconds
GOOD = {
    "observation": {
        "axtree_txt": "RootWebArea 'Click Test Task', focused\n\t[13] button 'Click Me!'",
        "goal": "Click the button.",
        "url": "file:///miniwob/click-test.html",
        "screenshot": None,
        "error": "",
        "last_action_error": False,
        "metadata": {},
    },
    "reward": 0.0,
    "done": False,
}


def png(width=3, height=2):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


class Socket:
    """A WebSocket that receives these texts."""

    def __init__(self, *texts):
        self.texts = list(texts)

    async def send(self, text):
        text.encode()

    async def recv(self):
        return self.texts.pop(0)

    async def close(self):
        pass


def text_of(response):
    return json.dumps({"type": "observation", "data": response})


def check_clean(text, lines=True):
    text.encode()  # no surrogates
    assert not [c for c in text if ord(c) < 32 and c not in "\n\t"]
    assert lines or len(text.splitlines()) <= 1


async def play(monkeypatch, *texts, task=CLICK, screenshot=True):
    """Reset, step and ask the solver over these responses; return the result or the one error."""

    async def open_socket(*args):
        return Socket(*texts)

    monkeypatch.setattr(envs.browser.connection, "_open_socket", open_socket)
    env = BrowserEnv("http://127.0.0.1:1")
    start, outcome = time.process_time(), None
    try:
        outcome = await env.reset(task, screenshot=screenshot)
        env.demonstrate()
        for _ in texts[1:]:
            outcome = await env.step("noop()")
            env.demonstrate()
    except (EnvError, TaskError) as error:
        outcome = error
    spent = time.process_time() - start
    assert spent < CPU_S, f"{spent:.2f} s"
    if isinstance(outcome, Exception):
        check_clean(str(outcome), lines=False)
        assert len(str(outcome)) < 500
    else:
        check_outcome(outcome)
    await env.close()
    return outcome


def check_outcome(outcome):
    observation = getattr(outcome, "observation", outcome)
    for text in (observation.goal, observation.page, observation.url, observation.error):
        check_clean(text)
    for text in (*observation.actions, *(m["content"] for m in observation.messages)):
        check_clean(text)
    assert len(observation.actions) <= MAX_ACTIONS
    if observation is not outcome:
        assert type(outcome.reward) is float
        assert math.isfinite(outcome.reward**2)
        assert type(outcome.done) is bool


# Pieces of trees, numbers and names that have been trouble, and mixtures of them.
PIECES = (
    *("'", '"', "\\", "[", "]", "=", ",", "\t", "\n", "\r\n", "\0", "\x1b[31m", "\u2028", "\x85"),
    *("\ud800", "\\ud800", "\\x00", "\\x", "\\u12", "\\U00110000", "\\N{DASH}", "a", "9", "é", " "),
    *(
        "[13] ",
        "[123456] ",
        "[12345678901] ",
        "[007] ",
        "[a1] ",
        "StaticText ",
        "textbox ",
        "value=",
    ),
    *("button ", "checked='true'", "TimeoutError: ", "bid '13'", "<|im_end|>", "InlineTextBox"),
)
pieces = st.sampled_from(PIECES)
repeated = st.builds(lambda piece, n: piece * n, pieces, st.sampled_from([1, 2, 300, 20_000]))
texts = st.lists(pieces | repeated, max_size=8).map("".join) | st.text(max_size=30)
good_ids = st.integers(0, 10**11 - 1).map(str) | st.sampled_from(["", "a", "b7", "cD99"])
ids = good_ids | good_ids | good_ids | st.from_regex(r"[a-zA-Z]{0,2}[0-9]{0,12}", fullmatch=True)
lines = st.builds(
    lambda tabs, bid, role, name, rest: f"{tabs * chr(9)}{bid and f'[{bid}] '}{role} {name}{rest}",
    st.sampled_from([0, 1, 2, 40]),
    ids,
    st.sampled_from(["button", "StaticText", "generic", "textbox", "RootWebArea"]) | pieces,
    texts.map(repr) | texts,
    st.sampled_from(["", ", value='x'", ", checked='true'"]) | texts,
)


def tree(lines, count):
    length = sum(map(len, lines)) or 1
    return "\n".join(lines * min(count, 1 + MAX_PAGE // length))


trees = st.builds(tree, st.lists(lines, max_size=6), st.sampled_from([1, 1, 2_000]))
numbers = st.sampled_from([0, 1.0, -0.0, 1e308, 10**400, -(10**400), 2**63, math.nan, math.inf])
numbers |= st.integers() | st.floats()
scalars = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(pieces, inner, max_size=4),
    max_leaves=8,
)
boxes = st.dictionaries(ids, st.lists(numbers, min_size=3, max_size=5), max_size=3)
screenshots = st.sampled_from(
    [
        *(base64.b64encode(data).decode() for data in (png(), png()[:-9], b"GIF", b"")),
        *([[[1, 2, 3]]], [[[1, 2, 256]]], [[[math.nan] * 3]], [[["x"] * 3]], [[1]], [], [[[]]]),
    ]
)
FIELDS = {
    ("observation", "axtree_txt"): trees,
    ("observation", "goal"): texts,
    ("observation", "url"): texts,
    ("observation", "screenshot"): screenshots,
    ("observation", "error"): texts,
    ("observation", "last_action_error"): texts,
    ("observation", "metadata"): st.fixed_dictionaries(
        {},
        optional={
            "boxes": boxes | anything,
            "raw_reward": numbers,
            "success": anything,
            "success_browsergym": anything,
            "browsergym_obs": st.dictionaries(st.just("last_action_error"), scalars) | anything,
            "browsergym_info": st.dictionaries(st.just("task_info"), anything),
        },
    ),
    ("observation",): anything,
    ("metadata",): anything,
    ("reward",): st.floats(-1, 1) | numbers,
    ("done",): st.booleans(),
}
MISSING = object()
odd = st.just(MISSING) | anything
changes = st.lists(
    st.sampled_from(list(FIELDS)).flatmap(
        lambda field: st.tuples(st.just(field), FIELDS[field] | FIELDS[field] | odd)
    ),
    max_size=2,
)


def changed(changes):
    response = copy.deepcopy(GOOD)
    for (*parents, last), value in changes:
        place = response
        for name in parents:
            place = place[name] if isinstance(place, dict) and name in place else None
        if isinstance(place, dict):
            place[last] = value
            if value is MISSING:
                del place[last]
    return response


responses = changes.map(changed).map(text_of)
broken = st.builds(lambda text, start, stop: text[start:-stop], responses, *[st.integers(1, 9)] * 2)
raw = st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, "NaN", "null", b"\xff\xfe"])
errors = anything.map(lambda data: json.dumps({"type": "error", "data": data}))
other = broken | raw | texts | st.binary(max_size=50) | errors | anything.map(json.dumps)
messages = st.integers(0, 4).flatmap(lambda n: responses if n else other)


def test_anything_ends_in_an_outcome_or_one_error(monkeypatch):
    seen = {"outcome": 0, "error": 0, "another task": 0}

    # The first response is a reset's and a step's in turn, so both readers see all of them.
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(messages, st.booleans(), st.sampled_from([CLICK, *(Task(n, 0) for n in SOLVERS)]))
    @example(text_of(changed([(("reward",), 1e308)])), False, CLICK)
    def check(text, is_reset, task):
        good = copy.deepcopy(GOOD)
        good["observation"]["url"] = f"file:///miniwob/{task.name}.html"
        before = [] if is_reset else [text_of(good)]
        outcome = asyncio.run(play(monkeypatch, *before, text, task=task))
        if isinstance(outcome, TaskError):
            seen["another task"] += 1
            assert is_reset or "unknown task" in text
        else:
            seen["error" if isinstance(outcome, EnvError) else "outcome"] += 1

    check()
    print(seen)
    assert min(seen.values()) > EXAMPLES / 100


def page(*lines):
    return changed([(("observation", "axtree_txt"), "RootWebArea 'T'\n" + "\n".join(lines))])


def goal(text):
    return changed([(("observation", "goal"), text)])


def field(name, value):
    return changed([((name,), value)])


def bomb():
    """Return a PNG of 30,000 x 30,000 pixels in a few hundred bytes."""
    header = b"\0\0\x75\x30" * 2 + b"\x08\x02\0\0\0"
    chunk = len(header).to_bytes(4) + b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + chunk + zlib.crc32(b"IHDR" + header).to_bytes(4)


def with_frames(count):
    letters = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(count)]
    return page(*(f"[{frame}9000] link 'a'" for frame in letters))


def screenshot(data):
    return changed([(("observation", "screenshot"), base64.b64encode(data).decode())])


def boxes_of(count):
    return field("metadata", {"boxes": {str(i): [0, 0, 1, 1] for i in range(count)}})


fields = page(*(f"[{i}] textbox" for i in range(9_999)))
fields["observation"]["goal"] = '"a"' * 5_000
nested = [f"{i * TAB}generic\n{(i + 1) * TAB}StaticText 'a'" for i in range(600)]

CASES = {  # name -> (response, words of the error; none if it is an outcome)
    "an id of 6 digits": (page("[123456] button 'a'"), ""),
    "an id of 11 digits": (page("[12345678901] button 'a'"), ""),
    "10,000 ids": (page(*(f"[{10**10 + i}] link 'a'" for i in range(MAX_LINES - 1))), ""),
    "an id of 12 digits": (page("[123456789012] link 'a'"), "at most 11 characters"),
    "an id of 1,000 digits": (page(f"[{'9' * 1000}] link 'a'"), "at most 11 characters"),
    "two forms of an id": (page("[7] link 'a'", "[07] link 'b'"), "got '07'"),
    "many frames": (with_frames(MAX_FRAMES), ""),
    "too many frames": (with_frames(MAX_FRAMES + 1), "at most 50 frames on a page, got 51"),
    "letters without a quote": (page("button " + "a" * 40_000), ""),
    "a line too long": (page("button " + "a" * MAX_LINE), "may have 50000 characters"),
    "quotes that do not close": (page("[1] button " + "a='" * 16_000), ""),
    "backslashes": (page("[1] button '" + "\\" * 40_000), ""),
    "tabs": (page(TAB * 40_000 + "x"), ""),
    "commas": (page("[1] button 'a'" + ", a" * 16_000), ""),
    "a large page": (page(*["[1] textbox '', value='" + "a" * 400 + "'"] * 1_100), ""),
    "texts in a deep page": (page(*nested), ""),
    "a long state before texts": (
        page("[1] textbox '', value='" + "a" * 49_000 + "'", *["StaticText 'a'"] * 9_990),
        "",
    ),
    "too many lines": (page(*["link 'a'"] * MAX_LINES), "may have 10000 lines, got 10001"),
    "too many characters": (page("a" * MAX_PAGE), "may have 500000 characters"),
    "quotes times fields": (fields, ""),
    "a long goal": (goal("a" * (MAX_GOAL + 1)), "may have 20000 characters"),
    "NUL in a name": (page("[1] button 'a\0b'"), ""),
    "a surrogate in a name": (page("[1] button 'a\ud800b'"), ""),
    "an escaped surrogate": (page("[1] button 'a\\ud800b'"), ""),
    "half an escape": (page("[1] button 'a\\x4'"), ""),
    "1e308": (field("reward", 1e308), "reward must be from -1e"),
    "NaN": (field("reward", math.nan), "must be a finite number, got nan"),
    "infinity": (field("reward", -math.inf), "must be a finite number, got -inf"),
    "400 digits": (field("reward", 10**400), "reward must be from -1e"),
    "true as a reward": (field("reward", True), "must be a finite number, got True"),
    "a list as a reward": (field("reward", [1]), "finite number, got a list of length 1"),
    "a raw reward of 1e308": (field("metadata", {"raw_reward": 1e308}), "raw_reward must be from"),
    "400 digits in a box": (
        field("metadata", {"boxes": {"13": [10**400, 0, 1, 1]}}),
        "the box of 13 must be from",
    ),
    "too many boxes": (boxes_of(MAX_LINES + 1), "10000 boxes"),
    "task_info is a list": (
        field("metadata", {"browsergym_info": {"task_info": [1]}}),
        "task_info must be a dict",
    ),
    "a cut screenshot": (screenshot(png(90, 90)[:-50]), "the screenshot is not a PNG"),
    "900 million pixels": (screenshot(bomb()), "the screenshot is not a PNG"),
    "many keys": (field("metadata", {str(i): 0 for i in range(290_000)}), ""),
    "many lists": (field("metadata", {"a": [[]] * 300_000}), ""),
    "too many keys": (field("metadata", {str(i): 0 for i in range(300_000)}), "300000 fields"),
    "too many lists": (field("metadata", {"a": [[]] * 1_000_000}), "may have 1000000 lists"),
}


@pytest.mark.parametrize("name", list(CASES))
async def test_a_response_that_has_been_trouble(monkeypatch, name):
    response, words = CASES[name]
    outcome = await play(monkeypatch, text_of(GOOD), text_of(response))
    if words:
        assert isinstance(outcome, EnvError)
        assert words in str(outcome)
    else:
        assert outcome.observation.messages


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "[" * 2**19: "its response is not JSON",
        '{"data":' * 2**18: "its response is not JSON",
        "9" * 2**20: "its response is not JSON",
        json.dumps({"type": "error", "data": {"message": "\x1b[2J\ud800\n" * 2**18}}): "\ufffd[2J",
        json.dumps(
            {"type": "error", "data": {"message": {"a": [[1]] * 2**18}}}
        ): "a dict of length 1",
        json.dumps({"type": "error", "data": [1]}): "a list of length 1",
    }.items(),
    ids=["lists", "dicts", "digits", "escapes", "an object", "a list"],
)
async def test_a_message_that_is_not_a_response(monkeypatch, text, words):
    outcome = await play(monkeypatch, text_of(GOOD), text)
    assert isinstance(outcome, EnvError)
    assert words in str(outcome)


async def test_an_unknown_task_is_one_short_line(monkeypatch):
    message = "unknown task '\x1b[31m" + "a" * 10_000
    text = json.dumps({"type": "error", "data": {"message": message, "code": "EXECUTION_ERROR"}})
    outcome = await play(monkeypatch, text)
    assert isinstance(outcome, TaskError)
    assert str(outcome).startswith("unknown task '\ufffd[31maaa")


async def test_a_message_over_the_limit():
    """Compressed, as it would arrive: 32 MB of one letter are a few kilobytes on the wire."""

    async def handler(connection):
        await connection.recv()
        await connection.send("a" * (MAX_RESPONSE + 1))

    async with serve(handler, "127.0.0.1", 0) as server:
        env = BrowserEnv(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(EnvError, match=r"it closed the connection: .*message too big"):
            await env.reset(CLICK)
        await env.close()


async def test_foreign_text_is_read_in_another_thread(monkeypatch):
    threads = set()

    def noting(module, name):
        function = getattr(module, name)

        def note(*args, **options):
            threads.add((name, threading.current_thread() is threading.main_thread()))
            return function(*args, **options)

        monkeypatch.setattr(module, name, note)

    for name in ("read_reset", "read_step", "simplify_axtree", "page_ids"):
        noting(envs.browser.env, name)
    noting(ActionPrompt, "messages")
    noting(envs.browser.connection, "read_message")
    await play(monkeypatch, text_of(GOOD), text_of(GOOD))
    assert len(threads) == 6
    assert not any(on_the_loop for _, on_the_loop in threads)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_solvers_on_hostile_pages(name):
    """A solver gives an action or gives up, in time that does not explode."""
    names = (
        "9" * 40_000,
        "1 + 1 = " * 5_000,
        "a" * 40_000,
        "$",
        "Book for $x",
        "January",
        "12h 3m",
    )
    lines = [f"[{i}] {role} {name!r}" for i, (role, name) in enumerate(product(ROLES, names))]
    many = [f"[{i}] {role} 'a'" for i, role in enumerate(ROLES * 700)]
    goals = (
        "Find in the click on their " * 700,
        "for movies directed by from year " * 600,
        "one-way flight from: to: on " * 700,
        "9" * 20_000,
        "99/99/9999 and 99:99 PM, the 1st radio, 5th, less than 9999, Select 0 with #aaaaaa",
        '"a" "b" "c"',
        "",
    )
    for elements in (simplify_axtree("\n".join(lines[:11])), simplify_axtree("\n".join(many))):
        for goal in goals:
            start = time.process_time()
            env = BrowserEnv("http://127.0.0.1:1")
            env._task, env._elements = Task(name, 0), elements
            env._observation = Observation((), goal=goal)
            action = env.demonstrate()
            assert time.process_time() - start < CPU_S
            assert action == "" or parse_action(action)
