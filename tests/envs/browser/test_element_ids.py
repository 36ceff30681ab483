import pytest

from envs.base import Task
from envs.browser.element_ids import page_id

TASK = Task("click-test", 3)


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


@pytest.mark.parametrize("bid", ["", "1a", "-1", "a b"])
def test_an_invalid_bid(bid):
    with pytest.raises(ValueError, match="bid must be"):
        page_id(TASK, bid)
