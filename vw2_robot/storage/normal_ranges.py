"""Normal ranges of training metrics: where the reference runs of `model=tiny` were after as many steps.

`normal_ranges.json` beside this file is written by `benchmarks/results/normal_ranges.py` from the logs of those runs;
its `made_with` states the command and the runs, as far as they are known. A range belongs to a metric and to a step of
a phase of training. Loss values depend on the data, and the reference runs saw video of the built-in simulator, so a
range answers "does this look as it should?" and not "is it good?".
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

FILE = "normal_ranges.json"
MODEL_SECTIONS = ("dldm", "vdm", "codec", "policy", "network", "head")
"""sections of a configuration that make another model: ranges do not carry over"""
LEAST_SHARE = 0.8
"""of the reference's steps in the phases before; a later phase of a run with less cannot be compared"""
MAIN_METRICS = {
    "dldm/explained_change_t0.97": "explained change",
    "dldm/ratio_to_copy": "error to that of a still image",
    "vdm/validation_loss": "held-out denoising loss",
    "policy/validation_accuracy": "held-out codes right",
    "finetune/validation_action_l2": "held-out action error",
}
"""the one number that matters in each stage, with what it is; of two the first that is there"""


@dataclass(frozen=True)
class NormalRanges:
    """The ranges of one stage.

    Attributes:
        runs: Number of reference runs.
        curves: phase -> metric -> steps within the phase, lower and upper bounds.
        phase_steps: phase -> steps that the reference runs gave it, the fewest.
        differences: settings in which this run differs from all reference runs, each with both values.
        is_same_model: Whether none of them makes another model.
    """

    runs: int
    curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
    phase_steps: Mapping[str, int]
    differences: tuple[str, ...]
    is_same_model: bool

    def curve(self, metric: str, phases: Sequence[tuple[int, float]]) -> list[tuple[list[float], ...]]:
        """Return the range along a run, a list of steps with lower and upper bounds for each phase that has one.

        Args:
            metric: "stage/quantity".
            phases: the run's phases: last step before each, and its number.
        """
        if not self.is_same_model:
            return []
        found: list[tuple[list[float], ...]] = []
        for index, (start, phase) in enumerate(phases):
            curve = self.curves.get(_name(phase), {}).get(metric)
            if curve is None or not self._is_comparable(phases[: index + 1]):
                continue
            found.append(([start + step for step in curve["steps"]], list(curve["low"]), list(curve["high"])))
        return found

    def _is_comparable(self, phases: Sequence[tuple[int, float]]) -> bool:
        """Return whether the phases before the last one were about as long as in the reference runs."""
        return all(
            end - start >= LEAST_SHARE * self.phase_steps.get(_name(phase), 0)
            for (start, phase), (end, _) in pairwise(phases)
        )


def main_metric(metrics: Iterable[str]) -> str | None:
    """Return the metric that matters most among some; None where there is no such one."""
    known = set(metrics)
    return next((key for key in MAIN_METRICS if key in known), None)


def range_at(curves: Sequence[tuple[list[float], ...]], step: float) -> tuple[float, float] | None:
    """Return the range at one step, between the two that are known; None before the first and after the last.

    Args:
        curves: what `NormalRanges.curve` returned.
        step: of training.
    """
    for steps, low, high in curves:
        if steps[0] <= step <= steps[-1]:
            right = min(bisect_right(steps, step), len(steps) - 1)
            share = (step - steps[right - 1]) / (steps[right] - steps[right - 1])
            lower, upper = (bounds[right - 1] + share * (bounds[right] - bounds[right - 1]) for bounds in (low, high))
            return lower, upper
    return None


def normal_ranges(stage: str, config: Mapping[str, Any]) -> NormalRanges | None:
    """Return the ranges of a stage; None where there is no reference run of it.

    Args:
        stage: first part of the metrics' names: vdm, dldm, policy or finetune.
        config: the run's configuration, nested, with today's keys.
    """
    if (reference := _references().get(stage)) is None:
        return None
    flat = flat_settings(config)
    different = {
        key: value for key, value in reference["settings"].items() if key in flat and not _equal(flat[key], value)
    }
    return NormalRanges(
        runs=reference["runs"],
        curves=reference["curves"],
        phase_steps=reference["phase_steps"],
        differences=tuple(
            f"{key} {json.dumps(flat[key])}, not {json.dumps(value)}" for key, value in different.items()
        ),
        is_same_model=not any(key.split(".")[0] in MODEL_SECTIONS for key in different),
    )


@functools.cache
def _references() -> dict[str, Any]:
    text = importlib.resources.files("vw2_robot.storage").joinpath(FILE).read_text(encoding="utf-8")
    references: dict[str, Any] = json.loads(text)["stages"]
    return references


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a configuration as dotted names with plain values.

    Args:
        config: nested plain values.
        prefix: of the names, in the recursion.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def phases_of(steps: Sequence[int], phases: Sequence[float]) -> list[tuple[int, float]]:
    """Return the phases of a run as (last step before it, its number).

    Args:
        steps: at which the phase was logged.
        phases: number of the phase at each.
    """
    if not steps:
        return [(0, 1.0)]
    changes = [(steps[i - 1], phases[i]) for i in range(1, len(phases)) if phases[i] != phases[i - 1]]
    return [(0, phases[0]), *changes]


def _name(phase: float) -> str:
    return f"{phase:g}"


def _equal(value: Any, other: Any) -> bool:
    return bool(value == other) or (isinstance(value, tuple) and list(value) == other)
