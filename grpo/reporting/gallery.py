"""The gallery: recorded episodes as pictures, and one HTML page to step through them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.base import Box, Task
from grpo.rollouts.rollout import Rollouts
from grpo.types import Episode

OUTLINE = "#ff00d0"
WIDTH = 3


async def record_episode(rollouts: Rollouts, task: Task, folder: Path, *, seed: int = 0) -> None:
    """Play one episode, and keep a picture of each page and the completion for it.

    Writes `<task>/<seed>/<k>.png` for every page, with an outline around the elements that were
    then acted on, and `<task>/<seed>/episode.json` into the folder; nothing if the episode was
    dropped.

    Args:
        rollouts: plays the episode.
        task: what to play.
        folder: created where it is missing.
        seed: determines what is sampled.
    """
    episode = await rollouts.episode(task, [seed, task.seed], record=True)
    if episode is None:
        return
    folder = folder / task.name / str(task.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for k, (observation, result) in enumerate(episode.records):
        if observation.screenshot is not None:
            picture = outlined(observation.screenshot, result.acted_on if result else ())
            (folder / f"{k}.png").write_bytes(picture)
    text = json.dumps(_as_json(episode), indent=2)
    (folder / "episode.json").write_text(text + "\n")


def outlined(picture: bytes, boxes: Sequence[Box]) -> bytes:
    """Draw an outline around each box of a picture; return the PNG.

    Raises:
        ModuleNotFoundError: there are boxes, and pillow is not installed.
    """
    if not boxes:
        return picture
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "outlines on screenshots need pillow: install the extra 'browser'"
        ) from error
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for x, y, width, height in boxes:
        right, bottom = min(x + width + WIDTH, image.width), min(y + height + WIDTH, image.height)
        left, top = max(x - WIDTH, 0), max(y - WIDTH, 0)  # around it, but on the picture
        if left < right and top < bottom:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=OUTLINE, width=WIDTH)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_gallery(media: Path, *, title: str) -> None:
    """Write `index.html`, a single file that shows every recorded episode.

    Args:
        media: folder of `<label>/<task>/<seed>/`, as `record_episode` leaves them.
        title: of the page.
    """
    episodes = []
    for path in sorted(media.glob("*/*/*/episode.json"), key=lambda path: path.parent):
        episode = json.loads(path.read_text()) | {"label": path.relative_to(media).parts[0]}
        for k, page in enumerate(episode["pages"]):
            if (picture := path.with_name(f"{k}.png")).is_file():
                data = base64.b64encode(picture.read_bytes()).decode()
                page["picture"] = f"data:image/png;base64,{data}"
        episodes.append(episode)
    # A script ends at "</script", also inside a string: a completion may contain that.
    data = json.dumps({"title": title, "episodes": episodes}).replace("<", "\\u003c")
    html = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    media.mkdir(parents=True, exist_ok=True)
    (media / "index.html").write_text(html.replace("DATA", data, 1), encoding="utf-8")


def _as_json(episode: Episode) -> dict[str, Any]:
    """Describe an episode: of every page what was read, the completion, and its result."""
    pages: list[dict[str, Any]] = []
    for k, (observation, result) in enumerate(episode.records):
        pages.append({"prompt": observation.messages[-1]["content"]})
        if result is not None:
            turn = episode.turns[k]
            if cut := turn.completion.lines_cut:
                shorter = observation.cut(len(observation.page.splitlines()) - cut)
                pages[-1]["prompt"] = shorter.messages[-1]["content"]
            pages[-1] |= {
                "completion": turn.text,
                "valid": turn.valid_action,
                "reward": result.reward,
                "error": result.observation.error,
                "logprob": sum(turn.completion.logprobs),
                "tokens": len(turn.completion.logprobs),
            }
    return {
        "task": episode.task.name,
        "seed": episode.task.seed,
        "goal": episode.records[0].observation.goal,
        "reward": episode.reward,
        "solved": episode.success,
        "stop_reason": episode.stop_reason,
        "pages": pages,
    }
