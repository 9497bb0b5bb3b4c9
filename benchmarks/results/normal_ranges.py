"""Normal ranges of training metrics from the logs of reference runs, for reports and progress lines.

python -m benchmarks.results.normal_ranges --of "model=tiny, ..." RUNS/seed_0 RUNS/seed_1 ...

Writes vw2_robot/storage/normal_ranges.json. Every training stage below the given folders is a reference run of its
stage, so give runs that went well, of several seeds and data sets. The file states the command and each run with the
SHA-256 of its log (`made_with`). Also printed: how much of each run lies in the ranges that the others alone would
give.
"""

# A log holds single batches, so a curve is rough. Around each of about twenty steps, evenly spaced in the logarithm,
# the values of all runs are pooled. The range is their mean and three standard deviations,
# in logarithms if all are positive.
from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vw2_robot.aliases import with_new_keys
from vw2_robot.rollouts.report.run_folders import Stage, discover
from vw2_robot.storage.files import read_yaml, sha256_of, write_text
from vw2_robot.storage.normal_ranges import FILE, flat_settings, phases_of, range_at

OUT = Path(__file__).parents[2] / "vw2_robot" / "storage" / FILE
POINTS_PER_FACTOR_TWO = 2
DEVIATIONS = 3.0
NO_RANGE = ("/phase", "_low", "_high", "/grad_norm")  # the gradient's norm varies over two decades without harm
LEAST_RUNS = 3
LEAST_VALUES = 6
IGNORED = ("data.", "seed", "env.")
IGNORED_ENDINGS = ("_every", "train_steps", "_cache", "weights", "policy", "run_dir", "usage_clips")

Curves = dict[str, dict[str, dict[str, list[float]]]]


def main() -> None:
    """Write the ranges of all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--of", required=True, help="what the runs are, in words")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    by_kind: dict[str, list[Stage]] = defaultdict(list)
    for stage in discover(args.runs)[0]:
        by_kind[next(iter(stage.records)).split("/")[0]].append(stage)
    stages, sources = {}, {}
    for kind, runs in sorted(by_kind.items()):
        if len(runs) < LEAST_RUNS:
            print(f"{kind}: {len(runs)} runs, at least {LEAST_RUNS} are needed; left out")
            continue
        phase_steps, curves = ranges(runs)
        stages[kind] = {"runs": len(runs), "settings": shared(runs), "phase_steps": phase_steps, "curves": curves}
        sources[kind] = [source(run) for run in runs]
        shares = [inside(one, ranges([other for other in runs if other is not one])[1]) for one in runs]
        print(f"{kind}: {len(runs)} runs; in the ranges of the others: {' '.join(f'{100 * s:.0f} %' for s in shares)}")
    command = shlex.join(["python", "-m", "benchmarks.results.normal_ranges", *sys.argv[1:]])
    made_with = {"command": command, "runs": sources}
    content = {"of": args.of, "made_with": made_with, "stages": stages}
    write_text(args.out, json.dumps(content, separators=(",", ":")) + "\n")
    print(f"{args.out}: {args.out.stat().st_size} bytes")


def source(run: Stage) -> dict[str, Any]:
    """Return what identifies a run."""
    return {
        "run": run.name,
        "seed": run.settings.get("seed"),
        "last_step": run.last_step,
        "metrics_sha256": sha256_of(run.path / "metrics.jsonl"),
    }


def by_phase(stage: Stage) -> list[tuple[str, int, float, dict[str, tuple[Any, Any]]]]:
    """Return the phases of a run: name, first step, last step, metrics with their steps within the phase."""
    phases = phases_of(*next((series for key, series in stage.records.items() if key.endswith("/phase")), ([], [])))
    starts = [start for start, _ in phases]
    found = []
    for (start, number), end in zip(phases, [*starts[1:], stage.last_step], strict=True):
        metrics = {}
        for key, (steps, values) in stage.records.items():
            at = np.asarray(steps)
            chosen = (at > start) & (at <= end)
            if chosen.any() and not key.endswith(NO_RANGE):
                metrics[key] = (at[chosen] - start, np.asarray(values)[chosen])
        found.append((f"{number:g}", start, end, metrics))
    return found


def ranges(runs: Sequence[Stage]) -> tuple[dict[str, int], Curves]:
    """Return phase -> fewest steps, and phase -> metric -> range, of some runs."""
    phase_steps: dict[str, int] = {}
    pooled: dict[str, dict[str, list[tuple[Any, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for name, start, end, metrics in by_phase(run):
            phase_steps[name] = min(phase_steps.get(name, 2**62), int(end - start))
            for key, series in metrics.items():
                pooled[name][key].append(series)
    curves: Curves = {}
    for name, metrics in pooled.items():
        found = {key: curve for key, series in metrics.items() if (curve := pooled_range(series)) is not None}
        if found:
            curves[name] = found
    return phase_steps, curves


def pooled_range(series: Sequence[tuple[Any, Any]]) -> dict[str, list[float]] | None:
    """Return steps with bounds from the (steps, values) of several runs; None where they are too few."""
    if len(series) < LEAST_RUNS:
        return None
    first = max(steps[0] for steps, _ in series)
    last = sorted(steps[-1] for steps, _ in series)[-LEAST_RUNS]  # the last step that enough runs reached
    if last <= first:
        return None
    count = 2 + int(POINTS_PER_FACTOR_TWO * np.log2(last / first))
    curve: dict[str, list[float]] = {"steps": [], "low": [], "high": []}
    for step in np.geomspace(first, last, count):
        near = [values[nearest(steps, step)] for steps, values in series if steps[-1] >= 0.95 * step]
        values = np.concatenate(near)
        if len(near) < LEAST_RUNS or len(values) < LEAST_VALUES:
            continue
        is_positive = values.min() > 0
        scaled = np.log(values) if is_positive else values
        bounds = scaled.mean() + DEVIATIONS * scaled.std(ddof=1) * np.array([-1, 1])
        low, high = (float(f"{bound:.3g}") for bound in (np.exp(bounds) if is_positive else bounds))
        for key, value in (("steps", round(float(step))), ("low", low), ("high", high)):
            curve[key].append(value)
    return curve if len(curve["steps"]) > 1 else None


def nearest(steps: Any, step: float) -> Any:
    """Return which logged values belong to a step: those within a factor of 1.2, or else the two nearest."""
    close = (steps >= step / 1.2) & (steps <= step * 1.2)
    if close.sum() < 2:
        close[np.argsort(np.abs(steps - step))[:2]] = True
    return close


def shared(runs: Sequence[Stage]) -> dict[str, Any]:
    """Return the settings that all runs share, without data, seeds and lengths."""
    trees = [flat_settings(with_new_keys(read_yaml(run.path / "config.yaml", cure="restore it"))) for run in runs]
    return {
        key: value
        for key, value in trees[0].items()
        if not key.startswith(IGNORED)
        and not key.endswith(IGNORED_ENDINGS)
        and all(key in tree and tree[key] == value for tree in trees)
    }


def inside(run: Stage, curves: Curves) -> float:
    """Return the share of a run's values that lie in some ranges."""
    hits = []
    for name, _, _, metrics in by_phase(run):
        for key, (steps, values) in metrics.items():
            if (curve := curves.get(name, {}).get(key)) is None:
                continue
            for step, value in zip(steps, values, strict=True):
                if (bounds := range_at([(curve["steps"], curve["low"], curve["high"])], step)) is not None:
                    hits.append(bounds[0] <= value <= bounds[1])
    return float(np.mean(hits)) if hits else 0.0


if __name__ == "__main__":
    main()
