"""The plan of the reference experiment: which method is trained on which recordings, with which seeds, on which chains.

What a method is trained with is a file of configs/experiment, which every command of the package takes; this file adds
places, seeds and the chains of each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from .archive import OUT
from .job_queue import REPO, Job

RUN_STAGES = ("data", "reference", "package", "few", "pretrain", "finetune", "rollouts")
RECORD = "vw2_robot.envs.recording.record"
JOIN = "benchmarks.results.join_recordings"
PRETRAIN = "vw2_robot.pretrain.pretrain_on_openx"
PROBE = "vw2_robot.pretrain.probing.probe_latents"
FINETUNE = "vw2_robot.finetune.train_head"
ROLLOUT = "vw2_robot.rollouts"
PACKAGE = "builtin:calvin-tiny"
CALVIN_RECORDINGS = ("D", "D_hard", "ABC", "probe")


@dataclass(frozen=True)
class Method:
    """A row of the results; its action head is trained by configs/experiment/finetune/NAME.yaml."""

    pretraining: str | None
    """name in PRETRAININGS; None: not pre-trained"""
    data: str = "D"
    """recordings that the labels come from"""
    chains: str = "chains_70"
    """configs/experiment/rollout/NAME.yaml"""


PRETRAININGS = {"vw2": "D", "videoworld": "D", "lapa": "D", "vw2_cross": "arms", "vw2_abc": "ABC"}
"""configs/experiment/pretrain/NAME.yaml -> the recordings whose video it is trained on"""
METHODS = {
    "oracle_10": Method(None, chains="chains"),
    "oracle_10_longer": Method(None),
    "lapa_10": Method("lapa"),
    "videoworld_10": Method("videoworld"),
    "vw2_10": Method("vw2", chains="chains"),
    "vw2_cross_10": Method("vw2_cross"),
    "oracle_100": Method(None),
    "vw2_100": Method("vw2"),
    "vw2_cross_100": Method("vw2_cross"),
    "oracle_abc": Method(None, data="ABC"),
    "vw2_abc": Method("vw2_abc", data="ABC"),
}


class Plan:
    """The jobs of the experiment below one folder."""

    def __init__(self, out: Path, seeds: Sequence[int], *, bridge: str | None) -> None:
        self.out = out
        self.seeds = tuple(seeds)
        self.bridge = bridge

    def jobs(self, stage: str) -> list[Job]:
        """Return the jobs of a stage of `RUN_STAGES`, in the order in which they are best run."""
        found: list[Job] = getattr(self, stage)()
        return found

    def data(self) -> list[Job]:
        """Return the recordings and the caches of their decoded frames."""
        jobs = []
        for name in CALVIN_RECORDINGS:
            jobs.append(self.record_job(name))
            # The probe decodes its own frames.
            if name != "probe":
                jobs.append(self.frames_job(name))
        parts = [str(self.out / "data" / name) for name in ("D", "D_hard")]
        joined = (*parts, "--out", str(self.out / "data" / "D_large"))
        jobs += [Job("data/D_large", JOIN, joined, needs=("data/D", "data/D_hard")), self.frames_job("D_large")]
        return [
            *jobs,
            # The archive keeps the name of the first runs.
            self.record_job("arms", config="other_robots"),
            self.frames_job("arms", *([self.bridge] if self.bridge else [])),
        ]

    def record_job(self, name: str, *, config: str | None = None) -> Job:
        """Return the recording of configs/experiment/record/CONFIG.yaml; by default CONFIG is the name."""
        arguments = (f"+experiment=record/{config or name}", "workers=2", f"out={self.out / 'data' / name}")
        return Job(f"data/{name}", RECORD, arguments, exclusive=True)

    # `also`: RLDS data sets beside the recordings, for pre-training on several embodiments.
    def frames_job(self, name: str, *also: str) -> Job:
        """Return the job that decodes the frames of recordings and other data sets into a cache for pre-training."""
        sets = [str(self.out / "data" / name), *also]
        path = f"data.path=[{','.join(sets)}]" if also else f"data.path={sets[0]}"
        arguments = ("+experiment=pretrain/shared", "stages=[]", path, f"run_dir={self.out / 'images' / name}")
        return Job(f"images/{name}", PRETRAIN, arguments, needs=(f"data/{name}",))

    def few(self) -> list[Job]:
        """Return the jobs of the policy that is trained as far as possible with 10 % of the labels."""
        before = self.out / "few" / "pretrain"
        tuned = self.out / "few" / "finetune"
        return [
            self.pretrain_job("few/pretrain", "few", "D_large", seed=0),
            self.finetune_job("few/finetune", "few", before, "D_large", seed=0),
            self.rollout_job("few/single", "single", str(tuned)),
            self.rollout_job("few/chains", "few_chains", str(tuned)),
        ]

    def reference(self) -> list[Job]:
        """Return the jobs behind `builtin:calvin-tiny`."""
        before = self.out / "reference" / "pretrain"
        tuned = self.out / "reference" / "finetune"
        return [
            self.pretrain_job("reference/pretrain", "reference", "D", seed=0),
            self.finetune_job("reference/finetune", "reference", before, "D", seed=0),
            self.rollout_job("reference/single", "package_single", str(tuned), workers=2),
            self.rollout_job("reference/chains", "package_chains", str(tuned), workers=2),
        ]

    def package(self) -> list[Job]:
        """Return the rollouts of `builtin:calvin-tiny` itself."""
        return [
            self.rollout_job("package/single", "package_single", PACKAGE, "device=cpu", workers=2),
            self.rollout_job("package/chains", "package_chains", PACKAGE, "device=cpu", workers=2),
        ]

    def pretrain(self) -> list[Job]:
        """Return the pre-training of every method and seed, and the probes of the codes."""
        jobs = []
        for seed in self.seeds:
            for name, data in PRETRAININGS.items():
                jobs.append(self.pretrain_job(f"pretrain/{name}/seed_{seed}", name, data, seed=seed))
            jobs.append(self.probe_job(seed))
        return jobs

    def finetune(self) -> list[Job]:
        """Return the fine-tuning of every method and seed."""
        jobs = []
        for seed in self.seeds:
            for name, method in METHODS.items():
                pretraining = method.pretraining
                before = None if pretraining is None else self.out / "pretrain" / pretraining / f"seed_{seed}"
                jobs.append(self.finetune_job(f"finetune/{name}/seed_{seed}", name, before, method.data, seed=seed))
        return jobs

    def rollouts(self) -> list[Job]:
        """Return single tasks and chains of every method and seed."""
        # Chains of different seeds do not overlap: seed s starts at s times the longest list.
        apart = chains_of("chains")
        jobs = []
        for seed in self.seeds:
            for name, method in METHODS.items():
                # Every seed has chains of its own; methods of one seed begin with the same ones.
                tuned = str(self.out / "finetune" / name / f"seed_{seed}")
                chosen = f"sequences={seed * apart}:{seed * apart + chains_of(method.chains)}"
                jobs.append(self.rollout_job(f"single/{name}/seed_{seed}", "single", tuned))
                jobs.append(self.rollout_job(f"chains/{name}/seed_{seed}", method.chains, tuned, chosen))
        return jobs

    def pretrain_job(self, name: str, experiment: str, data: str, *, seed: int) -> Job:
        """Return the whole pre-training of one seed."""
        arguments = (
            f"+experiment=pretrain/{experiment}", f"data.frame_cache={self.out / 'images' / data / 'frames'}",
            f"seed={seed}", "hardware.threads=1", f"run_dir={self.out / name}",
        )  # fmt: skip
        return Job(name, PRETRAIN, arguments, (f"images/{data}",))

    def probe_job(self, seed: int) -> Job:
        """Return the probe of the codes of a seed, on demonstrations that no model was trained on."""
        arguments = (
            "+experiment=probe_latents/codes", f"dldm={self.out / 'pretrain' / 'vw2' / f'seed_{seed}' / 'dldm'}",
            f"labeled=[{self.out / 'data' / 'probe'}]", f"frame_cache={self.out / 'probe_frames'}", f"seed={seed}",
            "hardware.threads=1", f"out={self.out / 'probe' / f'seed_{seed}'}",
        )  # fmt: skip
        return Job(f"probe/seed_{seed}", PROBE, arguments, needs=(f"pretrain/vw2/seed_{seed}", "data/probe"))

    def finetune_job(self, name: str, experiment: str, before: Path | None, data: str, *, seed: int) -> Job:
        """Return the fine-tuning of one method and seed; the seed also chooses the labels."""
        like = self.out / "pretrain" / "vw2" / f"seed_{seed}"
        # A policy that is not pre-trained takes the sizes of its network from the pre-trained one of its seed.
        start = f"network.like={like}" if before is None else f"policy={before}"
        arguments = (
            f"+experiment=finetune/{experiment}", start, f"data.path={self.out / 'data' / data}",
            f"data.frame_cache={self.out / 'labeled_images'}", f"label_seed={seed}", f"seed={seed}",
            "hardware.threads=1", f"run_dir={self.out / name}",
        )  # fmt: skip
        # The network of an untrained policy is copied from a job, so that job is needed too.
        needs = ((before or like).relative_to(self.out).as_posix(), f"data/{data}")
        return Job(name, FINETUNE, arguments, needs)

    def rollout_job(self, name: str, experiment: str, policy: str, *chosen: str, workers: int = 1) -> Job:
        """Return the rollouts of a policy."""
        arguments = (
            f"+experiment=rollout/{experiment}", f"policy={policy}", *chosen, f"workers={workers}",
            f"run_dir={self.out / name}",
        )  # fmt: skip
        # The policy of the package is there without a job.
        needs = () if policy == PACKAGE else (Path(policy).relative_to(self.out).as_posix(),)
        return Job(name, ROLLOUT, arguments, needs, workers > 1)


def chains_of(experiment: str) -> int:
    """Return how many chains one seed runs, by configs/experiment/rollout."""
    file = REPO / "configs" / "experiment" / "rollout" / f"{experiment}.yaml"
    first, last = yaml.safe_load(file.read_text(encoding="utf-8"))["sequences"].split(":")
    return int(last) - int(first)


def planned(seeds: Sequence[int]) -> dict[str, Job]:
    """Return every job of the plan by name, with the arguments as the archive has them."""
    plan = Plan(Path(OUT), seeds, bridge=None)
    return {job.name: job for stage in RUN_STAGES for job in plan.jobs(stage)}
