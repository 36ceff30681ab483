"""Solvers of tasks that ask for a point: centres, midpoints and angles."""

from __future__ import annotations

import math
from collections.abc import Callable

from envs.browser.actions import Action
from envs.browser.miniwob.solvers.helpers import Page, Solver, submit
from envs.browser.miniwob.solvers.points import Point, click_at, drawn, minus, plus

Aim = Callable[[Page, Point], Point]
"""`(elements, offset) -> the point to click`, where the mark appears so far from the click."""


def mark_point(aim: Aim) -> Solver:
    """Return a solver that marks a point: click, look where the mark is, correct it, submit."""

    def solve(goal: str, elements: Page, step: int) -> Action:
        first = aim(elements, (0.0, 0.0))
        if step == 0:
            return click_at(first)
        if step > 1:
            return submit(elements)
        x, y = drawn(elements, "circle", count=2)[-1].middle
        return click_at(aim(elements, (x - round(first[0]), y - round(first[1]))))

    return solve


def circle_center(elements: Page, offset: Point) -> Point:
    """Find and click on the center of the circle, then press submit."""
    return minus(drawn(elements, "circle")[0].middle, offset)


def find_midpoint(elements: Page, offset: Point) -> Point:
    """Find and click on the shortest mid-point between the two points, then press submit."""
    (x1, y1), (x2, y2) = (circle.middle for circle in drawn(elements, "circle", count=2)[:2])
    return minus(((x1 + x2) / 2, (y1 + y2) / 2), offset)


def bisect_angle(elements: Page, offset: Point) -> Point:
    """Create a line that bisects the angle evenly in two, then press submit."""
    vertex, a, b = (circle.middle for circle in drawn(elements, "circle", count=3)[:3])
    return _best_pixel(vertex, offset, lambda p: abs(_angle(a, vertex, p) - _angle(b, vertex, p)))


def right_angle(elements: Page, offset: Point) -> Point:
    """Add a third point to create a right angle, then press submit."""
    by_colour = {circle.fill: circle.middle for circle in drawn(elements, "circle", count=2)[:2]}
    vertex, end = by_colour["blue"], by_colour["black"]
    return _best_pixel(vertex, offset, lambda p: abs(_angle(end, vertex, p) - math.pi / 2))


def _best_pixel(vertex: Point, offset: Point, error: Callable[[Point], float]) -> Point:
    """Return the pixel whose mark has the least error in radians, if marks are half a pixel off."""
    marks = {(x, y): plus((x, y), offset) for x in range(5, 145) for y in range(57, 175)}
    far = {pixel: mark for pixel, mark in marks.items() if math.dist(mark, vertex) > 10}
    return min(far, key=lambda pixel: error(far[pixel]) + 0.5 / math.dist(far[pixel], vertex))


def _angle(a: Point, vertex: Point, b: Point) -> float:
    """Return the angle at the vertex between two points, in radians."""
    turn = math.atan2(a[1] - vertex[1], a[0] - vertex[0])
    turn -= math.atan2(b[1] - vertex[1], b[0] - vertex[0])
    return abs(math.remainder(turn, 2 * math.pi))


SOLVERS: dict[str, Solver] = {
    "bisect-angle": mark_point(bisect_angle),
    "circle-center": mark_point(circle_center),
    "find-midpoint": mark_point(find_midpoint),
    "right-angle": mark_point(right_angle),
}
