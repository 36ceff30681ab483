"""Solvers of tasks with buttons, links, tabs, menus, boxes and lists."""

from __future__ import annotations

from envs.browser.actions import Action
from envs.browser.miniwob.solvers.helpers import (
    Page,
    Solver,
    after,
    click,
    find,
    find_all,
    groups,
    guessed,
    plan,
    quoted,
    shown,
    submit,
)

SYNONYMS = [
    set(line.split())
    for line in """
    big large huge enormous gigantic
    small tiny little mini petite
    red scarlet crimson vermillion
    happy cheerful joyful gleeful delighted
    sad unhappy sorrowful miserable tragic
    angry mad furious irritated
    evil wicked immoral sinful corrupt depraved
    wrong incorrect mistaken erroneous
    real genuine actual
    mismatch odd peculiar unusual weird
    stop cease halt end finish
    scared terrified panicked fearful frightened afraid
    quiet calm peaceful serene mild
    old aged archaic
    love like adore favor
    kill murder assassinate
    keep retain preserve sustain maintain
    hide conceal camouflage
    hate despise loathe detest dislike
    funny humorous amusing comical laughable
    fat fleshy plump chubby
    stupid dumb dull unwise
    delicious savory delectable appetizing
    cut slice carve chop
    brave courageous fearless
    begin start initiate launch
    answer reply response
    television televisions TV TVs
    house home houses homes
    fire flame fires flames
    pig pork swine
    rabbit rabbits bunny bunnies
    car cars automobile automobiles vehicle vehicles
    water
    """.strip().splitlines()
]
"""Words that are similar in `click-checkboxes-soft`: one set per line."""


@plan
def click_test(goal: str, elements: Page) -> list[Action]:
    """Click the button."""
    return [submit(elements, "Click Me!")]


@plan
def click_named_button(goal: str, elements: Page) -> list[Action]:
    """Click button ONE."""
    (name,) = groups(r"^Click button (\w+)\.", goal)
    return [submit(elements, name)]


@plan
def click_quoted_button(goal: str, elements: Page) -> list[Action]:
    """Click on the "no" button."""
    return [submit(elements, quoted(goal)[0])]


@plan
def click_button_sequence(goal: str, elements: Page) -> list[Action]:
    """Click button ONE, then click button TWO."""
    return [submit(elements, "ONE"), submit(elements, "TWO")]


@plan
def click_dialog(goal: str, elements: Page) -> list[Action]:
    """Close the dialog box by clicking the "x"."""
    name = quoted(goal)[0]
    return [submit(elements, "Close" if name == "x" else name)]


@plan
def click_link(goal: str, elements: Page) -> list[Action]:
    """Click on the link "et"."""
    return [click(find(elements, "text", quoted(goal)[0]))]


@plan
def click_option(goal: str, elements: Page) -> list[Action]:
    """Select Nb and click Submit."""
    (name,) = groups(r"^Select (.*) and click Submit", goal)
    return [click(find(elements, "radio", name)), submit(elements)]


@plan
def click_checkboxes(goal: str, elements: Page) -> list[Action]:
    """Select 1LO, Nb and click Submit."""
    (names,) = groups(r"^Select (.*) and click Submit", goal)
    wanted = [] if names == "nothing" else names.split(", ")
    return [*(click(find(elements, "checkbox", name)) for name in wanted), submit(elements)]


@plan
def click_checkboxes_soft(goal: str, elements: Page) -> list[Action]:
    """Select words similar to cut, scarlet and click Submit."""
    (names,) = groups(r"^Select words similar to (.*) and click Submit", goal)
    similar = set().union(*(words for words in SYNONYMS if words & set(names.split(", "))))
    boxes = [box for box in find_all(elements, "checkbox") if box.name in similar]
    return [*map(click, boxes), submit(elements)]


@plan
def click_widget(goal: str, elements: Page) -> list[Action]:
    """Click on a "textarea" widget."""
    kind = quoted(goal)[0]
    if kind == "textarea":
        return [click(guessed(elements, kind, count=1)[0])]
    others = [each for each in elements if each.guess != "textarea"]
    return [click(find(others, "textbox" if kind == "text" else kind))]


@plan
def click_tab(goal: str, elements: Page) -> list[Action]:
    """Click on Tab #2."""
    (name,) = groups(r"^Click on (Tab #\d)", goal)
    return [click(find(elements, "link", name))]


def click_tab_2(goal: str, elements: Page, step: int) -> Action:
    """Switch between the tabs to find and click on the link "vel"."""
    if links := shown(elements, quoted(goal)[0]):
        return click(links[0])
    return click(find(elements, "link", nth=step + 1))


@plan
def click_collapsible(goal: str, elements: Page) -> list[Action]:
    """Expand the section below and click submit."""
    return [click(find(elements, "tab")), submit(elements)]


def click_collapsible_2(goal: str, elements: Page, step: int) -> Action:
    """Expand the sections below, to find and click on the link "vel"."""
    if links := shown(elements, quoted(goal)[0]):
        return click(links[0])
    return click(find(elements, "tab", nth=step))


def click_menu(goal: str, elements: Page, step: int) -> Action:
    """Select Lesly>Lyssa. Submenus open under the mouse; a click on one ends the episode."""
    (path,) = groups(r"^Select (.*)", goal)
    *menus, entry = path.split(">")
    if found := shown(elements, entry, "menuitem"):
        return click(found[0])
    opened = [item for name in menus for item in shown(elements, name, "menuitem")]
    return Action("hover", (opened[-1].id,)) if opened else click(find(elements, "menuitem", entry))


@plan
def choose_list(goal: str, elements: Page) -> list[Action]:
    """Select Ertha from the list and click Submit."""
    (name,) = groups(r"^Select (.*) from the list", goal)
    return [
        Action("select_option", (find(elements, "combobox").id, name)),
        submit(elements),
    ]


@plan
def odd_or_even(goal: str, elements: Page) -> list[Action]:
    """Mark the numbers below as odd or even and press submit when done."""
    numbers = [e for e in find_all(elements, "text") if e.name.lstrip("-").isdigit()]
    marks = [
        find(elements, "button", "Odd" if int(number.name) % 2 else "Even", i)
        for i, number in enumerate(numbers)
    ]
    return [*map(click, marks), submit(elements)]


@plan
def order_food(goal: str, elements: Page) -> list[Action]:
    """Order one of each item: Garlic bread, Cheese wheel."""
    if "one of each item" in goal:
        names = goal.split(": ", 1)[1].split(",")
        items = [find(elements, "text", name.strip()) for name in names]
    else:
        count, kind = groups(r"Order (\d+) items that are (.*)", goal)
        items = [find(elements, "image", kind)] * int(count)
    adds = [click(after(elements, item, "text", "+")) for item in items]
    return [*adds, submit(elements, "Order!")]


@plan
def drag_box(goal: str, elements: Page) -> list[Action]:
    """Drag the smaller box so that it is completely inside the larger box."""
    small, large = find(elements, "text", "s"), find(elements, "text", "L")
    return [Action("drag_and_drop", (small.id, large.id)), submit(elements)]


SOLVERS: dict[str, Solver] = {
    "choose-list": choose_list,
    "click-button": click_quoted_button,
    "click-button-sequence": click_button_sequence,
    "click-checkboxes": click_checkboxes,
    "click-checkboxes-large": click_checkboxes,
    "click-checkboxes-soft": click_checkboxes_soft,
    "click-checkboxes-transfer": click_checkboxes,
    "click-collapsible": click_collapsible,
    "click-collapsible-2": click_collapsible_2,
    "click-collapsible-2-nodelay": click_collapsible_2,
    "click-collapsible-nodelay": click_collapsible,
    "click-dialog": click_dialog,
    "click-dialog-2": click_dialog,
    "click-link": click_link,
    "click-menu": click_menu,
    "click-option": click_option,
    "click-tab": click_tab,
    "click-tab-2": click_tab_2,
    "click-tab-2-easy": click_tab_2,
    "click-tab-2-hard": click_tab_2,
    "click-tab-2-medium": click_tab_2,
    "click-test": click_test,
    "click-test-2": click_named_button,
    "click-test-transfer": click_named_button,
    "click-widget": click_widget,
    "drag-box": drag_box,
    "odd-or-even": odd_or_even,
    "order-food": order_food,
    "unicode-test": click_quoted_button,
}
