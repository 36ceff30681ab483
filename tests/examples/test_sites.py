"""The sites in examples/sites: the apps by themselves, and their tasks on the browser server."""

import asyncio
import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright, expect

from envs.base import Task
from envs.browser.env import BrowserEnv
from envs.browser.server.chromium import find_chromium
from envs.browser.server.local import LocalServer
from envs.browser.task_file import TaskFile
from envs.browser.web_task import WebTask
from envs.demonstrations import read_demonstrations
from envs.pool import EnvPool
from envs.replay import SharingPool
from grpo.rollouts.demonstrations import replay
from grpo.rollouts.rollout import Rollouts
from tests.support.guess import guess

SITES = Path(__file__).resolve().parents[2] / "examples" / "sites"

DOCUMENTATION = (SITES.parents[1] / "docs" / "your-site.md").read_text()
TASK_FILES = re.findall(r"```python\n(.*?)```", DOCUMENTATION, re.DOTALL)

TASKS = [
    (site, name) for site in ("todo", "shop") for name in TaskFile(SITES / site / "tasks.py").tasks
]

ORDERS = [
    {"number": 204, "products": {"Chai": 2}, "date": "2027-03-04", "time": "Morning"},
    {"number": 317, "products": {"Matcha": 1}, "date": "2027-04-05", "time": "Evening"},
]

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def todo():
    """The address of the todo list."""
    handler = functools.partial(QuietHandler, directory=SITES / "todo/site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The address of a shop."""
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", "0", "--no-access-log"],
        cwd=SITES / "shop",
        env={"SHOP_DATABASE": str(tmp_path_factory.mktemp("shop") / "shop.db")},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = iter(process.stderr.readline, "")
    yield next(found[0] for line in log if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    process.terminate()
    process.communicate()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"]
        )
        yield browser
        await browser.close()


@pytest.fixture
def customer(browser, shop):
    """Return a function that opens the shop as a tenant, with a state."""

    async def open_shop(tenant, path="/", **state):
        context = await browser.new_context(base_url=shop)
        context.set_default_timeout(10_000)
        await context.add_cookies([{"name": "tenant", "value": tenant, "url": shop}])
        await context.request.put("/api/state", data=state, fail_on_status_code=True)
        page = await context.new_page()
        await page.goto(path)
        return page

    return open_shop


@pytest.fixture(scope="module")
def servers():
    """A browser server for each site's tasks."""
    servers = {
        site: LocalServer(workers=1, max_sessions=4, task_file=str(SITES / site / "tasks.py"))
        for site in ("todo", "shop")
    }
    yield servers
    for server in servers.values():
        server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def session(servers):
    """Return a function: a new session with the server of a site."""
    sessions = []

    async def connect(site):
        sessions.append(BrowserEnv(await servers[site].ensure()))
        return sessions[-1]

    yield connect
    for env in sessions:
        await env.close()


async def state_of(page):
    return await (await page.context.request.get("/api/state")).json()


def click(pattern, observation):
    """Return a click on the first element whose line matches."""
    line = re.search(rf"^{pattern} \[(\w+)\]", observation.page, re.MULTILINE)
    return f"click('{line[1]}')"


async def names_of_controls(page):
    """Return (role, name) of every control of a page, as its accessibility tree has them."""
    roles = "button|link|checkbox|textbox|searchbox|spinbutton|combobox"
    lines = (await page.locator("body").aria_snapshot()).splitlines()
    found = (re.match(rf'\s*- ({roles})\b(?: ("(?:[^"\\]|\\.)*"))?', line) for line in lines)
    return [(match[1], json.loads(match[2] or '""')) for match in found if match]


async def test_a_todo_list_is_kept(browser, todo):
    page = await browser.new_page()
    await page.goto(todo)
    for text in ("buy milk", "call Ann", "pay the rent"):
        await page.get_by_role("link", name="New todo").click()
        await page.get_by_label("Text").fill("  ")
        await page.get_by_label("Text").press("Enter")
        await page.get_by_label("Text").fill(text)
        await page.get_by_role("button", name="Add").click()
    await page.get_by_label("Mark call Ann as done").check()
    await page.get_by_label("Delete buy milk").click()
    kept = [{"text": "call Ann", "done": True}, {"text": "pay the rent", "done": False}]
    assert await page.evaluate("JSON.parse(localStorage.todos)") == kept
    await page.reload()
    await expect(page.get_by_label("Mark call Ann as done")).to_be_checked()
    assert await names_of_controls(page) == [
        ("link", "New todo"),
        ("checkbox", "Mark call Ann as done"),
        ("button", "Delete call Ann"),
        ("checkbox", "Mark pay the rent as done"),
        ("button", "Delete pay the rent"),
    ]


async def test_a_purchase_from_the_search_to_the_confirmation(customer):
    page = await customer("purchase")
    await page.get_by_role("searchbox", name="Search").fill("tea pot")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("link", name="Clay teapot").click()
    await page.get_by_role("button", name="Add to cart").click()
    await page.get_by_label("Amount of Clay teapot").fill("3")
    await page.get_by_role("button", name="Update").click()
    assert (await state_of(page))["cart"] == {"Clay teapot": 3}
    await page.get_by_role("link", name="Check out").click()
    await page.get_by_label("Date").fill("2027-05-14")
    await page.get_by_label("Time").select_option("Evening")
    await page.get_by_role("button", name="Place order").click()
    text = "Order 101 comes on Friday, 14 May 2027, in the evening."
    await expect(page.get_by_text(text)).to_be_visible()
    state = await state_of(page)
    order = {"number": 101, "products": {"Clay teapot": 3}, "date": "2027-05-14", "time": "Evening"}
    assert (state["cart"], state["orders"]) == ({}, [order])


async def test_an_order_without_a_date_or_a_time_is_not_placed(customer):
    page = await customer("undecided", "/checkout", cart={"Chai": 1})
    await page.get_by_label("Time").select_option("Morning")
    await page.get_by_role("button", name="Place order").click()
    await expect(page.get_by_role("alert")).to_have_text("Choose a date.")
    await expect(page.get_by_label("Time")).to_have_value("Morning")
    await page.get_by_label("Date").fill("2027-05-14")
    await page.get_by_label("Time").select_option("Choose")
    await page.get_by_role("button", name="Place order").click()
    await expect(page.get_by_role("alert")).to_have_text("Choose a time.")
    state = await state_of(page)
    assert (state["cart"], state["orders"]) == ({"Chai": 1}, [])


async def test_an_amount_that_cannot_be_is_refused(customer):
    page = await customer("amount", "/cart", cart={"Chai": 2})
    for amount in ("21", "-1", "", "1.5"):
        await page.goto("/cart")
        await page.get_by_label("Amount of Chai").fill(amount)
        await page.get_by_role("button", name="Update").click()
        await expect(page.get_by_role("alert")).to_have_text("An amount is a number from 0 to 20.")
        assert (await state_of(page))["cart"] == {"Chai": 2}


async def test_enter_in_an_amount_updates_the_cart(customer):
    page = await customer("enter", "/cart", cart={"Chai": 2, "Matcha": 1})
    await page.get_by_label("Amount of Matcha").fill("5")
    await page.get_by_label("Amount of Matcha").press("Enter")
    await expect(page.get_by_role("link", name="Cart (7)")).to_be_visible()
    assert (await state_of(page))["cart"] == {"Chai": 2, "Matcha": 5}


async def test_orders_are_shown_to_who_signs_in(customer):
    page = await customer(
        "orders", "/orders", email="ben@example.com", password="x1", orders=ORDERS
    )
    await page.get_by_label("Email").fill("ben@example.com")
    await page.get_by_label("Password").fill("x2")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_have_text("Email or password is wrong.")
    await page.context.request.post("/orders/cancel", form={"number": "204"})
    state = await state_of(page)
    assert (state["signed_in"], state["orders"]) == (False, ORDERS)
    await page.get_by_label("Password").fill("x1")
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("button", name="Cancel order 204").click()
    await expect(page.get_by_text("Order 204")).to_have_count(0)
    state = await state_of(page)
    assert (state["signed_in"], state["orders"]) == (True, ORDERS[1:])


async def test_tenants_do_not_see_each_other(customer):
    ann = await customer("ann", "/product/matcha", cart={"Chai": 1})
    ben = await customer("ben", shelf=["Rooibos"])
    await ann.get_by_role("button", name="Add to cart").click()
    assert (await state_of(ann))["cart"] == {"Chai": 1, "Matcha": 1}
    assert (await state_of(ben))["cart"] == {}
    await ben.reload()
    assert ("link", "Cart (0)") in await names_of_controls(ben)
    await ben.context.request.delete("/api/state")
    assert (await state_of(ann))["cart"] == {"Chai": 1, "Matcha": 1}


async def test_a_tenant_starts_anew(customer):
    await customer("old", cart={"Chai": 1}, orders=ORDERS, signed_in=True)
    state = await state_of(await customer("old"))
    assert (state["cart"], state["orders"], state["signed_in"]) == ({}, [], False)


async def test_every_control_of_the_shop_has_a_name_of_its_own(customer):
    cart = {"Chai": 1, "Clay teapot": 2}
    page = await customer("names", cart=cart, orders=ORDERS, signed_in=True)
    pages = {"/": 11, "/search?q=tea": 12, "/product/chai": 4, "/cart": 11, "/checkout": 6}
    pages |= {"/thanks/204": 4, "/orders": 5, "/sign-in": 5}
    for path, number in pages.items():
        await page.goto(path)
        controls = await names_of_controls(page)
        assert all(name for _, name in controls), path
        assert len(set(controls)) == len(controls) == number, path


@pytest.mark.parametrize(("site", "name"), TASKS)
async def test_the_demonstration_of_a_task_succeeds(session, site, name):
    env = await session(site)
    for seed in range(2):
        await env.reset(Task(name, seed))
        rewards = []
        while action := env.demonstrate():
            result = await env.step(action)
            assert not result.observation.error, action
            rewards.append(result.reward)
            if result.done:
                break
        assert (result.success, rewards) == (True, [0.0] * (len(rewards) - 1) + [1.0])


@pytest.mark.parametrize(
    ("site", "name", "wrong"),
    [
        ("todo", "CompleteTodo", "button 'Delete .*'"),
        ("todo", "DeleteTodo", "checkbox '.*'"),
        ("shop", "ChangeAmount", "button 'Remove .*'"),
    ],
)
async def test_a_wrong_change_ends_the_episode_without_success(session, site, name, wrong):
    env = await session(site)
    observation = await env.reset(Task(name, 0))
    result = await env.step(click(wrong, observation))
    assert (result.reward, result.done, result.success) == (0.0, True, False)


async def test_the_shop_s_recorded_demonstrations_succeed(servers):
    every = read_demonstrations(SITES / "shop/demonstrations.jsonl")
    assert Counter(each.task.name for each in every) == dict.fromkeys(
        ("AddToCart", "ChangeAmount", "SignIn", "OrderCart", "Buy"), 5
    )
    url = await servers["shop"].ensure()
    async with EnvPool(lambda: BrowserEnv(url), 4) as pool:
        replays = await asyncio.gather(*(replay(pool, each) for each in every[::5]))
    assert [(each.error, each.differs) for each in replays] == [("", 0)] * 5


async def test_the_wrong_text_ends_the_episode_without_success(session):
    env = await session("todo")
    await env.reset(Task("AddTodo", 0))
    result = await env.step(re.sub("', '.*'", "', 'buy'", env.demonstrate()))
    assert (result.reward, result.done) == (0.0, False)
    result = await env.step(env.demonstrate())
    assert (result.reward, result.done, result.success) == (0.0, True, False)


async def test_the_wrong_product_ends_the_episode_without_success(session):
    env = await session("shop")
    observation = await env.reset(Task("AddToCart", 0))
    goal = re.search('"(.*)"', observation.goal)[1]
    links = re.findall(r"link '(.*)' \[\w+\]\ntext '€", observation.page)
    assert len(links) == 6
    other = next(name for name in links if name != goal)
    result = await env.step(click(f"link '{other}'", observation))
    assert (result.reward, result.done) == (0.0, False)
    result = await env.step(click("button 'Add to cart'", result.observation))
    assert (result.reward, result.done, result.success) == (0.0, True, False)


async def test_a_page_off_the_path_has_no_demonstration(session):
    env = await session("shop")
    observation = await env.reset(Task("CancelOrder", 0))
    assert env.demonstrate()
    await env.step(click("link 'Cart .*'", observation))
    assert env.demonstrate() == ""


async def test_episodes_at_the_same_time_have_carts_of_their_own(session):
    ann, ben = await session("shop"), await session("shop")
    await ann.reset(Task("FindAndAdd", 0))
    await ben.reset(Task("FindAndAdd", 0))
    for _ in range(4):
        result = await ann.step(ann.demonstrate())
    assert result.success
    result = await ben.step("noop()")
    assert "link 'Cart (0)'" in result.observation.page


@pytest.mark.parametrize(
    ("site", "name"),
    [("todo", "AddTodo"), ("todo", "DeleteTodo"), ("shop", "AddToCart"), ("shop", "ChangeAmount")],
)
async def test_shared_episodes_are_those_that_are_not(servers, site, name):
    url, task = await servers[site].ensure(), Task(name, 5)
    async with EnvPool(lambda: BrowserEnv(url), 4) as pool:
        shared, alone = Rollouts(SharingPool(pool), guess, 3), Rollouts(pool, guess, 3)
        assert await shared.group(task, 6, [0]) == await alone.group(task, 6, [0])
        assert shared.pool.counters["replay_mismatches"] == 0
        assert shared.pool.counters["steps_shared"] > 0


async def test_the_task_files_of_the_documentation_are_valid(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("report.pdf", "photo.png"):
        (tmp_path / "data" / name).touch()
    tasks = {}
    for number, text in enumerate(TASK_FILES):
        path = tmp_path / f"tasks_{number}.py"
        path.write_text(text)
        tasks |= TaskFile(path).tasks
    assert {"Subscribe", "OnAnAppPerSession", "AddTodoHeldOut", "WithStorageState"} <= tasks.keys()


async def test_the_documentation_names_every_attribute_of_a_task():
    rows = "".join(re.findall(r"^\| (`.*?) \|", DOCUMENTATION, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) >= WebTask.__annotations__.keys()
