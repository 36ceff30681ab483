"""Limits on what a browser server sends and receives, each with the reason for its value.

A server's text is foreign: the page may be hostile and the server broken. What is over a limit is
an infrastructure failure (`EnvError`), never an outcome. MiniWoB's pages stay far below: ids up to
185, 6,200 characters in 212 lines, goals of 110 characters.

Depth of nesting needs no number of its own. Nothing reads a response deeper than five levels, and
`json` refuses what is nested deeper than the interpreter's recursion limit.
"""

from __future__ import annotations

MAX_RESPONSE = 32 * 2**20
"""Bytes of a server's message. A PNG of a large window has three million as base64, and some
versions of OpenEnv's own server send pictures as lists of pixels, 23 million."""

MAX_LISTS = 1_000_000
"""Lists in a message: such a picture has 921,600, one per pixel. `json` takes about half a second
for them, in which nothing else runs."""

MAX_KEYS = 300_000
"""Fields in a message, counted as quotes before a colon, which the text of a page has as well."""

MAX_REQUEST = 4 * 2**20
"""Bytes of a request or a message to the server: an action has at most 2,000 characters."""

MAX_PAGE = 500_000
"""Characters of an accessibility tree: more than any model here reads, and a fraction of a second
to parse."""

MAX_LINES = 10_000
"""Lines of an accessibility tree, and so elements of a page: as many as a large table has."""

MAX_LINE = 50_000
"""Characters of a line: the names of its ancestors can repeat the text of a whole article."""

MAX_GOAL = 20_000
"""Characters of a goal: several pages of instructions."""

MAX_URL = 20_000
"""Characters of an address: some sites keep a form's state in it."""

MAX_NAME = 80
"""Characters of a name that the server made for an element without one; the rest is cut."""

MAX_ID = 11
"""Characters of an element's id. Renumbering adds at most one, and an action takes 12."""

MAX_FRAMES = 50
"""Different letters in front of the ids of a page. Each costs a permutation of its own; a page
with advertisements has about twenty frames."""

MAX_REWARD = 1e6
"""Absolute value of a reward: its square, summed over a batch, is far from the end of float32."""

MAX_COORDINATE = 1e7
"""Absolute value of a coordinate in pixels; Chromium's own layout ends at about 3e7."""

MAX_PIXELS = 20_000_000
"""Pixels of a screenshot: a 4K screen has eight million, and each takes four bytes when decoded."""

MAX_DRAWINGS = 60
"""Drawings of a page, each a line of about twenty tokens: a chart can have thousands."""

MAX_DRAWN_TEXT = 100
"""Characters of a text in a drawing."""

MAX_ACTIONS = 10_000
"""Actions listed for the random agent: a goal with many quotes times a page with many fields."""

MAX_ERROR = 300
"""Characters of an error that is shown to a person or to the model; the rest is cut."""

MAX_SOLVED = 1_000
"""Characters of a goal or name that a scripted solver matches with a regular expression; some of
those take quadratic time."""
