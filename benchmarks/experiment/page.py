"""The generated part of docs/results.md: each family with every seed, and what its contrasts decide.

Every number is computed here from the archive. A row without a run says "not run", a contrast without two seeds too.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vw2_robot.pretrain.probing.gate import data_sets, scores_of
from vw2_robot.storage.files import write_text

from ..results.archive import Archive
from ..results.reading import paragraph
from ..results.seeds import MISSING, each_seed, mean_solved, read_runs, setting, share_reached
from .generated import replace_part
from .plan import Family, Paper, Row, rows_by_id, seeds_of
from .registration import NONE, aids_of
from .seed_figure import Dots, seed_figure
from .seed_statistics import ALPHA, Contrast, contrast, decision, holm, mediator, seeds_for, t_interval

COMMAND = "page"
PARTS = ("finetune", "single", "chains")


def write_results(archive: Archive, families: Sequence[Family], page: Path) -> None:
    """Write the generated part of the page, and its figures into the folder `figures` beside it.

    Args:
        archive: may be incomplete.
        families: in order.
        page: a markdown file with a generated part.
    """
    sections = []
    for family in families:
        figure = page.parent / "figures" / f"family_{family.letter}.svg"
        figure.parent.mkdir(exist_ok=True)
        write_text(figure, family_figure(archive, family))
        sections.append(family_section(archive, families, family, figure=f"figures/{figure.name}"))
    replace_part(page, COMMAND, "\n\n".join(sections))


def solved_by_seed(archive: Archive, row_id: str) -> dict[int, float]:
    """Return seed -> single tasks solved, in percent: the primary outcome."""
    return {seed: 100 * share for seed, share in mean_solved(read_runs(archive, row_id).single).items()}


def family_figure(archive: Archive, family: Family) -> str:
    """Return the figure of a family as SVG: single tasks solved, a dot for each seed."""
    rows = []
    for row in family.rows:
        values = list(solved_by_seed(archive, family.id_of(row)).values())
        rows.append(Dots(row.title, values, t_interval(values) if len(values) > 1 else None))
    return seed_figure(rows, axis="single tasks solved, %: a dot for each seed, mean, 95 % interval over seeds")


def family_section(archive: Archive, families: Sequence[Family], family: Family, *, figure: str) -> str:
    """Return the section of a family.

    Args:
        archive: of the runs.
        families: all, since contrasts may be with rows of another one.
        family: this one.
        figure: place of its figure, seen from the page.
    """
    lines = [f"## {family.letter}. {family.title}", "", f"![every seed]({figure})", ""]
    lines += [*results_table(archive, family), "", *contrasts_table(archive, families, family), ""]
    lines += [*methods_table(archive, family), ""]
    return "\n".join([*lines, *lost_seeds(archive, family), *mediator_lines(archive, family)]).strip()


def results_table(archive: Archive, family: Family) -> Iterator[str]:
    """Yield the table of outcomes, with the paper's cells apart."""
    yield (
        "| row | method | seeds | single tasks, % | each seed | chains: solved in a row | each seed "
        "| 1 in a row, % | 5 in a row, % | *the paper: 1, 5, in a row* |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in family.rows:
        chains = read_runs(archive, family.id_of(row)).chains
        solved, length = solved_by_seed(archive, family.id_of(row)), mean_solved(chains)
        reached = [share_reached(chains, count) for count in (1, 5)]
        cells = [
            f"`{family.id_of(row)}`", row.title, f"{len(solved)} of {row.seeds}", with_interval(solved, ".1f"),
            each_seed(solved, ".1f"), with_interval(length, ".2f"), each_seed(length, ".2f"),
            *(f"{100 * statistics.mean(share.values()):.1f}" if share else MISSING for share in reached),
            paper_cell(row.paper),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def with_interval(values: Mapping[int, float], form: str) -> str:
    """Format the mean over seeds with its t interval; of one seed alone, its value."""
    if not values:
        return MISSING
    mean = format(statistics.mean(values.values()), form)
    if len(values) < 2:
        return f"{mean} (one seed)"
    low, high = (format(end, form) for end in t_interval(list(values.values())))
    return f"{mean} [{low}, {high}]"


def paper_cell(paper: Paper | None) -> str:
    """Return the paper's numbers, in italics."""
    if paper is None:
        return NONE
    return f"*{', '.join(NONE if number is None else f'{number:g}' for number in paper)}*"


def contrasts_table(archive: Archive, families: Sequence[Family], family: Family) -> Iterator[str]:
    """Yield the table of primary contrasts: interval, p value adjusted by Holm, and the answer."""
    values = {row_id: solved_by_seed(archive, row_id) for row_id in rows_by_id(families)}
    found = {f"`{first}` − `{second}`": contrast(values[first], values[second]) for first, second in family.contrasts}
    known = {name: one for name, one in found.items() if one is not None}
    # Contrasts that are not run count too: their number was fixed beforehand, and p = 1 is the least favorable.
    adjusted = holm({name: 1.0 if one is None else one.p for name, one in found.items()})
    yield "| primary contrast | seeds | single tasks, points | p | p, Holm | better? | seeds that would decide it |"
    yield "|---|---|---|---|---|---|---|"
    for name in found:
        if name not in known:
            yield f"| {name} | 0 | {MISSING} | {NONE} | {NONE} | undecided | {NONE} |"
            continue
        one = known[name]
        answer = decision(one, adjusted[name])
        needed = NONE if answer != "undecided" else seeds_needed(one, len(found))
        cells = [
            name, str(one.seeds), f"{one.mean:+.1f} [{one.low:+.1f}, {one.high:+.1f}]", p_text(one.p),
            p_text(adjusted[name]), answer, needed,
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def p_text(p: float) -> str:
    """Return a p value for a cell."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seeds_needed(found: Contrast, contrasts: int) -> str:
    """Return how many seeds would decide a contrast, if its mean and deviation were the true ones.

    Args:
        found: the contrast.
        contrasts: primary ones of the family; the strictest step of Holm's correction is taken.
    """
    needed = seeds_for(found.mean, sd=found.sd, alpha=ALPHA / contrasts)
    return "more than 1000" if needed is None else str(needed)


def methods_table(archive: Archive, family: Family) -> Iterator[str]:
    """Yield the table of how the rows act, what helped them, and what they cost."""
    yield "| row | acts by | aids | core-minutes a seed: pre-training | fine-tuning and rollouts | commits |"
    yield "|---|---|---|---|---|---|"
    for row in family.rows:
        notes = [archive.jobs.get(f"finetune/{family.id_of(row)}/seed_{seed}") for seed in seeds_of(row)]
        tunings = [note for note in notes if note is not None]
        befores = [note for seed in seeds_of(row) if (note := archive.jobs.get(pretraining_job(row, seed))) is not None]
        jobs = [archive.jobs.get(f"{part}/{family.id_of(row)}/seed_{s}") for s in seeds_of(row) for part in PARTS]
        ran = [note for note in jobs if note is not None]
        if not tunings or (row.pretraining is not None and not befores):
            yield f"| `{family.id_of(row)}` | {MISSING} | {NONE} | {NONE} | {NONE} | {NONE} |"
            continue
        before = befores[0]["settings"] if befores else None
        cells = [
            f"`{family.id_of(row)}`",
            ", ".join(sorted({f"`acting={setting(note, 'acting')}`" for note in tunings})),
            ", ".join(aids_of(before, tunings[0]["settings"])) or "none",
            core_minutes(befores, len(befores)) if befores else "0",
            core_minutes(ran, len(tunings)),
            ", ".join(sorted({note["commit"] for note in (*befores, *ran)})),
        ]
        yield f"| {' | '.join(cells)} |"


def pretraining_job(row: Row, seed: int) -> str:
    """Return the name of the pre-training of a row and seed; of a row without one, a name that no job has."""
    return f"pretrain/{row.pretraining}/seed_{seed}"


def core_minutes(notes: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """Return CPU minutes of jobs, by seed."""
    return f"{sum(note['cpu_seconds'] for note in notes) / 60 / seeds:.0f}"


def lost_seeds(archive: Archive, family: Family) -> Iterator[str]:
    """Yield a list of the seeds that are reported and not replaced: whose gate is closed, or of which a job failed."""
    for row in family.rows:
        for seed in seeds_of(row):
            names = [f"{part}/{family.id_of(row)}/seed_{seed}" for part in ("gate", *PARTS)]
            for name in (pretraining_job(row, seed), *names):
                if name in archive.failed:
                    yield f"- `{name}`: {archive.failed[name]['reason']}"


def mediator_lines(archive: Archive, family: Family) -> list[str]:
    """Return the paragraph on whether the gain of a seed follows the quality of its codes."""
    untrained = next((row for row in family.rows if row.pretraining is None), None)
    if untrained is None:
        return []
    base = solved_by_seed(archive, family.id_of(untrained))
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in family.rows:
        for seed, solved in solved_by_seed(archive, family.id_of(row)).items():
            report = archive.probes.get(f"probe/{row.pretraining}/seed_{seed}")
            if report is not None and seed in base and (quality := code_quality(report)) is not None:
                groups.setdefault(row.name, []).append((quality, solved - base[seed]))
    if (found := mediator(groups)) is None:
        return []
    return [
        "",
        paragraph(
            "**Do gains follow codes?** Correlation over seeds, within methods, of R² of the codes (mean over the",
            f"columns of motion) with the gain over `{family.id_of(untrained)}`: r = {found.r:+.2f}",
            f"[{found.low:+.2f}, {found.high:+.2f}], p {p_text(found.p)}, {found.seeds} seeds of {', '.join(groups)}.",
        ),
    ]


def code_quality(report: Mapping[str, Any]) -> float | None:
    """Return the mean R² of a linear probe on the codes, over columns and data sets; None where it is not known."""
    means = [scores_of(report, name, "codes_one_hot")["mean"] for name in data_sets(report)]
    known = [mean for mean in means if mean is not None]
    return statistics.mean(known) if known else None
