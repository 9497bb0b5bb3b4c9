import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vw2_robot.rollouts.statistics import SequentialTest, mean_interval, sign_flip_p, t95, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Published values of the Wilson score interval (Newcombe 1998, table I): 81/263, 15/148, 0/20, 1/29.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_agree_with_published_ones(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_its_share_and_mirrors(pair):
    k, n = pair
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    mirrored = wilson_interval(n - k, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("trials", [20, 50, 200, 1000])
def test_wilson_intervals_cover_95_percent_exactly_summed(trials):
    """No simulation needed: the chance of every count is known."""
    intervals = [wilson_interval(k, trials) for k in range(trials + 1)]
    covers = []
    for share in np.linspace(0.02, 0.98, 97):
        log_p = [
            math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
            + k * math.log(share) + (trials - k) * math.log1p(-share)
            for k in range(trials + 1)
        ]  # fmt: skip
        covers.append(sum(math.exp(p) for p, (low, high) in zip(log_p, intervals, strict=True) if low <= share <= high))
    assert np.mean(covers) == pytest.approx(0.95, abs=0.01)
    assert min(covers) > 0.88  # known dips near the ends at small counts


def chains(rng, chance, size):
    """How many of five subtasks are solved when each is with this chance and the first failure ends the chain."""
    return np.minimum(rng.geometric(1 - chance, size) - 1, 5)


@pytest.mark.parametrize("count", [12, 50, 200])
@pytest.mark.parametrize("chance", [0.05, 0.3, 0.6, 0.8, 0.97])
def test_the_interval_of_the_average_length_covers_what_it_says(count, chance):
    rng = np.random.default_rng(0)
    truth = sum(chance**i for i in range(1, 6))
    tries = 2000
    hit = 0
    for _ in range(tries):
        low, high = mean_interval(chains(rng, chance, count), lowest=0, highest=5)
        hit += low <= truth <= high
    assert hit / tries > 0.93


def test_the_interval_of_a_mean_is_no_wider_than_needed():
    values = chains(np.random.default_rng(0), 0.8, 500)
    low, high = mean_interval(values, lowest=0, highest=5)
    half = 1.96 * np.std(values) / np.sqrt(len(values))
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.02)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_the_interval_of_a_mean_holds_it_stays_in_range_and_has_a_width(values):
    low, high = mean_interval(values, lowest=0, highest=5)
    assert 0 <= low <= np.mean(values) <= high <= 5
    assert high - low > 0.1  # equal values are no certainty
    assert mean_interval([5 - v for v in values], lowest=0, highest=5) == pytest.approx((5 - high, 5 - low))


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], lowest=0, highest=5)


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (11, 2.2010), (49, 2.0096), (999, 1.9623)],
)
def test_t_points_agree_with_the_table(freedom, value):
    assert t95(freedom) == pytest.approx(value, abs=2e-3)


def test_the_sign_flip_test_agrees_with_all_flips_counted():
    differences = [3, 1, -1, 2, 0, 4, 1, -2]
    values = np.array([d for d in differences if d])
    flips = np.array(np.meshgrid(*[[-1, 1]] * len(values))).reshape(len(values), -1).T
    exact = np.mean(np.abs(flips @ values) >= abs(values.sum()))
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p([0, 0]) == 1.0


def pairs(rng, first, second, size):
    """Differences of two policies that meet the same luck on half of the chains."""
    luck = rng.random((size, 5))
    other = np.where(rng.random((size, 1)) < 0.5, luck, rng.random((size, 5)))
    one, two = (
        np.cumprod(numbers < chance, axis=1).sum(axis=1) for numbers, chance in ((luck, first), (other, second))
    )
    return one - two


@pytest.mark.parametrize("count", [20, 50, 200])
@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.8, 0.5), (0.97, 0.95), (0.1, 0.05)])
def test_the_interval_of_a_paired_difference_covers_what_it_says(count, first, second):
    rng = np.random.default_rng(3)
    truth = sum(first**i - second**i for i in range(1, 6))
    hit = 0
    for _ in range(1000):
        low, high = mean_interval(pairs(rng, first, second, count), lowest=-5, highest=5)
        hit += low <= truth <= high
    assert hit / 1000 > 0.93


def test_the_sign_flip_test_finds_a_difference_between_equal_policies_as_seldom_as_it_says():
    rng = np.random.default_rng(4)
    found = [sign_flip_p(pairs(rng, 0.7, 0.7, 40)) < 0.05 for _ in range(400)]
    assert np.mean(found) < 0.075  # 0.05 and more than two standard errors


def run_test(rng, first, second, *, limit, alpha=0.05):
    """Decision and number of chains used; both policies meet the same luck on half of the chains."""
    one = SequentialTest(largest=5, alpha=alpha)
    same = rng.random(limit) < 0.5
    a, b = chains(rng, first, limit), chains(rng, second, limit)
    b = np.where(same & (first == second), a, b)
    for used, difference in enumerate(a - b, 1):
        if one.add(float(difference)):
            return one.decision, used
    return 0, limit


@pytest.mark.parametrize("chance", [0.3, 0.8])
def test_equal_policies_are_found_different_less_often_than_stated(chance):
    rng = np.random.default_rng(1)
    decisions = [run_test(rng, chance, chance, limit=400, alpha=0.1)[0] for _ in range(600)]
    assert np.mean(np.array(decisions) != 0) < 0.1


def test_a_better_policy_is_found_and_with_fewer_chains_the_better_it_is():
    rng = np.random.default_rng(2)
    used = {}
    for first in (0.7, 0.85):
        runs = [run_test(rng, first, 0.5, limit=1000) for _ in range(60)]
        assert [decision for decision, _ in runs] == [1] * 60
        used[first] = np.mean([n for _, n in runs])
    assert used[0.85] < used[0.7] < 250


def test_a_sequential_test_is_symmetric_and_keeps_its_decision():
    one, other = SequentialTest(largest=5), SequentialTest(largest=5)
    for _ in range(40):
        one.add(2), other.add(-2)
    assert (one.decision, other.decision) == (1, -1)
    assert one.decided_after == other.decided_after
    for _ in range(200):
        one.add(-5)
    assert one.decision == 1


def test_a_sequential_test_refuses_values_out_of_range():
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        SequentialTest(largest=5, alpha=1.5)
    with pytest.raises(ValueError, match="larger than the bound 5"):
        SequentialTest(largest=5).add(6)
