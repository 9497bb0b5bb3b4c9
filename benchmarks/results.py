"""The reference experiment: every number of docs/results.md, from an empty folder, by commands of the package.

    python -m benchmarks.results --out runs/results                               everything, stage after stage
    python -m benchmarks.results --out runs/results --stages data reference

Stages (each can be killed and given again, and goes on where it stood; a job begins when those it needs are done):

    data       demonstrations of all tasks in scene D, and in A, B and C; other robots' video; recorded by vw2-record
    reference  the policy that `builtin:calvin-tiny` was made from: all labels of scene D
    package    `builtin:calvin-tiny` itself, the full protocol
    few        as far as it goes with 10 % of the labels: all recordings of scene D (data/D_large)
    pretrain   dLDM and latent pre-training of every arm and seed, the probe of their codes
    finetune   action heads: every arm at 10 % of the labels, some at all of them
    rollouts   single tasks and chains
    keep       outcomes of finished runs, without checkpoints and recordings, into docs/results
    page       docs/results.md from docs/results

This file is the plan alone: which arm is pre-trained on which recordings, which seeds, which chains each seed takes.
What an arm is made with is a file of configs/experiment, which every command of the package takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from .job_queue import REPO, Job, Queue
from .results_archive import OUT, keep
from .results_page import write_page

STAGES = ("data", "reference", "package", "few", "pretrain", "finetune", "rollouts", "keep", "page")
RECORD, JOIN = "vw2_robot.envs.recording.record", "benchmarks.join_recordings"
PRETRAIN = "vw2_robot.pretrain.pretrain_on_openx"
PROBE, FINETUNE, ROLLOUT = (
    "vw2_robot.pretrain.probing.probe_latents",
    "vw2_robot.finetune.train_head",
    "vw2_robot.rollouts",
)
PACKAGE = "builtin:calvin-tiny"
CALVIN_RECORDINGS = ("D", "D_hard", "ABC", "probe")


@dataclass(frozen=True)
class Arm:
    """A row of the table; its action head is trained by configs/experiment/finetune/NAME.yaml."""

    pretraining: str | None
    """name in PRETRAININGS; None: untrained"""
    data: str = "D"
    """recordings that the labels are of"""
    chains: str = "chains_70"
    """configs/experiment/rollout/NAME.yaml"""


PRETRAININGS = {"vw2": "D", "videoworld": "D", "lapa": "D", "vw2_cross": "arms", "vw2_abc": "ABC"}
"""configs/experiment/pretrain/NAME.yaml -> recordings whose video it sees"""
ARMS = {
    "oracle_10": Arm(None, chains="chains"),
    "oracle_10_longer": Arm(None),
    "lapa_10": Arm("lapa"),
    "videoworld_10": Arm("videoworld"),
    "vw2_10": Arm("vw2", chains="chains"),
    "vw2_cross_10": Arm("vw2_cross"),
    "oracle_100": Arm(None),
    "vw2_100": Arm("vw2"),
    "vw2_cross_100": Arm("vw2_cross"),
    "oracle_abc": Arm(None, data="ABC"),
    "vw2_abc": Arm("vw2_abc", data="ABC"),
}


class Plan:
    """The jobs of the experiment below one folder."""

    def __init__(self, out: Path, seeds: Sequence[int], *, bridge: str | None) -> None:
        self.out, self.seeds, self.bridge = out, tuple(seeds), bridge

    def jobs(self, stage: str) -> list[Job]:
        """What belongs to a stage, in the order in which it is best done."""
        found: list[Job] = getattr(self, f"_{stage}")()
        return found

    def _data(self) -> list[Job]:
        jobs = []
        for name in CALVIN_RECORDINGS:
            jobs.append(self._record(name))
            if name != "probe":
                jobs.append(self._images(name))
        parts = [str(self.out / "data" / name) for name in ("D", "D_hard")]
        joined = (*parts, "--out", str(self.out / "data" / "D_large"))
        jobs += [Job("data/D_large", JOIN, joined, needs=("data/D", "data/D_hard")), self._images("D_large")]
        return [
            *jobs,
            self._record("arms", config="other_robots"),
            self._images("arms", *([self.bridge] if self.bridge else [])),
        ]

    def _record(self, name: str, *, config: str | None = None) -> Job:
        words = (f"+experiment=record/{config or name}", "workers=2", f"out={self.out / 'data' / name}")
        return Job(f"data/{name}", RECORD, words, alone=True)

    def _images(self, name: str, *also: str) -> Job:
        """The images of recordings and of other data sets, small, for all that is pre-trained on them."""
        sets = [str(self.out / "data" / name), *also]
        path = f"data.path=[{','.join(sets)}]" if also else f"data.path={sets[0]}"
        words = ("+experiment=pretrain/shared", "stages=[]", path, f"run_dir={self.out / 'images' / name}")
        return Job(f"images/{name}", PRETRAIN, words, needs=(f"data/{name}",))

    def _few(self) -> list[Job]:
        before, tuned = self.out / "few" / "pretrain", self.out / "few" / "finetune"
        return [
            self._learn("few/pretrain", "few", "D_large", seed=0),
            self._tune("few/finetune", "few", before, "D_large", seed=0),
            self._roll("few/single", "single", str(tuned)),
            self._roll("few/chains", "few_chains", str(tuned)),
        ]

    def _reference(self) -> list[Job]:
        before, tuned = self.out / "reference" / "pretrain", self.out / "reference" / "finetune"
        return [
            self._learn("reference/pretrain", "reference", "D", seed=0),
            self._tune("reference/finetune", "reference", before, "D", seed=0),
            self._roll("reference/single", "package_single", str(tuned), workers=2),
            self._roll("reference/chains", "package_chains", str(tuned), workers=2),
        ]

    def _package(self) -> list[Job]:
        return [
            self._roll("package/single", "package_single", PACKAGE, "device=cpu", workers=2),
            self._roll("package/chains", "package_chains", PACKAGE, "device=cpu", workers=2),
        ]

    def _pretrain(self) -> list[Job]:
        jobs = []
        for seed in self.seeds:
            for name, data in PRETRAININGS.items():
                jobs.append(self._learn(f"pretrain/{name}/seed_{seed}", name, data, seed=seed))
            jobs.append(self._probe(seed))
        return jobs

    def _finetune(self) -> list[Job]:
        jobs = []
        for seed in self.seeds:
            for name, arm in ARMS.items():
                before = None if arm.pretraining is None else self.out / "pretrain" / arm.pretraining / f"seed_{seed}"
                jobs.append(self._tune(f"finetune/{name}/seed_{seed}", name, before, arm.data, seed=seed))
        return jobs

    def _rollouts(self) -> list[Job]:
        apart = chains_of("chains")
        jobs = []
        for seed in self.seeds:
            for name, arm in ARMS.items():
                tuned = str(self.out / "finetune" / name / f"seed_{seed}")
                chosen = f"sequences={seed * apart}:{seed * apart + chains_of(arm.chains)}"
                jobs.append(self._roll(f"single/{name}/seed_{seed}", "single", tuned))
                jobs.append(self._roll(f"chains/{name}/seed_{seed}", arm.chains, tuned, chosen))
        return jobs

    def _learn(self, name: str, experiment: str, data: str, *, seed: int) -> Job:
        """The whole pre-training of one seed."""
        words = (
            f"+experiment=pretrain/{experiment}", f"data.frame_cache={self.out / 'images' / data / 'frames'}",
            f"seed={seed}", "hardware.threads=1", f"run_dir={self.out / name}",
        )  # fmt: skip
        return Job(name, PRETRAIN, words, (f"images/{data}",))

    def _probe(self, seed: int) -> Job:
        """What the codes of a seed say about the motion, on demonstrations that trained nothing."""
        words = (
            "+experiment=probe_latents/codes", f"dldm={self.out / 'pretrain' / 'vw2' / f'seed_{seed}' / 'dldm'}",
            f"labeled=[{self.out / 'data' / 'probe'}]", f"frames={self.out / 'probe_frames'}", f"seed={seed}",
            "hardware.threads=1", f"out={self.out / 'probe' / f'seed_{seed}'}",
        )  # fmt: skip
        return Job(f"probe/seed_{seed}", PROBE, words, needs=(f"pretrain/vw2/seed_{seed}", "data/probe"))

    def _tune(self, name: str, experiment: str, before: Path | None, data: str, *, seed: int) -> Job:
        """Fine-tuning of one arm and seed; the seed also chooses the labels."""
        taught = self.out / "pretrain" / "vw2" / f"seed_{seed}"
        start = f"network.like={taught}" if before is None else f"policy={before}"
        words = (
            f"+experiment=finetune/{experiment}", start, f"data.path={self.out / 'data' / data}",
            f"data.frame_cache={self.out / 'labeled_images'}", f"label_seed={seed}", f"seed={seed}",
            "hardware.threads=1", f"run_dir={self.out / name}",
        )  # fmt: skip
        needs = ((before or taught).relative_to(self.out).as_posix(), f"data/{data}")
        return Job(name, FINETUNE, words, needs)

    def _roll(self, name: str, experiment: str, policy: str, *chosen: str, workers: int = 1) -> Job:
        words = (
            f"+experiment=rollout/{experiment}", f"policy={policy}", *chosen, f"workers={workers}",
            f"run_dir={self.out / name}",
        )  # fmt: skip
        needs = () if policy == PACKAGE else (Path(policy).relative_to(self.out).as_posix(),)
        return Job(name, ROLLOUT, words, needs, workers > 1)


def chains_of(experiment: str) -> int:
    """Chains that one seed runs, as configs/experiment/rollout has it."""
    file = REPO / "configs" / "experiment" / "rollout" / f"{experiment}.yaml"
    first, last = yaml.safe_load(file.read_text(encoding="utf-8"))["sequences"].split(":")
    return int(last) - int(first)


def planned(seeds: Sequence[int]) -> dict[str, Job]:
    """Every job of the plan by name, in the words of the archive."""
    plan = Plan(Path(OUT), seeds, bridge=None)
    return {job.name: job for stage in STAGES if stage not in ("keep", "page") for job in plan.jobs(stage)}


def _is_below(name: str, folders: Sequence[str]) -> bool:
    """Whether a job is one of these or below one: finetune/vw2_10 means all seeds, data/D does not mean data/D_hard."""
    return any(f"{name}/".startswith(f"{folder}/") for folder in folders)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--only", nargs="+", help="these jobs and those below: data/D finetune/vw2_10 probe")
    parser.add_argument("--parallel", type=int, default=2, help="jobs at a time, one thread each")
    parser.add_argument("--bridge", help="Bridge V2 as RLDS, for cross-domain pre-training beside the other robots")
    parser.add_argument("--archive", type=Path, default=Path("docs/results"), help="the page is written beside it")
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(out, args.seeds, bridge=args.bridge)
    wanted: list[Job] = []
    for stage in (stage for stage in STAGES if stage in args.stages and stage not in ("keep", "page")):
        jobs = [job for job in plan.jobs(stage) if args.only is None or _is_below(job.name, args.only)]
        if stage in ("finetune", "rollouts"):
            jobs = [job for job in jobs if job.name.split("/")[1] in args.arms]
        wanted += jobs
    if wanted:
        Queue(out, parallel=args.parallel).run(wanted)
    if "keep" in args.stages:
        keep(out, args.archive)
    if "page" in args.stages:
        write_page(args.archive, args.archive.with_suffix(".md"), list(ARMS), planned(args.seeds))


if __name__ == "__main__":
    main()
