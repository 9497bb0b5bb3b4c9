"""The start of Python, of the package and of a program, each in a process of its own; CPU time.

    python -m benchmarks.speed --part benchmarks.speed.start_up --seconds 30

`import vw2_robot` may take 0.1 s and `vw2-rollout --help` 1.5 s; their floors are a Python that does nothing and one
that imports the packages which read configurations.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from .row import SpeedRow, interleaved

ROLLOUT = (
    "import sys; sys.argv = ['vw2-rollout', '{}']; from vw2_robot.command_line.entry_points import rollout; rollout()"
)
# name of the row -> (code, floor, what the floor is, limit in seconds)
ROWS = {
    "import of the package": ("import vw2_robot", "pass", "a Python that does nothing", 0.1),
    "vw2-rollout --help": (ROLLOUT.format("--help"), "import hydra, numpy", "import of hydra and numpy alone", 1.5),
    "vw2-rollout with a wrong key": (
        ROLLOUT.format("sed=1"),
        "import hydra, numpy",
        "import of hydra and numpy alone",
        1.5,
    ),
}


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return a row for each start; `wanted` is the ratio that the limit in seconds would give."""
    codes = {code for pair in ROWS.values() for code in pair[:2]}
    rounds = interleaved({code: cpu_seconds(code) for code in sorted(codes)}, seconds=seconds)
    rows = []
    for name, (code, floor, against, limit) in ROWS.items():
        row = rounds.row(name, ours=code, other=floor, against=against, unit="s", wanted=0, why=f"limit {limit:g} s")
        rows.append(replace(row, wanted=row.other / limit))
    return rows


def cpu_seconds(code: str) -> Callable[[], float]:
    """Return a function that runs the code in a new Python and returns the CPU seconds of that process."""

    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run
