"""The page docs/results.md: every number of its tables is computed here from the archive.

Rows and differences have t intervals over training seeds (`seeds`). The two sections about a single policy
(`policies`) have intervals over rollouts, and say so. A cell without a run says "not run".
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vw2_robot.storage.files import write_text

from .archive import Archive, Note
from .configs import changes, configuration_section, shown
from .job_queue import Job
from .plan import PRETRAIN
from .policies import few_section, package_section
from .reading import listed, paragraph, reading_section
from .seeds import (
    MISSING,
    Runs,
    core_minutes,
    differences,
    each_seed,
    mean_solved,
    over_seeds,
    read_runs,
    seed_interval,
    setting,
    share_reached,
)
from .settings import recipe

TITLES = {
    "oracle_10": "no pre-training (`oracle`)",
    "oracle_10_longer": "no pre-training, longer schedule",
    "lapa_10": "LAPA method, in-domain video",
    "videoworld_10": "VideoWorld 1 method, in-domain video",
    "vw2_10": "dLDM codes, in-domain video (`vw2`)",
    "vw2_cross_10": "dLDM codes, other robots' video",
    "oracle_100": "no pre-training (`oracle`)",
    "vw2_100": "dLDM codes, in-domain video (`vw2`)",
    "vw2_cross_100": "dLDM codes, other robots' video",
    "oracle_abc": "scenes A, B, C → D: no pre-training",
    "vw2_abc": "scenes A, B, C → D: dLDM codes, video of A, B, C",
}
COMPARISONS = (
    ("vw2_10", "oracle_10"),
    ("vw2_10", "oracle_10_longer"),
    ("vw2_10", "lapa_10"),
    ("vw2_10", "videoworld_10"),
    ("vw2_cross_10", "oracle_10"),
    ("vw2_100", "oracle_100"),
    ("vw2_cross_100", "oracle_100"),
    ("vw2_abc", "oracle_abc"),
)
TARGETS = ("x", "y", "z", "roll", "pitch", "yaw", "rotation", "opening")


def write_page(archive: Archive, page: Path, methods: Sequence[str], planned: Mapping[str, Job]) -> None:
    """Write the page from what is in the archive.

    Args:
        archive: may be incomplete; missing runs are named as such.
        page: the file to write.
        methods: the rows, in order.
        planned: the jobs of today's plan, whose settings are compared with those of the archive.
    """
    runs = {method: read_runs(archive, method) for method in methods}
    parts = [HEAD, reading_section(archive, runs), package_section(archive), few_section(archive)]
    parts += [methods_section(archive, runs), comparison_section(archive, runs), compute_section(archive, runs)]
    parts += [codes_section(archive), configuration_section(archive, methods, planned), cost_section(archive), FOOT]
    write_text(page, "\n".join(part.strip() + "\n" for part in parts))
    print(f"page: {page}", flush=True)


HEAD = """
# Results

Written by `python -m benchmarks.results --stages page` from [the archive](../benchmarks/results/archive), which holds
the outcome of every rollout and the arguments and settings of every job. The commands are at the end.
Everything is measured in the built-in scene D, with images of the static camera only, on instructions that no
demonstration was labeled with (CALVIN's validation set). All experiments, also those that failed:
[lab_log.md](lab_log.md).
"""

FOOT = """
## Commands

    make results            # everything: days on two cores; it can be stopped at any time and continues when restarted
    python -m benchmarks.results --stages data reference package few --out runs/results
    python -m benchmarks.results --stages pretrain finetune rollouts --seeds 0 1 2 --out runs/results
    python -m benchmarks.results --stages keep page --out runs/results

For the rows of other robots' video, `--stages data` also had `--bridge BRIDGE_V2/1.0.0` (25 episodes in RLDS). The
chains with other kernels are `ATEN_CPU_CAPABILITY=avx2 vw2-rollout` with the arguments of job `package/avx2`.
The arguments and settings behind a number above are those of its job in
[jobs.jsonl](../benchmarks/results/archive/jobs.jsonl), at the commit in the table of costs. The keys there are those of
today; that commit may have older names for them.
"""


def methods_section(archive: Archive, runs: Mapping[str, Runs]) -> str:
    """Return two tables with a row for each method: single tasks and chains."""
    single = [
        "## With and without latent pre-training",
        "",
        paragraph(
            "Rows with the same label fraction have the same recordings, the same labels for the same seed and",
            "networks of the same sizes (LAPA has a codebook of its own). Brackets: 95 % intervals over seeds.",
        ),
        "",
        "Single tasks solved, in percent:",
        "",
        "| method | labels | seeds | mean over seeds | each seed | rollouts a seed |",
        "|---|---|---|---|---|---|",
    ]
    chains = [
        "",
        "Chains of five, subtasks solved in a row:",
        "",
        "| method | labels | seeds | average length over seeds | each seed | 1 in a row (%), each seed "
        "| 5 in a row (%), each seed | chains a seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, found in runs.items():
        name = f"{TITLES[method]} | {labels_text(archive, method)}"
        solved = mean_solved(found.single)
        mean = over_seeds(solved, ".1f", scale=100, lowest=0, highest=1)
        cells = [len(solved), mean, each_seed(solved, ".1f", scale=100), _starts(found.single)]
        single.append(f"| {name} | {' | '.join(map(str, cells))} |")
        length = mean_solved(found.chains)
        mean = over_seeds(length, ".2f", scale=1, lowest=0, highest=5)
        reached = [each_seed(share_reached(found.chains, count), ".1f", scale=100) for count in (1, 5)]
        cells = [len(length), mean, each_seed(length, ".2f"), *reached, _starts(found.chains)]
        chains.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join([*single, *chains])


def comparison_section(archive: Archive, runs: Mapping[str, Runs]) -> str:
    """Return the differences between methods of the same seed, from equal starts, and their means over seeds."""
    lines = [
        "## Differences, seed by seed",
        "",
        paragraph(
            "Single tasks in percentage points, chains in subtasks solved; both rows of a seed from the same starts.",
            "Brackets: 95 % intervals over seeds. If zero lies inside, or there is one seed, no difference is shown.",
        ),
        "",
        "| | seeds | single tasks | each seed | chains | each seed |",
        "|---|---|---|---|---|---|",
    ]
    tried = 0
    clear = []
    for first, second in COMPARISONS:
        if first not in runs or second not in runs:
            continue
        name = f"{TITLES[first]} − {TITLES[second]}, {labels_text(archive, first)}"
        cells = []
        seeds = 0
        for kind, form, scale, highest in (("single", "+.1f", 100, 1), ("chains", "+.2f", 1, 5)):
            found = differences(getattr(runs[first], kind), getattr(runs[second], kind))
            cells.append(over_seeds(found, form, scale=scale, lowest=-highest, highest=highest))
            cells.append(each_seed(found, form, scale=scale))
            seeds = max(seeds, len(found))
            interval = seed_interval(found.values(), lowest=-highest, highest=highest)
            # One seed has no interval and is not counted as a comparison.
            tried += interval is not None
            if interval is not None and (interval[0] > 0 or interval[1] < 0):
                clear.append(f"- {name}: {'single tasks' if kind == 'single' else 'chains'}, {len(found)} seeds")
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    summary = paragraph(
        f"Of {tried} intervals, {len(clear)} exclude zero; one in twenty would by chance. Two seeds that happen to",
        "agree give a short interval, so a result of two seeds alone is weak evidence.",
    )
    return "\n".join([*lines, "", summary, "", *clear])


def compute_section(archive: Archive, runs: Mapping[str, Runs]) -> str:
    """Return the steps and core-minutes of each row, and how the pre-trainings differ in their settings."""
    lines = [
        "## Training steps and compute of the rows",
        "",
        paragraph(
            "Training steps, and core-minutes per seed: minutes of the job times its cores, while other jobs ran",
            "beside it; mean over seeds. Recording and decoding of video are shared and not included ([cost](#cost)).",
        ),
        "",
        "| method | labels | pre-training steps, dLDM + policy | fine-tuning steps | core-minutes of pre-training "
        "| of fine-tuning | of both, each seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, found in runs.items():
        seeds = sorted(set(found.single) | set(found.chains))
        tunings = {seed: archive.jobs.get(f"finetune/{method}/seed_{seed}") for seed in seeds}
        if not tunings or None in tunings.values():
            continue
        # Without pre-training the policy is "scratch"; otherwise it is the folder of a pre-training job.
        policies = {seed: str(setting(note, "policy")) for seed, note in tunings.items()}
        before = {seed: archive.jobs.get(policy.partition("/")[2]) for seed, policy in policies.items()}
        parts = {seed: (core_minutes(before[seed]), core_minutes(note)) for seed, note in tunings.items()}
        # Means over seeds of pre-training and of fine-tuning separately.
        means = [f"{statistics.mean(part[i] for part in parts.values()):.0f}" for i in (0, 1)]
        cells = [
            TITLES[method],
            labels_text(archive, method),
            pretraining_steps(before[seeds[0]]),
            setting(tunings[seeds[0]], "loop.train_steps"),
            *means,
        ]
        both = each_seed({seed: sum(part) for seed, part in parts.items()}, ".0f")
        lines.append(f"| {' | '.join(map(str, cells))} | {both} |")
    return "\n".join([*lines, "", *pretraining_differences(archive)])


def pretraining_steps(pretraining: Mapping[str, Any] | None) -> str:
    if pretraining is None:
        return "none"
    phases = sum(setting(pretraining, f"train_dldm.phase{number}.train_steps") for number in (1, 2))
    return f"{phases} + {setting(pretraining, 'train_policy.loop.train_steps')}"


def pretraining_differences(archive: Archive) -> list[str]:
    """Return a table of the settings in which the pre-trainings differ from that of `vw2`."""
    notes = {name: note for name, note in archive.jobs.items() if "pretrain" in name and "settings" in note}
    base = notes.get("pretrain/vw2/seed_0")
    if base is None:
        return []
    apart: dict[str, list[str]] = {}
    for name, note in sorted(notes.items()):
        found = changes(recipe(PRETRAIN, base["settings"]), recipe(PRETRAIN, note["settings"]))
        # Pre-trainings with the same differences share a row of the table.
        apart.setdefault(shown(found) or "none", []).append(name)
    lines = [
        "Settings in which the pre-trainings differ from that of `vw2` (– no such setting at that commit):",
        "",
    ]
    lines += ["| pre-training | `vw2` → here |", "|---|---|"]
    return [*lines, *(f"| {', '.join(names)} | {what} |" for what, names in apart.items())]


def codes_section(archive: Archive) -> str:
    """Return how well codes predict the motion of the end effector, beside a difference of pixels."""
    reports = {int(name.rpartition("_")[2]): report for name, report in sorted(archive.probes.items())}
    lines = ["## Motion in the codes", ""]
    if not reports:
        return "\n".join([*lines, MISSING])
    wide = {report["probe"]["widths"]["pixels_equal"] for report in reports.values()}
    lines += [
        paragraph(
            "R² of a regression to the true motion of the end effector in a latent step, on demonstrations that",
            "neither the dLDM nor the regression was trained on. `pixels`: the same regression from the difference",
            "between the last image of the step and the last one before it, 16 × 16 pixels as their first",
            f"{listed(wide)} principal components, as many numbers as the one-hot codes have; it needs no dLDM. Where",
            "`codes − pixels` is below zero, the codes have lost motion that the images show. `rotation` is the mean",
            "of the three angles. Brackets: 95 % intervals over dLDM seeds.",
        ),
        "",
        "| | codes, MLP | each seed | pixels, MLP | each seed | codes − pixels | codes, linear on one-hot |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        # The three columns use the same demonstrations and the same targets.
        codes = {seed: r2_of(report, "code_values", "mlp", target) for seed, report in reports.items()}
        pixels = {seed: r2_of(report, "pixels_equal", "mlp", target) for seed, report in reports.items()}
        linear = {seed: r2_of(report, "codes_one_hot", "linear", target) for seed, report in reports.items()}
        cells = [cell for values in (codes, pixels) for cell in (_over_seeds(values, ".2f"), each_seed(values, ".2f"))]
        cells.append(_over_seeds({seed: codes[seed] - pixels[seed] for seed in codes}, "+.2f"))
        lines.append(f"| {target} | {' | '.join(cells)} | {_over_seeds(linear, '.2f')} |")
    return "\n".join(lines)


def r2_of(report: Mapping[str, Any], features: str, model: str, target: str) -> float:
    """Return R² in the only data set of a report."""
    (table,) = report["probe"]["in_scene"].values()
    return float(table["moved"][features][model][target]["r2"])


def _over_seeds(values: Mapping[int, float], form: str) -> str:
    return over_seeds(values, form, scale=1, lowest=-float("inf"), highest=float("inf"))


def cost_section(archive: Archive) -> str:
    """Return the minutes and cores of every kind of job."""
    lines = [
        "## Cost",
        "",
        paragraph(
            "Wall-clock minutes of a job while other jobs ran beside it; median over seeds. The jobs `pretrain/vw2`",
            "started from dLDM and codes of earlier runs (c94d933 for seed 0, ff12c9e for the others), so their",
            "minutes come from several runs; `finetune/lapa_10` and `pretrain/videoworld`, seed 0, were suspended",
            "for 12 minutes ([lab_log.md](lab_log.md), 2026-11-22).",
        ),
        "",
        "| job | minutes | cores | commit |",
        "|---|---|---|---|",
    ]
    kinds: dict[str, list[Note]] = {}
    for name, note in sorted(archive.jobs.items()):
        kinds.setdefault(name.split("/seed_")[0], []).append(note)
    for kind, notes in kinds.items():
        # The median: a job that was suspended would dominate a mean.
        minutes = statistics.median(note["seconds"] / 60 for note in notes)
        cores = core_minutes(notes[0]) / (notes[0]["seconds"] / 60)
        commits = ", ".join(sorted({note["commit"] for note in notes}))
        lines.append(f"| {kind} | {minutes:.0f} | {cores:.0f} | {commits} |")
    return "\n".join(lines)


def labels_text(archive: Archive, method: str) -> str:
    """Return the label fraction of the fine-tunings of a method, in percent."""
    notes = [note for name, note in archive.jobs.items() if name.startswith(f"finetune/{method}/seed_")]
    shares = {setting(note, "label_fraction") for note in notes} - {MISSING}
    return f"{listed(100 * share for share in shares)} %" if shares else MISSING


def _starts(runs: Mapping[int, Sequence[Any]]) -> str:
    return listed({len(rows) for rows in runs.values()}) or "0"
