"""The gallery: recorded episodes as pictures, and one HTML page to step through them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.base import Box, Task
from grpo.files import read_json, replacing, write_text
from grpo.rollouts.rollout import Rollouts
from grpo.safe_output import one_line, printable
from grpo.types import Episode

if TYPE_CHECKING:
    from PIL.Image import Image

OUTLINE = "#ff00d0"
WIDTH = 3
MARGIN = 8
"""Pixels of the border that stay on a picture, where it has one on both sides."""

MAX_NAME = 200
"""Bytes of a folder's name; file systems take 255."""

LABELS = ("before", "after")
"""These episodes come first, in this order."""

_log = logging.getLogger(__name__)


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
    text = json.dumps(_as_json(episode), indent=2)
    with replacing(folder / _folder_name(task.name) / str(task.seed)) as unfinished:
        unfinished.mkdir()
        for k, picture in _pictures(episode).items():
            (unfinished / f"{k}.png").write_bytes(picture)
        (unfinished / "episode.json").write_text(text + "\n", encoding="utf-8")


def record_tally(folder: Path, tally: Mapping[str, Mapping[str, int]]) -> None:
    """Keep how many episodes of an evaluation were solved, beside those that were recorded.

    Args:
        folder: of `record_episode`; created where it is missing.
        tally: `solved` and `n` by task.
    """
    text = json.dumps({name: {k: of[k] for k in ("solved", "n")} for name, of in tally.items()})
    write_text(folder / "tally.json", text + "\n")


def _folder_name(task: str) -> str:
    """Return a task's name without what would name another folder."""
    name = one_line(task).replace("/", "%2F")
    if len(name.encode()) > MAX_NAME:
        name = name[: MAX_NAME // 8] + hashlib.sha256(name.encode()).hexdigest()
    return name if name.strip(".") else name.replace(".", "%2E")


def _pictures(episode: Episode) -> dict[int, bytes]:
    """Return the pictures of an episode's pages by their number, without those that are broken."""
    pictures = {}
    for k, (observation, result) in enumerate(episode.records):
        if observation.screenshot is not None:
            try:
                pictures[k] = outlined(observation.screenshot, result.acted_on if result else ())
            except ValueError as error:
                _log.warning("a picture of %s is left out: %s", episode.task.name, error)
    try:
        return dict(zip(pictures, cropped(list(pictures.values())), strict=True))
    except ValueError as error:
        _log.warning("the pictures of %s are left out: %s", episode.task.name, error)
        return {}


def outlined(picture: bytes, boxes: Sequence[Box]) -> bytes:
    """Draw an outline around each box of a picture; return the PNG.

    Raises:
        ModuleNotFoundError: there are boxes, and pillow is not installed.
        ValueError: the picture cannot be read.
    """
    if not boxes:
        return picture
    try:
        from PIL import ImageDraw
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "outlines on screenshots need pillow: install the extra 'browser'"
        ) from error
    image = _read(picture)
    draw = ImageDraw.Draw(image)
    for x, y, width, height in boxes:
        right, bottom = min(x + width + WIDTH, image.width), min(y + height + WIDTH, image.height)
        left, top = max(x - WIDTH, 0), max(y - WIDTH, 0)  # around it, but on the picture
        if left < right and top < bottom:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=OUTLINE, width=WIDTH)
    return _as_png(image)


def cropped(pictures: Sequence[bytes]) -> list[bytes]:
    """Cut the border off an episode's pictures, off all of them alike.

    The border is what surrounds the pages in a single colour, that of the lower right corner, on
    every picture. Pictures of several sizes, or of one colour alone, stay as they are; so do all
    where pillow is not installed.

    Raises:
        ValueError: a picture cannot be read.
    """
    try:
        from PIL import Image, ImageChops
    except ModuleNotFoundError:
        return list(pictures)
    images = [_read(picture) for picture in pictures]
    sizes, contents = {image.size for image in images}, []
    if len(sizes) != 1:
        return list(pictures)
    (size,) = sizes
    for image in images:
        colour = image.getpixel((size[0] - 1, size[1] - 1))
        contents.append(ImageChops.difference(image, Image.new("RGB", size, colour)).getbbox())
    boxes = [box for box in contents if box is not None]
    if not boxes:
        return list(pictures)
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    left, top, right, bottom = min(lefts), min(tops), max(rights), max(bottoms)
    x = min(MARGIN, left, size[0] - right)
    y = min(MARGIN, top, size[1] - bottom)
    box = (left - x, top - y, right + x, bottom + y)
    return [_as_png(image.crop(box)) for image in images]


def _read(picture: bytes) -> Image:
    """Decode a picture.

    Raises:
        ValueError: it is broken, or too large.
    """
    from PIL import Image

    try:
        return Image.open(io.BytesIO(picture)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be read: {error}") from error


def _as_png(image: Image) -> bytes:
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
    for path in media.glob("*/*/*/episode.json"):
        label = path.relative_to(media).parts[0]
        if not (episode := read_json(path)):  # a killed run has left a part of it
            continue
        tally = read_json(media / label / "tally.json").get(episode["task"])
        episode = _printable(episode | {"label": label, "tally": tally})
        for k, page in enumerate(episode["pages"]):
            if (picture := path.with_name(f"{k}.png")).is_file():
                data = base64.b64encode(picture.read_bytes()).decode()
                page["picture"] = f"data:image/png;base64,{data}"
        episodes.append(episode)
    episodes.sort(key=_place)
    shown = {"name": printable(media.resolve().parent.name), "title": printable(title)}
    # A script ends at "</script", also inside a string: a completion may contain that.
    data = json.dumps(shown | {"episodes": episodes}).replace("<", "\\u003c")
    html = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    write_text(media / "index.html", html.replace("DATA", data, 1))


def _place(episode: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what episodes are sorted by: label, task, seed."""
    label = episode["label"]
    first = LABELS.index(label) if label in LABELS else len(LABELS)
    return first, label, episode["task"], episode["seed"]


def _printable(value: Any) -> Any:
    """Make every text in a JSON value printable."""
    if isinstance(value, dict):
        return {key: _printable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value


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
