from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vw2_robot.pretrain.probing.probes import (
    Split,
    correlation,
    fit_linear,
    fit_mlp,
    principal_components,
    rank_correlation,
    score_correlation,
    score_r2,
    score_r2_difference,
    score_ratio,
    split_groups,
    sum_by_group,
)


def planted(*, noise=0.1, rows=1200, groups=60, seed=0):
    """Features, a target that is linear in them, one that is noise, one that never moves; and the split."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 20))
    y = np.stack([x @ rng.normal(size=20), rng.normal(size=rows), np.full(rows, 3.0)], axis=1)
    y[:, 0] += noise * rng.normal(size=rows)
    group = np.repeat(np.arange(groups), rows // groups)
    return x, y, group, split_groups(group, rng=rng, shares=(0.2, 0.3))


def test_the_linear_probe_finds_a_planted_relation_and_reports_nothing_for_noise():
    x, y, group, split = planted()
    probe = fit_linear(x, y, split)
    scores = score_r2(
        y[split.test],
        probe.predict(x[split.test]),
        group[split.test],
        ("linear", "noise", "still"),
        rng=np.random.default_rng(1),
        means={"both": ("linear", "noise", "still")},
    )
    assert scores["linear"]["r2"] > 0.98
    low, high = scores["linear"]["ci95"]
    assert low <= scores["linear"]["r2"] <= high
    assert abs(scores["noise"]["r2"]) < 0.05
    assert scores["still"]["r2"] is None
    assert scores["both"]["r2"] == pytest.approx((scores["linear"]["r2"] + scores["noise"]["r2"]) / 2, abs=1e-4)
    assert probe.penalty[1] > probe.penalty[0]


def test_a_difference_of_r2_is_paired_over_groups():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 20)
    y = rng.normal(size=(800, 2))
    # Groups differ in difficulty far more than the two predictions do.
    error = rng.normal(size=(800, 2)) * rng.uniform(0, 1.5, (40, 1))[group]
    names, means = ("a", "b"), {"all": ("a", "b")}
    found = score_r2_difference(y, y + 0.9 * error, y + error, group, names, seed=[0], means=means)
    better, worse = (score_r2(y, y + e, group, names, rng=rng, means=means) for e in (0.9 * error, error))
    assert found["all"]["difference"] == pytest.approx(better["all"]["r2"] - worse["all"]["r2"], abs=2e-5)
    low, high = found["all"]["ci95"]
    assert 0 < low < found["all"]["difference"] < high
    assert worse["all"]["ci95"][1] > better["all"]["ci95"][0]  # unpaired intervals would leave it open


def test_the_penalty_keeps_many_useless_features_from_fitting_noise():
    rng = np.random.default_rng(0)
    x, y, group = rng.normal(size=(200, 300)), rng.normal(size=(200, 1)), np.arange(200) // 5
    split = split_groups(group, rng=rng, shares=(0.2, 0.3))
    scores = score_r2(
        y[split.test], fit_linear(x, y, split).predict(x[split.test]), group[split.test], ("noise",), rng=rng
    )
    assert scores["noise"]["r2"] > -0.15


def test_the_small_network_sees_what_is_not_linear():
    x, _, group, split = planted(rows=600)
    x = x[:, :4]
    y = np.abs(x[:, :1])
    judged = {
        form: score_r2(
            y[split.test], probe.predict(x[split.test]), group[split.test], ("y",), rng=np.random.default_rng(0)
        )["y"]["r2"]
        for form, probe in (("linear", fit_linear(x, y, split)), ("mlp", fit_mlp(x, y, split, seed=0, epochs=30)))
    }
    assert judged["linear"] < 0.1
    assert judged["mlp"] > 0.6


def test_the_small_network_depends_on_the_seed_alone():
    x, y, _, split = planted(rows=240)
    first, second, other = (fit_mlp(x, y, split, seed=s, epochs=3).predict(x[:5]) for s in (4, 4, 5))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@given(st.lists(st.integers(0, 12), min_size=3, max_size=80), st.integers(0, 5))
def test_no_group_is_ever_on_two_sides(groups, seed):
    group = np.array(groups)
    rng = np.random.default_rng(seed)
    if len(set(groups)) < 3:
        with pytest.raises(ValueError, match="at least 3 episodes"):
            split_groups(group, rng=rng, shares=(0.2, 0.3))
        return
    split = split_groups(group, rng=rng, shares=(0.2, 0.3))
    sides = [set(group[side].tolist()) for side in split]
    assert all(sides)
    assert set.union(*sides) == set(groups)
    assert sum(map(len, sides)) == len(set(groups))
    assert (np.sum(split, axis=0) == 1).all()


def test_r2_is_that_of_the_definition_and_its_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        group = np.repeat(np.arange(30), 10)
        y = rng.normal(size=(300, 1))
        predicted = y + rng.normal(size=(300, 1))  # R2 of the population is 0
        scores = score_r2(y, predicted, group, ("y",), rng=np.random.default_rng(trial))["y"]
        assert scores["r2"] == pytest.approx(1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum(), abs=1e-4)
        covered += scores["ci95"][0] <= 0 <= scores["ci95"][1]
    assert 85 <= covered <= 100


def test_intervals_widen_when_rows_of_a_group_are_copies():
    rng = np.random.default_rng(0)
    y, predicted = rng.normal(size=(40, 1)), rng.normal(size=(40, 1))
    copied = [np.repeat(v, 25, axis=0) for v in (y, predicted)]

    def width(group):
        low, high = score_r2(*copied, group, ("y",), rng=np.random.default_rng(0))["y"]["ci95"]
        return high - low

    assert width(np.repeat(np.arange(40), 25)) > 3 * width(np.arange(1000))


def test_correlations_and_ratios_agree_with_numpy():
    rng = np.random.default_rng(0)
    x, y, group = rng.normal(size=(300, 2)), rng.normal(size=(300, 2)), np.arange(300) // 10
    y[:, 0] += x[:, 0]
    scores = score_correlation(x, y, group, ("a", "b"), rng=rng)
    for i, name in enumerate(("a", "b")):
        wanted = np.corrcoef(x[:, i], y[:, i])[0, 1]
        assert scores[name]["correlation"] == pytest.approx(wanted, abs=1e-4)
        assert correlation(x[:, i], y[:, i]) == pytest.approx(wanted)
    still = score_correlation(x, np.zeros_like(y), group, ("a", "b"), rng=rng)
    assert still["a"]["correlation"] is None
    ratio = score_ratio(np.abs(x[:, 0]), np.abs(y[:, 1]), group, rng=rng)
    assert ratio["ratio"] == pytest.approx(np.abs(x[:, 0]).mean() / np.abs(y[:, 1]).mean(), abs=1e-4)
    assert ratio["ci95"][0] < ratio["ratio"] < ratio["ci95"][1]


def test_rank_correlation_ignores_units_and_shares_ranks_of_ties():
    a = np.array([1.0, 2.0, 3.0, 10.0])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1.0)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1.0)
    assert rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx(
        np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1]
    )


def test_sums_by_group_and_principal_components():
    assert sum_by_group(np.array([[1.0], [2.0], [4.0]]), np.array([7, 3, 7])).tolist() == [[2.0], [5.0]]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2)) @ np.array([[3.0, 0, 0], [0, 1.0, 0]])
    mean, axes = principal_components(x, 3)
    assert axes.shape == (3, 2)  # the third direction holds nothing
    assert np.allclose((x - mean) @ axes @ axes.T + mean, x)
    assert abs(axes[0, 0]) > 0.99


def test_the_test_side_decides_nothing_about_a_probe():
    x, y, _, split = planted(rows=600)
    spoilt = y.copy()
    spoilt[split.test] = 1e6
    assert np.array_equal(fit_linear(x, y, split).weight, fit_linear(x, spoilt, split).weight)
    assert np.array_equal(
        fit_mlp(x, y, split, seed=0, epochs=2).predict(x), fit_mlp(x, spoilt, split, seed=0, epochs=2).predict(x)
    )
    assert isinstance(split, Split)
