"""The speed table: each row with a peer or a bound from the same run. What `make bench` runs, in 15 minutes.

    python -m benchmarks.speed [--only PART ...] [--out speed.json]
    python -m benchmarks.speed --part benchmarks.clip_loading     # one part, in this process

`baseline.json` beside this folder holds the ratios of a quiet machine (--write-baseline); a ratio that is 20 % lower is
marked.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .parts import PARTS, Part
from .row import SpeedRow, peak_mib

BASELINE = Path(__file__).parents[1] / "baseline.json"
ALLOWED_FALL = 0.2
"""of a ratio against its baseline"""


def run_part(part: Part, *, scale: float = 1.0) -> tuple[list[SpeedRow], float]:
    """Run one part in a process of its own and return its rows and its peak memory in MiB.

    Args:
        part: which.
        scale: its time, as a multiple of the planned one.

    Raises:
        RuntimeError: the part failed; the message ends with what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.speed", "--part", part.module, "--seconds", str(scale * part.seconds)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if found.returncode != 0:
        raise RuntimeError(f"{part.module}: status {found.returncode}\n{found.stderr[-3000:]}")
    answer = json.loads(found.stdout.splitlines()[-1])
    return [SpeedRow(**row) for row in answer["rows"]], answer["peak_mib"]


def key(row: SpeedRow) -> str:
    """Return the name of a ratio in the baseline; against another peer it is another one."""
    return f"{row.name} | {row.against}"


def below_baseline(rows: list[SpeedRow], baseline: dict[str, float]) -> list[str]:
    """Return a message for each ratio that fell by more than `ALLOWED_FALL`."""
    return [
        f"{row.name}: ratio {row.ratio:.2f}, {1 - row.ratio / baseline[key(row)]:.0%} below {baseline[key(row)]:.2f}"
        for row in rows
        if key(row) in baseline and row.ratio < (1 - ALLOWED_FALL) * baseline[key(row)]
    ]


def line(row: SpeedRow) -> str:
    """Return one line of the table."""
    if math.isnan(row.ratio):
        return f"{row.name:<34} not measured: {row.why}"
    costs = f"{row.ours:>10.4g} {row.other:>10.4g} {row.unit:<10}"
    ratios = f"{row.ratio:>6.2f} [{row.low:.2f}, {row.high:.2f}]"
    return f"{row.name:<34}{costs}{ratios:<22}{row.wanted:>6.2f}  {row.against}" + (f"; {row.why}" if row.why else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="parts, by the last word of their module")
    parser.add_argument("--part", help="run this module in this process and print its rows as JSON")
    parser.add_argument("--seconds", type=float, default=60, help="time of --part")
    parser.add_argument("--scale", type=float, default=1, help="time of all parts, as a multiple of the planned time")
    parser.add_argument("--out", type=Path, help="where the rows go, as JSON")
    parser.add_argument("--write-baseline", action="store_true", help="the ratios become the baseline")
    options = parser.parse_args()
    if options.part:
        rows = importlib.import_module(options.part).speed_rows(options.seconds)
        print(json.dumps({"rows": [asdict(row) for row in rows], "peak_mib": peak_mib()}))
        return
    chosen = [part for part in PARTS if not options.only or part.module.rpartition(".")[2] in options.only]
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    print(f"{'what':<34}{'ours':>10} {'other':>10} {'unit':<10}{'ratio':>6} {'[rounds]':<15}{'wanted':>6}  against")
    found: list[SpeedRow] = []
    failed = []
    for part in chosen:
        try:
            rows, peak = run_part(part, scale=options.scale)
        except RuntimeError as error:  # the other parts are measured all the same
            failed.append(str(error))
            continue
        for row in rows:
            print(line(row), flush=True)
        print(f"{'':<34}peak memory of {part.module}: {peak:.0f} MiB", flush=True)
        found += rows
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    for message in below_baseline(found, baseline):
        print(f"below the baseline: {message}")
    for message in failed:
        print(f"not measured: {message}")
    if options.write_baseline:
        measured = {key(row): round(row.ratio, 3) for row in found if not math.isnan(row.ratio)}
        BASELINE.write_text(json.dumps({**baseline, **measured}, indent=1, sort_keys=True) + "\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
