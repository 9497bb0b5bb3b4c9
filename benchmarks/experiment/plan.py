"""The plan of the registered experiment: one table of families, from which jobs, registration and page are made.

What docs/experiment.md registers; `run` refuses a plan that differs from that page. What a row is trained with is a
file of configs/experiment, which the commands of the package take; here are names, places, seeds, numbers of chains.
`problems` lists what is missing before the first run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from ..results.job_queue import REPO

FIRST_SEED = 100
"""training seeds from here on; smaller ones were used in tuning"""
STARTS_SEED = 100
"""of the simulator states in which single tasks begin; the same for all rows and seeds"""
CHAINS_SEED = 100
"""of the protocol's random chains; each training seed has chains of its own"""
CHAINS = 30
"""of a training seed, as configs/experiment/rollout/chains_30.yaml has them"""
BUDGET_HOURS = 120.0
"""core-hours of the whole experiment"""
BLINDED_AFTER = 4
"""seeds after which the variance is estimated again, blinded"""
SD_POINTS = {0.1: 6.3, 1.0: 3.3}
"""label fraction -> standard deviation of a difference across seeds, in points of single tasks (first experiment)"""
IN_DOMAIN, OTHER_ROBOTS, PROBE = "D_several", "other_robots_same_tasks", "probe"
ORIGINAL, ORIGINAL_PROBE = "D_original", "probe_original"
"""recordings, files of configs/experiment/record; the probes train nothing but a regression"""
ON_ORIGINAL_ASSETS = (ORIGINAL, ORIGINAL_PROBE)
"""recorded with the original CALVIN assets, which are not part of this repository"""
OTHER_SCENES = "ABC_several"
RENDERED_FROM = {OTHER_ROBOTS: OTHER_SCENES}
"""recordings that show the states of others again: other robots do the same tasks, at tables that have no labels"""


RECORDING_MINUTES: dict[str, float | None] = {
    IN_DOMAIN: 85,
    PROBE: 31,
    OTHER_SCENES: 85,
    OTHER_ROBOTS: 120,
    ORIGINAL: 180,
    ORIGINAL_PROBE: 45,
    "ABC_looks": 180,
    "other_robots": 120,
    "D_nuisance": 180,
}
"""core-minutes of the recordings with their frame caches, see docs/experiment.md; None: not known yet"""


class Paper(NamedTuple):
    """The paper's cells for a row: chains with 1 and 5 subtasks solved, in percent, and the average length."""

    one: float | None
    five: float | None
    length: float


@dataclass(frozen=True)
class Pretraining:
    """A latent pre-training, by configs/experiment/pretrain/NAME.yaml; rows share it."""

    video: tuple[str, ...]
    """recordings it is trained on"""
    probe: str | None = PROBE
    """recordings on which its codes are judged; None for codes that are not learned, or not those of their windows"""
    is_probe_seen: bool = True
    """they show the robot and the scenes of its video; the gate asks less of others"""
    core_minutes: float | None = None
    """of one seed, with its probe; None: not known yet"""


@dataclass(frozen=True)
class Row:
    """A method in a family; its action head is trained by configs/experiment/finetune/FAMILY_NAME.yaml."""

    name: str
    title: str
    seeds: int
    pretraining: str | None = None
    """name in PRETRAININGS; None: not pre-trained"""
    is_gated: bool = False
    """a seed is fine-tuned only where its codes are read and it acts by them (`gate`)"""
    core_minutes: float | None = None
    """of fine-tuning and rollouts of one seed; None: not known yet"""
    paper: Paper | None = None


@dataclass(frozen=True)
class Family:
    """Rows that are compared with one another, on the same labels and starts."""

    letter: str
    title: str
    label_fraction: float
    rows: tuple[Row, ...]
    contrasts: tuple[tuple[str, str], ...]
    """primary ones, first less second, by FAMILY/NAME; p values are adjusted for their number"""
    recordings: str = IN_DOMAIN
    """that labels come from"""
    like: str = "in_domain_vw2"
    """untrained policies take the sizes of their network from this pre-training of their seed"""

    def id_of(self, row: Row) -> str:
        """Return the name of a row in the whole plan."""
        return f"{self.letter}/{row.name}"


PRETRAININGS = {
    "in_domain_vw2": Pretraining((IN_DOMAIN,), core_minutes=29),
    "in_domain_videoworld": Pretraining((IN_DOMAIN,), core_minutes=21),
    "in_domain_lapa": Pretraining((IN_DOMAIN,), core_minutes=18),
    "codes_shuffled": Pretraining((IN_DOMAIN,), probe=None, core_minutes=25),
    "codes_untrained": Pretraining((IN_DOMAIN,), probe=None, core_minutes=7),
    "codes_pixels": Pretraining((IN_DOMAIN,), probe=None, core_minutes=6),
    "other_robots_vw2": Pretraining((OTHER_ROBOTS,), is_probe_seen=False, core_minutes=29),
    "other_robots_lapa": Pretraining((OTHER_ROBOTS,), is_probe_seen=False, core_minutes=18),
    # Four codes and nine frames are those of in_domain_vw2.
    **{f"codes_{count}": Pretraining((IN_DOMAIN,), core_minutes=29) for count in (1, 2, 8)},
    "frames_5": Pretraining((IN_DOMAIN,), core_minutes=21),
    "frames_17": Pretraining((IN_DOMAIN,), core_minutes=41),
    "original_vw2": Pretraining((ORIGINAL,), ORIGINAL_PROBE, core_minutes=29),
    "other_scenes_vw2": Pretraining((OTHER_SCENES,), is_probe_seen=False, core_minutes=29),
    "sampled_appearance_vw2": Pretraining(("ABC_looks",), is_probe_seen=False, core_minutes=29),
    "other_tasks_vw2": Pretraining(("other_robots",), is_probe_seen=False, core_minutes=29),
    "nuisance_videoworld": Pretraining(("D_nuisance",), core_minutes=21),
    "nuisance_vw2": Pretraining(("D_nuisance",), core_minutes=29),
    "joint_vw2": Pretraining((IN_DOMAIN, OTHER_ROBOTS), core_minutes=29),
}
FAMILIES = (
    Family(
        "a",
        "In-domain video, 10 % of the labels",
        0.1,
        (
            Row("scratch", "no pre-training", 8, core_minutes=18, paper=Paper(50.5, 0.0, 1.11)),
            Row(
                "lapa_bins",
                "LAPA, cross-entropy on action bins",
                8,
                "in_domain_lapa",
                core_minutes=16,
                paper=Paper(74.4, 2.3, 1.49),
            ),
            Row("lapa", "LAPA, our head", 8, "in_domain_lapa", core_minutes=16),
            Row("videoworld", "VideoWorld: pixel decoder, no video model", 12, "in_domain_videoworld", core_minutes=16),
            Row("vw2", "vw2", 12, "in_domain_vw2", is_gated=True, core_minutes=16, paper=Paper(75.8, 9.7, 1.87)),
        ),
        (("a/vw2", "a/scratch"), ("a/vw2", "a/lapa_bins"), ("a/vw2", "a/lapa"), ("a/vw2", "a/videoworld")),
    ),
    Family(
        "b",
        "Controls, 10 % of the labels",
        0.1,
        (
            Row("shuffled", "codes shuffled across windows", 6, "codes_shuffled", core_minutes=16),
            Row("untrained", "codes of an untrained encoder", 6, "codes_untrained", core_minutes=16),
            Row("pixels", "quantized pixel differences", 6, "codes_pixels", core_minutes=16),
            Row("without_tokens", "vw2, acting without tokens", 6, "in_domain_vw2", core_minutes=16),
        ),
        (("a/vw2", "b/shuffled"), ("a/vw2", "b/untrained"), ("a/vw2", "b/pixels"), ("a/vw2", "b/without_tokens")),
    ),
    Family(
        "c",
        "Other robots' video, all labels",
        1.0,
        (
            Row("scratch", "no pre-training", 8, core_minutes=17, paper=Paper(80.9, 24.6, 2.36)),
            Row("lapa", "LAPA", 8, "other_robots_lapa", core_minutes=17, paper=Paper(84.0, 27.0, 2.51)),
            Row("vw2", "vw2", 8, "other_robots_vw2", is_gated=True, core_minutes=20, paper=Paper(88.5, 30.9, 2.88)),
        ),
        (("c/vw2", "c/scratch"), ("c/vw2", "c/lapa")),
    ),
    Family(
        "d",
        "Codes a step and frames a clip, 10 % of the labels; N = 4 and T = 9 are `a/vw2`",
        0.1,
        (
            *(
                Row(
                    f"codes_{count}",
                    f"N = {count} codes a step",
                    3,
                    f"codes_{count}",
                    True,
                    core_minutes=16,
                    paper=Paper(None, None, length),
                )
                for count, length in ((1, 1.53), (2, 1.64), (8, 1.88))
            ),
            *(
                Row(f"frames_{count}", f"T = {count} frames a clip", 3, f"frames_{count}", True, core_minutes=16)
                for count in (5, 17)
            ),
        ),
        (("a/vw2", "d/codes_1"), ("d/frames_17", "d/frames_5")),
    ),
    Family(
        "e",
        "Original CALVIN assets, 10 % of the labels",
        0.1,
        (
            Row("scratch", "no pre-training", 3, core_minutes=38),
            Row("vw2", "vw2", 3, "original_vw2", is_gated=True, core_minutes=33),
        ),
        (("e/vw2", "e/scratch"),),
        recordings=ORIGINAL,
        like="original_vw2",
    ),
    Family(
        "f",
        "As far as the budget goes, 10 % of the labels",
        0.1,
        (
            Row("other_scenes", "same robot, other scenes", 3, "other_scenes_vw2", True, core_minutes=16),
            Row("appearance", "same robot, everything sampled", 3, "sampled_appearance_vw2", True, core_minutes=16),
            Row("other_tasks", "other robots, other tasks", 3, "other_tasks_vw2", True, core_minutes=16),
            Row(
                "nuisance_videoworld",
                "VideoWorld, textures, light, camera sway",
                3,
                "nuisance_videoworld",
                core_minutes=16,
            ),
            Row("nuisance_vw2", "vw2, textures, light, camera sway", 3, "nuisance_vw2", True, core_minutes=16),
            Row("joint", "vw2, joint training on both robots' video", 3, "joint_vw2", True, core_minutes=16),
        ),
        (("f/nuisance_vw2", "f/nuisance_videoworld"),),
    ),
)


def rows_by_id(families: Sequence[Family]) -> dict[str, tuple[Family, Row]]:
    """Return FAMILY/NAME -> the family and the row."""
    return {family.id_of(row): (family, row) for family in families for row in family.rows}


def seeds_of(row: Row) -> range:
    """Return the training seeds of a row."""
    return range(FIRST_SEED, FIRST_SEED + row.seeds)


def paired_seeds(families: Sequence[Family], first: str, second: str) -> int:
    """Return how many seeds two rows have in common."""
    rows = rows_by_id(families)
    return min(rows[first][1].seeds, rows[second][1].seeds)


def finetune_experiment(family: Family, row: Row) -> str:
    """Return the file of configs/experiment with which a row is fine-tuned."""
    return f"finetune/{family.letter}_{row.name}"


class Cost(NamedTuple):
    """Core-minutes of a row, of all its seeds: recordings and pre-trainings that no earlier row has, then the rest.

    None where it is not known.
    """

    row: str
    recording: float | None
    pretraining: float | None
    tuning: float | None
    """fine-tuning and rollouts"""

    @property
    def total(self) -> float | None:
        """All of it."""
        return _sum(self.recording, self.pretraining, self.tuning)


def _sum(*minutes: float | None) -> float | None:
    known = [one for one in minutes if one is not None]
    return sum(known) if len(known) == len(minutes) else None


def costs(families: Sequence[Family]) -> list[Cost]:
    """Return the cost of each row, in the order in which they are run; None where it is not known."""
    begun: dict[str, int] = {}
    recorded: set[str] = set()
    found = []
    for row_id, (family, row) in rows_by_id(families).items():
        needed: float | None = 0.0
        # An untrained policy takes its sizes from a pre-training, which must be there.
        name = row.pretraining or family.like
        new = max(0, row.seeds - begun.get(name, 0))
        begun[name] = max(row.seeds, begun.get(name, 0))
        if new:
            minutes = PRETRAININGS[name].core_minutes
            needed = None if minutes is None else new * minutes
        recordings = set(recordings_of(family, name))
        recording = _sum(*(RECORDING_MINUTES[one] for one in recordings - recorded))
        recorded |= recordings
        tuning = None if row.core_minutes is None else row.seeds * row.core_minutes
        found.append(Cost(row_id, recording, needed, tuning))
    return found


def problems(families: Sequence[Family]) -> Iterator[str]:
    """Yield what is missing before the families can be registered and run."""
    known = rows_by_id(FAMILIES)
    needed = itertools.chain.from_iterable(files_of(family) for family in families)
    for name in dict.fromkeys(needed):
        if not experiment_file(name).is_file():
            yield f"configs/experiment/{name}.yaml is missing"
    for family in families:
        for row in family.rows:
            file = experiment_file(finetune_experiment(family, row))
            if file.is_file() and (found := label_fraction_of(file)) != family.label_fraction:
                yield f"{file.name} has label_fraction={found}, the plan {family.label_fraction}"
        for pair in family.contrasts:
            yield from (f"contrast {' - '.join(pair)}: no row {one}" for one in pair if one not in known)
    for cost in costs(families):
        if cost.total is None:
            yield f"the core-minutes of {cost.row} are not known"


def files_of(family: Family) -> list[str]:
    """Return the files of configs/experiment that a family takes, without their suffix."""
    names = {row.pretraining or family.like: None for row in family.rows}
    needed = [recordings for name in names for recordings in recordings_of(family, name)]
    return [
        *(f"record/{name}" for name in dict.fromkeys(needed)),
        *(f"pretrain/{name}" for name in names),
        *(finetune_experiment(family, row) for row in family.rows),
        "rollout/single",
        f"rollout/chains_{CHAINS}",
    ]


def recordings_of(family: Family, pretraining: str) -> list[str]:
    """Return the recordings that a row of a family with this pre-training needs."""
    chosen = PRETRAININGS[pretraining]
    needed = [family.recordings, *chosen.video, *([] if chosen.probe is None else [chosen.probe])]
    return [*needed, *(RENDERED_FROM[name] for name in needed if name in RENDERED_FROM)]


def experiment_file(name: str) -> Path:
    """Return the place of a file of configs/experiment."""
    return REPO / "configs" / "experiment" / f"{name}.yaml"


def label_fraction_of(file: Path) -> float | None:
    """Return the label fraction that a file of configs/experiment/finetune sets itself."""
    found: float | None = yaml.safe_load(file.read_text(encoding="utf-8")).get("label_fraction")
    return found
