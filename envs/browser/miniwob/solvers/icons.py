"""Solvers of tasks whose elements have no names but those that the server made for them."""

from __future__ import annotations

import re

from envs.browser.actions import Action
from envs.browser.miniwob.solvers.helpers import (
    Page,
    Solver,
    click,
    fill,
    find,
    groups,
    guessed,
    quoted,
    shown,
    submit,
    value,
)
from envs.browser.page_text import Element

# A name in a goal about emails, from the words around it; the most trusted come first.
_NAME = r"([A-Z][\w-]*?)"
_WRITERS = (
    rf"\b(?:from|by) {_NAME}\b",
    rf"\b{_NAME}'?s\b",
    rf"\b{_NAME} (?:sent|wrote|wants his|e?-?mail|to forward)",
)
_DESTINATIONS = (
    rf"\bto {_NAME}\b",
    rf"\b{_NAME} (?:wants|is waiting|must|recieve|receive|to be|on the list)",
    rf"(?:[Gg]ive|[Ss]end|[Ff]orward|email) {_NAME}\b",
    rf"\bin {_NAME}'s inbox",
    rf"(?<!^)\b{_NAME}\b",
)
_DELETE = re.compile(r"delete|trash|get rid|don't want|remove|throw|recycling|out of my", re.I)
_IMPORTANT = re.compile(r"\bim\w*port|\bstar\b|\bflag\b|\bmark\b", re.I)


def _names(patterns: tuple[str, ...], goal: str) -> list[str]:
    return [name for pattern in patterns for name in re.findall(pattern, goal)]


def _email_action(goal: str) -> str:
    if '"' in goal:
        return "Reply"
    return (_DELETE.search(goal) and "trash") or (_IMPORTANT.search(goal) and "star") or "Forward"


def _email_writer(goal: str, elements: Page) -> Element:
    """Return the line of the writer in the inbox: sender, subject, body, trash."""
    trash = [list(elements).index(icon) for icon in guessed(elements, "trash")]
    senders = [elements[i - 3] for i in trash if i >= 3]
    named = [e for e in senders if re.search(rf"\b{re.escape(e.name)}\b", goal)]
    wrote = _names(_WRITERS, goal)
    named.sort(key=lambda e: wrote.index(e.name) if e.name in wrote else len(wrote))
    if not named:
        raise LookupError(f"expected the writer of an email, got the page {[*map(str, elements)]}")
    return named[0]


def email_inbox(goal: str, elements: Page, step: int) -> Action:
    """Find the email by Carlynne and reply to them with the text "Ornare commodo."."""
    task = _email_action(goal)
    for send in guessed(elements, "send reply") + guessed(elements, "send forward"):
        if task == "Reply":
            text = goal[goal.index('"') : goal.rindex('"')].strip('" ')
        else:
            writer = _names(_WRITERS, goal)[:1]
            others = [name for name in _names(_DESTINATIONS, goal) if name not in writer]
            if not others:
                raise LookupError(f"expected a goal with a destination, got {goal!r}")
            text = others[0]
        field = find(elements, "textbox")
        return click(send) if value(field) == text else fill(field, text)
    if opened := shown(elements, task):
        return click(opened[0])
    writer_line = _email_writer(goal, elements)
    if task in ("star", "trash"):
        return click(guessed(elements[list(elements).index(writer_line) :], task)[0])
    return click(writer_line)


def _posts(elements: Page, user: str) -> list[Page]:
    """Return the lines of each post of a user, from the user's name to the next one's."""
    lines = list(elements)
    starts = [i for i, e in enumerate(lines) if e.role == "text" and e.name.startswith("@")]
    ends = [*starts[1:], len(lines)]
    return [lines[i:end] for i, end in zip(starts, ends, strict=True) if lines[i].name == user]


def social_media(goal: str, elements: Page, step: int) -> Action:
    """For the user @aenean, click on the "Share via DM" button."""
    (user,) = groups(r"^For the user (@\S+), click", goal)
    button = quoted(goal)[0]
    post, *_ = _posts(elements, user) or [[]]
    for name in (button, f"{button} {user}"):
        if entries := shown(elements, name) + shown(elements, name, "listitem"):
            return click(entries[0])
    return click((guessed(post, button.lower()) or guessed(post, "more", count=1))[0])


def social_media_some(goal: str, elements: Page, step: int) -> Action:
    """Click the "Like" button on 2 posts by @sagittis and then click Submit."""
    count, user = groups(r" on (all|\d+) posts? by (@\S+) and", goal)
    button = quoted(goal)[0].lower()
    posts = _posts(elements, user)
    done = [post for post in posts if guessed(post, f"{button} active")]
    left = [post for post in posts if post not in done]
    if len(done) < (len(posts) if count == "all" else int(count)):
        return click(guessed(left[0], button, count=1)[0])
    return submit(elements)


def find_greatest(goal: str, elements: Page, step: int) -> Action:
    """Find and pick the card with the greatest number, then press submit."""
    if step:
        return submit(elements)
    cards = guessed(elements, "card hidden", count=1)
    return click(max(cards, key=lambda card: int(elements[list(elements).index(card) + 1].name)))


def navigate_tree(goal: str, elements: Page, step: int) -> Action:
    """Navigate through the file tree. Find and click on the folder or file named "Cheree"."""
    if found := shown(elements, quoted(goal)[0]):
        return click(found[0])
    return click(guessed(elements, "hitarea expandable", count=1)[0])


SOLVERS: dict[str, Solver] = {
    **dict.fromkeys(
        (
            *("email-inbox", "email-inbox-delete", "email-inbox-forward"),
            *("email-inbox-forward-nl", "email-inbox-forward-nl-turk", "email-inbox-important"),
            *("email-inbox-nl-turk", "email-inbox-noscroll", "email-inbox-reply"),
            "email-inbox-star-reply",
        ),
        email_inbox,
    ),
    "find-greatest": find_greatest,
    "navigate-tree": navigate_tree,
    "social-media": social_media,
    "social-media-all": social_media_some,
    "social-media-some": social_media_some,
}
