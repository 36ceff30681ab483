"""The best moves of `tic-tac-toe`, whose squares have no names but those that the server made."""

from __future__ import annotations

import re
from functools import cache

from envs.browser.actions import Action
from envs.browser.miniwob.solvers.helpers import Page, Solver, click

_LINES = [
    *([3 * i, 3 * i + 1, 3 * i + 2] for i in range(3)),
    *([i, i + 3, i + 6] for i in range(3)),
    [0, 4, 8],
    [2, 4, 6],
]


def _completes(board: str, mark: str) -> list[int]:
    """Return the free squares that would complete a line of this mark."""
    lines = [(line, [board[i] for i in line]) for line in _LINES]
    return [
        line[marks.index(" ")]
        for line, marks in lines
        if sorted(marks) == sorted([" ", mark, mark])
    ]


@cache
def _chance(board: str) -> float:
    """Return the chance that X, whose turn it is, wins against an opponent of chance and sense."""
    if _completes(board, "x"):
        return 1.0
    return max((_chance_after(board, i) for i in range(9) if board[i] == " "), default=0.0)


def _chance_after(board: str, square: int) -> float:
    """Return the chance that X wins after it took this square: half of the replies are random."""
    if square in _completes(board, "x"):
        return 1.0
    board = _put(board, square, "x")
    free = [i for i in range(9) if board[i] == " "]
    sensible = _completes(board, "o") or _completes(board, "x") or free

    def average(squares: list[int]) -> float:
        wins = [
            0.0 if i in _completes(board, "o") else _chance(_put(board, i, "o")) for i in squares
        ]
        return sum(wins) / len(wins) if wins else 0.0

    return (average(free) + average(sensible)) / 2


def _put(board: str, square: int, mark: str) -> str:
    return board[:square] + mark + board[square + 1 :]


def tic_tac_toe(goal: str, elements: Page, step: int) -> Action:
    """Playing as 'X', win a game of tic-tac-toe."""
    squares = [e for e in elements if e.id and re.search(r"\brow \d column \d$", e.guess)]
    if len(squares) != 9:
        raise LookupError(f"expected nine squares, got the page {[*map(str, elements)]}")
    marks = (re.match(r"mark ([xo])\b", square.guess) for square in squares)
    board = "".join(mark[1] if mark else " " for mark in marks)
    free = [i for i in range(9) if board[i] == " "]
    return click(squares[max(free, key=lambda i: _chance_after(board, i))])


SOLVERS: dict[str, Solver] = {"tic-tac-toe": tic_tac_toe}
