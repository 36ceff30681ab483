"""Pages that are solved by one gesture each, as tasks; their site is the test's."""

import os
from urllib.parse import quote

from envs.browser import WebTask

LONG = "".join(f"<p>Line {n}</p>" for n in range(60))
LIST = f'<div id="box" style="height: 200px; overflow: auto">{LONG}<button>Last</button></div>'
BUTTON = "<button onclick='window.done = true'>Go</button>"


class _Page(WebTask):
    site = os.environ.get("RECORD_SITE", "http://127.0.0.1:9")
    html = ""
    path = ""
    check = "window.done"

    async def setup(self, page, rng):
        await page.goto(f"{self.url}/{self.path or f'html?{quote(self.html)}'}")
        return "Do what the page is for."

    async def evaluate(self, page):
        return bool(await page.evaluate(self.check))


class written(_Page):
    async def setup(self, page, rng):
        await page.goto(f"{self.url}/html?x")
        await page.set_content(BUTTON)
        return "Go."


icon = _Page(path="controls/svg_button.html", check="window.shut")
label_text = _Page(
    html="<label>Newsletter <input type=checkbox id=news></label>", check="news.checked"
)
drag_html = _Page(
    path="controls/drag_html5.html", check="document.body.innerText.includes('Dropped')"
)
drag_mouse = _Page(
    path="controls/drag_mouse.html",
    check="+document.querySelector('[role=slider]').ariaValueNow > 90",
)
scroll = _Page(html=f"{LONG}{BUTTON}")
scroll_list = _Page(html=LIST.replace("<button>", "<button onclick='window.done = true'>"))
frame = _Page(
    path="frames/form.html", check="frames[0].document.body.innerText.includes('often=weekly')"
)
confirm = _Page(path="dialogs/confirm.html", check="window.result === true")
prompt = _Page(html="<button onclick='window.done = prompt(`Name?`) == `Ann`'>Ask</button>")
enter = _Page(
    html="<form onsubmit='go.hidden = q.value != `tea`; return false'>"
    "<input id=q aria-label=Search><button>Search</button></form>"
    "<button id=go hidden onclick='window.done = true'>Go</button>"
)
double = _Page(html="<button ondblclick='window.done = true'>Open</button>")
hover = _Page(path="controls/hover_menu.html", check="window.left")
late = _Page(
    html="<h1>Wait</h1><script>fetch('/held').then(() => (document.body.innerHTML += "
    "`<button onclick='window.done = true'>Late</button>`))</script>"
)
changing = _Page(
    html="<script>fetch('/cached').then((r) => r.text()).then((n) => (document.body.innerHTML = "
    "`<button onclick='window.done = ${n < 3}'>${n < 3 ? 'First' : 'Other'}</button>`))</script>"
)
scripted = _Page(
    html="<button onclick='window.n = (window.n ?? 0) + 1'>Other</button>"
    "<button onclick='b = document.querySelector(`button`); b.click(); b.click();"
    "b.dispatchEvent(new PointerEvent(`click`, { detail: 1 }))'>Thrice</button>"
    "<button onclick='window.done = window.n == 3'>Go</button>"
)
keyboard = _Page(html=BUTTON)
shadow = _Page(
    html="<a href='#x'><span id=host></span></a><script>"
    "host.attachShadow({ mode: 'open' }).innerHTML = `<i role=button tabindex=0>Deep</i>`;"
    "host.shadowRoot.querySelector('i').onclick = () => (window.done = true)</script>"
)
rich = _Page(
    html="<div contenteditable role=textbox aria-label=Note></div>",
    check="/Ho/.test(document.body.innerText)",
)
tab = _Page(html=f"<a target=_blank href='/html?{quote(BUTTON)}'>Open</a>")
back = _Page(
    html="<a href='/html?There'>There</a><script>window.done = performance.getEntriesByType"
    "('navigation')[0].type == 'back_forward'</script>",
    actions=("go_back",),
)
address = _Page(html="<h1>Here</h1>", check="document.body.innerText == 'There'", actions=("goto",))


class asked(_Page):
    html = "<p>It is blue</p>"
    actions = ("answer",)

    async def evaluate(self, page):
        return self.answer == "blue"


nothing = _Page(html=f"<h1>Read</h1><p id=plain>Only text</p><button disabled>Off</button>{BUTTON}")
