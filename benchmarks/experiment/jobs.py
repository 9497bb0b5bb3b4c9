"""The jobs of the plan, below one folder: recordings, pre-training, probe, gate, fine-tuning, rollouts.

Families are finished one after the other, in the order of the plan. Within a family seeds come first: after a few seeds
of every row the blinded estimate of the variance can be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..results.job_queue import Job
from .gate import FINETUNE
from .plan import (
    CHAINS,
    CHAINS_SEED,
    FIRST_SEED,
    ON_ORIGINAL_ASSETS,
    PRETRAININGS,
    RENDERED_FROM,
    STARTS_SEED,
    Family,
    Row,
    finetune_experiment,
    seeds_of,
)

RECORD = "vw2_robot.envs.recording.record"
PRETRAIN = "vw2_robot.pretrain.pretrain_on_openx"
PROBE_LATENTS = "vw2_robot.pretrain.probing.probe_latents"
GATE = "benchmarks.experiment.gate"
ROLLOUT = "vw2_robot.rollouts"


class Jobs:
    """The jobs of some families below one folder.

    Args:
        out: the folder.
        families: in the order in which they are run.
        assets: folder of the original CALVIN assets; needed for families on them.
    """

    def __init__(self, out: Path, families: Sequence[Family], *, assets: Path | None = None) -> None:
        self._out = out
        self._assets = assets
        self._found: dict[str, Job] = {}
        for family in families:
            for seed in sorted({seed for row in family.rows for seed in seeds_of(row)}):
                for row in family.rows:
                    if seed in seeds_of(row):
                        self._add_row(family, row, seed)

    def all(self) -> list[Job]:
        """Return the jobs, each after those it needs."""
        return list(self._found.values())

    def _add(self, job: Job) -> str:
        """Add a job unless another row has it already; return its name."""
        self._found.setdefault(job.name, job)
        return job.name

    def _add_row(self, family: Family, row: Row, seed: int) -> None:
        row_id = f"{family.letter}/{row.name}"
        place = f"{row_id}/seed_{seed}"
        # An untrained policy copies the sizes of its network from a pre-trained one of its seed.
        before = self._add_pretraining(row.pretraining or family.like, seed)
        needs = [before, self._add_recording(family.recordings)]
        if row.is_gated:
            needs.append(self._add_gate(family, row, before, place))
        tuned = f"finetune/{place}"
        arguments = (
            f"+experiment={finetune_experiment(family, row)}",
            f"{'network.like' if row.pretraining is None else 'policy'}={self._out / before}",
            f"data.path={self._out / 'record' / family.recordings}", f"data.frame_cache={self._out / 'labeled_frames'}",
            f"label_seed={seed}", f"seed={seed}", "hardware.threads=1", f"run_dir={self._out / tuned}",
        )  # fmt: skip
        self._add(Job(tuned, FINETUNE, arguments, tuple(needs)))
        # Methods of one seed run the same chains; those of another seed are others.
        first = (seed - FIRST_SEED) * CHAINS
        chains = (f"sequences_seed={CHAINS_SEED}", f"sequences={first}:{first + CHAINS}")
        self._add_rollout(family, f"single/{place}", "single", tuned, f"starts_seed={STARTS_SEED}")
        self._add_rollout(family, f"chains/{place}", f"chains_{CHAINS}", tuned, *chains)

    def _add_recording(self, name: str) -> str:
        out = f"out={self._out / 'record' / name}"
        states = [self._add_recording(RENDERED_FROM[name])] if name in RENDERED_FROM else []
        shown = [f"env.data={self._out / recorded}" for recorded in states]
        arguments = (f"+experiment=record/{name}", *shown, *self._simulator(name), "workers=2", out)
        return self._add(Job(f"record/{name}", RECORD, arguments, tuple(states), exclusive=True))

    def _add_frames(self, video: tuple[str, ...]) -> str:
        """Add the cache of decoded frames that all pre-trainings on a video share."""
        recorded = tuple(self._add_recording(name) for name in video)
        # Whichever families are run, the first pre-training of the plan decodes.
        first = next(name for name, pretraining in PRETRAININGS.items() if pretraining.video == video)
        name = f"frames/{'_and_'.join(video)}"
        arguments = (
            f"+experiment=pretrain/{first}", "stages=[]",
            f"data.path=[{','.join(str(self._out / one) for one in recorded)}]", f"run_dir={self._out / name}",
        )  # fmt: skip
        return self._add(Job(name, PRETRAIN, arguments, recorded))

    def _add_pretraining(self, name: str, seed: int) -> str:
        frames = self._add_frames(PRETRAININGS[name].video)
        place = f"pretrain/{name}/seed_{seed}"
        arguments = (
            f"+experiment=pretrain/{name}", f"data.frame_cache={self._out / frames / 'frames'}", f"seed={seed}",
            "hardware.threads=1", f"run_dir={self._out / place}",
        )  # fmt: skip
        self._add(Job(place, PRETRAIN, arguments, (frames,)))
        if PRETRAININGS[name].probe is None:
            return place
        # Not those alone that a gate asks: the quality of learned codes is compared with gains.
        probe = self._add_recording(PRETRAININGS[name].probe)
        probing = (
            "+experiment=probe_latents/registered", f"dldm={self._out / place / 'dldm'}",
            f"labeled=[{self._out / probe}]", f"frame_cache={self._out / 'probe_frames'}", f"seed={seed}",
            "hardware.threads=1", f"out={self._out / 'probe' / name / f'seed_{seed}'}",
        )  # fmt: skip
        self._add(Job(f"probe/{name}/seed_{seed}", PROBE_LATENTS, probing, (place, probe)))
        return place

    def _add_gate(self, family: Family, row: Row, before: str, place: str) -> str:
        assert row.pretraining is not None, f"{place} has a gate, but no pre-training"
        pretraining = PRETRAININGS[row.pretraining]
        probe = before.replace("pretrain/", "probe/", 1)
        arguments = (
            "--report", str(self._out / probe), "--policy", str(self._out / before),
            "--experiment", finetune_experiment(family, row),
            *(() if pretraining.is_probe_seen else ("--unseen", str(pretraining.probe))),
        )  # fmt: skip
        return self._add(Job(f"gate/{place}", GATE, arguments, (probe, before)))

    def _add_rollout(self, family: Family, name: str, experiment: str, policy: str, *chosen: str) -> None:
        arguments = (
            f"+experiment=rollout/{experiment}", f"policy={self._out / policy}", *self._simulator(family.recordings),
            *chosen, "workers=1", f"run_dir={self._out / name}",
        )  # fmt: skip
        self._add(Job(name, ROLLOUT, arguments, (policy,)))

    def _simulator(self, recordings: str) -> tuple[str, ...]:
        if recordings not in ON_ORIGINAL_ASSETS:
            return ()
        if self._assets is None:
            raise SystemExit(f"{recordings} needs the original CALVIN assets; give --assets DIR")
        return (f"env.assets={self._assets}",)
