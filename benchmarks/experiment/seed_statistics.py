"""Statistics of the registered experiment: the unit is the training seed, never the rollout.

    contrast          difference of two methods over seeds, with its t interval and p value
    holm              p values of the primary contrasts of a family, adjusted for their number
    power, seeds_for  what a number of seeds can see, and how many see an effect
    blinded_sd        standard deviation of differences, estimated without showing any difference
    mediator          whether gains follow code quality from seed to seed

Student's t, central and noncentral, is one integral over the estimated deviation (`t_tail`), so that SciPy is not
needed; tests compare it with SciPy's values.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

ALPHA = 0.05
MOST_SEEDS = 1000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(400)
_ERFC = np.vectorize(math.erfc, otypes=[float])


class Contrast(NamedTuple):
    """The first method less the second, over seeds.

    mean, low, high: with the 95 % interval. p: two-sided, that the difference is 0. sd: standard deviation of the
    difference between two seeds. seeds: number of them, of the smaller method if they are not paired.
    """

    mean: float
    low: float
    high: float
    p: float
    sd: float
    seeds: int


class Correlation(NamedTuple):
    """Pearson's r within methods, its 95 % interval (Fisher's z), two-sided p value, and number of seeds."""

    r: float
    low: float
    high: float
    p: float
    seeds: int


def t_tail(value: float, degrees: float, *, shift: float = 0.0) -> float:
    """Return the probability that Student's t is above a value.

    Args:
        value: any.
        degrees: of freedom, above 0.
        shift: noncentrality; 0 for Student's t itself.
    """
    # t = (z + shift) / s, where z is normal and s the estimated over the true deviation: the integral over s of
    # P(z > value * s - shift). Beyond the limit, s has less than 1e-16 of its mass for any number of degrees.
    limit = 1 + 10 / math.sqrt(degrees)
    s = limit * (_NODES + 1) / 2
    log_density = (
        math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)
        + (degrees - 1) * np.log(s) - degrees * s**2 / 2
    )  # fmt: skip
    above = _ERFC((value * s - shift) / math.sqrt(2)) / 2
    return float(limit / 2 * np.sum(_WEIGHTS * np.exp(log_density) * above))


@cache
def t_point(degrees: float, *, level: float = 1 - ALPHA) -> float:
    """Return the point that |Student's t| stays below with the probability `level`."""
    low, high = 0.0, 1.0
    while 2 * t_tail(high, degrees) > 1 - level:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * t_tail(middle, degrees) > 1 - level else (low, middle)
    return high


def t_interval(values: Sequence[float], *, level: float = 1 - ALPHA) -> tuple[float, float]:
    """Return the t interval of the mean of at least two values."""
    half = t_point(len(values) - 1, level=level) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return mean - half, mean + half


def contrast(first: Mapping[int, float], second: Mapping[int, float], *, paired: bool = True) -> Contrast | None:
    """Return the difference of two methods over seeds; None for fewer than two seeds.

    Args:
        first: seed -> value of the first method.
        second: the same of the second.
        paired: a seed means the same labels and starts in both, so their differences are taken seed by seed, over the
            seeds that both have; otherwise Welch's interval.
    """
    if paired:
        values = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
        if len(values) < 2:
            return None
        mean, sd = statistics.mean(values), statistics.stdev(values)
        error, degrees, seeds = sd / math.sqrt(len(values)), len(values) - 1.0, len(values)
    else:
        seeds = min(len(first), len(second))
        if seeds < 2:
            return None
        mean = statistics.mean(first.values()) - statistics.mean(second.values())
        parts = [statistics.variance(values.values()) / len(values) for values in (first, second)]
        error = math.sqrt(sum(parts))
        sd = math.sqrt(sum(statistics.variance(values.values()) for values in (first, second)))
        squares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
        degrees = sum(parts) ** 2 / squares if squares else 2.0 * (seeds - 1)
    half = t_point(degrees) * error
    return Contrast(mean, mean - half, mean + half, _two_sided(mean, error, degrees), sd, seeds)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values adjusted for their number (Holm 1979), by the same keys."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def decision(found: Contrast, adjusted_p: float) -> Literal["yes", "no", "undecided"]:
    """Return whether the first method is better: yes, no (it is worse), or undecided."""
    if adjusted_p >= ALPHA:
        return "undecided"
    return "yes" if found.mean > 0 else "no"


def power(effect: float, *, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """Return the probability that the t interval over seeds excludes 0.

    Args:
        effect: true difference.
        sd: standard deviation of the difference across seeds, in the same unit.
        seeds: number of pairs, at least 2.
        alpha: of the test; a share of it for the strictest step of Holm's correction.
    """
    shift = effect / sd * math.sqrt(seeds)
    point = t_point(seeds - 1, level=1 - alpha)
    return t_tail(point, seeds - 1, shift=shift) + t_tail(point, seeds - 1, shift=-shift)


def seeds_for(effect: float, *, sd: float, wanted: float = 0.8, alpha: float = ALPHA) -> int | None:
    """Return the least number of seeds with which a difference is seen; None where `MOST_SEEDS` are too few.

    For a contrast that is undecided, with its mean and deviation: how many seeds would decide it if the mean were true.

    Args:
        effect: true difference.
        sd: standard deviation of the difference across seeds.
        wanted: power.
        alpha: of the test.
    """
    if sd == 0:
        return 2 if effect else None
    low, high = 1, MOST_SEEDS
    if not effect or power(effect, sd=sd, seeds=high, alpha=alpha) < wanted:
        return None
    # Power grows with the number of seeds: the least one lies in (low, high].
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, sd=sd, seeds=middle, alpha=alpha) >= wanted else (middle, high)
    return high


def blinded_sd(values: Mapping[str, Mapping[int, float]]) -> tuple[float, int] | None:
    """Return the standard deviation of a paired difference across seeds, and its degrees of freedom.

    Blinded: method means are removed first, so nothing that is returned depends on which method is better. What is left
    after seed means are removed too is pooled over all methods.

    Args:
        values: method -> seed -> value; the seeds that all methods have are used.

    Returns:
        None for fewer than two methods or two common seeds.
    """
    if len(values) < 2:
        return None
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    if len(seeds) < 2:
        return None
    table = np.array([[by_seed[seed] for seed in seeds] for by_seed in values.values()])
    rest = table - table.mean(1, keepdims=True)
    rest = rest - rest.mean(0, keepdims=True)
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    # The rest has the variance of one method apart from what it shares with the others; a difference has it twice.
    return math.sqrt(2 * float((rest**2).sum()) / degrees), degrees


def mediator(groups: Mapping[str, Sequence[tuple[float, float]]]) -> Correlation | None:
    """Return the correlation of code quality and gain over seeds, within methods.

    Means of each method are removed: that one method has better codes and larger gains than another says nothing about
    its seeds.

    Args:
        groups: method -> (quality, gain) of each seed.

    Returns:
        None for too few seeds (four of one method), or where one of the two does not vary.
    """
    centered = [np.array(pairs) - np.mean(pairs, axis=0) for pairs in groups.values() if len(pairs) > 1]
    if not centered:
        return None
    quality, gain = np.concatenate(centered).T
    # Each removed mean costs a degree of freedom; with one method these are the usual n - 2.
    degrees = len(quality) - len(centered) - 1
    norm = math.sqrt(float((quality**2).sum() * (gain**2).sum()))
    if degrees < 2 or norm < 1e-12:
        return None
    r = max(-1.0, min(1.0, float((quality * gain).sum()) / norm))
    half = statistics.NormalDist().inv_cdf(1 - ALPHA / 2) / math.sqrt(degrees - 1)
    z = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, r)))
    p = _two_sided(r * math.sqrt(degrees), math.sqrt(max(0.0, 1 - r * r)), degrees)
    return Correlation(r, math.tanh(z - half), math.tanh(z + half), p, len(quality))


def _two_sided(mean: float, error: float, degrees: float) -> float:
    """Return the two-sided p value of a mean with its standard error."""
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return min(1.0, 2 * t_tail(abs(mean) / error, degrees))
