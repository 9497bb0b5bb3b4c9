"""docs/results.md from what `benchmarks.results` kept of its runs: nothing on that page is typed by hand.

Shares carry Wilson intervals, average lengths t intervals over chains, differences between two arms t intervals over
pairs: the same start, the same seed. A cell without a run says so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vw2_robot.rollouts.evaluate import Row
from vw2_robot.rollouts.results import paired_rows, per_task, read_rows
from vw2_robot.rollouts.statistics import mean_interval, wilson_interval

from .job_queue import read_note

MISSING = "not run"
JOINED = {"D_large": ("D", "D_hard", "D_large")}
"""recordings made of others"""
TITLES = {
    "oracle_10": ("no pre-training (`oracle`)", "10 %"),
    "oracle_10_longer": ("no pre-training, longer schedule", "10 %"),
    "lapa_10": ("LAPA's way, in-domain video", "10 %"),
    "videoworld_10": ("VideoWorld 1's way, in-domain video", "10 %"),
    "vw2_10": ("dLDM codes, in-domain video (`vw2`)", "10 %"),
    "vw2_cross_10": ("dLDM codes, other robots' video", "10 %"),
    "oracle_100": ("no pre-training (`oracle`)", "100 %"),
    "vw2_100": ("dLDM codes, in-domain video (`vw2`)", "100 %"),
    "vw2_cross_100": ("dLDM codes, other robots' video", "100 %"),
    "oracle_abc": ("scenes A, B, C → D: no pre-training", "100 %"),
    "vw2_abc": ("scenes A, B, C → D: dLDM codes, video of A, B, C", "100 %"),
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


class Runs(NamedTuple):
    """Finished rows by seed."""

    single: dict[int, list[Row]]
    chains: dict[int, list[Row]]


def write_page(out: Path, page: Path, arms: Sequence[str]) -> None:
    """Write the page; complete or not, it says what is there."""
    parts = [HEAD, policy_section(out, "reference", "The policy of the package")]
    parts += [policy_section(out, "few", "As far as it goes with 10 % of the labels")]
    parts += [arms_section(out, arms), comparison_section(out, arms), codes_section(out)]
    parts += [cost_section(out), FOOT]
    temporary = page.with_suffix(".tmp")
    temporary.write_text("\n".join(part.strip() + "\n" for part in parts), encoding="utf-8")
    temporary.replace(page)
    print(f"page: {page}", flush=True)


HEAD = """
# Results

Written by `python -m benchmarks.results --stages page` from [results](results), which holds the outcome of every
rollout and the words of every job; the commands that made those are at the end.
Everything is measured in the built-in scene D, with pictures of the static camera alone, on instructions that no
demonstration was labelled with (CALVIN's validation sentences). In brackets: 95 % intervals. What was tried on the way,
also in vain: [lab_log.md](lab_log.md).
"""

FOOT = """
## Commands

    make results            # all of it: days on two cores; it can be stopped at any time and goes on when given again
    python -m benchmarks.results --stages data reference few --out runs/results
    python -m benchmarks.results --stages pretrain finetune rollouts --seeds 0 1 2 --out runs/results
    python -m benchmarks.results --stages keep page --out runs/results

They follow the plan as it is now; for the rows of other robots' video, `--stages data` also had
`--bridge BRIDGE_V2/1.0.0` (25 episodes in RLDS). What a number above was made with are the words of its job in
[results/jobs](results/jobs), at the commit in the table of costs.
"""


def read_runs(out: Path, arm: str) -> Runs:
    """The rollouts of an arm whose jobs are done."""

    def rows(kind: str) -> dict[int, list[Row]]:
        found = {}
        for folder in sorted((out / kind / arm).glob("seed_*")):
            note = read_note(out, f"{kind}/{arm}/{folder.name}")
            if note is not None and note["done"]:
                found[int(folder.name.removeprefix("seed_"))] = read_rows(folder / "results.jsonl")
        return found

    return Runs(rows("single"), rows("chains"))


def policy_section(out: Path, stage: str, title: str) -> str:
    """One policy, taken as far as it goes: chains, single tasks, cost."""
    lines = [f"## {title}", ""]
    folder = out / stage
    rolled = {kind: read_note(out, f"{stage}/{kind}") for kind in ("chains", "single")}
    if rolled["chains"] is None or not rolled["chains"]["done"]:
        return "\n".join([*lines, MISSING])
    chains = read_rows(folder / "chains" / "results.jsonl")
    solved = [row["solved"] for row in chains]
    shares = [_share(sum(n >= i for n in solved), len(solved)) for i in range(1, 6)]
    lines += [
        f"{len(chains)} chains of five instructions, 360 steps each:",
        "",
        "| 1 in a row (%) | 2 | 3 | 4 | 5 | average length |",
        "|---|---|---|---|---|---|",
        f"| {' | '.join(shares)} | {_length(solved)} |",
        "",
    ]
    if rolled["single"] is not None and rolled["single"]["done"]:
        tasks = per_task(read_rows(folder / "single" / "results.jsonl"))
        total = [sum(row[key] for row in tasks.values()) for key in ("solved", "attempted")]
        lines += [f"Single tasks: {_share(*total)} % of {total[1]} rollouts.", ""]
        lines += ["| task | solved |", "|---|---|"]
        worst_first = sorted(tasks.items(), key=lambda item: item[1]["solved"] / item[1]["attempted"])
        lines += [f"| {task} | {row['solved']} of {row['attempted']} |" for task, row in worst_first]
        lines += [""]
    tuning = read_note(out, f"{stage}/finetune")
    seen = _word(tuning, "data.path").rsplit("/", 1)[-1]
    parts = [f"data/{name}" for name in JOINED.get(seen, (seen,))]
    lines += [
        f"Demonstrations: {_demonstrations(out, parts)}, of which {_share_of_labels(tuning)} with labels. "
        f"Recording them: {_minutes(out, parts)} on two cores. "
        f"Training: {_minutes(out, (f'pictures/{seen}', f'{stage}/pretrain', f'{stage}/finetune'))} "
        f"on {_word(tuning, 'hardware.threads')} of them."
    ]
    return "\n".join(lines)


def arms_section(out: Path, arms: Sequence[str]) -> str:
    """One row for each arm."""
    lines = [
        "## With and without latent pre-training",
        "",
        "The same recordings, network, labels (chosen by the seed), schedule and starts for every arm; each seed has",
        "its own dLDM, pre-training and choice of labels.",
        "",
        "| method | labels | seeds | single tasks (%) | rollouts | 1 in a row (%) | 5 in a row (%) | average length "
        "| chains |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        title, labels = TITLES[arm]
        runs = read_runs(out, arm)
        single = [row["solved"] for rows in runs.single.values() for row in rows]
        solved = [row["solved"] for rows in runs.chains.values() for row in rows]
        cells = [_share(sum(single), len(single)), str(len(single))] if single else [MISSING, "0"]
        if solved:
            reached = [_share(sum(n >= i for n in solved), len(solved)) for i in (1, 5)]
            cells += [*reached, _length(solved), str(len(solved))]
        else:
            cells += [MISSING, MISSING, MISSING, "0"]
        seeds = len(set(runs.single) | set(runs.chains))
        lines.append(f"| {title} | {labels} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_section(out: Path, arms: Sequence[str]) -> str:
    """Paired differences between arms, pooled and for each seed."""
    lines = [
        "## Differences, pair by pair",
        "",
        "Single tasks in points of percent, chains in subtasks solved; both from equal starts with equal seeds.",
        "",
        "| | single tasks | each seed | chains | each seed | ratio of average lengths |",
        "|---|---|---|---|---|---|",
    ]
    for first, second in COMPARISONS:
        if first not in arms or second not in arms:
            continue
        a, b = read_runs(out, first), read_runs(out, second)
        single = _difference(a.single, b.single, scale=100, length=1)
        chains = _difference(a.chains, b.chains, scale=1, length=5)
        name = f"{_title(first)} − {_title(second)}"
        lines.append(f"| {name} | {' | '.join(single)} | {' | '.join(chains)} | {_ratio(a.chains, b.chains)} |")
    return "\n".join(lines)


def codes_section(out: Path) -> str:
    """What the codes say about the motion of the hand."""
    reports = {
        int(file.parent.name.removeprefix("seed_")): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(out.glob("probe/seed_*/latent_report.json"))
    }
    lines = ["## What the codes carry", ""]
    if not reports:
        return "\n".join([*lines, MISSING])
    lines += [
        "R² of a regression from the codes of a latent step to the true motion of the hand in it, on demonstrations",
        "that trained neither the dLDM nor the regression; of each dLDM seed, with the interval over demonstrations.",
        "`rotation` is the mean of the three angles.",
        "",
        f"| | {' | '.join(f'MLP on code values, seed {seed}' for seed in reports)} | linear on one-hot codes, mean |",
        f"|---|{'---|' * len(reports)}---|",
    ]
    for target in ("x", "y", "z", "roll", "pitch", "yaw", "rotation", "opening"):
        cells = [_scored(_probe(report, "code_values", "mlp", target)) for report in reports.values()]
        linear = [_probe(report, "codes_one_hot", "linear", target)["r2"] for report in reports.values()]
        lines.append(f"| {target} | {' | '.join(cells)} | {statistics.mean(linear):.2f} |")
    return "\n".join(lines)


def cost_section(out: Path) -> str:
    """Seconds of every kind of job."""
    lines = [
        "## Cost",
        "",
        "Wall-clock minutes of a job on one core, others running beside it; median over seeds.",
        "",
        "| job | minutes | commit |",
        "|---|---|---|",
    ]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((out / "jobs").glob("*.json")):
        note = json.loads(file.read_text(encoding="utf-8"))
        if note["done"]:
            kinds.setdefault(file.stem.split("__seed_")[0].replace("__", "/"), []).append(note)
    for kind, notes in kinds.items():
        minutes = statistics.median(note["seconds"] / 60 for note in notes)
        lines.append(f"| {kind} | {minutes:.0f} | {', '.join(sorted({note['commit'] for note in notes}))} |")
    return "\n".join(lines)


def _title(arm: str) -> str:
    return f"{TITLES[arm][0]}, {TITLES[arm][1]}"


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _length(solved: Sequence[int]) -> str:
    low, high = mean_interval(solved, lowest=0, highest=5)
    return f"{statistics.mean(solved):.2f} [{low:.2f}, {high:.2f}]"


def _difference(a: dict[int, list[Row]], b: dict[int, list[Row]], *, scale: int, length: int) -> tuple[str, str]:
    """Pooled difference with its interval, and that of each seed."""
    by_seed = {seed: [x["solved"] - y["solved"] for x, y in paired_rows(a[seed], b[seed])] for seed in a if seed in b}
    by_seed = {seed: values for seed, values in by_seed.items() if values}
    if not by_seed:
        return MISSING, MISSING
    values = [scale * value for seed in by_seed.values() for value in seed]
    low, high = mean_interval(values, lowest=-scale * length, highest=scale * length)
    places: Callable[[float], str] = (lambda v: f"{v:+.1f}") if scale == 100 else (lambda v: f"{v:+.2f}")
    each = ", ".join(places(scale * statistics.mean(seed)) for seed in by_seed.values())
    return f"{places(statistics.mean(values))} [{places(low)}, {places(high)}]", each


def _ratio(a: dict[int, list[Row]], b: dict[int, list[Row]]) -> str:
    pairs = [(x["solved"], y["solved"]) for seed in a if seed in b for x, y in paired_rows(a[seed], b[seed])]
    below = sum(solved for _, solved in pairs)
    return f"{sum(solved for solved, _ in pairs) / below:.2f}" if below else MISSING


def _probe(report: dict[str, Any], features: str, model: str, target: str) -> dict[str, Any]:
    """R² with its interval, in the one data set of a report."""
    (table,) = report["probe"]["in_scene"].values()
    found: dict[str, Any] = table["moved"][features][model][target]
    return found


def _scored(entry: dict[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"{entry['r2']:.2f} [{low:.2f}, {high:.2f}]"


def _word(note: dict[str, Any] | None, key: str) -> str:
    """What a job was told for a key."""
    words = [] if note is None else note["words"]
    return next((word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}=")), MISSING)


def _demonstrations(out: Path, recordings: Sequence[str]) -> str:
    """How many tasks were demonstrated in recordings, those for validation left out."""
    notes = [note for note in (read_note(out, name) for name in recordings) if _word(note, "episodes") != MISSING]
    return str(sum(int(_word(note, "episodes")) * int(_word(note, "play")) for note in notes)) if notes else MISSING


def _share_of_labels(note: dict[str, Any] | None) -> str:
    """Per cent."""
    share = _word(note, "label_fraction")
    return share if share == MISSING else f"{100 * float(share):.0f} %"


def _minutes(out: Path, names: Iterable[str]) -> str:
    notes = [read_note(out, name) for name in names]
    if any(note is None for note in notes):
        return MISSING
    return f"{sum(note['seconds'] for note in notes if note is not None) / 60:.0f} minutes"
