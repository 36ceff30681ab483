"""An environment with pictures, and agents that say what a test tells them."""

import io
from dataclasses import replace

from PIL import Image

from envs.base import Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.reporting.pictures import WIDTH
from grpo.rollouts.rollout import Rollouts
from grpo.types import Completion

TASK = Task("click-word", 3)
SIZE = (60, 40)


def png(colour="white"):
    """Return a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", SIZE, colour).save(file, "PNG")
    return file.getvalue()


def opened(pictures):
    """Decode pictures."""
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]


def pixels(picture, colour):
    """Return the coordinates at which the picture has this colour."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    width, height = image.size
    every = [(x, y) for x in range(width) for y in range(height)]
    return {place for place in every if image.getpixel(place) == wanted}


def ring(left, top, right, bottom):
    """Return the pixels of a rectangle's edge, WIDTH wide; right and bottom are exclusive."""

    def block(a, b, c, d):
        return {(x, y) for x in range(a, c) for y in range(b, d)}

    inner = block(left + WIDTH, top + WIDTH, right - WIDTH, bottom - WIDTH)
    return block(left, top, right, bottom) - inner


class Photographed(ScriptedEnv):
    """Every action has a box; the picture is white at the start and grey after a step."""

    async def reset(self, task, *, screenshot=False):
        self.screenshot = screenshot
        return await super().reset(task)

    async def step(self, text):
        result = await super().step(text)
        box = (10.0, 8.0, 20.0, 12.0)
        return replace(result, acted_on=(box,) if result.valid_action else ())

    def _observe(self, error):
        observation = super()._observe(error)
        picture = png("white" if self.calls == 1 else "grey") if self.screenshot else None
        return replace(observation, screenshot=picture)


def saying(*texts, lines_cut=0):
    """Return an agent that says these texts in turn; "right" becomes the right click."""
    left = list(texts)

    async def act(observation, seed, env):
        text = left.pop(0) if len(left) > 1 else left[0]
        if text == "right":
            word = observation.goal.removeprefix("Click ").removesuffix(".")
            (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
            text = f"click('{line[1:3]}')"
        return text, Completion((1,), (2, 3), (-1.0, -0.5), 0, "stop", lines_cut)

    return act


def playing(agent, *, max_turns=4, env=Photographed):
    """Return rollouts of one session."""
    return Rollouts(EnvPool(env, 1), agent, max_turns)
