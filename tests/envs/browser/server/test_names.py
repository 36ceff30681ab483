"""Names of elements that have none."""

import pytest

from tests.envs.browser.server.test_session import act, browser, html, session, shared

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

__all__ = ["browser", "session", "shared"]

STYLE = "display: inline-block; width: 20px; height: 20px"


async def names(session, body):
    await html(session, body)
    found = (await act(session, "noop()"))["metadata"]["names"]
    return list(found.values())


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('<button title="Close" class="a-b"></button>', "Close"),
        ('<p id="help">Sends it</p><button aria-describedby="help"></button>', "Sends it"),
        ('<button class="btn header"><i class="fa fa-star-half"></i></button>', "star half"),
        ('<button class="btn"><svg><use href="#icon-bell"></use></svg></button>', "bell"),
        ('<button id="sendReply" class="css-1a2b3c px-4 hover:bg-red"></button>', "send reply"),
        ('<button data-action="mark_read"></button>', "mark read"),
        ('<a href="#"><img src="x/shopping-cart.png?v=3"></a>', "shopping cart"),
        (f'<div class="trash" onclick="0" style="{STYLE}"></div>', "trash"),
        (f'<div class="trash" style="cursor: pointer; {STYLE}"></div>', "trash"),
        ("<select multiple><option>A</option></select>", None),  # a field is known by its place
        ("<input class=code>", None),
        ("<textarea class=code>old</textarea>", "textarea"),
        ('<textarea placeholder="Reply"></textarea>', "Reply"),
        ('<button class="trash">Delete</button>', None),  # it has a name
        (f'<div class="trash" style="{STYLE}"></div>', None),  # nothing reacts
        (f'<div class="trash" onclick="0" style="{STYLE}" hidden></div>', "trash"),
        (f'<div class="trash" onclick="0" style="visibility: hidden; {STYLE}"></div>', None),
    ],
)
async def test_a_name_from_what_the_page_says_elsewhere(session, body, name):
    assert await names(session, body) == ([] if name is None else [name])


async def test_positions_tell_equal_elements_apart(session):
    square = f'<span class="square" onclick="0" style="{STYLE}"></span>'
    row = f"<div>{square * 2}</div>"
    assert await names(session, row * 2) == [
        *("square, row 1 column 1", "square, row 1 column 2"),
        *("square, row 2 column 1", "square, row 2 column 2"),
    ]
    assert await names(session, row) == ["square, 1 of 2", "square, 2 of 2"]
