"""Ablations of the dLDM on a small scale: how well the codes of each variant predict actions, over several seeds.

    python -m benchmarks.dldm_ablation --data runs/record/A runs/record/B runs/record/D --out runs/ablation

Each variant is an experiment of `configs/experiment/`, trained on the same recordings with the same steps, once for
each seed. Then `vw2-probe-latents` predicts the true actions from its codes (fitted in all data sets but one, tested on
unseen demonstrations of that one) and swaps codes between clips. A finished run is skipped and a stopped one continues,
so the command can be repeated. The tables have the mean over seeds and the 95 % interval of Student's t.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vw2_robot.pretrain.diagnostics.explained_change import EXPLAINED, EXPLAINED_NULL
from vw2_robot.rollouts.statistics import t95

Report = dict[str, Any]
TABLES = {
    "3a": {
        "3a_baseline": "reconstruction alone, without aids",
        "ours_reconstruction": "reconstruction alone: phase 1 continued",
        "3a_vdm": "+ VDM",
        "3a_stop_gradient": "+ stop-gradient",
        "3a_control": "+ control (default)",
    },
    "3b": {"3b_n1": "N = 1", "3b_n2": "N = 2", "3a_control": "N = 4 (default)", "3b_n8": "N = 8"},
    "ours": {
        "ours_reconstruction": "reconstruction alone, with aids",
        "ours_correlated": "no decorrelation of the FSQ dimensions",
        "ours_change": "the decoder predicts the change, no flow",
        "ours_augmented": "encoder augmentation: drifting view and light",
    },
}


def train(variant: str, seed: int, args: argparse.Namespace) -> Path:
    """Run the stages up to the dLDM in a process of its own; returns the run folder."""
    run = Path(args.out) / variant / f"seed_{seed}"
    if not (run / "latent_report" / "latent_report.json").is_file():
        # All variants use the frames that the first run has decoded.
        frames = next(iter(Path(args.out).glob("*/seed_*/frames/index.json")), None)  # decoded by the first run
        data = ",".join(str(Path(path).resolve()) for path in args.data)
        program(
            "vw2_robot.pretrain.pretrain_on_openx",
            f"+experiment={variant}",
            f"run_dir={run}",
            f"data.path=[{data}]" if frames is None else f"data.frame_cache={frames.parent}",
            "stages=[vdm,dldm]",
            f"seed={seed}",
            f"dldm.num_frames={args.frames}",
            f"train_vdm.train_steps={args.vdm_steps}",
            f"train_dldm.phase1.train_steps={args.phase1_steps}",
            f"train_dldm.reader.loop.train_steps={args.reader_steps}",
            f"train_dldm.phase2.train_steps={args.phase2_steps}",
            # One thread, so that several of these commands (--only) can share a machine.
            "hardware.threads=1",
            *args.override,
        )
    return run


def probe(run: Path, seed: int, args: argparse.Namespace) -> Report:
    """Return the latent report of a trained dLDM."""
    out = run / "latent_report"
    if not (out / "latent_report.json").is_file():
        data = ",".join(str(Path(path).resolve()) for path in args.data)
        program(
            "vw2_robot.pretrain.probing.probe_latents",
            f"dldm={run / 'dldm'}",
            f"before={run / 'dldm' / 'phase_1'}",
            f"labeled=[{data}]",
            f"out={out}",
            f"frame_cache={Path(args.out) / 'probe_frames'}",
            f"episodes={args.episodes}",
            f"seed={seed}",
            "hardware.threads=1",
        )
    report: Report = json.loads((out / "latent_report.json").read_text(encoding="utf-8"))
    return report


def program(module: str, *overrides: str) -> None:
    """Run a program; if it fails, the benchmark ends with its message."""
    command = [sys.executable, "-m", module, *overrides]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


def across(report: Report, feature: str, target: str = "translation") -> float:
    """Return R² of the true motion, fitted in all other data sets, tested in one; mean over data sets."""
    tables = report["probe"]["transfer"]["moved"][feature]
    # With three data sets or more the probe is fitted in all others, with two in the other one.
    if "others" in tables:
        return statistics.mean(scores[target]["r2"] for scores in tables["others"].values())
    return statistics.mean(tables[a][b][target]["r2"] for a in tables for b in tables[a] if a != b)


def within(report: Report, feature: str, target: str = "translation") -> float:
    """Return R² of the true motion on unseen demonstrations of the same data set; mean over data sets."""
    return statistics.mean(
        tables["moved"][feature]["linear"][target]["r2"] for tables in report["probe"]["in_scene"].values()
    )


def swap(report: Report, whose: str) -> float:
    """Return the correlation of the decoded motion with the donor's (or another's) true motion, mean over pairs."""
    return statistics.mean(row[whose]["mean"]["correlation"] for row in report["swap"])


def nuisance(report: Report, measure: str, kinds: tuple[str, ...] = ("camera_shift", "camera_zoom", "light")) -> float:
    """Return a ratio of the camera-cut test, mean over kinds and data sets."""
    return statistics.mean(
        rows["kinds"][kind][measure]["ratio"] for rows in report["nuisance"].values() for kind in kinds
    )


def video(report: Report, name: str) -> float:
    """Return what the video model reads in the codes, mean over data sets; NaN without a video model."""
    found = report["video_model"] or {}
    return statistics.mean(entry[name] for entry in found.values()) if found else math.nan


def moved_from_phase_1(report: Report) -> float:
    """Return the mean R² in scene less that of the same run after phase 1, mean over data sets."""
    return statistics.mean(entry["moved"]["all"]["difference"] for entry in report["before"]["r2"].values())


COLUMNS: dict[str, Callable[[Report], float]] = {
    "explained change": lambda r: video(r, EXPLAINED),
    "null codes": lambda r: video(r, EXPLAINED_NULL),
    "shuffle ratio": lambda r: video(r, "shuffle_ratio_no_control"),
    "R², all less phase 1": moved_from_phase_1,
    "R² across scenes": lambda r: across(r, "codes_one_hot"),
    "R² in scene": lambda r: within(r, "codes_one_hot"),
    "rotation, in scene": lambda r: within(r, "codes_one_hot", "rotation"),
    "opening, in scene": lambda r: within(r, "codes_one_hot", "opening"),
    "swap: donor": lambda r: swap(r, "follows_donor"),
    "swap: third clip": lambda r: swap(r, "follows_third"),
    "nuisance on action": lambda r: nuisance(r, "on_action"),
    "perplexity": lambda r: float(r["codes"]["perplexity"]),
}
BASELINES: dict[str, str] = {
    "pixels_equal": "pixel difference, same width",
    "untrained_codes": "codes of an untrained encoder",
    "random_codes": "random codes",
}


def interval(values: list[float]) -> str:
    """Format the mean and 95 % interval over seeds."""
    mean = statistics.mean(values)
    if math.isnan(mean):
        return "–"
    places = 0 if abs(mean) >= 10 else 2
    if len(values) < 2:
        return f"{mean:.{places}f}"
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{places}f} ± {half:.{places}f}"


def markdown(title: str, rows: dict[str, list[Report]]) -> str:
    """Return a table with a row for each variant and a column for each measure."""
    lines = [
        f"Table {title}",
        "",
        f"| variant | seeds | {' | '.join(COLUMNS)} |",
        "| --- | --- |" + " --- |" * len(COLUMNS),
    ]
    for name, reports in rows.items():
        cells = [interval([measure(report) for report in reports]) for measure in COLUMNS.values()]
        lines.append(f"| {name} | {len(reports)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def baselines(reports: list[Report]) -> str:
    """Return the table of baselines for the default's codes."""
    lines = ["| features | R² across scenes | R² in scene |", "| --- | --- | --- |"]
    for feature, name in {"codes_one_hot": "codes (default)", **BASELINES}.items():
        there = "–" if feature == "random_codes" else interval([across(r, feature) for r in reports])
        lines.append(f"| {name} | {there} | {interval([within(r, feature) for r in reports])} |")
    # Differences per seed, then the interval: variation of seeds that both share cancels.
    gains = [interval([r2(r, "codes_one_hot") - r2(r, "pixels_equal") for r in reports]) for r2 in (across, within)]
    lines.append(f"| codes minus pixel difference, seeds paired | {gains[0]} | {gains[1]} |")
    return "\n".join(lines)


def by_target(reports: list[Report]) -> str:
    """Return R² in scene for each component of the end effector's motion."""
    targets = ("x", "y", "z", "roll", "pitch", "yaw", "opening")
    lines = [f"| features, in scene | {' | '.join(targets)} |", "| --- |" + " --- |" * len(targets)]
    for feature, name in {"codes_one_hot": "codes (default)", "pixels_equal": BASELINES["pixels_equal"]}.items():
        cells = [interval([within(r, feature, target) for r in reports]) for target in targets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def camera_cut(rows: dict[str, list[Report]]) -> str:
    """Return three measures of the camera-cut test (pretrain/probing/nuisance.py) for each kind of nuisance."""
    kinds = ("camera_shift", "camera_zoom", "light", "camera_cut")
    lines = [f"| variant | measure | {' | '.join(kinds)} |", "| --- | --- |" + " --- |" * len(kinds)]
    for name, reports in rows.items():
        for measure in ("on_action", "sensitivity", "to_actions"):
            there = [
                kind for kind in kinds if measure != "on_action" or kind != "camera_cut"
            ]  # a camera cut has no action
            cells = {kind: interval([nuisance(r, measure, (kind,)) for r in reports]) for kind in there}
            lines.append(f"| {name} | {measure} | {' | '.join(cells.get(kind, '–') for kind in kinds)} |")
    return "\n".join(lines)


def main() -> None:
    """Train and probe what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="data sets in CALVIN's layout, one a scene")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--vdm-steps", type=int, default=100)
    parser.add_argument("--phase1-steps", type=int, default=1500)
    parser.add_argument("--reader-steps", type=int, default=300)
    parser.add_argument("--phase2-steps", type=int, default=400)
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations of each data set to probe with")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of every training")
    parser.add_argument("--only", nargs="*", help="train these variants and print no table, to share the work")
    args = parser.parse_args()
    variants = args.only or list(dict.fromkeys(variant for table in args.tables for variant in TABLES[table]))
    reports: dict[str, list[Report]] = {variant: [] for variant in variants}
    # Seeds outside: a stopped run has all variants of the finished seeds.
    for seed in range(args.seeds):
        for variant in variants:
            reports[variant].append(probe(train(variant, seed, args), seed, args))
    for table in args.tables if not args.only else ():
        print(markdown(table, {label: reports[variant] for variant, label in TABLES[table].items()}), end="\n\n")
    if not args.only:
        default = reports["3a_control"]
        print(baselines(default), by_target(default), sep="\n\n")
        if "ours" in args.tables:
            print("", camera_cut({"default": default, "encoder augmentation": reports["ours_augmented"]}), sep="\n")


if __name__ == "__main__":
    main()
