"""Statistics over training seeds: against SciPy where it is installed, against its values and simulations elsewhere."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.experiment.seed_statistics import (
    blinded_sd,
    contrast,
    decision,
    holm,
    mediator,
    power,
    seeds_for,
    t_interval,
    t_point,
    t_tail,
)

CASES = [
    (0.3, 1, 0.0),
    (12.7, 1, 0.0),
    (2.0, 2, 1.5),
    (2.365, 7, 3.59),
    (-1.0, 11, 0.0),
    (4.0, 5.5, -1.0),
    (2.0, 200, 2),
]
SCIPY = [0.40722642, 0.02501216, 0.43394045, 0.86643825, 0.83059965, 0.00034066, 0.50099507]
"""scipy.stats.nct.sf of the cases, SciPy 1.13.1"""


def test_tails_of_t_are_the_values_of_scipy():
    assert [t_tail(value, degrees, shift=shift) for value, degrees, shift in CASES] == pytest.approx(SCIPY, abs=1e-6)


def test_points_of_t_are_those_of_the_tables():
    assert [t_point(degrees) for degrees in (1, 2, 7, 11)] == pytest.approx(
        [12.70620, 4.30265, 2.36462, 2.20099], abs=1e-4
    )


def test_paired_seeds_give_the_interval_of_their_differences():
    first = {0: 61.8, 1: 53.8, 2: 56.2, 9: 0.0}
    second = {0: 38.5, 1: 42.1, 2: 39.4, 8: 100.0}
    found = contrast(first, second)
    values = [61.8 - 38.5, 53.8 - 42.1, 56.2 - 39.4]
    assert (found.mean, found.seeds) == (pytest.approx(np.mean(values)), 3)
    assert (found.low, found.high) == pytest.approx(t_interval(values))
    assert found.p == pytest.approx(0.0357779, abs=1e-6)  # scipy.stats.ttest_rel
    assert contrast({0: 1.0}, {0: 2.0}) is None
    assert contrast({0: 1.0, 1: 2.0}, {2: 1.0, 3: 2.0}) is None


def test_seeds_that_are_not_paired_give_the_interval_of_welch():
    first, second = [61.8, 53.8, 56.2, 60.0], [38.5, 42.1, 39.4]
    found = contrast(dict(enumerate(first)), dict(enumerate(second)), paired=False)
    assert (found.mean, found.seeds) == (pytest.approx(17.95), 3)
    assert (found.low, found.high) == pytest.approx((12.400208, 23.499792), abs=1e-5)  # scipy.stats.ttest_ind
    assert found.p == pytest.approx(0.00052944, abs=1e-7)


def test_equal_differences_are_certain_and_equal_values_are_no_difference():
    assert contrast({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}).p == 0
    assert contrast({0: 2.0, 1: 2.0}, {0: 2.0, 1: 2.0}).p == 1
    assert contrast({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}, paired=False).p == 0


def test_p_values_are_adjusted_step_by_step_and_never_fall():
    # The smallest times 4, the next times 3; then 2 * 0.03 = 0.06 although 0.04 alone would be less.
    assert holm({"a": 0.03, "b": 0.005, "c": 0.04, "d": 0.01}) == pytest.approx(
        {"a": 0.06, "b": 0.02, "c": 0.06, "d": 0.03}
    )
    assert holm({"a": 0.9, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_a_decision_needs_the_adjusted_p_value():
    better, worse = contrast({0: 2.0, 1: 2.1}, {0: 1.0, 1: 1.0}), contrast({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.1})
    assert (decision(better, 0.04), decision(worse, 0.04), decision(better, 0.05)) == ("yes", "no", "undecided")


def test_power_is_that_of_the_registration():
    """Deviation 6.3 points, that of differences at 10 % of the labels."""
    table = {(seeds, effect): power(effect, sd=6.3, seeds=seeds) for seeds in (3, 6, 8, 12) for effect in (6, 8)}
    assert [round(table[seeds, 6], 2) for seeds in (3, 6, 8, 12)] == [0.17, 0.47, 0.64, 0.85]
    assert [round(table[seeds, 8], 2) for seeds in (3, 6, 8, 12)] == [0.25, 0.70, 0.87, 0.98]
    assert power(0, sd=6.3, seeds=8) == pytest.approx(0.05)
    assert power(-8, sd=6.3, seeds=8) == pytest.approx(table[8, 8])
    assert power(8, sd=6.3, seeds=8, alpha=0.0125) < table[8, 8]


def test_the_number_of_seeds_is_the_least_that_reaches_the_power():
    assert seeds_for(8, sd=6.3) == 8
    assert power(8, sd=6.3, seeds=7) < 0.8 <= power(8, sd=6.3, seeds=8)
    assert seeds_for(-8, sd=6.3, wanted=0.9) == 9
    assert seeds_for(0.01, sd=6.3) is None
    assert seeds_for(0, sd=6.3) is None
    assert (seeds_for(1, sd=0), seeds_for(0, sd=0)) == (2, None)


def test_the_blinded_deviation_is_right_and_does_not_depend_on_the_effect():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 20, size=500)  # of a seed, the same in all methods: it cancels in a difference
    table = {name: dict(enumerate(shared + rng.normal(0, 4, size=500))) for name in ("a", "b", "c")}
    sd, degrees = blinded_sd(table)
    assert (sd, degrees) == (pytest.approx(4 * 2**0.5, rel=0.05), 2 * 499)
    moved = {**table, "a": {seed: value + 50 for seed, value in table["a"].items()}}
    assert blinded_sd(moved) == (pytest.approx(sd), degrees)
    two = {name: table[name] for name in ("a", "b")}
    differences = [two["a"][seed] - two["b"][seed] for seed in two["a"]]
    assert blinded_sd(two)[0] == pytest.approx(np.std(differences, ddof=1))
    assert blinded_sd({"a": table["a"]}) is None
    assert blinded_sd({"a": {0: 1.0}, "b": {0: 2.0}}) is None


def test_gains_follow_codes_only_within_a_method():
    qualities, gains = [0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 3.0, 2.0, 5.0, 4.0]
    one = mediator({"a": list(zip(qualities, gains, strict=True))})
    assert (one.r, one.p, one.seeds) == (
        pytest.approx(0.8),
        pytest.approx(0.104088, abs=1e-6),
        5,
    )  # scipy.stats.pearsonr
    assert one.low < 0 < one.r < one.high < 1
    # Between these methods codes and gains go together, within each they do not.
    apart = mediator({"a": [(0, 1), (1, 0), (0, 0), (1, 1)], "b": [(9, 10), (10, 9), (9, 9), (10, 10)]})
    assert apart.r == pytest.approx(0)
    assert mediator({"a": [(0.1, 1.0), (0.2, 2.0), (0.3, 3.0)]}) is None
    assert mediator({"a": [(0.1, 1.0)] * 5}) is None
    assert mediator({"a": [(q, 2 * q) for q in qualities]}).p == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:divide by zero")  # in SciPy's noncentral t
def test_tails_points_and_intervals_are_those_of_scipy_everywhere():
    stats = pytest.importorskip("scipy.stats")
    for value in np.linspace(-6, 40, 24):
        for degrees in (1, 2, 3.7, 7, 30, 500):
            for shift in (0.0, 0.5, 4.0, -2.0):
                expected = stats.nct.sf(value, degrees, shift) if shift else stats.t.sf(value, degrees)
                assert t_tail(value, degrees, shift=shift) == pytest.approx(expected, abs=1e-7), (value, degrees, shift)
    for degrees in (1, 2, 7, 11):
        for level in (0.9, 0.95, 0.9875):
            assert t_point(degrees, level=level) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-7)
    rng = np.random.default_rng(1)
    first, second = rng.normal(3, 2, size=7), rng.normal(0, 5, size=4)
    found = contrast(dict(enumerate(first)), dict(enumerate(second)), paired=False)
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
