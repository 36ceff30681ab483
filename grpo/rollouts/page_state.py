"""Names for pages, by which the turns of a group are compared."""

from __future__ import annotations

import hashlib

from envs.base import Observation


def page_state(observation: Observation) -> str:
    """Return a name for the page of an observation: equal pages have equal names.

    This is the anchor state of GiGPO (arXiv 2505.10978), by which the turns of a group are
    compared: the page as the model reads it. History and error say how the episode came to the
    page, not where it is; the goal is the same for the group; the address is left out because the
    model does not read it and two servers may have different ones. An observation without a page
    is named by its last message.
    """
    page = observation.page or observation.messages[-1]["content"]
    return hashlib.sha256(page.encode(errors="surrogatepass")).hexdigest()[:16]
