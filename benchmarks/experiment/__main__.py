"""The registered experiment: pin a work tree, run its queue, pause it, and write the pages from plan and archive.

python -m benchmarks.experiment pin COMMIT --to runs/pinned       a work tree and an environment of its own
cd runs/pinned/tree
../venv/bin/python -m benchmarks.experiment run --out OUT         the jobs, family after family
python -m benchmarks.experiment pause --out OUT make bench        time something alone; the queue goes on after it
python -m benchmarks.experiment pause --out OUT                   pause, until `resume`

run           start or continue the queue; only from a pinned work tree whose plan is registered
left          jobs and hours left, and core-minutes measured so far, by kind of job
pause         stop the running jobs, with a command only while it runs; they continue exactly where they were
resume        go on after a pause
missing       what the plan lacks before it can be registered
registration  the generated part of docs/experiment.md
blinded       deviation across seeds and seeds needed, without showing which method is better
keep          outcomes of finished and failed jobs, into the archive
page          the generated part of docs/results.md, and its figures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..results.archive import Archive, finished_jobs, keep, read_archive
from ..results.job_queue import REPO, Job, Queue, core_minutes_by_kind, hours_left, is_paused, pause, resume, run_alone
from ..results.pinned import check_pinned, pin
from .generated import current_part, replace_part
from .jobs import Jobs
from .page import solved_by_seed, write_results
from .plan import BLINDED_AFTER, FAMILIES, Family, problems
from .registration import EFFECTS, registration
from .seed_statistics import blinded_sd, seeds_for

REGISTRATION = "registration"
EXPERIMENT_PAGE = REPO / "docs" / "experiment.md"
RESULTS_PAGE = REPO / "docs" / "results.md"
ARCHIVE = REPO / "benchmarks" / "results" / "registered"


def check_registered(families: Sequence[Family], page: Path) -> None:
    """Refuse families that are not ready, or a plan that is not the registered one.

    Args:
        families: those that are to be run.
        page: the registration.

    Raises:
        SystemExit: something is missing or differs.
    """
    if missing := list(problems(families)):
        raise SystemExit("\n".join(["the plan is not ready:", *(f"    {problem}" for problem in missing)]))
    if current_part(page, REGISTRATION) != registration(FAMILIES).strip():
        raise SystemExit(f"the plan differs from {page}; register it before it is run")


def blinded(archive: Archive, family: Family) -> str:
    """Return the blinded estimate of the variance of a family, from the first seeds that its rows have in common."""
    values = {row.name: solved_by_seed(archive, family.id_of(row)) for row in family.rows}
    # A row that is not run, such as one whose gate is closed, does not keep the others waiting.
    begun = {name: by_seed for name, by_seed in values.items() if by_seed}
    common = sorted(set.intersection(*map(set, begun.values()))) if begun else []
    if len(common) < BLINDED_AFTER:
        return f"family {family.letter}: its rows have {len(common)} seeds in common, {BLINDED_AFTER} are needed"
    found = blinded_sd(
        {name: {seed: by_seed[seed] for seed in common[:BLINDED_AFTER]} for name, by_seed in begun.items()}
    )
    if found is None:
        return f"family {family.letter}: one row alone has no differences"
    sd, degrees = found
    needed = ", ".join(f"{effect} points: {seeds_for(effect, sd=sd) or 'more than 1000'}" for effect in EFFECTS)
    return (
        f"family {family.letter} ({', '.join(begun)}): sd of a difference {sd:.1f} points ({degrees} degrees); "
        f"seeds for power 0.8: {needed}"
    )


def run_queue(args: argparse.Namespace) -> None:
    """Run the jobs of some families."""
    check_registered(chosen(args), EXPERIMENT_PAGE)
    print(f"pinned at {check_pinned()}", flush=True)
    Queue(args.out, parallel=args.parallel).run(jobs_of(args))


def print_left(args: argparse.Namespace) -> None:
    """Print what is left, and what the finished jobs took."""
    jobs = jobs_of(args)
    print(f"{hours_left(args.out, jobs, parallel=args.parallel)}{'; paused' if is_paused(args.out) else ''}")
    for kind, minutes in core_minutes_by_kind(args.out, jobs).items():
        print(f"{kind}: {minutes:.1f} core-minutes")


def pause_queue(args: argparse.Namespace) -> None:
    """Pause the queue, for the time of a command if there is one."""
    if args.alone:
        raise SystemExit(run_alone(args.out, args.alone))
    pause(args.out)
    print("paused; no job runs")


def print_missing(args: argparse.Namespace) -> None:
    """Print what is missing; the exit status is 1 where something is."""
    if missing := list(problems(chosen(args))):
        raise SystemExit("\n".join(missing))


def chosen(args: argparse.Namespace) -> list[Family]:
    """Return the families of the command line, in the order of the plan."""
    return [family for family in FAMILIES if args.families is None or family.letter in args.families]


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Return the jobs of the command line."""
    return Jobs(args.out, chosen(args), assets=args.assets).all()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def add(name: str, function: Callable[[argparse.Namespace], object]) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        return command

    pinning = add("pin", lambda args: print(f"its Python: {pin(args.commit, args.to)}"))
    pinning.add_argument("commit")
    pinning.add_argument("--to", type=Path, required=True)
    running, left, pausing = add("run", run_queue), add("left", print_left), add("pause", pause_queue)
    missing = add("missing", print_missing)
    estimating = add(
        "blinded", lambda args: print("\n".join(map(partial(blinded, finished_jobs(args.out)), chosen(args))))
    )
    keeping = add("keep", lambda args: keep(args.out, args.archive))
    registering = add(REGISTRATION, lambda args: replace_part(args.page, REGISTRATION, registration(FAMILIES)))
    registering.add_argument("--page", type=Path, default=EXPERIMENT_PAGE)
    writing = add("page", lambda args: write_results(read_archive(args.archive), FAMILIES, args.page))
    writing.add_argument("--page", type=Path, default=RESULTS_PAGE)
    for command in (running, left, pausing, add("resume", lambda args: resume(args.out)), estimating, keeping):
        # Absolute, since jobs run in the folder of the checkout.
        command.add_argument("--out", type=lambda text: Path(text).resolve(), default=Path("runs/experiment").resolve())
    for command in (running, left, missing, estimating):
        command.add_argument("--families", nargs="+", choices=[family.letter for family in FAMILIES])
    for command in (running, left):
        command.add_argument("--assets", type=lambda text: Path(text).resolve(), help="the original CALVIN assets")
        command.add_argument("--parallel", type=int, default=2, help="jobs at a time, one thread each")
    for command in (keeping, writing):
        command.add_argument("--archive", type=Path, default=ARCHIVE)
    pausing.add_argument("alone", nargs=argparse.REMAINDER, metavar="COMMAND")
    args = parser.parse_args(arguments)
    args.function(args)


if __name__ == "__main__":
    main()
