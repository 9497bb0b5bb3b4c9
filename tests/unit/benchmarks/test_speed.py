"""The speed table: its arithmetic, and no ratio far below the baseline."""

from __future__ import annotations

import json

import pytest

from benchmarks.speed.__main__ import BASELINE, below_baseline, line, run_part
from benchmarks.speed.growth import Curve
from benchmarks.speed.parts import PARTS
from benchmarks.speed.row import Rounds, interleaved, not_measured, timed


def row(ours, other):
    rounds = Rounds({"ours": ours, "peer": other})
    return rounds.row("loading", ours="ours", other="peer", against="a peer", unit="ms", wanted=2)


def test_a_ratio_is_the_median_of_ratios_within_a_round():
    found = row([1, 10, 2], [3, 20, 8])  # a busy machine in the second round
    assert (found.ours, found.other, found.ratio, found.low, found.high) == (2, 8, 3, 2, 4)
    assert "3.00 [2.00, 4.00]" in line(found)
    absent = not_measured("loading", unit="ms", against="a peer", wanted=2, why="no peer here")
    assert line(absent).endswith("not measured: no peer here")


def test_only_a_fall_of_more_than_a_fifth_is_reported():
    assert below_baseline([row([1.0], [2.0])], {"loading | a peer": 2.4}) == []
    assert below_baseline([row([1.0], [2.0])], {}) == []
    assert below_baseline([row([1.0], [2.0])], {"loading | a peer": 4}) == ["loading: ratio 2.00, 50% below 4.00"]
    absent = not_measured("loading", unit="ms", against="a peer", wanted=2, why="no peer here")
    assert below_baseline([absent], {"loading | a peer": 4}) == []


def test_ways_take_turns_and_the_first_round_does_not_count():
    calls = []
    ways = {name: timed(lambda name=name: calls.append(name)) for name in "ab"}
    rounds = interleaved(ways, seconds=0, min_rounds=3)
    assert calls == list("abababab")
    assert [len(costs) for costs in rounds.costs.values()] == [3, 3]


def test_the_exponent_is_that_of_large_sizes():
    sizes = [1, 10, 100, 1000]
    fixed_cost_at_first = [10, 10, 100, 1000]
    assert Curve("", "", sizes, fixed_cost_at_first).exponent == pytest.approx(1)
    assert Curve("", "", sizes, [size**2 for size in sizes]).exponent == pytest.approx(2)


LONG = ("training_steps", "stage_memory")
"""parts whose runs cannot be made shorter; `make bench` has them"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [part for part in PARTS if not part.module.endswith(LONG)], ids=lambda part: part.module.rpartition(".")[2]
)
def test_no_ratio_is_a_fifth_below_the_baseline(part):
    baseline = json.loads(BASELINE.read_text())
    # Wall clock on cores that other tests use says nothing, and MKL's products depend on who made the processor.
    baseline = {name: ratio for name, ratio in baseline.items() if "wall" not in name and "torch.mm" not in name}
    for _ in range(3):  # other processes are at work while tests run
        rows, _ = run_part(part, scale=0.2)
        fallen = below_baseline(rows, baseline)
        if not fallen:
            break
    assert fallen == []
