import numpy as np
import pytest

from vw2_robot.finetune.validation import bootstrap_interval


def test_one_trajectory_has_no_spread():
    assert bootstrap_interval(np.array([1.0, 3.0]), np.array([1, 1]), np.array([4, 4])) == (2.0, 2.0)


def test_windows_of_one_trajectory_count_as_one_sample():
    """Ten thousand equal windows of two trajectories carry no more information than two."""
    groups = np.repeat([0, 1], 5000)
    low, high = bootstrap_interval(groups.astype(float), np.ones(10000, int), groups)
    assert (low, high) == (0.0, 1.0)


def test_the_interval_covers_the_mean_and_shrinks_with_more_trajectories():
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 1000):
        values = rng.normal(3.0, 1.0, count)
        low, high = bootstrap_interval(values, np.ones(count, int), np.arange(count))
        assert low < values.mean() < high
        widths.append(high - low)
    assert widths[0] == pytest.approx(2 * 1.96 / 10**0.5, rel=0.5)
    assert widths[1] == pytest.approx(2 * 1.96 / 1000**0.5, rel=0.15)


def test_means_are_weighted_by_how_many_actions_are_valid():
    low, high = bootstrap_interval(np.array([8.0, 0.0]), np.array([4, 0]), np.array([0, 0]))
    assert (low, high) == (2.0, 2.0)
