import pytest
import torch

from grpo.algorithm.batch import has_learning_signal, make_batch, sort_batch, split_batch
from grpo.algorithm.credit import CreditRule
from grpo.algorithm.losses import policy_loss
from grpo.distributed import without_prompts
from grpo.training.metrics import rollout_metrics
from grpo.tree.token_tree import build_tree

T, A = True, False


def test_columns(group_of):
    batch = make_batch([group_of((1, ([3, 4], [5, 0])), (0, ([3, 4, 6], [7])))], aggregation="dapo")
    assert batch.input_ids.tolist() == [[3, 4, 5, 0], [3, 4, 6, 7]]
    assert batch.token_mask.tolist() == [[T, T, T, T], [T, T, T, T]]
    assert batch.completion_mask.tolist() == [[A, A, T, T], [A, A, A, T]]
    assert batch.sampling_logprobs.tolist() == [[0, 0, -1, -1], [0, 0, 0, -1]]
    third = torch.tensor(1 / 3)
    assert torch.equal(batch.token_weights, third * batch.completion_mask)
    assert batch.rows() == [[3, 4, 5, 0], [3, 4, 6, 7]]


def test_padding(group_of):
    batch = make_batch([group_of((1, ([3], [5])), (0, ([3, 4, 6], [7, 8])))])
    assert batch.input_ids[0].tolist() == [3, 5, 0, 0, 0]
    assert batch.token_mask[0].tolist() == [T, T, A, A, A]
    assert batch.completion_mask[0].tolist() == [A, T, A, A, A]
    assert batch.token_weights[0, 2:].tolist() == [0, 0, 0]
    assert batch.rows()[0] == [3, 5]


def test_the_end_token_is_trained_though_padding_has_the_same_id(group_of):
    batch = make_batch([group_of((1, ([3], [5, 0])), (0, ([3, 4, 6], [7, 0])))])
    assert batch.completion_mask.sum(1).tolist() == [2, 2]
    assert batch.completion_mask[0].tolist() == [A, T, T, A, A]


def test_each_turn_carries_its_episodes_advantage(group_of):
    turn = ([3], [5])
    batch = make_batch(
        [group_of((1, turn, turn, turn), (0, turn)), group_of((3, turn), (5, turn, turn))],
        scale_rewards="none",
    )
    assert batch.advantages.tolist() == [0.5, 0.5, 0.5, -0.5, -1, 1, 1]


@pytest.fixture
def two_pages(group_of):
    """Two groups with pages of the same names; the second one's rewards are all equal."""

    def turn(reward, state, prompt=(3,), answer=(5,)):
        return (prompt, answer, reward, state)

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


def test_credit_is_passed_on(two_pages):
    """Discount 1/2: returns 1/4, 1/2, 1 against 0, 0; and 2 against 1, 2."""

    def of(*rule, **options):
        credit = CreditRule(*rule)
        return make_batch(two_pages, scale_rewards="none", credit=credit, **options).advantages

    assert of("episode").tolist() == [0.5, 0.5, 0.5, -0.5, -0.5, 0, 0, 0]
    # The second group's first episode has ended: its return from the second turn on is 0.
    discounted = torch.tensor([1 / 8, 1 / 4, 1 / 2, -1 / 8, -1 / 4, 1 / 2, -1 / 2, 1])
    assert torch.equal(of("discounted", 0.5), discounted)
    # At p means 1/8 and 3/2; at q 1/2 (of 1/2, 1, 0), and nobody else in the second group.
    steps = [1 / 8, 0, 1 / 2, -1 / 8, -1 / 2, 1 / 2, -1 / 2, 0]
    torch.testing.assert_close(of("steps", 0.5, 3.0), of("episode") + 3 * torch.tensor(steps))
    torch.testing.assert_close(of("discounted", 0.5, baseline="leave_one_out"), 2 * discounted)


def test_pages_that_are_shared_are_counted_group_by_group(two_pages):
    """Of 8 answers one alone is the only one at its page: q of the second group."""
    assert rollout_metrics(two_pages, 0)["shared_page_rate"] == 7 / 8
    assert rollout_metrics(two_pages[1:], 0)["shared_page_rate"] == 2 / 3


def test_groups_of_equal_rewards_may_teach(two_pages):
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
        batch = make_batch([equal], credit=CreditRule(*rule), drop_zero_advantages=True)
        return batch and batch.rows()

    assert rows("episode") is rows("steps", 1.0) is None
    assert rows("steps", 0.5) == [[7, 5], [7, 8]]  # nobody else was at q
    assert rows("discounted", 1.0) == [[7, 7, 5]]


def test_scale_and_baseline_are_passed_on(group_of):
    groups = [group_of(*((r, ([3], [5])) for r in (1, 0, 0, 0)))]
    plain = make_batch(groups, scale_rewards="none").advantages
    assert plain.tolist() == [0.75, -0.25, -0.25, -0.25]
    left_out = make_batch(groups, scale_rewards="none", baseline="leave_one_out").advantages
    torch.testing.assert_close(left_out, torch.tensor([1, -1 / 3, -1 / 3, -1 / 3]))
    # The standard deviation of (1, 0, 0, 0) is 1/2.
    torch.testing.assert_close(make_batch(groups).advantages, plain / (0.5 + 1e-4))


def test_weights_are_those_of_episodes(group_of):
    one, two = ([3], [5]), ([3], [6, 7])
    groups = [group_of((1, one, two), (0, two))]
    weights = make_batch(groups, aggregation="grpo").token_weights.sum(1)
    torch.testing.assert_close(weights, torch.tensor([1 / 6, 2 / 6, 1 / 2]))
    weights = make_batch(groups, aggregation="dr_grpo", max_completion_length=10).token_weights
    torch.testing.assert_close(weights.sum(1), torch.tensor([1 / 20, 2 / 20, 2 / 20]))


@pytest.fixture
def half_settled(group_of):
    """Two groups with a signal around one whose rewards are equal."""
    return [
        group_of((1, ([3, 4], [5, 0])), (0, ([3, 4], [6])), (0, ([3, 4], [5, 0]), ([3, 8], [2]))),
        group_of((1, ([7], [2, 2, 9, 9])), (1, ([7], [3, 0]))),
        group_of((0, ([7, 3], [4])), (1, ([7, 3], [9, 9]))),
    ]


@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "dr_grpo"])
def test_dropping_settled_rows_leaves_the_gradient(
    make_policy, gradient, half_settled, aggregation
):
    policy = make_policy()

    def of(drop):
        batch = make_batch(
            half_settled,
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


def test_nothing_left(group_of):
    groups = [group_of((1, ([3], [5])), (1, ([3], [6])))]
    assert make_batch(groups, drop_zero_advantages=True) is None
    assert len(make_batch(groups)) == 2


def test_split_batch_holds_every_row_once(batch):
    parts = split_batch(batch, 12)
    assert len(parts) > 1
    assert all(len(build_tree(part.rows())) <= 12 for part in parts)
    rows = sorted(row for part in parts for row in part.rows())
    assert rows == sorted(batch.rows())
    weight = sum(part.token_weights.sum() for part in parts)
    torch.testing.assert_close(weight, batch.token_weights.sum())


@pytest.mark.parametrize("max_tokens", [1, 25, 1000])
def test_parts_of_the_padded_road_count_positions(batch, max_tokens):
    width = batch.input_ids.shape[1]
    parts = split_batch(batch, max_tokens, padded=True)
    assert all(len(part) * width <= max(width, max_tokens) for part in parts)
    assert [row for part in parts for row in part.rows()] == batch.rows()


@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("scale", ["group", "batch"])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("credit", ["episode", "discounted", "steps"])
def test_the_rows_of_two_ranks_are_those_of_one(
    groups, two_pages, aggregation, scale, drop, credit
):
    """Each rank knows of the other's groups all but their prompts."""
    groups = [groups[0], two_pages[0], two_pages[1]] if credit != "episode" else groups
    options = {"aggregation": aggregation, "scale_rewards": scale, "drop_zero_advantages": drop,
               "max_completion_length": 7, "credit": CreditRule(credit, 0.5)}  # fmt: skip
    whole = make_batch(groups, **options)
    parts = []
    for own in ([True, False, True], [False, True, False]):
        seen = [g if mine else without_prompts(g) for g, mine in zip(groups, own, strict=True)]
        parts.append(make_batch(seen, own=own, **options))
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


def test_a_rank_without_rows_has_an_empty_batch(group_of):
    dull = group_of((1, ([3], [5])), (1, ([3], [6])))
    good = group_of((1, ([3], [5])), (0, ([3], [6])))
    batch = make_batch([dull, good], own=[True, False], drop_zero_advantages=True)
    assert len(batch) == 0
    assert split_batch(sort_batch(batch), 10) == split_batch(batch, 10, padded=True) == []
    nobody = make_batch([dull, dull], own=[True, False], drop_zero_advantages=True)
    assert nobody is None


@pytest.mark.parametrize("max_tokens", [1, 9, 12, 1000])
def test_a_sorted_batch_is_cut_into_slices(batch, max_tokens):
    ordered = sort_batch(batch)
    assert sorted(ordered.rows()) == ordered.rows()
    parts = split_batch(ordered, max_tokens)
    assert [row for part in parts for row in part.rows()] == ordered.rows()
