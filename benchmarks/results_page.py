"""docs/results.md from what `benchmarks.results` kept of its runs: every number of its tables is computed here.

Rows and differences carry t intervals over training seeds (`results_seeds`). Intervals over rollouts stand in the two
sections that measure one policy each (`results_policies`), and say so. A cell without a run says so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .job_queue import Job, read_note
from .results_configs import changes, configuration_section, shown
from .results_policies import few_section, package_section
from .results_reading import listed, paragraph, reading_section
from .results_seeds import (
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

PRETRAIN = "vw2_robot.pretrain.pretrain_on_openx"
TITLES = {
    "oracle_10": "no pre-training (`oracle`)",
    "oracle_10_longer": "no pre-training, longer schedule",
    "lapa_10": "LAPA's way, in-domain video",
    "videoworld_10": "VideoWorld 1's way, in-domain video",
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


def write_page(out: Path, page: Path, arms: Sequence[str], planned: Mapping[str, Job]) -> None:
    """Write the page; complete or not, it says what is there. `planned`: the jobs of today's plan, for comparison."""
    runs = {arm: read_runs(out, arm) for arm in arms}
    parts = [HEAD, reading_section(out, runs), package_section(out), few_section(out)]
    parts += [arms_section(out, runs), comparison_section(out, runs), compute_section(out, runs)]
    parts += [codes_section(out), configuration_section(out, arms, planned), cost_section(out), FOOT]
    temporary = page.with_suffix(".tmp")
    temporary.write_text("\n".join(part.strip() + "\n" for part in parts), encoding="utf-8")
    temporary.replace(page)
    print(f"page: {page}", flush=True)


HEAD = """
# Results

Written by `python -m benchmarks.results --stages page` from [results](results), which holds the outcome of every
rollout and the words and settings of every job; the commands that made those are at the end.
Everything is measured in the built-in scene D, with images of the static camera alone, on instructions that no
demonstration was labeled with (CALVIN's validation set). What was tried on the way, also in vain:
[lab_log.md](lab_log.md).
"""

FOOT = """
## Commands

    make results            # all of it: days on two cores; it can be stopped at any time and goes on when given again
    python -m benchmarks.results --stages data reference package few --out runs/results
    python -m benchmarks.results --stages pretrain finetune rollouts --seeds 0 1 2 --out runs/results
    python -m benchmarks.results --stages keep page --out runs/results

For the rows of other robots' video, `--stages data` also had `--bridge BRIDGE_V2/1.0.0` (25 episodes in RLDS). The
chains with other kernels are the words of `package__avx2.json` after `ATEN_CPU_CAPABILITY=avx2 vw2-rollout`.
What a number above was made with are the words and settings of its job in [results/jobs](results/jobs), at the commit
in the table of costs.
"""


def arms_section(out: Path, runs: Mapping[str, Runs]) -> str:
    """Two tables with a row for each arm: single tasks, chains."""
    single = [
        "## With and without latent pre-training",
        "",
        paragraph(
            "Rows of one share of the labels are given the same recordings, the same labels for the same seed and",
            "networks of the same sizes (LAPA's has its own codebook). Brackets: 95 % over seeds.",
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
    for arm, found in runs.items():
        name = f"{TITLES[arm]} | {_labels(out, arm)}"
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


def comparison_section(out: Path, runs: Mapping[str, Runs]) -> str:
    """Differences between arms of the same seed, from equal starts, and over seeds."""
    lines = [
        "## Differences, seed by seed",
        "",
        paragraph(
            "Single tasks in points of percent, chains in subtasks solved; both rows of a seed from equal starts.",
            "Brackets: 95 % over seeds. Where zero lies inside, or there is one seed, no difference is shown.",
        ),
        "",
        "| | seeds | single tasks | each seed | chains | each seed |",
        "|---|---|---|---|---|---|",
    ]
    tried, clear = 0, []
    for first, second in COMPARISONS:
        if first not in runs or second not in runs:
            continue
        name = f"{TITLES[first]} − {TITLES[second]}, {_labels(out, first)}"
        cells, seeds = [], 0
        for kind, form, scale, highest in (("single", "+.1f", 100, 1), ("chains", "+.2f", 1, 5)):
            found = differences(getattr(runs[first], kind), getattr(runs[second], kind))
            cells.append(over_seeds(found, form, scale=scale, lowest=-highest, highest=highest))
            cells.append(each_seed(found, form, scale=scale))
            seeds = max(seeds, len(found))
            interval = seed_interval(found.values(), lowest=-highest, highest=highest)
            tried += interval is not None
            if interval is not None and (interval[0] > 0 or interval[1] < 0):
                clear.append(f"- {name}: {'single tasks' if kind == 'single' else 'chains'}, {len(found)} seeds")
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    said = paragraph(
        f"Of {tried} intervals, {len(clear)} leave out zero; one in twenty would by chance. Two seeds that happen to",
        "agree make a short interval: what is shown by two seeds alone is to be doubted.",
    )
    return "\n".join([*lines, "", said, "", *clear])


def compute_section(out: Path, runs: Mapping[str, Runs]) -> str:
    """What each row had: steps, core-minutes, and a pre-training that may differ in more than its name."""
    lines = [
        "## What the rows were given",
        "",
        paragraph(
            "Steps, and core-minutes of a seed: minutes of the job times the cores that it was given, others running",
            "beside it, mean over seeds. Recording and decoding of video come on top and are shared ([cost](#cost)).",
        ),
        "",
        "| method | labels | pre-training steps, dLDM + policy | fine-tuning steps | core-minutes of pre-training "
        "| of fine-tuning | of both, each seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, found in runs.items():
        seeds = sorted(set(found.single) | set(found.chains))
        tunings = {seed: read_note(out, f"finetune/{arm}/seed_{seed}") for seed in seeds}
        if not tunings or None in tunings.values():
            continue
        before = {seed: _pretraining(out, note) for seed, note in tunings.items()}
        parts = {seed: (core_minutes(before[seed]), core_minutes(note)) for seed, note in tunings.items()}
        means = [f"{statistics.mean(part[i] for part in parts.values()):.0f}" for i in (0, 1)]
        cells = [
            TITLES[arm],
            _labels(out, arm),
            _steps(before[seeds[0]]),
            setting(tunings[seeds[0]], "loop.train_steps"),
            *means,
        ]
        both = each_seed({seed: sum(part) for seed, part in parts.items()}, ".0f")
        lines.append(f"| {' | '.join(map(str, cells))} | {both} |")
    return "\n".join([*lines, "", *_pretrainings_apart(out)])


def _pretraining(out: Path, tuning: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The pre-training that a fine-tuning began with; None where it began untrained."""
    policy = str(setting(tuning, "policy"))
    return read_note(out, policy.split("/", 1)[1]) if "/" in policy else None


def _steps(pretraining: Mapping[str, Any] | None) -> str:
    if pretraining is None:
        return "none"
    phases = sum(setting(pretraining, f"train_dldm.phase{number}.steps") for number in (1, 2))
    return f"{phases} + {setting(pretraining, 'train_policy.loop.train_steps')}"


def _pretrainings_apart(out: Path) -> list[str]:
    """In which settings the pre-trainings differ from that of vw2, as they were made."""
    names = [file.stem.replace("__", "/") for file in sorted((out / "jobs").glob("*pretrain*.json"))]
    notes = {name: note for name in names if (note := read_note(out, name)) is not None and "settings" in note}
    base = notes.get("pretrain/vw2/seed_0")
    if base is None:
        return []
    apart: dict[str, list[str]] = {}
    for name, note in notes.items():
        found = changes(recipe(PRETRAIN, base["settings"]), recipe(PRETRAIN, note["settings"]))
        apart.setdefault(shown(found) or "none", []).append(name)
    lines = [
        "Pre-training as it was made, where its settings are others than those of `vw2` (– no such setting then):",
        "",
    ]
    lines += ["| pre-training | `vw2` → here |", "|---|---|"]
    return [*lines, *(f"| {', '.join(names)} | {what} |" for what, names in apart.items())]


def codes_section(out: Path) -> str:
    """What the codes say about the motion of the end effector, beside what a difference of pixels says."""
    reports = {
        int(file.parent.name.removeprefix("seed_")): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(out.glob("probe/seed_*/latent_report.json"))
    }
    lines = ["## What the codes carry", ""]
    if not reports:
        return "\n".join([*lines, MISSING])
    wide = {report["probe"]["widths"]["pixels_equal"] for report in reports.values()}
    lines += [
        paragraph(
            "R² of a regression to the true motion of the end effector in a latent step, on demonstrations that",
            "trained neither the dLDM nor the regression. `pixels`: the same regression from the difference of the",
            f"last image of the step and the last before it, 16 × 16 pixels as their first {listed(wide)} principal",
            "components, as many numbers as the one-hot codes have; no dLDM is trained for it. Where `codes − pixels`",
            "is below zero, the codes have lost what the images show. `rotation` is the mean of the three angles.",
            "Brackets: 95 % over dLDM seeds.",
        ),
        "",
        "| | codes, MLP | each seed | pixels, MLP | each seed | codes − pixels | codes, linear on one-hot |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        codes = {seed: _r2(report, "code_values", "mlp", target) for seed, report in reports.items()}
        pixels = {seed: _r2(report, "pixels_equal", "mlp", target) for seed, report in reports.items()}
        linear = {seed: _r2(report, "codes_one_hot", "linear", target) for seed, report in reports.items()}
        cells = [cell for values in (codes, pixels) for cell in (_over_seeds(values, ".2f"), each_seed(values, ".2f"))]
        cells.append(_over_seeds({seed: codes[seed] - pixels[seed] for seed in codes}, "+.2f"))
        lines.append(f"| {target} | {' | '.join(cells)} | {_over_seeds(linear, '.2f')} |")
    return "\n".join(lines)


def _r2(report: Mapping[str, Any], features: str, model: str, target: str) -> float:
    """In the one data set of a report."""
    (table,) = report["probe"]["in_scene"].values()
    return float(table["moved"][features][model][target]["r2"])


def _over_seeds(values: Mapping[int, float], form: str) -> str:
    return over_seeds(values, form, scale=1, lowest=-float("inf"), highest=float("inf"))


def cost_section(out: Path) -> str:
    """Minutes and cores of every kind of job."""
    lines = [
        "## Cost",
        "",
        paragraph(
            "Wall-clock minutes of a job, others running beside it; median over seeds. The jobs `pretrain/vw2` went",
            "on from dLDM and codes of earlier runs (c94d933 for seed 0, ff12c9e for the others), so their minutes",
            "are not of one piece; `finetune/lapa_10` and `pretrain/videoworld`, seed 0, stood still for 12 minutes",
            "([lab_log.md](lab_log.md), 2026-11-22).",
        ),
        "",
        "| job | minutes | cores | commit |",
        "|---|---|---|---|",
    ]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((out / "jobs").glob("*.json")):
        note = json.loads(file.read_text(encoding="utf-8"))
        if note["done"]:
            kinds.setdefault(file.stem.split("__seed_")[0].replace("__", "/"), []).append(note)
    for kind, notes in kinds.items():
        minutes = statistics.median(note["seconds"] / 60 for note in notes)
        cores = core_minutes(notes[0]) / (notes[0]["seconds"] / 60)
        commits = ", ".join(sorted({note["commit"] for note in notes}))
        lines.append(f"| {kind} | {minutes:.0f} | {cores:.0f} | {commits} |")
    return "\n".join(lines)


def _labels(out: Path, arm: str) -> str:
    """Share of the labels, as the fine-tunings of the arm had it."""
    names = [file.stem.replace("__", "/") for file in (out / "jobs").glob(f"finetune__{arm}__seed_*.json")]
    shares = {setting(read_note(out, name), "label_fraction") for name in names} - {MISSING}
    return f"{listed(100 * share for share in shares)} %" if shares else MISSING


def _starts(runs: Mapping[int, Sequence[Any]]) -> str:
    return listed({len(rows) for rows in runs.values()}) or "0"
