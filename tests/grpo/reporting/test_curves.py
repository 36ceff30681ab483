"""The picture of a run: its axes, the marks of the evaluations, texts that are not markup."""

import sys

import pytest

from grpo.reporting.curves import EVALUATIONS, plot_curves, plot_imitation
from grpo.reporting.progress import CURVES
from grpo.training.metrics import METRICS

UNTRAINED = {"success": 0.25, "low": 0.125, "high": 0.5}
TRAINED = {"success": 1.0, "low": 0.75, "high": 1.0}


def rows(count):
    return [
        {"step": i, "reward": i / count, "completion_length": 12 + i % 2, "entropy": 2.0}
        for i in range(1, count + 1)
    ]


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """A function that draws the curves, and returns the figure that was saved."""
    pyplot = pytest.importorskip("matplotlib.pyplot")

    def draw(steps, title="a run", plot=plot_curves, **options):
        figures = []
        with monkeypatch.context() as patch:
            patch.setattr(pyplot, "close", figures.append)
            plot(steps, tmp_path / "curves.png", title=title, **options)
        (figure,) = figures
        pyplot.close(figure)
        assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        return figure

    return draw


def visible(ticks, limits):
    low, high = sorted(limits)
    return [tick for tick in ticks if low <= tick <= high]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 20, 200])
def test_steps_are_whole_and_lengths_start_at_0(draw, count):
    for axis in draw(rows(count)).axes:
        ticks = visible(axis.get_xticks(), axis.get_xlim())
        assert ticks[0] == 0
        assert all(tick == round(tick) for tick in ticks)
        assert axis.get_xlim()[1] >= count
    reward, *others = draw(rows(count)).axes
    for axis in others:
        assert axis.get_ylim()[0] == 0
        for line in axis.lines:
            assert all(y < axis.get_ylim()[1] for y in line.get_ydata())
    assert reward.get_ylim()[0] < 0 < 1 < reward.get_ylim()[1]


def test_evaluations_stand_before_the_first_step_and_after_the_last(draw):
    summary = {
        "untrained": {"sampled": UNTRAINED, "greedy": TRAINED},
        "trained": {"sampled": TRAINED},
        "warm_started": {"sampled": UNTRAINED},
        "random": {"sampled": TRAINED},
        "task": "click-test",
    }
    figure = draw(rows(7), summary=summary)
    reward, *others = figure.axes
    marks = {}
    for container in reward.containers:
        point, _, (bar,) = container.lines
        ((_, low), (_, high)) = bar.get_segments()[0]
        marks[container.get_label()] = (*point.get_xydata()[0], low, high)
    assert marks == {
        "untrained 0.25 [0.12, 0.50]": (0, 0.25, 0.125, 0.5),
        "warm started 0.25 [0.12, 0.50]": (0.14, 0.25, 0.125, 0.5),  # beside the first
        "trained 1.00 [0.75, 1.00]": (7, 1.0, 0.75, 1.0),
    }
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(marks)
    assert not any(axis.containers for axis in others)
    assert draw(rows(7)).legends == []
    assert set(EVALUATIONS) == {"untrained", "warm_started", "trained"}


def test_curves_are_metrics_and_drawn(draw):
    """Also of steps without a metric (a skipped one has none), or with one that is not finite."""
    assert {name for name, _ in CURVES} <= set(METRICS)
    steps = rows(4)
    del steps[1]["entropy"]
    steps[2]["entropy"] = float("inf")
    reward, _, entropy = draw(steps).axes
    assert list(reward.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert list(entropy.lines[0].get_xdata()) == [1, 4]
    steps[0]["reward"] = -3.0
    assert draw(steps).axes[0].get_ylim()[0] < -3


@pytest.mark.parametrize(
    ("title", "shown"),
    [(r"$\frac$ for 5", r"$\frac$ for 5"), ("\x1b[31m\nb", r"\x1b[31m b"), ("x" * 200, None)],
)
def test_a_title_is_text(draw, title, shown):
    text = draw(rows(2), title=title).get_suptitle()
    assert text == (shown or "x" * 110 + "...")


def test_the_losses_of_a_warm_start(draw):
    """Those of every update, and the held-out ones where they were measured."""
    steps = [{"step": i, "imitation/loss": 3.0 - i} for i in range(1, 4)]
    (loss,) = draw(steps, plot=plot_imitation).axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 2], [2, 1], [3, 0]]]
    assert loss.get_legend() is None
    held_out = {"imitation/held_out_loss": 4.0, "imitation/held_out_greedy": 0.25}
    steps = [{"step": 0, **held_out}, *steps[:2], steps[2] | held_out]
    loss, greedy = draw(steps, plot=plot_imitation).axes
    assert loss.lines[1].get_xydata().tolist() == [[0, 4], [3, 4]]
    assert greedy.lines[0].get_xydata().tolist() == [[0, 0.25], [3, 0.25]]
    assert loss.get_ylim()[0] == 0
    assert loss.get_ylim()[1] > 4
    assert greedy.get_ylim()[0] < 0 < 1 < greedy.get_ylim()[1]
    names = [text.get_text() for text in loss.get_legend().get_texts()]
    assert names == ["imitated, before the update", "held out"]


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'tensorboard'"):
        plot_curves([], tmp_path / "curves.png", title="")
