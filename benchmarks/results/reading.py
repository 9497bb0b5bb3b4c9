"""The first section of docs/results.md: how to read it, how the policies act, and how the rows differ.

The numbers in its text come from the archive, except the shuffle ratios, which come from docs/lab_log.md.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from .archive import Archive
from .seeds import MISSING, Runs, setting

SHUFFLE_RATIOS = {
    "vw2": ("1.001", "1.003", "1.004"),
    "vw2_cross": ("1.04", "1.01", "1.02"),
    "vw2_abc": ("1.04",),
}
"""as docs/lab_log.md has them, since the archive holds no training logs"""
OTHER_KERNELS = "package/avx2"
"""the first chains of the package's policy once more, with ATEN_CPU_CAPABILITY=avx2"""


def paragraph(*lines: str) -> str:
    """Return lines as one paragraph of the page, wrapped."""
    # Neither links nor names with hyphens may be broken.
    return textwrap.fill(" ".join(lines), 120, break_long_words=False, break_on_hyphens=False)


def bullet(*lines: str) -> str:
    """Return lines as one entry of a list."""
    # Every line is indented; then the dash replaces the first two spaces.
    return textwrap.indent(paragraph(*lines), "  ").replace("  ", "- ", 1)


def listed(values: Iterable[Any], last: str = " or ") -> str:
    """Return sorted values as `1, 2 or 3`."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values)]
    return last.join(part for part in (", ".join(texts[:-1]), texts[-1] if texts else "") if part)


def reading_section(archive: Archive, runs: Mapping[str, Runs]) -> str:
    """Return the section on what the numbers mean and what they do not show."""
    seeds = {len(set(found.single) | set(found.chains)) for found in runs.values()} - {0}
    chains = {len(rows) for found in runs.values() for rows in found.chains.values()}
    lines = [
        bullet(
            "**Intervals.** In the tables of methods the unit is the training seed: one value per seed, with its own",
            "choice of labels, its own fine-tuning and, where there is pre-training, its own dLDM, codes and policy.",
            "Brackets are 95 % t intervals over these values, cut to the possible range, and every value is printed;",
            "with one seed there is no interval. The starts of single tasks are the same for all seeds and rows, so",
            "the intervals hold for these starts. Each interval is for one comparison; nothing is corrected for the",
            "number of comparisons. Intervals over rollouts describe one policy, not the method that trained it; they",
            "are used only where the text says so.",
        ),
        bullet(
            f"**Rows differ in more than the method.** They have {listed(seeds)} seeds and {listed(chains)} chains per",
            "seed. Pre-training comes in addition to the fine-tuning that `oracle` has. It takes more compute, also",
            "more than the longer schedule of `oracle`",
            "([steps and core-minutes of every row](#training-steps-and-compute-of-the-rows)). In-domain pre-training",
            "also sees the images and instructions of all recordings, `oracle` only the labeled ones.",
        ),
        control_entry(archive, runs),
        *video_model_entry(archive),
        bullet(
            "**Start states.** Demonstrations begin in the start states of the evaluation protocol, the same 192 that",
            "its chains begin in; in half of them the blocks on the table are moved, and some begin where another task",
            "just ended ([envs/experts/start_states.py](../envs/experts/start_states.py)).",
            "Other start states are not measured here.",
        ),
        other_cpu_entry(archive),
    ]
    return "\n".join(["## How to read it", "", *lines])


def control_entry(archive: Archive, runs: Mapping[str, Runs]) -> str:
    """Return the entry on how the policies act, from the settings of their fine-tunings."""
    names = [f"finetune/{method}/seed_{seed}" for method, found in runs.items() for seed in found.single]
    notes = [archive.jobs.get(name) for name in (*names, "few/finetune", "reference/finetune")]
    modes, poses = ({setting(note, key) for note in notes if note} for key in ("acting", "aids.pose_weight"))
    if modes != {"none"}:
        return bullet(f"**How the policies act.** Fine-tuned with `acting={listed(modes)}`.")
    return bullet(
        "**How the policies act.** No latent token is decoded in control. Every fine-tuning on this page has",
        "`acting=none`: the zero code is in every slot, in training and in control. Latent pre-training only",
        "gives the weights that fine-tuning starts from. In training the head also predicts the pose of the end",
        f"effector (`pose_weight={listed(poses)}`), which is `robot_obs` of the labeled windows: a label is actions",
        "and robot states. In control the policy sees only the image and the instruction.",
    )


def video_model_entry(archive: Archive) -> list[str]:
    """Return the entry that the video model of the `vw2` rows ignored the codes in phase 2."""
    note = archive.jobs.get("pretrain/vw2/seed_0")
    phases = [setting(note, f"train_dldm.phase{number}.train_steps") for number in (1, 2)]
    if MISSING in phases:
        return []
    ratios = {name: listed(found, " and ") for name, found in SHUFFLE_RATIOS.items()}
    return [
        bullet(
            "**The video model of the `vw2` rows did not use the codes.** At the end of their phase 2 its loss with",
            f"the codes of another clip was {ratios['vw2']} times that with the right ones on the three seeds (shuffle",
            "ratio; a model that uses the codes has above 1.1), so its gradient to the encoder is noise. These rows",
            f"differ from the VideoWorld 1 method by {phases[1]} of {sum(phases)} steps that are trained with that",
            "model. Both single policies below were pre-trained with the same video model; their ratio was not",
            f"recorded. Over other robots' video it was {ratios['vw2_cross']}, over video of A, B and C",
            f"{ratios['vw2_abc']}, both with five times the noise. These ratios come from [lab_log.md](lab_log.md)",
            "(2026-11-23); the training logs themselves are not in the archive.",
        )
    ]


def other_cpu_entry(archive: Archive) -> str:
    """Return the entry on how another instruction set changes the rollouts of one policy."""
    other, usual = ({row["sequence"]: row for row in archive.rows(name)} for name in (OTHER_KERNELS, "package/chains"))
    pairs = [(row, usual[number]) for number, row in other.items() if number in usual]
    # Whole rows, with the env steps of every attempt.
    changed = sum(a != b for a, b in pairs)
    ended = sum(a["solved"] != b["solved"] for a, b in pairs)
    return bullet(
        "**Other CPUs.** On one kind of CPU a rollout depends only on policy, chain and seed. Kernels of another",
        f"instruction set differ in the last bits of an action, and that can change a chain: of {len(pairs)} chains of",
        f"the packaged policy, {changed} have another result with AVX2 kernels instead of the machine's AVX-512, and",
        f"{ended} of these solved another number of subtasks.",
    )
