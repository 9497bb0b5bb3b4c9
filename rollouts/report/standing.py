"""How good and how sure: a rollout beside policies that were measured on the same problems, in sentences.

The policies are those that anybody can run: random actions, the policy of the package, the scripted experts. Their
numbers hold for the built-in scene D alone; elsewhere a rollout stands by itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .run_folders import Rollout

NORMAL_95 = 1.96
NUM_TASKS = 34
MAX_STEPS, INSTRUCTIONS = 360, "validation"  # per subtask; of the evaluation
WANTED_WIDTH = 0.2
"""half width of an interval of the average length that tells most methods apart"""


class Yardstick(NamedTuple):
    """A policy and what it reached.

    name: as vw2-rollout takes it. protocol: chain or single. measured: on how many. text: the value with its interval.
    share, low, high: the same of the most that can be reached.
    """

    name: str
    protocol: str
    measured: str
    text: str
    share: float
    low: float
    high: float


# vw2-rollout policy=random num_sequences=100; docs/results.md and docs/evaluation.md have the commands of the others.
YARDSTICKS = (
    Yardstick("random", "chain", "random actions, 100 chains", "0.04 [0.00, 0.19]", 0.008, 0.0, 0.038),
    Yardstick(
        "builtin:calvin-tiny", "chain", "policy of the package, 1,000 chains", "3.19 [3.10, 3.29]", 0.638, 0.620, 0.658
    ),
    Yardstick("demonstrator", "chain", "scripted experts, 50 chains", "4.96 [4.67, 5.00]", 0.992, 0.934, 1.0),
    Yardstick(
        "builtin:calvin-tiny",
        "single",
        "policy of the package, 680 rollouts",
        "94.7 % [92.8, 96.2]",
        0.947,
        0.928,
        0.962,
    ),
)


def yardsticks_of(rollout: Rollout) -> list[Yardstick]:
    """Return the policies that were measured on the problems of a rollout."""
    env = rollout.summary["env"]
    provenance = rollout.provenance
    is_same = (
        (env.get("scene"), env.get("assets")) == ("D", "builtin")
        and not (provenance.get("sequences_seed") or provenance.get("starts_seed"))
        and provenance.get("max_steps", MAX_STEPS) == MAX_STEPS
        and env.get("instructions", INSTRUCTIONS) == INSTRUCTIONS
    )
    # Folders without a protocol are of releases that had chains alone.
    protocol = provenance.get("protocol", "chain")
    # A choice of tasks may be easier or harder than all of them.
    if protocol == "single" and len(rollout.summary["per_task"]) < NUM_TASKS:
        return []
    return [one for one in YARDSTICKS if is_same and one.protocol == protocol]


def how_sure(rollout: Rollout) -> str:
    """Return what the interval means, and how many chains would narrow it."""
    summary = rollout.summary
    count = summary["num_sequences"]
    length = len(summary["success_rates"])
    low, high = summary["average_length_ci95"] if length > 1 else summary["success_intervals95"][0]
    what = "average length" if length > 1 else "success rate"
    unit = "chain" if length > 1 else "rollout"
    ends = f"{low:.2f} and {high:.2f}" if length > 1 else f"{100 * low:.0f} and {100 * high:.0f} %"
    text = f"With {count:,} {unit}{'' if count == 1 else 's'} the {what} lies between {ends} (95 %)."
    # Single tasks have no long-run spread to speak of: their number is tasks times starts.
    histogram = summary.get("solved_histogram")
    if length == 1 or not histogram or (high - low) / 2 <= WANTED_WIDTH:
        return text
    mean = summary["average_length"]
    variance = sum(n * (solved - mean) ** 2 for solved, n in enumerate(histogram)) / max(count - 1, 1)
    wanted = math.ceil(variance * (NORMAL_95 / WANTED_WIDTH) ** 2 / 50) * 50
    if wanted <= count:
        return text
    return (
        f"{text} About {wanted:,} chains narrow that to ±{WANTED_WIDTH}: num_sequences={wanted} continues the folder."
    )


def against_what(rollout: Rollout) -> str:
    """Return where the rollout stands; empty where no policy was measured on its problems."""
    length = len(rollout.summary["success_rates"])
    low, high = rollout.summary["average_length_ci95"] if length > 1 else rollout.summary["success_intervals95"][0]
    found: dict[str, list[str]] = {"better than": [], "not distinguishable from": [], "worse than": []}
    for one in yardsticks_of(rollout):
        if one.name == rollout.policy:
            continue
        # Intervals that do not overlap: a strict rule, since the chains are not paired here.
        relation = (
            "better than"
            if low / length > one.high
            else "worse than"
            if high / length < one.low
            else "not distinguishable from"
        )
        found[relation].append(one.name)
    texts = [f"{relation} {' and '.join(names)}" for relation, names in found.items() if names]
    return "; ".join(texts).capitalize() + "." if texts else ""
