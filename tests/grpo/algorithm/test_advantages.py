import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.algorithm.advantages import group_advantages, zero_std_fraction


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


# Two interleaved groups. Group 7: rewards 0, 1, 1, mean 2/3, squared deviations 4/9, 1/9, 1/9,
# so variance (6/9)/(3-1) = 1/3. Group 2: rewards 1, 5, mean 3, variance (4+4)/(2-1) = 8.
REWARDS = f64(0, 1, 1, 5, 1)
GROUPS = torch.tensor([7, 2, 7, 2, 7])
CENTRED = f64(-2 / 3, -2, 1 / 3, 2, 1 / 3)
STD = f64(math.sqrt(1 / 3), math.sqrt(8), math.sqrt(1 / 3), math.sqrt(8), math.sqrt(1 / 3))
# All five: mean 8/5, squared deviations 64/25 + 3 * 9/25 + 289/25 = 380/25, over 5 - 1: 3.8.
BATCH_STD = math.sqrt(3.8)
# The mean of the others is 1, 1/2, 1/2 in group 7 and 5, 1 in group 2.
LEAVE_ONE_OUT = f64(0 - 1, 1 - 5, 1 - 1 / 2, 5 - 1, 1 - 1 / 2)


@pytest.mark.parametrize(
    ("scale", "baseline", "expected"),
    [
        ("group", "mean", CENTRED / (STD + 1e-4)),
        ("batch", "mean", CENTRED / (BATCH_STD + 1e-4)),
        ("none", "mean", CENTRED),
        ("group", "leave_one_out", LEAVE_ONE_OUT / (STD + 1e-4)),
        ("batch", "leave_one_out", LEAVE_ONE_OUT / (BATCH_STD + 1e-4)),
        ("none", "leave_one_out", LEAVE_ONE_OUT),
    ],
)
def test_golden(scale, baseline, expected):
    got = group_advantages(REWARDS, GROUPS, scale=scale, baseline=baseline)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, -1 / 3, 1e6 / 7])
def test_equal_rewards_give_exactly_zero(dtype, scale, baseline, value):
    rewards = torch.full((14,), value, dtype=dtype)
    rewards[11:] = torch.tensor([0.0, 1.0, 1.0])
    groups = torch.tensor([0] * 3 + [1] * 6 + [2] * 2 + [3] * 3)
    got = group_advantages(rewards, groups, scale=scale, baseline=baseline, eps=1e-12)
    assert got.dtype == dtype
    assert got[:11].tolist() == [0.0] * 11
    assert (got[11:] != 0).all()
    alone = group_advantages(rewards[:11], groups[:11], scale=scale, baseline=baseline, eps=1e-12)
    assert alone.tolist() == [0.0] * 11


def test_zero_std_fraction():
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0, 1.0, 1.0])
    assert zero_std_fraction(rewards, torch.tensor([3, 3, 3, 1, 1, 2, 2])) == 2 / 3
    assert zero_std_fraction(rewards, torch.zeros(7, dtype=torch.long)) == 0.0


@pytest.mark.parametrize(
    ("rewards", "groups", "options", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), {}, r"\[N\].*got \[3, 1\]"),
        (torch.zeros(0), torch.zeros(0, dtype=torch.long), {}, r"N > 0, got \[0\]"),
        (torch.zeros(3), torch.zeros(2, dtype=torch.long), {}, r"\[N\]=\[3\], got \[2\]"),
        (torch.zeros(2).long(), torch.zeros(2).long(), {}, "floating point, got torch.int64"),
        (torch.zeros(2), torch.zeros(2), {}, "integers, got torch.float32"),
        (torch.zeros(3), torch.tensor([4, 9, 4]), {}, r"at least 2 rewards, got 1 in group \[9\]"),
        (torch.tensor([0.0, math.nan]), torch.tensor([0, 0]), {}, r"got \[nan\] at \[1\]"),
        (torch.tensor([math.inf, 0.0]), torch.tensor([0, 0]), {}, r"got \[inf\] at \[0\]"),
        (torch.zeros(2), torch.tensor([0, 0]), {"scale": "std"}, "scale must be one of"),
        (torch.zeros(2), torch.tensor([0, 0]), {"baseline": "rloo"}, "baseline must be one of"),
        (torch.zeros(2), torch.tensor([0, 0]), {"eps": 0.0}, "eps must be positive, got 0.0"),
    ],
)
def test_errors_name_the_wrong_value(rewards, groups, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, groups, **options)


@st.composite
def batches(draw):
    """Draw groups of 2 to 6 rewards in random order, one group with equal rewards."""
    reward = st.integers(-40, 40).map(lambda i: i / 8)
    members = draw(st.lists(st.lists(reward, min_size=2, max_size=6), min_size=1, max_size=5))
    members.append([draw(reward)] * draw(st.integers(2, 6)))
    rows = [(r, 10 - g) for g, group in enumerate(members) for r in group]
    rows = draw(st.permutations(rows))
    return f64(*(r for r, _ in rows)), torch.tensor([g for _, g in rows])


scales = st.sampled_from(["group", "batch", "none"])
baselines = st.sampled_from(["mean", "leave_one_out"])


@given(batches(), scales, baselines, st.floats(-100, 100), st.randoms(use_true_random=False))
def test_invariances(batch, scale, baseline, shift, random):
    rewards, groups = batch
    options = {"scale": scale, "baseline": baseline}
    got = group_advantages(rewards, groups, **options)

    for group in groups.unique():
        inside = groups == group
        assert abs(got[inside].sum().item()) < 1e-9
        if rewards[inside].unique().numel() == 1:
            assert (got[inside] == 0).all()
        # A higher reward never has a lower advantage.
        assert (got[inside][rewards[inside].argsort()].diff() >= -1e-12).all()
        if scale == "group":
            alone = group_advantages(rewards[inside], groups[inside], **options)
            torch.testing.assert_close(got[inside], alone, rtol=1e-12, atol=1e-12)

    order = torch.tensor(random.sample(range(len(rewards)), len(rewards)))
    permuted = group_advantages(rewards[order], groups[order], **options)
    torch.testing.assert_close(permuted, got[order], rtol=1e-10, atol=1e-10)

    shifted = group_advantages(rewards + shift, groups, **options)
    torch.testing.assert_close(shifted, got, rtol=1e-6, atol=1e-8)

    # If eps is scaled too, a power of two changes unscaled advantages only.
    scaled = group_advantages(4 * rewards, groups, **options, eps=4e-4)
    expected = 4 * got if scale == "none" else got
    torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=1e-12)

    negated = group_advantages(-rewards, groups, **options)
    torch.testing.assert_close(negated, -got, rtol=1e-10, atol=1e-10)


@given(batches())
def test_unit_deviation(batch):
    rewards, groups = batch
    got = group_advantages(rewards, groups, eps=1e-14)
    for group in groups.unique():
        inside = groups == group
        if rewards[inside].unique().numel() > 1:
            assert got[inside].std(correction=1).item() == pytest.approx(1, abs=1e-9)
