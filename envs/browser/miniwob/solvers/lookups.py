"""Solvers of tasks that search for the right page, row or number before they act."""

from __future__ import annotations

import re
from itertools import pairwise

from envs.browser.actions import Action
from envs.browser.miniwob.solvers.helpers import (
    Page,
    Solver,
    click,
    fill,
    find,
    find_all,
    groups,
    plan,
    shown,
    submit,
    value,
)

MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@plan
def buy_ticket(goal: str, elements: Page) -> list[Action]:
    """Buy the ticket with the shortest duration."""
    return [_buy(goal, elements, "Book for $")]


def _buy(goal: str, elements: Page, label: str) -> Action:
    buttons = [b for b in find_all(elements, "button") if b.name.startswith(label)]
    if "duration" in goal or "shortest" in goal:
        times = [re.fullmatch(r"(\d+)h (\d+)m", e.name) for e in find_all(elements, "text")]
        numbers = [60 * int(time[1]) + int(time[2]) for time in times if time]
    else:
        numbers = [int(button.name.split("$")[1]) for button in buttons]
    if not buttons or len(numbers) != len(buttons):
        raise LookupError(f"expected a number per ticket, got {numbers} for {len(buttons)} tickets")
    best = min(numbers) if "shortest" in goal or "cheapest" in goal else max(numbers)
    return click(buttons[numbers.index(best)])


def generate_number(goal: str, elements: Page, step: int) -> Action:
    """Generate a number less than 6, then press submit."""
    number = find(elements, "text").name
    done = number.isdigit() and _satisfies(goal, int(number))
    return submit(elements, "Submit" if done else "Generate")


def _satisfies(goal: str, number: int) -> bool:
    if "odd" in goal or "even" in goal:
        return number % 2 == ("odd" in goal)
    word, bound = groups(r"(less|greater) than (\d+)", goal)
    return number < int(bound) if word == "less" else number > int(bound)


def guess_number(goal: str, elements: Page, step: int) -> Action:
    """Guess the number between 0-9 and press Submit."""
    feedback = " ".join(e.name for e in elements if e.role == "text")
    found = re.search(r"(lower|higher) than (\d)", feedback)
    guess = 5 if found is None else int(found[2]) + (1 if found[1] == "higher" else -1)
    field = find(elements, "spinbutton")
    return submit(elements) if value(field) == str(guess) else fill(field, str(guess))


def phone_book(goal: str, elements: Page, step: int) -> Action:
    """Find Catherina in the contact book and click on their phone number."""
    name, kind = groups(r"Find (.*) in the .* click on their (phone|email|address)", goal)
    if shown(elements, name, "heading"):
        return click(find(elements, "link", nth=("phone", "email", "address").index(kind)))
    return click(find(elements, "link", ">"))


@plan
def read_table(goal: str, elements: Page) -> list[Action]:
    """Enter the value of Gender into the text field and press Submit."""
    (label,) = groups(r"value of (.*) into", goal)
    return [fill(find(elements, "textbox"), _row(elements, label)), submit(elements)]


@plan
def read_table_2(goal: str, elements: Page) -> list[Action]:
    """Enter the value that corresponds with each label into the form."""
    labels = [e.name.rstrip(": ") for e in find_all(elements, "text") if e.name.endswith(":")]
    values = [_row(elements, label) for label in labels]
    return [*map(fill, find_all(elements, "textbox"), values), submit(elements)]


def _row(elements: Page, label: str) -> str:
    names = [cell.name for cell in find_all(elements, "cell")]
    for name, text in pairwise(names):
        if name == label:
            return text
    raise LookupError(f"expected a row {label!r}, got the cells {names}")


@plan
def search_movies(goal: str, elements: Page) -> list[Action]:
    """Search for crime movies directed by Holcomb from year 2010."""
    genre, director, year = groups(r"for (.*) movies directed by (.*) from year (\d+)", goal)
    texts = {"Genre": genre, "Director": director, "Year": year, "Date": year}
    labels = [
        text
        for element in elements
        if element.role in ("text", "rowheader") and element.id
        for label, text in texts.items()
        if re.search(rf"\b{label}\b", element.name)
    ]
    fields = find_all(elements, "textbox")
    names = ("Submit", "Search", "Go!")
    buttons = [e for e in elements if e.id and e.role in ("button", "text") and e.name in names]
    if len(labels) != len(fields) or not buttons:
        raise LookupError(f"expected {len(fields)} labels and a button, got {labels}, {buttons}")
    return [*map(fill, fields, labels), click(buttons[-1])]


def choose_date(goal: str, elements: Page, step: int) -> Action:
    """Select 03/17/2016 as the date and hit submit."""
    return _turn_pages(goal, elements) or (
        submit(elements) if value(find(elements, "textbox")) else click(find(elements, "textbox"))
    )


def _turn_pages(goal: str, elements: Page) -> Action | None:
    """Return the next click in the open calendar; None if it is closed."""
    month, day, _ = map(int, groups(r"(\d+)/(\d+)/(\d+)", goal))
    shown_months = [MONTHS.index(e.name) + 1 for e in elements if e.name in MONTHS]
    if not shown_months:
        return None
    if shown_months == [month]:
        return click(find(elements, "link", str(day)))
    return click(find(elements, "link", "Prev" if month < shown_months[0] else "Next"))


def book_flight(goal: str, elements: Page, step: int) -> Action:
    """Book the shortest one-way flight from: Corpus Christi, TX to: SHG on 12/05/2016."""
    origin, destination = groups(r"one-way flight from: (.*) to: (.*) on \d", goal)
    if any(e.name.startswith("Book flight for $") for e in elements):
        return _buy(goal, elements, "Book flight for $")
    if turn := _turn_pages(goal, elements):
        return turn
    fields = find_all(elements, "textbox", count=3)
    for field, place in zip(fields, (origin, destination), strict=False):
        if place not in value(field):
            return fill(field, place)
        if not value(field).endswith(")"):  # not yet an entry of the list
            entries = [e for e in elements if e.id and e.role == "text" and place in e.name]
            return click(entries[0]) if entries else Action("noop")
    return submit(elements, "Search") if value(fields[2]) else click(fields[2])


SOLVERS: dict[str, Solver] = {
    "book-flight": book_flight,
    "book-flight-nodelay": book_flight,
    "buy-ticket": buy_ticket,
    **dict.fromkeys(
        ("choose-date", "choose-date-easy", "choose-date-medium", "choose-date-nodelay"),
        choose_date,
    ),
    "generate-number": generate_number,
    "guess-number": guess_number,
    "multi-layouts": search_movies,
    "multi-orderings": search_movies,
    "phone-book": phone_book,
    "read-table": read_table,
    "read-table-2": read_table_2,
}
