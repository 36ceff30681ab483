"""Key presses as events of Chromium: names and characters of a US keyboard.

Names are those of `KeyboardEvent.key` and `.code` (https://www.w3.org/TR/uievents-key/), the
numbers are Windows' virtual key codes, which scripts read as `keyCode`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


class Key(NamedTuple):
    """One key: its properties in a script, and the text that it types."""

    key: str
    code: str
    number: int
    text: str = ""


_NAMED = {
    "Backspace": 8, "Tab": 9, "Enter": 13, "Shift": 16, "Control": 17, "Alt": 18, "Pause": 19,
    "CapsLock": 20, "Escape": 27, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Insert": 45,
    "Delete": 46, "Meta": 91, "ContextMenu": 93, **{f"F{n}": 111 + n for n in range(1, 13)},
}  # fmt: skip
_SIDED = ("Shift", "Control", "Alt", "Meta")
# code, number, character, character with Shift
_PUNCTUATION = (
    ("Semicolon", 186, ";:"), ("Equal", 187, "=+"), ("Comma", 188, ",<"), ("Minus", 189, "-_"),
    ("Period", 190, ".>"), ("Slash", 191, "/?"), ("Backquote", 192, "`~"),
    ("BracketLeft", 219, "[{"), ("Backslash", 220, "\\|"), ("BracketRight", 221, "]}"),
    ("Quote", 222, "'\""), ("Space", 32, "  "),
)  # fmt: skip


def _layout() -> tuple[dict[str, Key], dict[str, Key]]:
    keys = {name: Key(name, name, number) for name, number in _NAMED.items()}
    keys["Enter"] = keys["\n"] = keys["\r"] = Key("Enter", "Enter", 13, "\r")
    for name in _SIDED:
        keys[name] = keys[f"{name}Left"] = Key(name, f"{name}Left", _NAMED[name])
        keys[f"{name}Right"] = Key(name, f"{name}Right", _NAMED[name])
    rows = [(f"Digit{d}", ord(d), d + s) for d, s in zip("0123456789", ")!@#$%^&*(", strict=True)]
    rows += [(f"Key{c}", ord(c), c.lower() + c) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    shifted = {}
    for code, number, characters in (*rows, *_PUNCTUATION):
        plain, upper = characters[0], characters[1]
        keys[upper] = shifted[code] = Key(upper, code, number, upper)
        keys[plain] = keys[code] = Key(plain, code, number, plain)
    return keys, shifted


KEYS, SHIFTED = _layout()


def events(combination: str) -> list[dict[str, Any]]:
    """Return the events of one key press, such as `a`, `Enter` or `Control+Shift+ArrowLeft`.

    Args:
        combination: keys joined by `+`; all but the last are held down.

    Returns:
        The parameters of `Input.dispatchKeyEvent`, per event.

    Raises:
        ValueError: a key is unknown.
    """
    # A plus sign after a name separates; otherwise it is a key.
    names, name = [], ""
    for character in combination:
        if character == "+" and name:
            names.append(name)
            name = ""
        else:
            name += character
    names.append(name)
    held: dict[str, int] = {}
    down, up = [], []
    for name in names:
        key = KEYS.get("Control" if name == "ControlOrMeta" else name)
        if key is None:
            raise ValueError(f"unknown key {name[:40]!r}")
        if "Shift" in held and name == key.code:  # as Playwright: `Shift+d` types a `d`
            key = SHIFTED.get(key.code, key)
        before = sum(held.values())
        if key.key in MODIFIERS:
            held[key.key] = MODIFIERS[key.key]
        text = "" if held.keys() - {"Shift"} else key.text
        event = {"key": key.key, "code": key.code, "windowsVirtualKeyCode": key.number}
        event["modifiers"] = sum(held.values())
        down.append(event | {"type": "keyDown" if text else "rawKeyDown", "text": text})
        up.append(event | {"type": "keyUp", "modifiers": before})
    return down + up[::-1]
