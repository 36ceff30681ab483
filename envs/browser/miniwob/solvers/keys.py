"""Solvers of tasks that take single keys, drags and lists: sliders, a terminal, sorting."""

from __future__ import annotations

import itertools
import json

from envs.browser.actions import Action
from envs.browser.miniwob.solvers.helpers import (
    Page,
    Solver,
    click,
    fill,
    find,
    find_all,
    groups,
    guessed,
    plan,
    quoted,
    shown,
    submit,
)
from envs.browser.page_text import Element

COLORS = {
    **{"black": "000000", "white": "ffffff", "aqua": "00ffff", "blue": "0000ff", "gray": "808080"},
    **{"green": "008000", "lime": "00ff00", "maroon": "800000", "navy": "000080"},
    **{"olive": "808000", "purple": "800080", "red": "ff0000", "silver": "c0c0c0"},
    **{"teal": "008080", "yellow": "ffff00", "pink": "ffc0cb", "magenta": "ff00ff"},
    **{"gold": "ffd700", "orange": "ffa500"},
}
"""CSS's colours by their names."""

ICONS = {
    **{"disk": "Save", "seek-start": "Prev", "stop": "Stop", "play": "Play", "seek-end": "Next"},
    **{"zoomin": "Zoom In", "zoomout": "Zoom Out"},
}
"""What jQuery UI's icons stand for in `click-menu-2`."""

_PAGE = 20  # the most that PageUp moves a slider in these tasks: a fifth of 100


def _press(element: Element, key: str) -> Action:
    return Action("press", (element.id, key))


def _slide(elements: Page, wanted: list[int]) -> Action | None:
    """Return the key that brings a slider closer to its number; None if all are there."""
    handles = guessed(elements, "slider handle", count=len(wanted))
    for handle, number in zip(handles, wanted, strict=True):
        shown_number = elements[list(elements).index(handle) + 1].name
        missing = number - int(shown_number)
        if abs(missing) >= _PAGE:
            return _press(handle, "PageUp" if missing > 0 else "PageDown")
        if missing:
            return _press(handle, "ArrowRight" if missing > 0 else "ArrowLeft")
    return None


def use_slider(goal: str, elements: Page, step: int) -> Action:
    """Select -94 with the slider and hit Submit."""
    (number,) = groups(r"^Select (-?\d+) with the slider", goal)
    return _slide(elements, [int(number)]) or submit(elements)


def use_slider_2(goal: str, elements: Page, step: int) -> Action:
    """Set the sliders to the combination [17,15,11] and submit."""
    (numbers,) = groups(r"combination (\[\d+(?:,\d+)*\])", goal)
    return _slide(elements, json.loads(numbers)) or submit(elements)


def form_sequence(goal: str, elements: Page, step: int) -> Action:
    """Select 7 with the slider, click the 3rd checkbox, then hit Submit."""
    number, nth = groups(r"^Select (-?\d+) with the slider, click the (\d)", goal)
    box = find(elements, "checkbox", nth=int(nth) - 1)
    if slide := _slide(elements, [int(number)]):
        return slide
    return submit(elements) if ", checked" in box.state else click(box)


@plan
def form_sequence_3(goal: str, elements: Page) -> list[Action]:
    """Choose 5ft 10in from the dropdown, then click the button labeled "No"."""
    (entry,) = groups(r"^Choose (.*) from the dropdown", goal)
    choice = Action("select_option", (find(elements, "combobox").id, entry))
    return [choice, submit(elements, quoted(goal)[0])]


@plan
def click_scroll_list(goal: str, elements: Page) -> list[Action]:
    """Select Ertha, Aurel from the scroll list and click Submit."""
    (names,) = groups(r"^Select (.*) from the scroll list", goal)
    options = find_all(elements, "option")
    places = [options.index(find(elements, "option", name)) for name in names.split(", ")]
    box = find(elements, "listbox")
    actions = [click(options[places[0]])]
    for here, there in itertools.pairwise(places):
        arrow = "ArrowDown" if there > here else "ArrowUp"
        actions += [_press(box, f"Control+{arrow}")] * abs(there - here)
        actions += [_press(box, "Control+Space")]
    return [*actions, submit(elements)]


def click_menu_2(goal: str, elements: Page, step: int) -> Action:
    """Click the "Menu" button, and then find and click on the item with the "ui-icon-disk" icon."""
    label = quoted(goal, 2)[1]
    label = ICONS.get(label.removeprefix("ui-icon-"), label)
    items = [e for e in elements if e.id and e.role in ("menuitem", "text")]
    if not items:
        return submit(elements, "Menu")
    if found := [item for item in items if item.name == label]:
        return click(found[0])
    menus = shown(elements, "Playback", "menuitem") or [find(elements, "text", "Playback")]
    return Action("hover", (menus[0].id,))


@plan
def use_colorwheel(goal: str, elements: Page) -> list[Action]:
    """Select blue with the color picker and hit Submit."""
    (name,) = groups(r"^Select (\w+) with the color picker", goal)
    return [fill(find(elements, "textbox"), COLORS[name]), submit(elements)]


def drag_sort_numbers(goal: str, elements: Page, step: int) -> Action:
    """Sort the numbers in increasing order, starting with the lowest number at the top."""
    numbers = [e for e in find_all(elements, "text") if e.name.lstrip("-").isdigit()]
    for i, element in enumerate(numbers):
        least = min(numbers[i:], key=lambda e: int(e.name))
        if int(least.name) < int(element.name):
            return Action("drag_and_drop", (least.id, element.id))
    return submit(elements)


_LIST = ["l", "s", "Enter"]


def terminal(goal: str, elements: Page, step: int) -> Action:
    """Use the terminal below to delete a file ending with the extension .png: key by key."""
    field = find(elements, "textbox")
    if step < len(_LIST):
        return _press(field, _LIST[step])
    ending = goal.rpartition(" .")[2] if " ." in goal else ""
    names = [e.name for e in elements if e.role == "text"]
    files = names[names.index("ls") + 1].split() if "ls" in names else []
    matching = [f for f in files if (f.endswith(f".{ending}") if ending else "." not in f)]
    keys = [*f"rm {matching[0]}", "Enter"] if matching else []
    if step - len(_LIST) >= len(keys):
        raise LookupError(f"expected a file to delete, got the page {[*map(str, elements)]}")
    return _press(field, keys[step - len(_LIST)])


SOLVERS: dict[str, Solver] = {
    "click-menu-2": click_menu_2,
    "click-scroll-list": click_scroll_list,
    "drag-sort-numbers": drag_sort_numbers,
    "form-sequence": form_sequence,
    "form-sequence-3": form_sequence_3,
    "terminal": terminal,
    "use-colorwheel": use_colorwheel,
    "use-slider": use_slider,
    "use-slider-2": use_slider_2,
}
