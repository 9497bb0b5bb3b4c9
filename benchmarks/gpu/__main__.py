"""What a GPU needs for each training stage, for decoding and for rendering, beside the bounds: one table, one file.

Run: python -m benchmarks.gpu [--rows training,lora,...] [--seconds 540] [--out runs/gpu/gpu.json] [--toy]

It needs no network and no data: frames, labeled trajectories and checkpoints are generated, weights are random. The
training rows run the loops of the training programs at `model=h200` in bfloat16. Rows are independent and run in
another process; one that fails or takes too long is printed with its reason, and the others go on. The file is written
again after each row. Without CUDA the same code runs at toy size.

    % of bound   training: MFU = FLOPs of a step / (seconds of the step x peak FLOP/s). The FLOPs are counted in the
                 first step, recomputed activations included; the peak is the vendor's for dense bfloat16 (H200: 989
                 TFLOP/s), on other devices that of a matrix product measured here. Decoding: the time to read all
                 weights once a token, at the bandwidth of a large copy, over the time that decoding takes.
    peak GB      torch.cuda.max_memory_allocated; planned: what `benchmarks.memory_plan` counts, a lower bound

Exit status 1 if a row failed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vw2_robot.storage.files import write_json

from .machine import Machine
from .measured import NotMeasuredError, Outcome, Settings
from .row_process import RowFailedError, RowProcess
from .rows import Row, chosen_rows
from .table import HEAD, as_json, machine_lines, table_line

OUT = Path("runs/gpu/gpu.json")


def run_rows(rows: Sequence[Row], settings: Settings, *, out: Path, seconds: float) -> list[Outcome]:
    """Run rows one after the other, print each, and write the file after each.

    Args:
        rows: in their order.
        settings: what they share.
        out: the JSON file.
        seconds: for all of them; rows that do not fit are not run.
    """
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    machine: Machine | None = None
    process = RowProcess(settings, rows)
    write = partial(_write, out, settings=settings, limit=seconds, begun=begun)
    try:
        try:
            machine = process.machine(seconds=seconds)
        except RowFailedError as error:
            outcomes.append(Outcome("machine", "machine", "failed", time.monotonic() - begun, str(error)))
            print(table_line(outcomes[-1]), flush=True)
            write(machine, outcomes)
            return outcomes
        print(f"{machine_lines(machine)}\n\n{HEAD}", flush=True)
        for row in rows:
            left = seconds - (time.monotonic() - begun)
            outcomes.append(_outcome(row, process, left=left))
            print(table_line(outcomes[-1]), flush=True)
            write(machine, outcomes)
    finally:
        process.close()
    return outcomes


def _outcome(row: Row, process: RowProcess, *, left: float) -> Outcome:
    if left < row.seconds / 2:
        reason = f"{max(0.0, left):.0f} s are left, it takes up to {row.seconds:.0f} s"
        return Outcome(row.name, row.group, "not run", reason=reason)
    begun = time.monotonic()
    try:
        found = process.run(row.name, seconds=min(left, row.seconds))
    except NotMeasuredError as error:
        return Outcome(row.name, row.group, "not run", time.monotonic() - begun, str(error))
    except RowFailedError as error:
        return Outcome(row.name, row.group, "failed", time.monotonic() - begun, str(error))
    return Outcome(row.name, row.group, "measured", time.monotonic() - begun, measured=found)


def _write(
    out: Path,
    machine: Machine | None,
    outcomes: Sequence[Outcome],
    *,
    settings: Settings,
    limit: float,
    begun: float,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    took = time.monotonic() - begun
    write_json(out, as_json(machine, outcomes, toy=settings.toy, seconds=took, seconds_limit=limit))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="groups or names of rows, with commas; default: all")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all rows")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--toy", action="store_true", help="toy size, as without CUDA")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(arguments)
    try:
        rows = chosen_rows([name for name in chosen.rows.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    with TemporaryDirectory(prefix="vw2_gpu_") as folder:
        settings = Settings(chosen.device, chosen.toy or not chosen.device.startswith("cuda"), Path(folder))
        outcomes = run_rows(rows, settings, out=chosen.out, seconds=chosen.seconds)
    print(f"\nwritten: {chosen.out}", flush=True)
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
