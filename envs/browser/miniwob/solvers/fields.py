"""Solvers of tasks with text fields, dates, times and spinners."""

from __future__ import annotations

from envs.browser.actions import Action
from envs.browser.miniwob.solvers.helpers import (
    Page,
    Solver,
    click,
    fill,
    find,
    find_all,
    groups,
    ordinal,
    plan,
    quoted,
    shown,
    submit,
    value,
    word,
)


@plan
def enter_text(goal: str, elements: Page) -> list[Action]:
    """Enter "Myron" into the text field and press Submit."""
    return [fill(find(elements, "textbox"), quoted(goal)[0]), submit(elements)]


@plan
def enter_text_2(goal: str, elements: Page) -> list[Action]:
    """Type "myron" in all upper case letters in the text input and press Submit."""
    text = quoted(goal)[0]
    text = text.upper() if "upper case" in goal else text.lower()
    return [fill(find(elements, "textbox"), text), submit(elements)]


@plan
def enter_password(goal: str, elements: Page) -> list[Action]:
    """Enter the password "Q1" into both text fields and press submit."""
    password = quoted(goal)[0]
    first, second, *_ = find_all(elements, "textbox", count=2)
    return [fill(first, password), fill(second, password), submit(elements)]


@plan
def login_user(goal: str, elements: Page) -> list[Action]:
    """Enter the username "cierra" and the password "11L" ... and press login."""
    name, password, *_ = quoted(goal, 2)
    first, second, *_ = find_all(elements, "textbox", count=2)
    return [fill(first, name), fill(second, password), submit(elements, "Login")]


def login_user_popup(goal: str, elements: Page, step: int) -> Action:
    """Log in as in `login_user`. A popup may appear; its OK would end the episode."""
    if shown(elements, "Cancel", "button"):
        return submit(elements, "Cancel")
    for field, text in zip(find_all(elements, "textbox", count=2), quoted(goal, 2), strict=False):
        if len(value(field)) != len(text):  # a password shows as dots
            return fill(field, text)
    return submit(elements, "OK")


@plan
def enter_date(goal: str, elements: Page) -> list[Action]:
    """Enter 02/04/2012 as the date and hit submit."""
    month, day, year = groups(r"(\d+)/(\d+)/(\d+)", goal)
    return [fill(find(elements, "Date"), f"{year}-{month}-{day}"), submit(elements)]


@plan
def enter_time(goal: str, elements: Page) -> list[Action]:
    """Enter 11:10 AM as the time and press submit."""
    hour, minute, half = groups(r"(\d+):(\d+)\s*([AP])M", goal)
    hours = int(hour) % 12 + (12 if half == "P" else 0)
    return [fill(find(elements, "InputTime"), f"{hours:02}:{minute}"), submit(elements)]


@plan
def focus_text(goal: str, elements: Page) -> list[Action]:
    """Focus into the textbox."""
    return [click(find(elements, "textbox"))]


@plan
def focus_text_2(goal: str, elements: Page) -> list[Action]:
    """Focus into the 3rd input textbox."""
    return [Action("focus", (find(elements, "textbox", nth=ordinal(goal)).id,))]


def copy_paste(goal: str, elements: Page, step: int) -> Action:
    """Copy the text from the 3rd text area below and paste it into the text input."""
    fields = find_all(elements, "textbox", count=2)
    areas = [field for field in fields if value(field)]
    nth = 0 if len(fields) == 2 else ordinal(goal)
    for field in fields:
        if not value(field) and nth < len(areas):
            return fill(field, value(areas[nth]))
    return submit(elements)


@plan
def find_word(goal: str, elements: Page) -> list[Action]:
    """Find the 4th word in the paragraph, type that into the textbox."""
    text = find(elements, "text").name
    return [fill(find(elements, "textbox"), word(text, ordinal(goal))), submit(elements)]


@plan
def scroll_text(goal: str, elements: Page) -> list[Action]:
    """Find the last word in the text area, enter it into the text field."""
    area, field, *_ = find_all(elements, "textbox", count=2)
    return [fill(field, word(value(area), -1)), submit(elements)]


@plan
def scroll_text_2(goal: str, elements: Page) -> list[Action]:
    """Scroll the textarea to the top of the text hit submit."""
    keys = "Control+End" if "bottom" in goal else "Control+Home"
    return [Action("press", (find(elements, "textbox").id, keys)), submit(elements)]


@plan
def sign_agreement(goal: str, elements: Page) -> list[Action]:
    """Scroll to the bottom of the textarea, enter the name "Ann" then press "Agree"."""
    if goal == "Click the cancel button.":
        return [submit(elements, "Cancel")]
    name, button, *_ = quoted(goal, 2)
    text, field, *_ = find_all(elements, "textbox", count=2)
    return [
        Action("hover", (text.id,)),
        Action("scroll", (0, 9_000)),
        fill(field, name),
        submit(elements, button),
    ]


@plan
def text_transform(goal: str, elements: Page) -> list[Action]:
    """Type the text below into the text field and press Submit."""
    letters = [e.name for e in find_all(elements, "text") if len(e.name) == 1]
    return [fill(find(elements, "textbox"), "".join(letters)), submit(elements)]


@plan
def simple_arithmetic(goal: str, elements: Page) -> list[Action]:
    """Solve the math problem and type your answer into the textbox."""
    a, sign, b = groups(r"(\d+) ([-+x]) (\d+)", find(elements, "text").name)
    result = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign]
    return [fill(find(elements, "textbox"), str(result)), submit(elements)]


@plan
def simple_algebra(goal: str, elements: Page) -> list[Action]:
    """Solve for x and type your answer into the textbox."""
    a, sign, b, total = groups(r"(\w+) ([-+]) (\w+) = (-?\d+)", find(elements, "text").name)
    if sign == "+":
        x = int(total) - int(b if a == "x" else a)
    else:
        x = int(total) + int(b) if a == "x" else int(a) - int(total)
    return [fill(find(elements, "textbox"), str(x)), submit(elements)]


@plan
def use_spinner(goal: str, elements: Page) -> list[Action]:
    """Select -6 with the spinner and hit Submit."""
    (number,) = groups(r"Select (-?\d+) with", goal)
    return [fill(find(elements, "spinbutton"), number), submit(elements)]


@plan
def use_colorwheel_2(goal: str, elements: Page) -> list[Action]:
    """Select the following color #36ddb8 with the color picker and hit Submit."""
    (color,) = groups(r"#(\w{6})", goal)
    return [fill(find(elements, "textbox"), color), submit(elements)]


def use_autocomplete(goal: str, elements: Page, step: int) -> Action:
    """Enter an item that starts with "Com" and ends with "os"."""
    start, end = [*quoted(goal), ""][:2]
    field = find(elements, "textbox")
    if step == 0:
        return fill(field, start)
    entries = [e for e in elements if e.id and e.role != "textbox" and e.name.startswith(start)]
    for entry in entries:
        if entry.name.endswith(end) and value(field) != entry.name:
            return click(entry)
    return submit(elements)


@plan
def form_sequence_2(goal: str, elements: Page) -> list[Action]:
    """Check the 1st radio button and enter the number "16" into the 3rd textbox."""
    radio, number, field = groups(r'the (\d)\w+ radio.*number "(-?\d+)" into the (\d)', goal)
    return [
        click(find(elements, "radio", nth=int(radio) - 1)),
        fill(find(elements, "textbox", nth=int(field) - 1), number),
        submit(elements),
    ]


SOLVERS: dict[str, Solver] = {
    "copy-paste": copy_paste,
    "copy-paste-2": copy_paste,
    "enter-date": enter_date,
    "enter-password": enter_password,
    "enter-text": enter_text,
    "enter-text-2": enter_text_2,
    "enter-text-dynamic": enter_text,
    "enter-time": enter_time,
    "find-word": find_word,
    "focus-text": focus_text,
    "focus-text-2": focus_text_2,
    "form-sequence-2": form_sequence_2,
    "login-user": login_user,
    "login-user-popup": login_user_popup,
    "scroll-text": scroll_text,
    "scroll-text-2": scroll_text_2,
    "sign-agreement": sign_agreement,
    "simple-algebra": simple_algebra,
    "simple-arithmetic": simple_arithmetic,
    "text-transform": text_transform,
    "use-autocomplete": use_autocomplete,
    "use-autocomplete-nodelay": use_autocomplete,
    "use-colorwheel-2": use_colorwheel_2,
    "use-spinner": use_spinner,
}
