from itertools import pairwise

import pytest

from envs.base import Task
from envs.browser.element_ids import page_id, page_ids

TASK = Task("click-test", 3)
FRAMES = [f"{letter}{other}1" for letter in "bcdefg" for other in "stuvwxy"]
GOLDEN_LONG = ["39203", "940743", "87560135523", "a9890315"]


def test_golden():
    """The permutation is part of a task: pages of old runs must be reproducible."""
    assert [page_id(TASK, bid) for bid in ("12", "13", "95", "a12", "a")] == [
        *("89", "60", "981", "a71", "a"),
    ]


def test_blocks_are_permuted_onto_themselves():
    small = [page_id(TASK, str(bid)) for bid in range(90)]
    large = [page_id(TASK, str(bid)) for bid in range(90, 990)]
    assert sorted(map(int, small)) == list(range(10, 100))
    assert sorted(map(int, large)) == list(range(100, 1000))
    assert small != sorted(small)
    assert page_id(TASK, "990").isdigit()
    assert len(page_id(TASK, "990")) == 4


def test_frames_keep_their_letters_and_get_their_own_permutation():
    inner = [page_id(TASK, f"a{bid}") for bid in range(90)]
    assert all(one[0] == "a" for one in inner)
    assert len(set(inner)) == 90
    assert [one[1:] for one in inner] != [page_id(TASK, str(bid)) for bid in range(90)]
    assert page_id(TASK, "aB") == "aB"


def test_names_and_seeds_differ():
    ids = {page_id(Task(name, seed), "13") for name in ("a", "b") for seed in range(10)}
    assert len(ids) > 10


def test_a_long_id_takes_no_list():
    """The list of a block grows with its numbers: an id of 11 digits would not fit into memory."""
    ids = [page_id(TASK, bid) for bid in ("9990", "123456", "12345678901", "a1234567")]
    assert ids == GOLDEN_LONG
    assert [len(one) for one in ids] == [5, 6, 11, 8]


def test_long_ids_are_permuted_onto_their_block():
    block = {page_id(TASK, str(bid)) for bid in range(9_990, 99_990)}
    assert {*map(int, block)} == set(range(10_000, 100_000))
    assert page_id(TASK, "9990") != page_id(Task("click-test", 4), "9990")
    near = [int(page_id(TASK, str(10**10 + i))) for i in range(100)]
    assert len({b - a for a, b in pairwise(near)}) == 99  # no pattern


def test_the_ids_of_a_page():
    assert page_ids(TASK, ["12", "13", "12"]) == {"12": "89", "13": "60"}
    with pytest.raises(ValueError, match="at most 50 frames on a page, got 51"):
        page_ids(TASK, ["a" * length + str(1) for length in range(9)] + FRAMES)


@pytest.mark.parametrize("bid", ["", "1a", "-1", "a b", "07", "a00", "9" * 12, "a" * 12, "٣"])
def test_an_invalid_bid(bid):
    with pytest.raises(ValueError, match="bid must be"):
        page_id(TASK, bid)
