import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.algorithm.advantages import group_advantages
from grpo.algorithm.credit import CreditRule, discounted_returns, turn_advantages

EPS = 1e-4


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def std_of(*values):
    """Compute the standard deviation, dividing by n - 1."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        (0.5, [[0.25, 0.5, 1], [1, 1, 0], [2, 0, 0]]),
        (0.95, [[0.9025, 0.95, 1], [1.45, 1, 0], [2, 0, 0]]),
        (1.0, [[1, 1, 1], [1.5, 1, 0], [2, 0, 0]]),
    ],
)
def test_returns(discount, expected):
    rewards = f64([[0, 0, 1], [0.5, 1, 0], [2, 0, 0]])
    torch.testing.assert_close(discounted_returns(rewards, discount), f64(expected))


# Two interleaved groups. Group 4: A succeeds at its third turn, B at its first. Group 1: C fails
# in two turns, D succeeds at its second. With the discount g the returns are
#   A: g^2, g, 1     B: 1     C: 0, 0     D: g, 1
GROUPS = torch.tensor([4, 1, 4, 1])
REWARDS = f64([1, 0, 1, 1])
TURN_REWARDS = f64([[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
STATES = torch.tensor([[0, 1, 2], [0, 1, -1], [0, -1, -1], [0, 1, -1]])


def advantages(rule, **options):
    return turn_advantages(REWARDS, GROUPS, TURN_REWARDS, STATES, rule, **options)


@pytest.mark.parametrize("g", [0.5, 0.95, 1.0])
def test_discounted(g):
    """B ends after its first turn, so its returns from the second and third turn on are 0."""
    first, second, third = (g**2, 1), (g, 0), (1, 0)  # of A and B
    rule = CreditRule("discounted", discount=g)
    # Of two values each differs from their mean by half of their difference.
    centred = f64([[(g * g - 1) / 2, g / 2, 1 / 2], [-g / 2, -1 / 2, 0], [(1 - g * g) / 2, 0, 0],
                   [g / 2, 1 / 2, 0]])  # fmt: skip
    torch.testing.assert_close(advantages(rule, scale="none"), centred)
    leave_one_out = advantages(rule, scale="none", baseline="leave_one_out")
    torch.testing.assert_close(leave_one_out, 2 * centred)
    of_a, of_cd = [std_of(*pair) for pair in (first, second, third)], [std_of(g, 0), std_of(1, 0)]
    stds = f64([of_a, [*of_cd, 1], of_a, [*of_cd, 1]])
    torch.testing.assert_close(advantages(rule), centred / (stds + EPS))
    # All compared values: also the two zeros of B, but no third turn in group 1.
    std = std_of(*first, *second, *third, 0, 0, g, 1)
    torch.testing.assert_close(advantages(rule, scale="batch"), centred / (std + EPS))


def test_discounted_in_numbers():
    got = advantages(CreditRule("discounted", discount=0.5), scale="none")
    expected = [[-0.375, 0.25, 0.5], [-0.25, -0.5, 0], [0.375, 0, 0], [0.25, 0.5, 0]]
    assert got.tolist() == expected


# A group on the pages p, q, r; the first completion at q did not change the page; r occurs once.
# With the discount 1/2 the returns are 1/4, 1/2, 1; 0, 0; 1/2, 1. At p: mean 1/4, deviations
# 0, -1/4, 1/4. At q (1/2, 1, 0): mean 1/2, deviations 0, 1/2, -1/2. The second group is on pages
# of the same names and is compared within itself: returns 0, 0; 1, mean 1/3 at p.
P, Q, R = 0, 1, 2
PAGES = torch.tensor([[P, Q, Q], [P, Q, -1], [P, R, -1], [P, P, -1], [P, -1, -1]])
PAGE_GROUPS = torch.tensor([0, 0, 0, 1, 1])
PAGE_TURN_REWARDS = f64([[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
PAGE_REWARDS = PAGE_TURN_REWARDS.sum(1)
OF_EPISODES = f64([[1 / 3] * 3, [-2 / 3, -2 / 3, 0], [1 / 3, 1 / 3, 0], [-1 / 2, -1 / 2, 0],
                   [1 / 2, 0, 0]])  # fmt: skip
OF_STEPS = f64([[0, 0, 1 / 2], [-1 / 4, -1 / 2, 0], [1 / 4, 0, 0], [-1 / 3, -1 / 3, 0],
                [2 / 3, 0, 0]])  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_steps(weight):
    rule = CreditRule("steps", discount=0.5, step_weight=weight)

    def got(**options):
        pages = (PAGE_REWARDS, PAGE_GROUPS, PAGE_TURN_REWARDS, PAGES)
        return turn_advantages(*pages, rule, **options)

    torch.testing.assert_close(got(scale="none"), OF_EPISODES + weight * OF_STEPS)
    # Deviations: of episodes sqrt(1/3) and sqrt(1/2), at p 1/4, at q 1/2, at the other p sqrt(1/3).
    third, half = math.sqrt(1 / 3), math.sqrt(1 / 2)
    episodes = OF_EPISODES / (f64([third] * 3 + [half] * 2)[:, None] + EPS)
    at = {0: 1 / 4, 1: 1 / 2, 2: 1.0, -1: 1.0}  # the last two: there is nothing to compare
    stds = f64([[at[page] for page in row] for row in PAGES.tolist()])
    stds[3:] = third
    torch.testing.assert_close(got(), episodes + weight * OF_STEPS / (stds + EPS))
    # 3/2 and 2 are n / (n - 1) of groups and pages; each visit is left out of its own baseline.
    size = f64([3 / 2] * 3 + [2] * 2)[:, None]
    leave_one_out = size * OF_EPISODES + weight * 3 / 2 * OF_STEPS
    torch.testing.assert_close(got(scale="none", baseline="leave_one_out"), leave_one_out)


def test_episode():
    """Each turn has exactly its episode's advantage."""
    for options in ({}, {"scale": "none"}, {"scale": "batch", "baseline": "leave_one_out"}):
        got = advantages(CreditRule(), **options)
        of_episodes = group_advantages(REWARDS, GROUPS, **options)
        assert torch.equal(got, torch.where(STATES >= 0, of_episodes[:, None], 0.0))


def test_without_a_discount_and_rewards_at_the_end_only():
    """Turns have their episode's advantage: all of equal lengths, the first of other lengths."""
    rewards = torch.tensor([0.0, 0.3, 1.0, 0.1, 0.7])
    groups, at_end = torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, 4)
    at_end[:, 3] = rewards
    rule = CreditRule("discounted", discount=1.0)
    for scale in ("group", "none"):
        episode = group_advantages(rewards, groups, scale=scale)
        states = torch.arange(20).view(5, 4)
        got = turn_advantages(rewards, groups, at_end, states, rule, scale=scale)
        assert torch.equal(got, episode[:, None].expand(5, 4))
    first, episode = advantages(rule)[:, 0], advantages(CreditRule())[:, 0]
    assert torch.equal(first, episode)


@pytest.mark.parametrize("kind", ["discounted", "steps"])
@pytest.mark.parametrize("value", [0.1, 0.7, -1 / 3])
def test_equal_returns_have_no_advantage(kind, value):
    rewards = torch.full((7, 3), value)
    states = torch.tensor([[0, 1, 2]]).repeat(7, 1)
    groups = torch.tensor([0] * 3 + [1] * 4)
    rule = CreditRule(kind)
    got = turn_advantages(rewards.sum(1), groups, rewards, states, rule)
    assert not got.any()


def test_equal_rewards_can_have_unequal_returns():
    """One episode succeeds in two turns, one in three: the discount prefers the first."""
    rewards, groups = torch.ones(2), torch.zeros(2, dtype=torch.long)
    turn_rewards = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    states = torch.tensor([[0, 1, -1], [0, 0, 1]])  # the second episode's first turn did nothing

    def of(*rule):
        return turn_advantages(rewards, groups, turn_rewards, states, CreditRule(*rule))

    assert not of("episode").any()
    assert not of("steps", 1.0).any()
    assert of("discounted", 0.9)[0, 0] > 0 > of("discounted", 0.9)[1, 0]
    assert of("steps", 0.9)[0, 0] > 0 > of("steps", 0.9)[1, 0]
    assert of("steps", 0.9)[0, 1] == of("steps", 0.9)[1, 2] == 0  # both succeeded from there


def test_without_shared_pages_turns_have_the_episodes_advantage():
    states = torch.arange(12).view(4, 3)
    got = turn_advantages(REWARDS, GROUPS, TURN_REWARDS, states, CreditRule("steps"))
    expected = turn_advantages(REWARDS, GROUPS, TURN_REWARDS, states, CreditRule())
    assert torch.equal(got, expected)


@st.composite
def episodes_in_groups(draw):
    """Draw groups of 2 to 4 episodes of 1 to 4 turns, each turn on one of three pages."""
    rewards, states, groups = [], [], []
    for group in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(2, 4))):
            turns = draw(st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 2)), min_size=1,
                                  max_size=4))  # fmt: skip
            pad = 4 - len(turns)
            rewards.append([r / 8 for r, _ in turns] + [0] * pad)
            states.append([s for _, s in turns] + [-1] * pad)
            groups.append(group)
    return f64(rewards), torch.tensor(states), torch.tensor(groups)


kinds, discounts = st.sampled_from(["discounted", "steps"]), st.sampled_from([0.5, 0.95, 1.0])
scales = st.sampled_from(["group", "batch", "none"])
baselines = st.sampled_from(["mean", "leave_one_out"])


@settings(max_examples=60)
@given(episodes_in_groups(), kinds, discounts, scales, baselines, st.randoms(use_true_random=False))
def test_invariances(episodes, kind, discount, scale, baseline, random):
    rewards, states, groups = episodes

    def of(rewards, states, groups):
        rule = CreditRule(kind, discount)
        return turn_advantages(rewards.sum(1), groups, rewards, states, rule, scale=scale,
                               baseline=baseline)  # fmt: skip

    got = of(rewards, states, groups)
    assert not got[states < 0].any()
    order = random.sample(range(len(groups)), len(groups))
    again = of(rewards[order], states[order], groups[order])
    torch.testing.assert_close(again, got[order], rtol=1e-9, atol=1e-9)
    renamed = torch.where(states < 0, -5, 9 - 3 * states)
    again = of(rewards, renamed, 7 - 2 * groups)
    torch.testing.assert_close(again, got, rtol=1e-9, atol=1e-9)
    wider = [torch.nn.functional.pad(x, (0, 2), value=v) for x, v in ((rewards, 0), (states, -1))]
    torch.testing.assert_close(of(*wider, groups)[:, :4], got, rtol=1e-9, atol=1e-9)
    if scale != "batch":  # groups do not depend on each other
        for group in groups.unique():
            own = groups == group
            alone = of(rewards[own], states[own], groups[own])
            torch.testing.assert_close(alone, got[own], rtol=1e-9, atol=1e-9)


# A tabular task, small enough for exact expected gradients. Actions and rewards from s: to t for
# 0, to u for 0.25, or the end for 0.4; from u: the end for 0, or to t for 0.1; from t: the end for
# 1 or for -0.2. So episodes have one to three turns, t is reached at the second or third turn, and
# no episode is in a state twice.
S, U, T = 0, 1, 2
EPISODES = [  # of (state, action, reward)
    [(S, 2, 0.4)],
    [(S, 0, 0), (T, 0, 1.0)],
    [(S, 0, 0), (T, 1, -0.2)],
    [(S, 1, 0.25), (U, 0, 0)],
    [(S, 1, 0.25), (U, 1, 0.1), (T, 0, 1.0)],
    [(S, 1, 0.25), (U, 1, 0.1), (T, 1, -0.2)],
]
LOGITS = f64([[0.3, -0.2, 0.4], [0.5, -0.1, -math.inf], [-0.6, 0.2, -math.inf]])
G = 3


class Tabular:
    """All episodes and all groups of G episodes, with their probabilities."""

    def __init__(self):
        self.logits = LOGITS.clone().requires_grad_()
        logp = self.logits.log_softmax(-1)
        pad = [(S, 0, 0)] * 3
        rows = [(episode + pad)[:3] for episode in EPISODES]
        self.lengths = torch.tensor([len(episode) for episode in EPISODES])
        self.taken = torch.arange(3) < self.lengths[:, None]
        states = torch.tensor([[s for s, _, _ in row] for row in rows])
        actions = torch.tensor([[a for _, a, _ in row] for row in rows])
        self.rewards = f64([[r for _, _, r in row] for row in rows])
        self.states = torch.where(self.taken, states, -1)
        self.logp = torch.where(self.taken, logp[states, actions], 0.0)  # [6, 3]
        self.p = self.logp.sum(1).exp()
        self.groups = torch.tensor(list(itertools.product(range(6), repeat=G)))  # [6^G, G]

    def gradient(self, scalar):
        (gradient,) = torch.autograd.grad(scalar, self.logits, retain_graph=True)
        return gradient[LOGITS.isfinite()]

    def of_reward(self):
        """Compute the gradient of the expected reward."""
        return self.gradient((self.p * self.rewards.sum(1)).sum())

    def of_returns(self, discount, weights=None):
        """Compute E[sum_k w(s_k) R_k grad log pi_k] over episodes."""
        returns = discounted_returns(self.rewards, discount)
        weights = torch.ones(3) if weights is None else weights
        terms = weights[self.states] * returns * self.logp
        return self.gradient((self.p.detach()[:, None] * terms).sum())

    def expected(self, rule, **options):
        """Compute E[mean over a group of sum_k A_k grad log pi_k] over all groups."""
        flat = self.groups.flatten()
        ids = torch.arange(len(self.groups)).repeat_interleave(G)
        rewards = self.rewards[flat]
        got = turn_advantages(rewards.sum(1), ids, rewards, self.states[flat], rule, **options)
        p = self.p.detach()[self.groups].prod(1).repeat_interleave(G)
        return self.gradient((p[:, None] * got * self.logp[flat]).sum() / G)

    def visits(self):
        """Compute the probability that an episode reaches each state."""
        seen = [(self.states == state).any(1) for state in (S, U, T)]
        return torch.stack([(self.p.detach() * there).sum() for there in seen])


@pytest.fixture(scope="module")
def tabular():
    return Tabular()


def test_the_tabular_task(tabular):
    assert tabular.p.sum().item() == pytest.approx(1)
    torch.testing.assert_close(tabular.of_returns(1.0), tabular.of_reward())
    assert tabular.of_reward().abs().min() > 5e-3
    assert 0 < tabular.visits()[1:].min() < tabular.visits()[1:].max() < tabular.visits()[0] + EPS


UNSCALED = [({"baseline": "leave_one_out", "scale": "none"}, 1.0), ({"scale": "none"}, 1 - 1 / G)]


@pytest.mark.parametrize(("options", "factor"), UNSCALED)
def test_episode_and_discounted_are_unbiased(tabular, options, factor):
    gradient = tabular.of_reward()
    torch.testing.assert_close(tabular.expected(CreditRule(), **options), factor * gradient)
    got = tabular.expected(CreditRule("discounted", 1.0), **options)
    torch.testing.assert_close(got, factor * gradient)
    got = tabular.expected(CreditRule("discounted", 0.5), **options)
    torch.testing.assert_close(got, factor * tabular.of_returns(0.5))
    assert (got - factor * gradient).abs().max() > 0.01  # the bias of a discount


@pytest.mark.parametrize("discount", [1.0, 0.5])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_steps_weight_the_gradient_by_visits_of_the_others(tabular, discount, leave_one_out):
    """A turn counts if one of the G - 1 other episodes visits its state, each with probability d.

    With the baseline "mean" it counts (n - 1) / n if n - 1 others do, which is binomial:
    E[1 / n] = (1 - (1 - d)^G) / (G d).
    """
    d = tabular.visits()
    weights = 1 - (1 - d) ** (G - 1) if leave_one_out else 1 - (1 - (1 - d) ** G) / (G * d)
    options, factor = UNSCALED[0 if leave_one_out else 1]
    got = tabular.expected(CreditRule("steps", discount, 0.5), **options)
    expected = factor * tabular.of_reward() + 0.5 * tabular.of_returns(discount, weights)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["episode", "discounted", "steps"])
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_scaled_gradients_point_uphill(tabular, kind, scale):
    uphill, got = tabular.of_reward(), tabular.expected(CreditRule(kind), scale=scale)
    assert torch.cosine_similarity(got, uphill, dim=0) > 0.8


def test_credit_goes_to_the_turn_that_earned_it():
    """Two turns, each rewarded for action 0: the first turn adds no noise to the second.

    The expected gradients of the two rules are equal, the variances at the second turn are not.
    """
    choices = torch.tensor(list(itertools.product((0, 1), repeat=4)))  # two episodes of two turns
    turn_rewards = (choices == 0).double().view(-1, 2)
    groups = torch.arange(16).repeat_interleave(2)
    states = torch.tensor([0, 1]).expand_as(turn_rewards)
    sign = turn_rewards * 2 - 1  # of the derivative of log pi at pi = 1/2
    means, variances = {}, {}
    for kind in ("episode", "discounted"):
        got = turn_advantages(turn_rewards.sum(1), groups, turn_rewards, states,
                              CreditRule(kind, 1.0), scale="none")  # fmt: skip
        second = (got * sign)[:, 1]
        means[kind], variances[kind] = second.mean(), second.var(correction=0)
    # Derived by hand: A = (x - x') / 2 + (y - y') / 2 against (y - y') / 2 with fair coins.
    assert means["episode"].item() == means["discounted"].item() == 0.25
    assert variances["discounted"].item() == 1 / 8 - 1 / 16
    assert variances["episode"].item() == 2 / 8 - 1 / 16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"credit": "gigpo"}, "credit must be one of .*'episode', 'discounted', 'steps'.* 'gigpo'"),
        ({"discount": 0.0}, "discount must be above 0 and at most 1, got 0.0"),
        ({"discount": 1.01}, "discount must be above 0 and at most 1, got 1.01"),
        ({"discount": math.nan}, "discount must be above 0 and at most 1, got nan"),
        ({"step_weight": -0.5}, "step_weight must not be negative, got -0.5"),
    ],
)
def test_invalid_rules_are_rejected(values, message):
    with pytest.raises(ValueError, match=message):
        CreditRule(**values)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"turn_rewards": torch.zeros(4)}, r"turn_rewards must be \[E, K\]=\[4, K\], got \[4\]"),
        ({"turn_rewards": torch.zeros(3, 3)}, r"=\[4, K\], got \[3, 3\]"),
        ({"states": torch.zeros(4, 2).long()}, r"states must be \[E, K\]=\[4, 3\], got \[4, 2\]"),
        ({"states": torch.zeros(4, 3)}, "states must be integers, got torch.float32"),
        ({"group_ids": torch.arange(4)}, "a group must have at least 2 rewards"),
        ({"turn_rewards": torch.full((4, 3), math.nan)}, "must be finite"),
    ],
)
def test_errors_name_the_wrong_value(changed, message):
    given = {"rewards": REWARDS, "group_ids": GROUPS, "turn_rewards": TURN_REWARDS}
    given |= {"states": STATES, **changed}
    with pytest.raises(ValueError, match=message):
        turn_advantages(**given, rule=CreditRule("steps"))
