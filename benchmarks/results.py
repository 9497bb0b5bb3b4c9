"""The reference experiment: every number of docs/results.md, from an empty folder, by commands of the package.

    python -m benchmarks.results --out runs/results                               everything, stage after stage
    python -m benchmarks.results --out runs/results --stages data reference

Stages (each can be killed and given again, and goes on where it stood; a job begins when those it needs are done):

    data       demonstrations of all tasks in scene D, and in A, B and C; other robots' video; recorded by vw2-record
    reference  the policy of the package: recordings of its own (data/D_hard), all labels, the full protocol
    few        as far as it goes with 10 % of the labels: all recordings of scene D (data/D_large)
    pretrain   dLDM and latent pre-training of every arm and seed, the probe of their codes
    finetune   action heads: every arm at 10 % of the labels, some at all of them
    rollouts   single tasks and chains, the same starts for every arm
    keep       outcomes of finished runs, without checkpoints and recordings, into docs/results
    page       docs/results.md from docs/results

All arms share recordings, network, labels, schedule and starts; what differs stands in ARMS, configs/arm and
configs/experiment. CPU holds all sizes and steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .job_queue import Job, Queue
from .results_archive import keep
from .results_page import write_page

STAGES = ("data", "reference", "few", "pretrain", "finetune", "rollouts", "keep", "page")
RECORD, JOIN = "vw2_robot.envs.record", "benchmarks.join_recordings"
PRETRAIN = "vw2_robot.pretrain.pretrain_on_openx"
PROBE, FINETUNE, ROLLOUT = "vw2_robot.pretrain.probe_latents", "vw2_robot.finetune.train_head", "vw2_robot.rollouts"
HARD = ("all", "lift_anywhere", "stack_block", "push_into_drawer")
"""named twice, demonstrated twice as often"""
PLAY = 4
"""tasks in a row in one recording"""


@dataclass(frozen=True)
class Preset:
    """Sizes and steps of every stage, as words for the programs."""

    recordings: int
    """of `PLAY` tasks in a row, so that windows begin as they do in chains"""
    hard_recordings: int
    """for the policy of the package: more, and more of what chains ask for and policies find hard"""
    probe_recordings: int
    """more of the same, which train nothing: there the codes are judged"""
    other_robots: int
    """episodes of other robots"""
    pretrain: tuple[str, ...]
    policy_steps: int
    """of latent pre-training in every arm"""
    reference_policy_steps: int
    """the same for the policy of the package, which all labels teach most of what it knows"""
    reference: tuple[str, ...]
    few_policy_steps: int
    """of latent pre-training on all recordings of scene D"""
    few: tuple[str, ...]
    """fine-tuning on 10 % of those"""
    few_labels: tuple[str, ...]
    """fine-tuning at 10 % in the arms"""
    all_labels: tuple[str, ...]
    longer: tuple[str, ...]
    """for the arm without pre-training: the steps that the others spent on pre-training their policy, added"""
    singles: int
    """starts of each task, for every seed"""
    chains: int
    """of every seed, in the arms of the main comparison"""
    other_chains: int
    """of every seed in the other arms: the first of those"""


HEAD = (
    "head_lr_mult=1",
    "loop.batch=64",
    "loop.optim.lr=1e-3",
    "loop.optim.warmup_steps=200",
    "replan_every=2",
    "pose_weight=1",
)
CPU = Preset(
    recordings=1200,
    hard_recordings=1600,
    probe_recordings=300,
    other_robots=4000,
    pretrain=(
        "model=tiny",
        "dldm.frames=5",
        "train_dldm.phase1.steps=4500",
        "train_dldm.phase2.steps=300",
        "train_dldm.decorrelation=0.0003",
        "extract_latents.cache_stride=2",
        "train_policy.loop.batch=64",
        "train_policy.image_shift_px=0",
        "train_policy.blind_share=0.5",
        "hardware.precision=bf16",
    ),
    policy_steps=8000,
    reference_policy_steps=8000,
    reference=("loop.steps=20000", "image_shift_px=0"),
    few_policy_steps=12000,
    few=("loop.steps=8000", "image_shift_px=2"),
    few_labels=("loop.steps=4000", "image_shift_px=2"),
    all_labels=("loop.steps=8000", "image_shift_px=2"),
    longer=("loop.steps=12000", "image_shift_px=2"),
    singles=10,
    chains=170,
    other_chains=70,
)


@dataclass(frozen=True)
class Arm:
    """A row of the table: how it was pre-trained, if at all, and how its head learns."""

    pretraining: str | None
    """name in PRETRAININGS; None: untrained"""
    words: tuple[str, ...]
    percent: int = 10
    """of the labels"""
    longer: bool = False
    data: str = "D"
    """recordings that the labels are of"""


class Pretraining(NamedTuple):
    """Words for pretrain-on-openx, and the recordings whose video it sees."""

    words: tuple[str, ...]
    data: str


AHEAD = ("train_policy.latent_steps=4",)
"""the policy predicts 16 frames, four clips of the dLDM; LAPA's predicts one step"""
PRETRAININGS = {
    "vw2": Pretraining(AHEAD, "D"),
    "videoworld": Pretraining(("+experiment=videoworld", *AHEAD), "D"),
    "lapa": Pretraining(("+experiment=lapa",), "D"),
    "vw2_cross": Pretraining(AHEAD, "arms"),
    "vw2_abc": Pretraining(AHEAD, "ABC"),
}
MAIN = ("vw2_10", "oracle_10")
UNFED = ("code_source=none", "lambda_ce=0")
ARMS = {
    "oracle_10": Arm(None, ("arm=oracle",)),
    "oracle_10_longer": Arm(None, ("arm=oracle",), longer=True),
    "lapa_10": Arm("lapa", ("arm=lapa",)),
    "videoworld_10": Arm("videoworld", ("arm=videoworld", *UNFED)),
    "vw2_10": Arm("vw2", ("arm=indomain", *UNFED)),
    "vw2_cross_10": Arm("vw2_cross", ("arm=crossdomain", *UNFED)),
    "oracle_100": Arm(None, ("arm=oracle",), percent=100),
    "vw2_100": Arm("vw2", ("arm=indomain", *UNFED), percent=100),
    "vw2_cross_100": Arm("vw2_cross", ("arm=crossdomain", *UNFED), percent=100),
    "oracle_abc": Arm(None, ("arm=oracle",), percent=100, data="ABC"),
    "vw2_abc": Arm("vw2_abc", ("arm=indomain", *UNFED), percent=100, data="ABC"),
}


class Plan:
    """The jobs of the experiment below one folder."""

    def __init__(self, out: Path, preset: Preset, seeds: Sequence[int], *, bridge: str | None) -> None:
        self.out, self.preset, self.seeds, self.bridge = out, preset, tuple(seeds), bridge

    def jobs(self, stage: str) -> list[Job]:
        """What belongs to a stage, in the order in which it is best done."""
        found: list[Job] = getattr(self, f"_{stage}")()
        return found

    def _data(self) -> list[Job]:
        preset = self.preset
        sets = (
            ("D_hard", "D", f"tasks=[{','.join(HARD)}]", preset.hard_recordings, 34, 13),
            ("D", "D", "tasks=all", preset.recordings, 34, 11),
            ("ABC", "ABC", "tasks=all", preset.recordings, 34, 11),
            ("probe", "D", "tasks=all", preset.probe_recordings, 0, 12),
        )
        jobs = []
        for name, scene, tasks, count, held_out, seed in sets:
            folder = self.out / "data" / name
            recording = (
                f"env.scene={scene}", tasks, f"episodes={count}", f"validation_episodes={held_out}", f"play={PLAY}",
                "tail_steps=1", "bumps=0.015", "mistakes=0.3", f"seed={seed}", "workers=2", f"out={folder}",
            )  # fmt: skip
            jobs.append(Job(f"data/{name}", RECORD, recording, alone=True))
            if name != "probe":
                jobs.append(self._pictures(name))
        parts = [str(self.out / "data" / name) for name in ("D", "D_hard")]
        joined = (*parts, "--out", str(self.out / "data" / "D_large"))
        jobs += [Job("data/D_large", JOIN, joined, needs=("data/D", "data/D_hard")), self._pictures("D_large")]
        other = (
            "env=arms", "env.hz=30", "env.image_size=64", "format=rlds", f"episodes={preset.other_robots}",
            "workers=2", f"out={self.out / 'data' / 'arms'}",
        )  # fmt: skip
        also = [self.bridge] if self.bridge else []
        return [*jobs, Job("data/arms", RECORD, other, alone=True), self._pictures("arms", *also)]

    def _pictures(self, name: str, *also: str) -> Job:
        """The pictures of recordings and of other data sets, small, for all that is pre-trained on them."""
        sets = [str(self.out / "data" / name), *also]
        words = ("model=tiny", "stages=[]", f"data.path=[{','.join(sets)}]" if also else f"data.path={sets[0]}")
        words = (*words, f"run_dir={self.out / 'pictures' / name}")
        return Job(f"pictures/{name}", PRETRAIN, words, needs=(f"data/{name}",))

    def _few(self) -> list[Job]:
        arm = Arm("vw2", ("arm=indomain", *UNFED), percent=10, data="D_large")
        before, tuned = self.out / "few" / "pretrain", self.out / "few" / "finetune"
        video, steps = Pretraining(AHEAD, "D_large"), self.preset.few_policy_steps
        return [
            self._learn("few/pretrain", video, before, steps, seed=0),
            self._tune("few/finetune", tuned, arm, before, 0, self.preset.few),
            self._roll("few/single", tuned, ("protocol=single", "rollouts_per_task=10"), workers=1),
            self._roll("few/chains", tuned, ("num_sequences=300",), workers=1),
        ]

    def _reference(self) -> list[Job]:
        arm = Arm("vw2", ("arm=indomain", *UNFED), percent=100, data="D_hard")
        before, tuned = self.out / "reference" / "pretrain", self.out / "reference" / "finetune"
        video, steps = Pretraining(AHEAD, "D_hard"), self.preset.reference_policy_steps
        return [
            self._learn("reference/pretrain", video, before, steps, seed=0, cores=2),
            self._tune("reference/finetune", tuned, arm, before, 0, self.preset.reference, cores=2),
            self._roll("reference/single", tuned, ("protocol=single", "rollouts_per_task=20"), workers=2),
            self._roll("reference/chains", tuned, ("num_sequences=1000",), workers=2),
        ]

    def _pretrain(self) -> list[Job]:
        jobs = []
        for seed in self.seeds:
            for name, pretraining in PRETRAININGS.items():
                folder = self.out / "pretrain" / name / f"seed_{seed}"
                steps = self.preset.policy_steps
                jobs.append(self._learn(f"pretrain/{name}/seed_{seed}", pretraining, folder, steps, seed=seed))
            jobs.append(self._probe(seed))
        return jobs

    def _finetune(self) -> list[Job]:
        jobs = []
        for seed in self.seeds:
            for name, arm in ARMS.items():
                steps = self.preset.all_labels if arm.percent == 100 else self.preset.few_labels
                steps = self.preset.longer if arm.longer else steps
                before = None if arm.pretraining is None else self.out / "pretrain" / arm.pretraining / f"seed_{seed}"
                folder = self.out / "finetune" / name / f"seed_{seed}"
                jobs.append(self._tune(f"finetune/{name}/seed_{seed}", folder, arm, before, seed, steps))
        return jobs

    def _rollouts(self) -> list[Job]:
        jobs = []
        for seed in self.seeds:
            for name in ARMS:
                tuned = self.out / "finetune" / name / f"seed_{seed}"
                single = ("protocol=single", f"rollouts_per_task={self.preset.singles}")
                first = seed * self.preset.chains
                count = self.preset.chains if name in MAIN else self.preset.other_chains
                chains = (f"sequences={first}:{first + count}",)
                jobs.append(self._roll(f"single/{name}/seed_{seed}", tuned, single, workers=1))
                jobs.append(self._roll(f"chains/{name}/seed_{seed}", tuned, chains, workers=1))
        return jobs

    def _learn(
        self, name: str, pretraining: Pretraining, folder: Path, policy_steps: int, *, seed: int, cores: int = 1
    ) -> Job:
        """The whole pre-training of one seed."""
        own, source = pretraining
        words = (
            *own, *self.preset.pretrain, f"train_policy.loop.steps={policy_steps}",
            f"data.frames={self.out / 'pictures' / source / 'frames'}", f"seed={seed}", f"hardware.threads={cores}",
            f"run_dir={folder}",
        )  # fmt: skip
        return Job(name, PRETRAIN, words, (f"pictures/{source}",), cores > 1)

    def _probe(self, seed: int) -> Job:
        """What the codes of a seed say about the motion, on demonstrations that trained nothing."""
        words = (
            f"dldm={self.out / 'pretrain' / 'vw2' / f'seed_{seed}' / 'dldm'}",
            f"labelled=[{self.out / 'data' / 'probe'}]", f"episodes={PLAY * self.preset.probe_recordings}",
            f"frames={self.out / 'probe_frames'}", f"seed={seed}", "hardware.threads=1",
            f"out={self.out / 'probe' / f'seed_{seed}'}",
        )  # fmt: skip
        return Job(f"probe/seed_{seed}", PROBE, words, needs=(f"pretrain/vw2/seed_{seed}", "data/probe"))

    def _tune(
        self,
        name: str,
        folder: Path,
        arm: Arm,
        before: Path | None,
        seed: int,
        steps: tuple[str, ...],
        *,
        cores: int = 1,
    ) -> Job:
        """Fine-tuning of one arm and seed; the seed also chooses the labels."""
        taught = self.out / "pretrain" / "vw2" / f"seed_{seed}"
        start = f"network.like={taught}" if before is None else f"policy={before}"
        words = (
            *arm.words, start, f"data.path={self.out / 'data' / arm.data}", "data.validation_split=validation",
            f"data.frames={self.out / 'labelled_pictures'}", f"label_fraction={arm.percent / 100}",
            f"label_seed={seed}", f"seed={seed}", *HEAD, *steps, f"hardware.threads={cores}",
            "hardware.precision=bf16", f"run_dir={folder}",
        )  # fmt: skip
        needs = ((before or taught).relative_to(self.out).as_posix(), f"data/{arm.data}")
        return Job(name, FINETUNE, words, needs, cores > 1)

    def _roll(self, name: str, policy: Path, what: tuple[str, ...], *, workers: int) -> Job:
        words = (f"policy={policy}", *what, f"workers={workers}", "videos=0", f"run_dir={self.out / name}")
        return Job(name, ROLLOUT, words, (policy.relative_to(self.out).as_posix(),), workers > 1)


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
    plan = Plan(out, CPU, args.seeds, bridge=args.bridge)
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
        write_page(args.archive, args.archive.with_suffix(".md"), list(ARMS))


if __name__ == "__main__":
    main()
