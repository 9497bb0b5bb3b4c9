"""How far the gripper is from the vertical where the demonstrations of each task begin and end.

python -m benchmarks.results.gripper_tilt REC/D
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from vw2_robot.data.sources.calvin import CalvinDataset


def main() -> None:
    """Print medians and maxima by task, degrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a recording in CALVIN's layout")
    parser.add_argument("--demonstrations", type=int, default=700, help="chosen at random")
    args = parser.parse_args()
    dataset = CalvinDataset(args.data)
    count = min(args.demonstrations, len(dataset.trajectories))
    tilts = defaultdict(list)
    for i in np.random.default_rng(0).choice(len(dataset.trajectories), count, replace=False):
        trajectory = dataset.trajectories[i]
        # Roll and pitch of the tool, which points down at (pi, 0).
        roll, pitch = dataset.read(trajectory, "robot_obs", [0, trajectory.length - 1])[:, 3:5].T
        tilts[trajectory.task].append(np.degrees(np.arccos(np.clip(-np.cos(roll) * np.cos(pitch), -1, 1))))
    print(f"{'task':<28}{'n':>4}{'begin: median':>15}{'max':>7}{'end: median':>13}{'max':>7}")
    for task, found in sorted(tilts.items()):
        begin, end = np.transpose(found)
        print(
            f"{task:<28}{len(begin):>4}{np.median(begin):>15.1f}{begin.max():>7.1f}{np.median(end):>13.1f}{end.max():>7.1f}"
        )
    medians = np.array([np.median(found, axis=0) for found in tilts.values()])
    print(
        f"medians of at most 0.3 degrees: at the beginning {(medians[:, 0] <= 0.3).sum()}, at the end "
        f"{(medians[:, 1] <= 0.3).sum()} of {len(medians)} tasks"
    )


if __name__ == "__main__":
    main()
