"""Statistics of rollouts: confidence intervals, and tests of whether one of two policies is better.

Shares carry Wilson intervals. Means of a few small integers (subtasks solved, differences of them) carry a t interval
over the values and one pseudo-value at each end of their range, as Agresti and Coull do for shares: the interval has a
width even where all values are equal. tests/unit/rollouts/test_statistics.py checks its coverage by simulation.

Two policies on the same chains are compared by their paired differences. `sign_flip_p` is for a number of chains that
was fixed beforehand. `SequentialTest` may be read after every chain. It bets against "the second is not worse on
average" (and the other way round) and stops when one of the two capitals has grown by a factor of 2 / error. If the two
do equally well, that happens with a probability of at most `error`, however often the test is read (Ville's inequality;
Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"). Functions take and return
numbers; they know no rows and no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
SIGN_FLIPS = 20_000
T95 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}
"""Student's t for few degrees of freedom, where the series of `t95` is not accurate enough."""
MAX_BET = 0.5
"""largest share of its capital that a bet may lose on one chain; below 1, so that no capital ever becomes 0"""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a share (Wilson 1927); (0, 1) when nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    z2 = Z95 * Z95
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    # At the ends the formula gives exactly 0 and 1, but rounding leaves a rest of about 1e-17.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == trials else min(1.0, center + half)
    return low, high


def mean_interval(values: Sequence[float], *, lowest: float, highest: float) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a mean; it contains the observed mean.

    Args:
        values: The observed values.
        lowest: Smallest value that is possible.
        highest: Largest value that is possible.

    Raises:
        ValueError: No value.
    """
    if len(values) == 0:
        raise ValueError("a mean of no values has no interval")
    # One pseudo-value at each end of the range: without them, equal values would have an interval of width 0.
    padded = np.array([*values, lowest, highest], dtype=np.float64)
    half = t95(len(padded) - 1) * float(padded.std(ddof=1)) / math.sqrt(len(padded))
    center = float(padded.mean())
    observed = float(np.mean(values))
    # The pseudo-values pull the center towards the middle of the range, so the observed mean could lie outside.
    return max(lowest, min(observed, center - half)), min(highest, max(observed, center + half))


def t95(degrees: int) -> float:
    """Return the two-sided 95 % point of Student's t for that many degrees of freedom.

    A table up to 4; from 5 on the series of Abramowitz and Stegun 26.7.5, accurate to 0.1 %.
    """
    if degrees in T95:
        return T95[degrees]
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(degrees) ** (power + 1) for power, term in enumerate(terms))


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p value of a sign-flip test on paired differences.

    The null hypothesis is that each difference has either sign with equal probability. Valid where the number of chains
    was fixed beforehand.

    Args:
        differences: One per chain, first policy minus second.
        seed: Seed of the random sign flips.

    Returns:
        A p value in (0, 1]; 1.0 where all differences are zero.
    """
    # Zeros have no sign to flip: they change neither sum.
    values = np.asarray([value for value in differences if value != 0], dtype=np.float64)
    if values.size == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    # The observed signs are one of the possible flips and count too, so the p value is never 0. The small margin makes
    # ties count as extreme although sums of floats differ in their last bits.
    as_extreme = 1
    observed = abs(values.sum()) - 1e-9
    for _ in range(SIGN_FLIPS // 1000):  # in blocks of 1000, to bound the memory
        signs = rng.integers(0, 2, size=(1000, values.size)) * 2 - 1
        as_extreme += int((np.abs(signs @ values) >= observed).sum())
    return as_extreme / (SIGN_FLIPS // 1000 * 1000 + 1)


class SequentialTest:
    """A test of which of two policies is better, fed with one paired difference after the other.

    Attributes:
        decision: 1 once the first policy is better on average, -1 once the second is, 0 while undecided. It never
            changes again. If both do equally well, it leaves 0 with a probability of at most `error`.
        decided_after: Number of differences at the decision; None while undecided.
        log_capital: Side (1 or -1) -> logarithm of the capital of the bets on that side, 0 at the start.
    """

    def __init__(self, *, largest: float, alpha: float = 0.05) -> None:
        """Start without data.

        Args:
            largest: Upper bound of the absolute value of a difference.
            alpha: Probability of a wrong decision where both policies are equally good.

        Raises:
            ValueError: `error` is not between 0 and 1.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha}, expected a probability between 0 and 1, such as 0.05")
        self.error = alpha
        self.decision = 0
        self.decided_after: int | None = None
        self.log_capital = {1: 0.0, -1: 0.0}
        self._largest = largest
        self._count = 0
        self._sum = 0.0
        self._squares = 0.0

    def add(self, difference: float) -> int:
        """Take the next difference and return the decision.

        Args:
            difference: Subtasks solved by the first policy minus those solved by the second.

        Raises:
            ValueError: The difference is larger than the bound given at the start.
        """
        scaled = difference / self._largest
        if abs(scaled) > 1:
            raise ValueError(f"difference {difference} is larger than the bound {self._largest}")
        # Each capital grows by the factor 1 + bet * difference. The bet depends on earlier differences alone, so the
        # expected factor is at most 1 where the side bet on is not better. Logarithms, since capitals overflow.
        for side in (1, -1):
            # Approximately growth-optimal bet: mean / mean square of the differences so far. The prior (one more
            # difference of 0, whose square counts as 0.25) keeps the first bets small.
            mean = side * self._sum / (self._count + 1)
            square = (self._squares + 0.25) / (self._count + 1)
            bet = min(MAX_BET, max(0.0, mean / square))
            self.log_capital[side] += math.log1p(bet * side * scaled)
        self._count += 1
        self._sum += scaled
        self._squares += scaled * scaled
        if self.decision == 0:
            ahead = max((1, -1), key=lambda side: self.log_capital[side])
            # 2 / error and not 1 / error: two tests run at once, one per side (Bonferroni).
            if self.log_capital[ahead] >= math.log(2 / self.error):
                self.decision = ahead
                self.decided_after = self._count
        return self.decision
