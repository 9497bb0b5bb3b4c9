"""Intervals for what a rollout measures, and a comparison of two policies that may stop as soon as it is sure.

Shares carry Wilson intervals. Means of a few small integers (subtasks solved, differences of them) carry a t interval
over the values and one pseudo-value at each end of their range, as Agresti and Coull do for shares: it has a width
where all values are equal, and tests/unit/rollouts/test_statistics.py checks its coverage by simulation.

Two policies on the same chains are compared by their paired differences. `sign_flip_p` is for a number of chains that
was fixed beforehand. `Race` may be asked after every chain: it bets against "the second is not worse on average" (and
the other way round) and stops when a bet has multiplied its stake by 2 / error, which by Ville's inequality happens
with a chance of at most `error` if the two do equally well, however often one looks (Waudby-Smith and Ramdas 2024,
"Estimating means of bounded random variables by betting"). Numbers in, numbers out: no rows, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
SIGN_FLIPS = 20_000
T95 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}
"""Student's t where the series of `t95` is not near enough."""
MAX_STAKE = 0.5
"""Share of its capital that a bet may lose on one chain."""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) when nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z95 * Z95
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == trials else min(1.0, center + half)
    return low, high


def mean_interval(values: Sequence[float], *, lowest: float, highest: float) -> tuple[float, float]:
    """95 % interval of the mean of values that lie between `lowest` and `highest`; holds the observed mean.

    Raises:
        ValueError: no value.
    """
    if len(values) == 0:
        raise ValueError("a mean of no values has no interval")
    padded = np.array([*values, lowest, highest], dtype=np.float64)
    half = t95(len(padded) - 1) * float(padded.std(ddof=1)) / math.sqrt(len(padded))
    center, observed = float(padded.mean()), float(np.mean(values))
    return max(lowest, min(observed, center - half)), min(highest, max(observed, center + half))


def t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's t: a table, then Abramowitz and Stegun 26.7.5, within 0.1 % from 5 on."""
    if freedom in T95:
        return T95[freedom]
    z, f = Z95, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / f ** (power + 1) for power, term in enumerate(terms))


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p value of "each difference might as well have had the other sign", by seeded random flips.

    Valid for one look at a number of chains fixed beforehand. 1.0 where all differences are zero.
    """
    values = np.asarray([value for value in differences if value != 0], dtype=np.float64)
    if values.size == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    as_extreme, observed = 1, abs(values.sum()) - 1e-9
    for _ in range(SIGN_FLIPS // 1000):
        signs = rng.integers(0, 2, size=(1000, values.size)) * 2 - 1
        as_extreme += int((np.abs(signs @ values) >= observed).sum())
    return as_extreme / (SIGN_FLIPS // 1000 * 1000 + 1)


class Race:
    """Two policies on the same chains, one paired difference after the other.

    `verdict` is 1 once the first is better on average, -1 once the second is, 0 while nobody can tell; it never changes
    again. If both do equally well, it leaves 0 with a chance of at most `error`.
    """

    def __init__(self, *, largest: float, error: float = 0.05) -> None:
        """`largest`: no difference is larger than that in absolute value."""
        if not 0 < error < 1:
            raise ValueError(f"error={error}, expected a chance between 0 and 1, such as 0.05")
        self.error = error
        self.verdict = 0
        self.decided_after: int | None = None
        self.log_capital = {1: 0.0, -1: 0.0}
        self._largest = largest
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, difference: float) -> int:
        """Take the next difference (first minus second) and return the verdict."""
        scaled = difference / self._largest
        if abs(scaled) > 1:
            raise ValueError(f"difference {difference} is larger than the {self._largest} that was announced")
        for side in (1, -1):
            self.log_capital[side] += math.log1p(self._stake(side) * side * scaled)
        self._count += 1
        self._sum += scaled
        self._squares += scaled * scaled
        if self.verdict == 0:
            ahead = max((1, -1), key=lambda side: self.log_capital[side])
            if self.log_capital[ahead] >= math.log(2 / self.error):
                self.verdict, self.decided_after = ahead, self._count
        return self.verdict

    def _stake(self, side: int) -> float:
        """The share to bet on `side`, from the differences before this one alone (approximate growth optimum)."""
        mean = side * self._sum / (self._count + 1)
        square = (self._squares + 0.25) / (self._count + 1)  # a prior, so that the first bets are small
        return min(MAX_STAKE, max(0.0, mean / square))
