"""`page.js`, which runs in every page before the page's own scripts, and the scripts in it."""

from __future__ import annotations

import json
import pkgutil
from functools import cache
from pathlib import Path

VIEWPORT = {"width": 332, "height": 214}
"""Size of MiniWoB's page in pixels, as BrowserGym sets it."""

SCREENSHOT_SCALE = 1.5
"""BrowserGym's pixels on MiniWoB are those of a screenshot this much larger than the page."""


@cache
def page_script(attribute: str = "bid") -> str:
    """Return `page.js` with `names.js`, `drawings.js` and BrowserGym's scripts in it.

    Args:
        attribute: the attribute that holds an element's id. A site's pages may have any attribute.
    """
    names = {"MARK": "frame_mark_elements.js", "UNMARK": "frame_unmark_elements.js"}
    lines = [f"const BID = {json.dumps(attribute)};"]
    for constant, file in names.items():
        source = pkgutil.get_data("browsergym.core", f"javascript/{file}")
        assert source is not None
        lines.append(f"const {constant} = {json.dumps(source.decode())};")
    folder = Path(__file__).parent
    lines.append(f"const NAMES = {(folder / 'names.js').read_text().strip()};")
    lines.append((folder / "drawings.js").read_text())
    script = (folder / "page.js").read_text()
    return script.replace("(() => {\n", "\n".join(["(() => {", *lines, ""]), 1)
