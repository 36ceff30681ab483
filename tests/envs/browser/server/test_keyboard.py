"""Key events of a US keyboard, compared with Playwright's layout."""

import re
from pathlib import Path

import pytest

from envs.browser.server.cdp.keyboard import KEYS, SHIFTED, events


def kinds(combination):
    return [(event["type"], event["key"], event["modifiers"]) for event in events(combination)]


def test_one_key():
    assert events("a") == [
        {"type": "keyDown", "key": "a", "code": "KeyA", "windowsVirtualKeyCode": 65,
         "modifiers": 0, "text": "a"},
        {"type": "keyUp", "key": "a", "code": "KeyA", "windowsVirtualKeyCode": 65, "modifiers": 0},
    ]  # fmt: skip
    assert [event["text"] for event in events("Enter") if "text" in event] == ["\r"]
    assert kinds("Tab") == [("rawKeyDown", "Tab", 0), ("keyUp", "Tab", 0)]


def test_held_keys_go_down_first_and_up_last():
    assert kinds("Control+Shift+ArrowLeft") == [
        ("rawKeyDown", "Control", 2),
        ("rawKeyDown", "Shift", 10),
        ("rawKeyDown", "ArrowLeft", 10),
        ("keyUp", "ArrowLeft", 10),
        ("keyUp", "Shift", 2),
        ("keyUp", "Control", 0),
    ]
    assert kinds("ControlOrMeta+a") == kinds("Control+a")
    assert events("Control+a")[1]["text"] == ""  # a shortcut types nothing


def test_shift_and_plus():
    assert events("Shift+a")[1]["text"] == "a"  # as Playwright: only a key's code is shifted
    assert events("Shift+KeyA")[1]["text"] == events("A")[0]["text"] == "A"
    assert events("Shift+Digit1")[1]["text"] == events("!")[0]["text"] == "!"
    assert kinds("+") == [("keyDown", "+", 0), ("keyUp", "+", 0)]
    assert kinds("Control++")[1] == ("rawKeyDown", "+", 2)


@pytest.mark.parametrize("unknown", ["", "Banana", "Control+", "é", "Kontrol+a"])
def test_unknown_keys(unknown):
    with pytest.raises(ValueError, match="unknown key"):
        events(unknown)


def test_the_layout_equals_playwrights():
    playwright = pytest.importorskip("playwright", reason="needs the extra `browser`")
    layout = Path(playwright.__file__).parent / "driver/package/lib/server/usKeyboardLayout.js"
    number = r'"(\w+)": \{ "keyCode": (\d+), '
    seen = 0
    for code, value, rest in re.findall(number + r"(.*?) \},?\n", layout.read_text()):
        key = re.search(r'"key": "(.*?)"(?:,|$)', rest)[1].replace('\\"', '"').replace("\\\\", "\\")
        shifted = re.search(r'"shiftKey": "((?:\\.|[^"])+)"', rest)
        if '"location": 3' in rest or code in ("AltGraph", "PrintScreen", "ScrollLock", "NumLock"):
            continue
        if "keyCodeWithoutLocation" in rest:
            value = re.search(r'keyCodeWithoutLocation": (\d+)', rest)[1]
        if code != "MetaRight":  # one number for both of them here
            assert (KEYS[code].key, KEYS[code].number) == (key, int(value)), code
        if shifted:
            assert SHIFTED[code].key == shifted[1].replace("\\", "") or code == "Backslash"
        seen += 1
    assert seen > 80
