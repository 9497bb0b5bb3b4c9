"""Run the reference experiment: every number of docs/results.md, from an empty folder, by commands of the package.

    python -m benchmarks.results --out runs/results                               everything, stage after stage
    python -m benchmarks.results --out runs/results --stages data reference

Stages (each can be stopped and started again; it continues, and a job begins when those it needs are done):

    data       demonstrations of all tasks in scene D, and in A, B and C; other robots' video; recorded by vw2-record
    reference  the policy that `builtin:calvin-tiny` was made from: all labels of scene D
    package    `builtin:calvin-tiny` itself, the full protocol
    few        one policy, trained as far as possible with 10 % of the labels: all recordings of scene D (data/D_large)
    pretrain   dLDM and latent pre-training of every method and seed, the probe of their codes
    finetune   action heads: every method at 10 % of the labels, some at all of them
    rollouts   single tasks and chains
    keep       outcomes of finished jobs, without checkpoints and recordings, into benchmarks/results/archive
    page       docs/results.md from that archive
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .archive import keep, read_archive
from .job_queue import Job, Queue
from .page import write_page
from .plan import METHODS, RUN_STAGES, Plan, planned

STAGES = (*RUN_STAGES, "keep", "page")


def is_below(name: str, folders: Sequence[str]) -> bool:
    """Return whether a job is one of these or below one.

    finetune/vw2_10 selects all its seeds; data/D does not select data/D_hard.
    """
    return any(f"{name}/".startswith(f"{folder}/") for folder in folders)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--only", nargs="+", help="these jobs and those below: data/D finetune/vw2_10 probe")
    parser.add_argument("--parallel", type=int, default=2, help="jobs at a time, one thread each")
    parser.add_argument("--bridge", help="Bridge V2 as RLDS, for cross-domain pre-training beside the other robots")
    parser.add_argument("--archive", type=Path, default=Path(__file__).with_name("archive"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args(arguments)
    # Absolute, since jobs run in the folder of the checkout.
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(out, args.seeds, bridge=args.bridge)
    wanted: list[Job] = []
    for stage in (stage for stage in RUN_STAGES if stage in args.stages):
        jobs = [job for job in plan.jobs(stage) if args.only is None or is_below(job.name, args.only)]
        if stage in ("finetune", "rollouts"):
            # Their names are finetune/METHOD/seed_N, single/METHOD/seed_N and chains/METHOD/seed_N.
            jobs = [job for job in jobs if job.name.split("/")[1] in args.methods]
        wanted += jobs
    if wanted:
        Queue(out, parallel=args.parallel).run(wanted)
    if "keep" in args.stages:
        keep(out, args.archive)
    if "page" in args.stages:
        write_page(read_archive(args.archive), args.page, list(METHODS), planned(args.seeds))


if __name__ == "__main__":
    main()
