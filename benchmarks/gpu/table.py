"""The table of rows, and the same as one JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .machine import Machine
from .measured import Outcome

GB = 1e9
HEAD = f"{'row':<20}{'ms':>10}{'per second':>21}{'% of bound':>12}{'peak GB':>9}{'planned':>9}  note"


def machine_lines(machine: Machine) -> str:
    """Return what a table begins with."""
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / GB:.0f} GB"
    changes = " with changes" if machine.commit.endswith("+") else ""
    return (
        f"{machine.device}{memory}, {machine.cpu_cores} CPU cores; torch {machine.torch}, CUDA {machine.cuda}, driver "
        f"{machine.driver}\n{machine.date}, commit {machine.commit[:12]}{changes}\n"
        f"peak {machine.peak_flops / 1e12:.4g} TFLOP/s ({machine.peak_source}); measured here: product of matrices "
        f"{machine.matmul_flops / 1e12:.4g} TFLOP/s, copy {machine.copy_bytes_per_second / 1e9:.4g} GB/s"
    )


def table_line(outcome: Outcome) -> str:
    """Return a row: numbers, or the reason why there are none."""
    found = outcome.measured
    if found is None:
        return f"{outcome.name:<20}{outcome.status}: {outcome.reason}"
    rate = "" if found.per_second is None else f"{found.per_second:.4g} {found.unit}"
    sizes = ("" if size is None else f"{size / GB:.2f}" for size in (found.peak_bytes, found.planned_bytes))
    cells = (
        f"{'' if found.milliseconds is None else f'{found.milliseconds:.2f}':>10}{rate:>21}"
        f"{'' if found.bound_share is None else f'{100 * found.bound_share:.3g}':>12}"
    )
    return f"{outcome.name:<20}{cells}{''.join(f'{size:>9}' for size in sizes)}  {found.note}"


def as_json(machine: Machine | None, outcomes: Sequence[Outcome], **run: Any) -> dict[str, Any]:
    """Return the content of the JSON file.

    Args:
        machine: None where it could not be measured.
        outcomes: all rows so far.
        run: facts of the run.
    """
    return {
        "machine": None if machine is None else asdict(machine),
        "run": run,
        "rows": [asdict(outcome) for outcome in outcomes],
    }
