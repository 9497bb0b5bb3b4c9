"""Capacity plan: arithmetic, memory, data and network of each training stage on some GPUs. Computed without a GPU.

Run: python -m benchmarks.capacity_plan [--presets h200,paper] [--gpus 1,8,64] [--measure FOLDER] [--write PAGE]

FLOPs are counted on tensors without data, attention and recomputation included (`flops.py`); memory is that of
`benchmarks.memory_plan`. The rest is arithmetic (`schedule.py`) on assumptions that the first table lists with their
sources. `--measure` times the decoding of real frames here and plans with that; without it, stored times are used.
`--write` puts the tables between their markers in a page, as in docs/scaling.md. Two to three minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vw2_robot.errors import InputError

from .decoding import DECODE_MS, STORED_SIDE, measure_decoding
from .schedule import Cluster
from .stages import open_preset, stages_of
from .tables import Plan, insert, tables

STORED = "measured, stored"


def make_plan(
    presets: tuple[str, ...],
    gpus: tuple[int, ...],
    cluster: Cluster,
    *,
    measure: Path | None = None,
    decode_ms: float | None = None,
) -> Plan:
    """Count all stages of the presets.

    Args:
        presets: names in configs/model.
        gpus: numbers of GPUs to plan for.
        cluster: the machines.
        measure: an RLDS data set whose frames are decoded here; None: stored times.
        decode_ms: milliseconds for each frame instead.

    Returns:
        The plan.
    """
    opened = [open_preset(name) for name in presets]
    stages = {preset.name: list(stages_of(preset)) for preset in opened}
    sizes = sorted({stage.pixels for each in stages.values() for stage in each})
    if decode_ms is not None:
        return Plan(stages, opened, gpus, cluster, {size: {STORED_SIDE: decode_ms} for size in sizes}, "given")
    if measure is not None:
        found = {(height, width): measure_decoding(measure, height=height, width=width) for height, width in sizes}
        return Plan(stages, opened, gpus, cluster, found, "measured")
    stored = {size: DECODE_MS[size] for size in sizes if size in DECODE_MS}
    return Plan(stages, opened, gpus, cluster, stored, STORED)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--presets", default="h200,paper")
    arguments.add_argument("--gpus", default="1,8,64")
    arguments.add_argument("--mfu", type=float, default=Cluster.mfu, help="share of the GPU's peak")
    arguments.add_argument("--cores-per-gpu", type=float, default=Cluster.cores_per_gpu)
    arguments.add_argument("--measure", type=Path, help="an RLDS data set whose frames are decoded here")
    arguments.add_argument("--decode-ms", type=float, help="milliseconds of a core for each frame, instead")
    arguments.add_argument("--write", type=Path, help="a page with markers, whose tables are replaced")
    chosen = arguments.parse_args()
    plan = make_plan(
        tuple(chosen.presets.split(",")),
        tuple(int(count) for count in chosen.gpus.split(",")),
        Cluster(mfu=chosen.mfu, cores_per_gpu=chosen.cores_per_gpu),
        measure=chosen.measure,
        decode_ms=chosen.decode_ms,
    )
    made = tables(plan)
    if chosen.write is not None:
        insert(chosen.write, made)
    for name, table in made.items():
        print(f"{name}\n\n{table}\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
