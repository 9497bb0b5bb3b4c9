"""Training steps of pre-training at `model=tiny`, beside those of the commit before the kernels were chosen.

Run: python -m benchmarks.speed --part benchmarks.speed.training_steps --seconds 120

Both trees run in processes of their own with the same sizes and seeds, in turn: one thread and its CPU time, since two
threads that wait for each other measure the load of the machine. The older tree comes from this checkout's history;
without it nothing is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from io import BytesIO
from pathlib import Path

from .row import SpeedRow, interleaved, not_measured

BEFORE = "19f57af"
ROOT = Path(__file__).parents[2]
WANTED = 1.5
STAGES = {"prior": "video prior", "phase1": "dLDM phase 1", "phase2": "dLDM phase 2"}
AGAINST = f"commit {BEFORE}"
UNIT = "ms/step"


class Steps:
    """A process that runs training steps of one tree; close it."""

    def __init__(self, tree: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("stage_steps.py"))],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def milliseconds(self, stage: str) -> float:
        """Return the CPU time of a step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(stage, file=self._process.stdin, flush=True)
        return 1000 * float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _tree_before(folder: Path) -> Path | None:
    """Write the tree of the older commit there; None where this is no checkout that has it."""
    found = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=False)
    if found.returncode != 0:
        return None
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Measure all stages for about that long."""
    with tempfile.TemporaryDirectory() as folder:
        tree = _tree_before(Path(folder))
        if tree is None:
            why = f"needs a git checkout with commit {BEFORE}: git fetch --unshallow"
            return [
                not_measured(f"training step, {name}", unit=UNIT, against=AGAINST, wanted=WANTED, why=why)
                for name in STAGES.values()
            ]
        ours, before = Steps(ROOT), Steps(tree)
        rows = []
        for stage, name in STAGES.items():
            ways = {"ours": partial(ours.milliseconds, stage), "before": partial(before.milliseconds, stage)}
            rounds = interleaved(ways, seconds=0.6 * seconds / len(STAGES))
            row = rounds.row(
                f"training step, {name}",
                ours="ours",
                other="before",
                against=AGAINST,
                unit=UNIT,
                wanted=WANTED,
                why="one thread, CPU time",
            )
            rows.append(row)
        ours.close()
        before.close()
        return rows
