import pytest
import torch

from grpo.algorithm.batch import (
    has_learning_signal,
    make_batch,
    reward_tensors,
    rows_from_completions,
    sort_batch,
    split_batch,
)
from grpo.algorithm.credit import CreditRule
from grpo.algorithm.losses import policy_loss
from grpo.distributed import without_prompts
from grpo.training.metrics import rollout_metrics
from grpo.tree.token_tree import build_tree
from grpo.types import Completion

T, F = True, False


def test_columns(group_of, batch_of):
    batch = batch_of([group_of((1, ([3, 4], [5, 0])), (0, ([3, 4, 6], [7])))], aggregation="dapo")
    assert batch.input_ids.tolist() == [[3, 4, 5, 0], [3, 4, 6, 7]]
    assert batch.token_mask.tolist() == [[T, T, T, T], [T, T, T, T]]
    assert batch.completion_mask.tolist() == [[F, F, T, T], [F, F, F, T]]
    assert batch.sampling_logprobs.tolist() == [[0, 0, -1, -1], [0, 0, 0, -1]]
    third = torch.tensor(1 / 3)
    assert torch.equal(batch.token_weights, third * batch.completion_mask)
    assert batch.rows() == [[3, 4, 5, 0], [3, 4, 6, 7]]


def test_padding(group_of, batch_of):
    batch = batch_of([group_of((1, ([3], [5])), (0, ([3, 4, 6], [7, 8])))])
    assert batch.input_ids[0].tolist() == [3, 5, 0, 0, 0]
    assert batch.token_mask[0].tolist() == [T, T, F, F, F]
    assert batch.completion_mask[0].tolist() == [F, T, F, F, F]
    assert batch.token_weights[0, 2:].tolist() == [0, 0, 0]
    assert batch.rows()[0] == [3, 5]


def test_the_end_token_is_trained_though_padding_has_the_same_id(group_of, batch_of):
    batch = batch_of([group_of((1, ([3], [5, 0])), (0, ([3, 4, 6], [7, 0])))])
    assert batch.completion_mask.sum(1).tolist() == [2, 2]
    assert batch.completion_mask[0].tolist() == [F, T, T, F, F]


def test_a_row_of_a_completion_alone():
    """Without advantages and weights: what the sync check looks at."""
    one = Completion((3, 4), (5, 0), (-0.5, -0.25), 7, "stop")
    other = Completion((), (6,), (-1.0,), 7, "length")
    batch = rows_from_completions([one, other])
    assert batch.input_ids.tolist() == [[3, 4, 5, 0], [6, 0, 0, 0]]
    assert batch.token_mask.tolist() == [[T, T, T, T], [T, F, F, F]]
    assert batch.completion_mask.tolist() == [[F, F, T, T], [T, F, F, F]]
    assert batch.sampling_logprobs.tolist() == [[0, 0, -0.5, -0.25], [-1, 0, 0, 0]]
    assert batch.advantages.tolist() == [0, 0]
    assert not batch.token_weights.any()
    assert batch.old_logprobs is batch.ref_logprobs is None
    assert batch.rows() == [[3, 4, 5, 0], [6]]


def test_rows_with_advantages_and_weights():
    one = Completion((3,), (5, 0), (-0.5, -0.25), 7, "stop")
    other = Completion((3, 4), (6,), (-1.0,), 7, "stop")
    weights = torch.tensor([0.25, 0.5])
    batch = rows_from_completions([one, other], torch.tensor([2.0, -1.0]), weights)
    assert batch.advantages.tolist() == [2, -1]
    assert batch.token_weights.tolist() == [[0, 0.25, 0.25], [0, 0, 0.5]]
    assert len(rows_from_completions([])) == 0
    assert rows_from_completions([]).input_ids.shape == (0, 0)


def test_reward_tensors(two_pages, group_of):
    rewards, group_ids, turn_rewards, states = reward_tensors(two_pages)
    assert rewards.tolist() == [1, 0, 2, 2]
    assert group_ids.tolist() == [0, 0, 1, 1]
    assert turn_rewards.tolist() == [[0, 0, 1], [0, 0, 0], [2, 0, 0], [0, 2, 0]]
    assert states.tolist() == [[0, 1, 1], [0, 1, -1], [0, -1, -1], [0, 1, -1]]
    assert (rewards.dtype, turn_rewards.dtype) == (torch.float32, torch.float64)
    assert (group_ids.dtype, states.dtype) == (torch.int64, torch.int64)
    other = group_of((0, ([3], [5], 0, "q")), (0, ([3], [5], 0, "p")))
    assert reward_tensors([*two_pages, other]).states[4:, 0].tolist() == [1, 0]  # by their names


def test_a_row_has_the_advantage_of_its_turn(group_of):
    """Of [E, K] the columns past an episode's end are not looked at."""
    turn = ([3], [5])
    groups = [group_of((1, turn, turn, turn), (0, turn)), group_of((3, turn), (5, turn, turn))]
    nan = float("nan")
    advantages = [[0.1, 0.2, 0.3], [0.4, nan, nan], [0.5, nan, nan], [0.6, 0.7, nan]]
    batch = make_batch(groups, torch.tensor(advantages))
    assert torch.equal(batch.advantages, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]))
    with pytest.raises(ValueError, match="zip"):  # one episode too few
        make_batch(groups, torch.tensor(advantages[:3]))


def test_each_turn_carries_its_episodes_advantage(group_of, batch_of):
    turn = ([3], [5])
    batch = batch_of(
        [group_of((1, turn, turn, turn), (0, turn)), group_of((3, turn), (5, turn, turn))],
        scale="none",
    )
    assert batch.advantages.tolist() == [0.5, 0.5, 0.5, -0.5, -1, 1, 1]


@pytest.fixture
def two_pages(group_of):
    """Two groups with pages of the same names; the second one's rewards are all equal."""

    def turn(reward, state, prompt=(3,), completion=(5,)):
        return (prompt, completion, reward, state)

    return [
        group_of(
            (1, turn(0, "p", (3,), (5, 0)), turn(0, "q", (4,)), turn(1, "q", (4,), (6, 0))),
            (0, turn(0, "p"), turn(0, "q", (4,), (6,))),
        ),
        group_of(
            (2, turn(2, "p", (7,))),
            (2, turn(0, "p", (7,), (8,)), turn(2, "q", (7, 7))),
        ),
    ]


def test_advantages_of_every_credit_rule(two_pages, batch_of):
    """Discount 1/2: returns 1/4, 1/2, 1 against 0, 0; and 2 against 1, 2."""

    def of(*rule, **options):
        return batch_of(two_pages, CreditRule(*rule), scale="none", **options).advantages

    assert of("episode").tolist() == [0.5, 0.5, 0.5, -0.5, -0.5, 0, 0, 0]
    # The second group's first episode has ended: its return from the second turn on is 0.
    discounted = torch.tensor([1 / 8, 1 / 4, 1 / 2, -1 / 8, -1 / 4, 1 / 2, -1 / 2, 1])
    assert torch.equal(of("discounted", 0.5), discounted)
    # At p means 1/8 and 3/2; at q 1/2 (of 1/2, 1, 0), and nobody else in the second group.
    steps = [1 / 8, 0, 1 / 2, -1 / 8, -1 / 2, 1 / 2, -1 / 2, 0]
    torch.testing.assert_close(of("steps", 0.5, 3.0), of("episode") + 3 * torch.tensor(steps))
    torch.testing.assert_close(of("discounted", 0.5, baseline="leave_one_out"), 2 * discounted)


def test_shared_pages_are_counted_per_group(two_pages):
    """Of 8 turns only one is alone on its page: q of the second group."""
    assert rollout_metrics(two_pages, 0)["shared_page_rate"] == 7 / 8
    assert rollout_metrics(two_pages[1:], 0)["shared_page_rate"] == 2 / 3


def test_groups_of_equal_rewards_may_have_a_signal(two_pages, batch_of):
    good, equal = two_pages
    assert all(
        has_learning_signal(good, CreditRule(kind)) for kind in ("episode", "discounted", "steps")
    )
    assert not has_learning_signal(equal)
    assert has_learning_signal(equal, CreditRule("discounted", 1.0))  # one episode had ended
    assert not has_learning_signal(equal, CreditRule("steps", 1.0))
    assert has_learning_signal(equal, CreditRule("discounted", 0.5))
    assert has_learning_signal(equal, CreditRule("steps", 0.5))

    def rows(*rule):
        batch = batch_of([equal], CreditRule(*rule), drop_zero_advantages=True)
        return batch and batch.rows()

    assert rows("episode") is rows("steps", 1.0) is None
    assert rows("steps", 0.5) == [[7, 5], [7, 8]]  # nobody else was at q
    assert rows("discounted", 1.0) == [[7, 7, 5]]


def test_scale_and_baseline(group_of, batch_of):
    groups = [group_of(*((r, ([3], [5])) for r in (1, 0, 0, 0)))]
    plain = batch_of(groups, scale="none").advantages
    assert plain.tolist() == [0.75, -0.25, -0.25, -0.25]
    left_out = batch_of(groups, scale="none", baseline="leave_one_out").advantages
    torch.testing.assert_close(left_out, torch.tensor([1, -1 / 3, -1 / 3, -1 / 3]))
    # The standard deviation of (1, 0, 0, 0) is 1/2.
    torch.testing.assert_close(batch_of(groups).advantages, plain / (0.5 + 1e-4))


def test_token_weights_are_those_of_episodes(group_of, batch_of):
    one, two = ([3], [5]), ([3], [6, 7])
    groups = [group_of((1, one, two), (0, two))]
    weights = batch_of(groups, aggregation="grpo").token_weights.sum(1)
    torch.testing.assert_close(weights, torch.tensor([1 / 6, 2 / 6, 1 / 2]))
    weights = batch_of(groups, aggregation="dr_grpo", max_completion_length=10).token_weights
    torch.testing.assert_close(weights.sum(1), torch.tensor([1 / 20, 2 / 20, 2 / 20]))


@pytest.fixture
def one_without_signal(group_of):
    """Two groups with a signal around one whose rewards are equal."""
    return [
        group_of((1, ([3, 4], [5, 0])), (0, ([3, 4], [6])), (0, ([3, 4], [5, 0]), ([3, 8], [2]))),
        group_of((1, ([7], [2, 2, 9, 9])), (1, ([7], [3, 0]))),
        group_of((0, ([7, 3], [4])), (1, ([7, 3], [9, 9]))),
    ]


@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "dr_grpo"])
def test_leaving_out_rows_without_advantage_keeps_the_gradient(
    make_policy, gradient, one_without_signal, batch_of, aggregation
):
    policy = make_policy()

    def of(drop):
        batch = batch_of(
            one_without_signal,
            aggregation=aggregation,
            max_completion_length=12,
            drop_zero_advantages=drop,
        )
        loss, _ = policy_loss(
            policy.logprobs(batch).logprobs,
            batch.advantages,
            batch.completion_mask,
            batch.token_weights,
        )
        return len(batch), gradient(policy, loss)

    (rows, whole), (kept, part) = of(False), of(True)
    assert (rows, kept) == (8, 6)
    assert whole.abs().max() > 1e-2
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-10)


def test_no_row_is_left(group_of, batch_of):
    groups = [group_of((1, ([3], [5])), (1, ([3], [6])))]
    assert batch_of(groups, drop_zero_advantages=True) is None
    assert len(batch_of(groups)) == 2


def test_split_batch_holds_every_row_once(batch):
    parts = split_batch(batch, 12)
    assert len(parts) > 1
    assert all(len(build_tree(part.rows())) <= 12 for part in parts)
    rows = sorted(row for part in parts for row in part.rows())
    assert rows == sorted(batch.rows())
    weight = sum(part.token_weights.sum() for part in parts)
    torch.testing.assert_close(weight, batch.token_weights.sum())


@pytest.mark.parametrize("max_tokens", [1, 25, 1000])
def test_parts_of_padded_rows_count_positions(batch, max_tokens):
    parts = split_batch(batch, max_tokens, padded=True)
    for part in parts:
        assert len(part) == 1 or len(part) * max(map(len, part.rows())) <= max_tokens
    assert [row for part in parts for row in part.rows()] == batch.rows()


def test_padded_rows_of_a_part_are_of_like_lengths(batch_of, group_of):
    rows = [(1, ([3] * n, [5])) for n in (40, 4, 4, 30, 4, 4)]
    batch = sort_batch(batch_of([group_of(*rows)], drop_zero_advantages=False), padded=True)
    parts = split_batch(batch, 41, padded=True)
    assert [[len(row) for row in part.rows()] for part in parts] == [[41], [31], [5] * 4]


@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("scale", ["group", "batch"])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("credit", ["episode", "discounted", "steps"])
def test_the_rows_of_two_ranks_are_those_of_one(
    groups, two_pages, batch_of, aggregation, scale, drop, credit
):
    """Each rank knows everything about the other rank's groups except their prompts."""
    groups = [groups[0], two_pages[0], two_pages[1]] if credit != "episode" else groups
    options = {"aggregation": aggregation, "scale": scale, "drop_zero_advantages": drop,
               "max_completion_length": 7, "credit": CreditRule(credit, 0.5)}  # fmt: skip
    whole = batch_of(groups, **options)
    parts = []
    for own in ([True, False, True], [False, True, False]):
        seen = [g if mine else without_prompts(g) for g, mine in zip(groups, own, strict=True)]
        parts.append(batch_of(seen, own=own, **options))
    assert sum(map(len, parts)) == len(whole)

    def rows(*batches):
        return sorted(
            (row, mask.tolist(), advantage.item(), weights[mask].tolist())
            for batch in batches
            for row, mask, advantage, weights in zip(
                batch.rows(),
                [m[: len(r)] for m, r in zip(batch.completion_mask, batch.rows(), strict=True)],
                batch.advantages,
                [w[: len(r)] for w, r in zip(batch.token_weights, batch.rows(), strict=True)],
                strict=True,
            )
        )

    assert rows(*parts) == rows(whole)


def test_a_rank_without_rows_has_an_empty_batch(group_of, batch_of):
    equal = group_of((1, ([3], [5])), (1, ([3], [6])))
    good = group_of((1, ([3], [5])), (0, ([3], [6])))
    batch = batch_of([equal, good], own=[True, False], drop_zero_advantages=True)
    assert len(batch) == 0
    assert split_batch(sort_batch(batch), 10) == split_batch(batch, 10, padded=True) == []
    assert batch_of([equal, equal], own=[True, False], drop_zero_advantages=True) is None


@pytest.mark.parametrize("max_tokens", [1, 9, 12, 1000])
def test_a_sorted_batch_is_cut_into_slices(batch, max_tokens):
    ordered = sort_batch(batch)
    assert sorted(ordered.rows()) == ordered.rows()
    parts = split_batch(ordered, max_tokens)
    assert [row for part in parts for row in part.rows()] == ordered.rows()
