"""Secrets reach the page, and nothing else."""

import asyncio
import io
import re
import traceback
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from PIL import Image

from envs.base import EnvError, Task
from envs.browser.actions import parse_action
from envs.browser.live import LiveEnv, open_live
from envs.browser.server.secrets import Secrets
from envs.browser.url_task import UrlTask
from tests.support.site_server import SiteServer

VALUE = "hunter'2\\x é<"

# What shows the value is red, in every way that a page has to show it.
PAGE = """<!doctype html><style>
.s, .s * { color: #f00 } .up { text-transform: uppercase } .after::after { content: attr(title) }
</style>
<input class=s aria-label=Password type=password> <input class=s aria-label=Code>
<button onclick="show()">Show</button>
<script>
function show() {
  const value = document.querySelector("input").value, box = document.createElement("div");
  const red = "<p style='color: #f00'>" + value.replace("<", "&lt;") + "</p>";
  const add = (html) => {
    const holder = document.createElement("div");
    holder.innerHTML = html;
    box.append(holder);
    return holder.firstChild;
  };
  box.className = "s";
  add("<p></p>").textContent = "It is " + value + ".";
  add("<p aria-hidden=true></p>").textContent = value;
  add("<p class=up></p>").textContent = value;
  for (const letter of value) add("<b style='float: left'></b>").textContent = letter;
  add("<textarea></textarea>").value = value;
  add("<select><option></option></select>").firstChild.textContent = value;
  add("<p class=after></p>").title = value;
  add("<button></button>").textContent = value;
  add("<input>").value = value;
  add("<input>").placeholder = value;
  add("<iframe height=60></iframe>").srcdoc = red;
  add("<div></div>").attachShadow({ mode: "closed" }).innerHTML = red;
  add("<p style='transform: translate(90px, 9px) rotate(10deg)'></p>").textContent = value;
  document.body.append(box);
  location.hash = encodeURIComponent(value);
  alert("It is " + value);
}
</script>"""


def red(picture: bytes | None) -> int:
    """Return the number of red pixels."""
    assert picture is not None
    data = Image.open(io.BytesIO(picture)).convert("RGB").tobytes()
    pixels = zip(data[::3], data[1::3], data[2::3], strict=True)
    return sum(1 for r, g, b in pixels if r > 150 and g < 120 and b < 120)


def element(env: LiveEnv, part: str) -> str:
    """Return the id of the first element whose line has this text."""
    lines = env._observation.page.splitlines()
    return next(str(re.findall(r"\[(\w+)\]", line)[-1]) for line in lines if part in line)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with SiteServer() as site:
        yield f"{site.url}/html?{quote(PAGE)}"


def show(address: str, text: str, secrets: dict[str, str]) -> tuple[list[str], list[int]]:
    """Fill in the password and let the page show it; return what is read, and red pixels."""
    task = UrlTask(address, 'Show "<password>".', viewport=(800, 500))

    async def play() -> tuple[list[str], list[int]]:
        async with open_live(task, secrets=secrets) as env:
            await env.reset(Task("act", 0), screenshot=True)
            for name in ("Password", "Code"):
                await env.step(f"fill({element(env, name)!r}, {text!r})")
            results = [await env.step(f"click({element(env, 'Show')!r})")]
            results.append(await env.step("scroll(0, 150)"))
            seen = [each.observation for each in results]
            read = [f"{o.messages[-1]['content']}\n{o.url}\n{o.error}" for o in seen]
            return read, [red(each.screenshot) for each in seen]

    return asyncio.run(play())


def test_the_page_shows_it_and_nobody_sees_it(address: str) -> None:
    read, pixels = show(address, "<password>", {"password": VALUE})
    assert "text 'It is <password>.'" in read[0]
    assert "alert 'It is <password>'" in read[0]
    assert "#<password>" in read[0]
    assert not re.search("hunter", "".join(read), re.IGNORECASE)
    assert "text 'h'" not in read[0]
    assert pixels == [0, 0]


def test_what_is_not_secret_is_shown(address: str) -> None:
    read, pixels = show(address, VALUE, {})
    assert read[0].count("hunter'2") > 5
    assert min(pixels) > 500


def test_an_error_does_not_show_it(address: str) -> None:
    async def play() -> str:
        async with open_live(UrlTask(address, "Go."), secrets={"password": VALUE}) as env:
            await env.reset(Task("act", 0))

            async def fail(action: object) -> None:
                raise RuntimeError(f"fill {action} failed")

            env.session.window.act = fail  # type: ignore[union-attr,method-assign]
            with pytest.raises(EnvError) as error:
                await env.step(f"fill({element(env, 'Code')!r}, '<password>')")
            return "".join(traceback.format_exception(error.value))

    text = asyncio.run(play())
    assert "<password>" in text
    assert "hunter" not in text


@pytest.mark.parametrize(
    "form",
    [
        "s3c ret/é'<\\",
        "S3C  RET/É'<\\",
        "s3c%20ret%2F%c3%a9%27%3C%5C",
        "s3c+ret/%C3%A9'%3c\\",
        "s3c ret/\\u00e9\\'<\\\\",
        "s3c ret/é&#x27;&lt;\\",
    ],
)
def test_every_form_is_hidden(form: str) -> None:
    secrets = Secrets({"key": "s3c ret/é'<\\"})
    assert secrets.hide(f"?a={form}&b") == "?a=<key>&b"


def test_the_longer_of_two_is_hidden_first() -> None:
    secrets = Secrets({"short": "1234", "long": "12345"})
    assert secrets.hide("12345 1234") == "<long> <short>"


def test_ids_are_not_values() -> None:
    secrets = Secrets({"pin": "123"})
    tree = "[123] button 'Go to 123'\n\t[4] spinbutton '', value=1234"
    expected = "[123] button 'Go to <pin>'\n\t[4] spinbutton '', value='<pin>4'"
    assert secrets.hide_in_tree(tree) == expected


def test_only_a_fill_reveals_it_and_once() -> None:
    secrets = Secrets({"a": "<b>x", "b": "secret"})
    revealed = secrets.revealed(parse_action("fill('1', '<a> and <b>')"))
    assert revealed.args == ("1", "<b>x and secret")
    press = parse_action("press('1', '<b>')")
    assert secrets.revealed(press) == press


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": "12"}, "the value of secret 'a' must have 3 to 2000 characters"),
        ({"a": "secret\n"}, "without white space around them"),
        ({"a b": "secret"}, "a secret's name must be letters"),
    ],
)
def test_what_cannot_be_secret(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Secrets(values)
    assert "secret\n" not in str(error.value)
