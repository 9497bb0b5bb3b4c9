"""The tables of the plan as Markdown. The first row of each says where its columns come from.

config: read from the configuration. counted: from the models, on tensors without data. computed: arithmetic on counts
and on the inputs, whose table names the source of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.memory_plan import GB, geometry_of, parameters_by_part
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import build_codec
from vw2_robot.storage.files import write_text

from .schedule import Cluster, Row, Sharding, best_row, clips_that_fit, states_per_gpu
from .stages import CACHED_WINDOWS, Preset, Stage

TERA = 1e12
PAPER_STEPS = 100_000  # Table A.1
PAPER_BATCH = 128
NONE = "–"
# Columns of the table of work; a column sums up what belongs together.
PARTS = {
    "dLDM encoder": ("dLDM encoder",),
    "dLDM decoder": ("dLDM decoder",),
    "code projection": ("code projection",),
    "control branch": ("control branch",),
    "VDM transformer": ("VDM transformer",),
    "video codec": ("video codec",),
    "policy": ("policy", "sampling of codes"),
    "action head": ("action head",),
}

# Columns that name a stage, and where they come from.
TITLE = {"model": "config", "stage": "", "pixels": "config"}

DecodeMs = Mapping[tuple[int, int], Mapping[int, float]]


@dataclass(frozen=True)
class Plan:
    """All stages of some presets, and what they are planned for."""

    stages: Mapping[str, Sequence[Stage]]
    """by name of the preset"""
    presets: Sequence[Preset]
    gpus: Sequence[int]
    cluster: Cluster
    decode_ms: DecodeMs
    decode_source: str
    """where `decode_ms` comes from"""


def tables(plan: Plan) -> dict[str, str]:
    """Return name -> table, in the order in which they are printed."""
    made = {
        "inputs": inputs_table(plan),
        "parameters": parameters_table(plan),
        "work": work_table(plan),
        "memory": memory_table(plan),
        "schedule": schedule_table(plan),
    }
    if "paper" in plan.stages:
        made["paper"] = paper_table(plan.stages["paper"], plan)
    return made


def inputs_table(plan: Plan) -> str:
    """Return what the plan rests on and where each number comes from."""
    cluster = plan.cluster
    rows = [
        ("peak of a GPU, dense bfloat16", f"{cluster.peak / TERA:.0f} TFLOP/s", "vendor"),
        ("share of it that a step reaches (MFU)", f"{100 * cluster.mfu:.0f} %", "assumed"),
        ("memory of a GPU", f"{cluster.memory / GB:.0f} GB", "vendor"),
        ("share of it that is planned with", f"{100 * cluster.headroom:.0f} %", "assumed"),
        ("sent by a GPU within a node of 8", f"{cluster.node_link / GB:.0f} GB/s", "vendor"),
        ("sent by a GPU to other nodes", f"{cluster.network_link / GB:.0f} GB/s", "vendor"),
        ("CPU cores for each GPU", f"{cluster.cores_per_gpu:g}", "vendor"),
    ]
    for (height, width), by_side in plan.decode_ms.items():
        for side, ms in by_side.items():
            what = f"a core decodes a frame of {side} x {side} to {height} x {width} in"
            rows.append((what, f"{ms:.2f} ms", plan.decode_source))
    return _table({"input": "", "value": "", "source": ""}, rows)


def parameters_table(plan: Plan) -> str:
    """Return the parameters of each part."""
    counts: dict[str, dict[str, float]] = {}
    for preset in plan.presets:
        with torch.device("meta"):
            models = DLDM(preset.dldm), VDM(preset.vdm, geometry_of(preset.dldm, preset.codec), preset.codec)
            counts[preset.name] = {**parameters_by_part(*models, build_codec(preset.codec))}
        policy = next(stage for stage in plan.stages[preset.name] if stage.name == "policy")
        counts[preset.name]["policy"] = policy.sharded / 4  # float32
    rows = [
        (part, *(f"{by_part.get(part, 0) / 1e6:,.1f}" for by_part in counts.values()))
        for part in next(iter(counts.values()))
    ]
    return _table({"M parameters": "", **dict.fromkeys(counts, "counted")}, rows)


def work_table(plan: Plan) -> str:
    """Return TFLOP of one clip by stage and part."""
    rows = []
    for model, stage in _each(plan):
        cells = [_work_cell(stage, names) for names in PARTS.values()]
        kept, again = (_short(stage.flops(recompute=again) / TERA) for again in (False, True))
        rows.append((model, *_title(stage), *cells, kept, again if stage.recomputed else NONE))
    return _table({**TITLE, **dict.fromkeys((*PARTS, "sum", "sum, recomputed"), "counted")}, rows)


def _work_cell(stage: Stage, names: Iterable[str]) -> str:
    found = [name for name in names if name in stage.work]
    if not found:
        return NONE
    forward = sum(stage.work[name].forward for name in found)
    backward = sum(stage.work[name].backward for name in found)
    again = sum(stage.recomputed.get(name, 0) for name in found)
    return " + ".join(_short(flops / TERA) for flops in (forward, backward, again) if flops) or "0"


def memory_table(plan: Plan) -> str:
    """Return GB by stage and recomputation: parts, sum for one clip on each GPU, and clips that fit."""
    ways: list[tuple[str, Sharding, int]] = [("none, ddp", "none", 1)]
    ways += [(f"fsdp on {gpus}", "fsdp", gpus) for gpus in plan.gpus if gpus > 1]
    rows = []
    for model, stage in _each(plan):
        for recompute in (False, True):
            held = stage.kept_recomputing if recompute else stage.kept
            if not held:
                continue
            one = [(states_per_gpu(stage, sharding, gpus) + held) / GB for _, sharding, gpus in ways]
            fits = [
                clips_that_fit(stage, plan.cluster, sharding, gpus, recompute=recompute) for _, sharding, gpus in ways
            ]
            parts = (stage.replicated + stage.sharded, stage.learning, held)
            rows.append(
                (
                    model,
                    *_title(stage),
                    "yes" if recompute else "no",
                    *(_short(size / GB) for size in parts),
                    *(_short(size) for size in one),
                    *(f"{count:,}" for count in fits),
                )
            )
    columns = dict.fromkeys(("weights", "gradients + Adam", "activations of a clip"), "counted")
    sums = [f"one clip: {name}" for name, _, _ in ways] + [f"clips that fit: {name}" for name, _, _ in ways]
    return _table({**TITLE, "recomputed": "", **columns, **dict.fromkeys(sums, "computed")}, rows)


def schedule_table(plan: Plan) -> str:
    """Return the fastest way to run each stage on each number of GPUs, and what limits it."""
    rows = []
    for model, stage in _each(plan):
        by_side = _decode_ms(plan.decode_ms, stage)
        for gpus in plan.gpus:
            row = best_row(stage, gpus, plan.cluster, decode_ms=by_side[max(by_side)])
            if row is not None:
                rows.append((model, *_title(stage), *_schedule_cells(row, by_side)))
    sides = sorted({side for by_side in plan.decode_ms.values() for side in by_side})
    computed = ("sharding", "recomputed", "clips at once on a GPU")
    rates = ("clips/s", "frames/s")
    seconds = ("GB sent a step", "compute, s", "decoding, s", "network, s", "hours", "limit")
    columns = {
        **TITLE,
        "GPUs": "",
        **dict.fromkeys(computed, "computed"),
        "TFLOP a clip": "counted",
        **dict.fromkeys(rates, "computed"),
        **{f"cores to decode {side} px": f"computed, {plan.decode_source}" for side in sides},
        **dict.fromkeys(seconds, "computed"),
    }
    return _table(columns, rows)


def _schedule_cells(row: Row, by_side: Mapping[int, float]) -> list[str]:
    cells = [str(row.gpus), row.sharding, "yes" if row.recompute else "no"]
    if row.micro_batch == 0:
        return [*cells, "0", *[NONE] * (8 + len(by_side)), row.bottleneck]
    frames = row.clips_per_second * row.stage.num_frames
    return [
        *cells,
        f"{row.micro_batch:,}",
        _short(row.stage.flops(recompute=row.recompute) / TERA),
        _short(row.clips_per_second),
        _short(frames),
        *(_short(frames * by_side[side] / 1000) for side in sorted(by_side)),
        _short(row.network_bytes / GB),
        _short(row.compute_seconds),
        _short(row.decode_seconds),
        _short(row.network_seconds),
        _short(row.hours),
        row.bottleneck,
    ]


def paper_table(stages: Sequence[Stage], plan: Plan) -> str:
    """Return days for all steps of the paper's schedule, counted in three ways."""
    rows = []
    for stage in stages:
        if stage.name != "phase 2, full":
            continue
        codec = stage.work["video codec"].total
        forward = sum(part.forward for part in stage.work.values()) - codec
        ways = {
            "counted, activations kept": stage.flops(recompute=False),
            "counted, activations recomputed": stage.flops(recompute=True),
            "rule of thumb: four forward passes, and the codec": 4 * forward + codec,
        }
        for way, flops in ways.items():
            days = PAPER_STEPS * PAPER_BATCH * flops / (plan.cluster.mfu * plan.cluster.peak) / 86400
            rows.append((_title(stage)[1], way, _short(flops / TERA), *(_short(days / gpus) for gpus in plan.gpus)))
    days_on = dict.fromkeys((f"days on {gpus}" for gpus in plan.gpus), "computed")
    return _table({"pixels": "config", "way of counting": "", "TFLOP a clip": "counted", **days_on}, rows)


def insert(page: Path, made: Mapping[str, str]) -> None:
    """Replace the tables of a page, each between its two markers.

    Raises:
        InputError: a marker is missing.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        begin, end = markers(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise InputError(
                f"{page}: expected one line {begin!r} and after it one line {end!r}, found {text.count(begin)} and "
                f"{text.count(end)}; put them where the table belongs"
            )
        before, after = text.split(begin)
        text = f"{before}{begin}\n\n{table}\n\n{end}{after.split(end)[1]}"
    write_text(page, text)


def markers(name: str) -> tuple[str, str]:
    """Return the lines of a page between which a table is."""
    return f"<!-- capacity_plan: {name} -->", f"<!-- capacity_plan: end of {name} -->"


def _each(plan: Plan) -> Iterable[tuple[str, Stage]]:
    return ((model, stage) for model, stages in plan.stages.items() for stage in stages)


def _title(stage: Stage) -> tuple[str, str]:
    name = f"latents ({CACHED_WINDOWS:,} windows)" if stage.batch_is_per_gpu else stage.name
    return name, f"{stage.pixels[0]} x {stage.pixels[1]}"


def _decode_ms(decode_ms: DecodeMs, stage: Stage) -> Mapping[int, float]:
    if stage.pixels not in decode_ms:
        raise InputError(
            f"the time to decode a frame to {stage.pixels[0]} x {stage.pixels[1]} is not known; measure it with "
            "--measure FOLDER, an RLDS data set, or give it with --decode-ms"
        )
    return decode_ms[stage.pixels]


def _short(number: float) -> str:
    """Return three significant digits, without an exponent."""
    if 0 < number < 1e-3:
        return "<0.001"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; below the header, where each column comes from, unless no column names it."""
    sources = [[f"*{source}*" if source else "" for source in columns.values()]] if any(columns.values()) else []
    lines = [list(columns), ["---"] * len(columns), *sources, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
