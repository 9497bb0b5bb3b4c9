"""One row of the speed table, and the interleaved measurement of two or more ways to do the same work."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class SpeedRow:
    """What one piece of work costs, with a peer or a physical bound from the same run.

    Attributes:
        name: of the row, in baseline.json as well.
        unit: of `ours` and `other`: "ms/clip", "s". Less is better.
        ours: the cost here.
        other: the cost of what it is compared with; NaN where that is not here.
        against: what it is compared with: "dlimp, CPU time", "matrix multiplications alone".
        ratio: other / ours, as the median over rounds of the ratio within a round.
        low: the lowest ratio of a round.
        high: the highest ratio of a round.
        wanted: the ratio that was planned for; for times without a peer, the limit in units of `unit` over `ours`.
        why: why there is no measurement, or what a person has to know.
    """

    name: str
    unit: str
    ours: float
    other: float
    against: str
    ratio: float
    low: float
    high: float
    wanted: float
    why: str = ""


@dataclass
class Rounds:
    """Costs of several ways to do the same work, round by round."""

    costs: dict[str, list[float]] = field(default_factory=dict)

    def row(
        self, name: str, *, ours: str, other: str, against: str, unit: str, wanted: float, why: str = ""
    ) -> SpeedRow:
        """Compare two ways: costs are medians, the ratio is the median of the ratios within a round."""
        ratios = [there / here for here, there in zip(self.costs[ours], self.costs[other], strict=True)]
        return SpeedRow(
            name=name,
            unit=unit,
            ours=median(self.costs[ours]),
            other=median(self.costs[other]),
            against=against,
            ratio=median(ratios),
            low=min(ratios),
            high=max(ratios),
            wanted=wanted,
            why=why,
        )


def interleaved(ways: Mapping[str, Callable[[], float]], *, seconds: float, min_rounds: int = 5) -> Rounds:
    """Measure ways in turn, so that all of them see the same load of the machine.

    Args:
        ways: by name, a function that works and returns its cost, for instance `timed(work)`.
        seconds: after which no further round begins, when there were `min_rounds`; a first round is thrown away.
        min_rounds: the least number of rounds that count.
    """
    rounds = Rounds({name: [] for name in ways})
    for way in ways.values():
        way()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, rounds.costs.values())) < min_rounds:
        for name, way in ways.items():
            rounds.costs[name].append(way())
    return rounds


def timed(work: Callable[[], object], *, repeat: int = 1, unit: float = 1.0) -> Callable[[], float]:
    """Return a function that does the work `repeat` times and returns the seconds of one, divided by `unit`."""

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(repeat):
            work()
        return (time.perf_counter() - begin) / repeat / unit

    return run


def not_measured(name: str, *, unit: str, against: str, wanted: float, why: str) -> SpeedRow:
    """Return a row without numbers, which says why."""
    return SpeedRow(name, unit, math.nan, math.nan, against, math.nan, math.nan, math.nan, wanted, why)


def peak_mib() -> float:
    """Return the highest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
