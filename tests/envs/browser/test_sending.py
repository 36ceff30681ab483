"""Which actions may make a page send something."""

import pytest

from envs.browser.actions import parse_action
from envs.browser.sending import may_send


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("click('1')", "button"),
        ("click('1')", "link"),
        ("click('1')", "text"),
        ("click('1')", ""),
        ("dblclick('1')", "button"),
        ("check('1')", "checkbox"),
        ("uncheck('1')", "checkbox"),
        ("select_option('1', 'red')", "combobox"),
        ("drag_and_drop('1', '2')", "textbox"),
        ("goto('/next')", ""),
        ("go_back()", ""),
        ("press('1', 'Enter')", "textbox"),
        ("press('1', 'NumpadEnter')", "textbox"),
        ("press('1', 'Control+s')", "textbox"),
        ("press('1', 'Shift+Enter')", "textbox"),
        ("press('1', 'a')", "button"),
        ("press('1', ' ')", "checkbox"),
        ("press('1', 'ArrowDown')", "combobox"),
    ],
)
def test_these_may(text: str, role: str) -> None:
    assert may_send(parse_action(text, ("goto", "go_back")), role)


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("fill('1', 'Ann')", "textbox"),
        ("clear('1')", "textbox"),
        ("focus('1')", "button"),
        ("hover('1')", "button"),
        ("scroll(0, 100)", ""),
        ("noop()", ""),
        ("answer('42')", ""),
        ("click('1')", "textbox"),
        ("dblclick('1')", "searchbox"),
        ("press('1', 'a')", "textbox"),
        ("press('1', '+')", "textbox"),
        ("press('1', ' ')", "textbox"),
        ("press('1', 'Tab')", "button"),
        ("press('1', 'Shift+Tab')", "button"),
        ("press('1', 'Escape')", "button"),
    ],
)
def test_these_only_type_point_or_look(text: str, role: str) -> None:
    assert not may_send(parse_action(text, ("answer",)), role)
