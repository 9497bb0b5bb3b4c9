"""The first section of docs/results.md: what its numbers are of, how the policies act, and what the rows do not share.

Prose with numbers in it; the numbers come from the archive, but for the shuffle ratios, which are those of the log.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vw2_robot.rollouts.evaluate import Row
from vw2_robot.rollouts.results import read_rows

from .job_queue import read_note
from .results_seeds import MISSING, Runs, setting

SHUFFLE_RATIOS = {
    "vw2": ("1.001", "1.003", "1.004"),
    "vw2_cross": ("1.04", "1.01", "1.02"),
    "vw2_abc": ("1.04",),
}
"""as docs/lab_log.md has them, since the archive holds no training logs"""
OTHER_KERNELS = "package/avx2"
"""the first chains of the package's policy once more, with ATEN_CPU_CAPABILITY=avx2"""


def paragraph(*sentences: str) -> str:
    """Sentences as one paragraph of the page."""
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def bullet(*sentences: str) -> str:
    """The same as an entry of a list."""
    return textwrap.indent(paragraph(*sentences), "  ").replace("  ", "- ", 1)


def listed(values: Iterable[Any], last: str = " or ") -> str:
    """`1, 2 or 3`, in order."""
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values)]
    return last.join(part for part in (", ".join(words[:-1]), words[-1] if words else "") if part)


def reading_section(out: Path, runs: Mapping[str, Runs]) -> str:
    """What the numbers are of and what they do not say."""
    seeds = {len(set(found.single) | set(found.chains)) for found in runs.values()} - {0}
    chains = {len(rows) for found in runs.values() for rows in found.chains.values()}
    lines = [
        bullet(
            "**Intervals.** In the tables of methods the unit is the training seed: one value a seed, which has its",
            "own choice of labels, its own fine-tuning and, where there is pre-training, its own dLDM, codes and",
            "policy. Brackets hold the 95 % t interval over these values, cut to the possible range, and every value",
            "is printed; where there is one seed there is no interval. The starts of single tasks are the same for",
            "all seeds and rows, so these intervals are of these starts. Each interval is for one comparison; nothing",
            "is corrected for how many there are. Intervals over rollouts are of one policy, say nothing of the",
            "method that made it, and stand only where they are called so.",
        ),
        bullet(
            f"**Rows are not alike.** They have {listed(seeds)} seeds and {listed(chains)} chains a seed. Pre-training",
            "comes on top of the fine-tuning that `oracle` has: more compute, which the longer schedule does not make",
            "up for ([steps and core-minutes of every row](#what-the-rows-were-given)), and in-domain the images and",
            "instructions of all recordings, of which `oracle` sees the labeled ones.",
        ),
        _acting(out, runs),
        *_video_model(out),
        bullet(
            "**Start states.** Demonstrations begin in start states of the evaluation protocol, the same 192 that its",
            "chains begin in; in half of them the blocks on the table are moved, and some begin where another task",
            "just ended ([envs/experts/start_states.py](../envs/experts/start_states.py)).",
            "Starts of another kind are not measured here.",
        ),
        _one_kind_of_cpu(out),
    ]
    return "\n".join(["## How to read it", "", *lines])


def _acting(out: Path, runs: Mapping[str, Runs]) -> str:
    """How the policies act, as their fine-tunings were told."""
    names = [f"finetune/{arm}/seed_{seed}" for arm, found in runs.items() for seed in found.single]
    notes = [read_note(out, name) for name in (*names, "few/finetune", "reference/finetune")]
    sources, poses = ({setting(note, key) for note in notes if note} for key in ("code_source", "pose_weight"))
    if sources != {"none"}:
        return bullet(f"**How the policies act.** Fine-tuned with `code_source={listed(sources)}`.")
    return bullet(
        "**How the policies act.** No latent token is decoded in control. Every fine-tuning on this page has",
        "`code_source=none`: the zero code stands in every slot, in training and in control, and what latent",
        "pre-training leaves behind is the weights that fine-tuning begins with. Beside the actions, the head is",
        f"asked in training for the pose of the end effector (`pose_weight={listed(poses)}`), which is `robot_obs` of",
        "the labeled windows: a label is actions and robot states. In control the policy sees the image and the",
        "instruction alone.",
    )


def _video_model(out: Path) -> list[str]:
    """That phase 2 of the vw2 rows had a video model that ignored the codes."""
    note = read_note(out, "pretrain/vw2/seed_0")
    phases = [setting(note, f"train_dldm.phase{number}.steps") for number in (1, 2)]
    if MISSING in phases:
        return []
    ratios = {name: listed(found, " and ") for name, found in SHUFFLE_RATIOS.items()}
    return [
        bullet(
            "**The video model of the `vw2` rows did not read the codes.** At the end of their phase 2 its loss with",
            f"the codes of another clip was {ratios['vw2']} times that with the right ones on the three seeds (shuffle",
            "ratio; healthy is above 1.1), so what it sends back to the encoder is noise. What separates these rows",
            f"from VideoWorld 1's way are {phases[1]} steps of {sum(phases)} beside that model. Both single policies",
            "below were pre-trained with the same video model; their ratio was not noted. Over other robots' video it",
            f"was {ratios['vw2_cross']}, over video of A, B and C {ratios['vw2_abc']}, at five times the noise:",
            "little. These ratios are those of [lab_log.md](lab_log.md) (2026-11-23); the logs that they were read",
            "from are not in the archive.",
        )
    ]


def _one_kind_of_cpu(out: Path) -> str:
    """What another instruction set does to the rows of one policy."""
    other, usual = ({row["sequence"]: row for row in _rows(out, name)} for name in (OTHER_KERNELS, "package/chains"))
    pairs = [(row, usual[number]) for number, row in other.items() if number in usual]
    changed = sum(a != b for a, b in pairs)
    ended = sum(a["solved"] != b["solved"] for a, b in pairs)
    return bullet(
        "**One kind of CPU.** A rollout depends on policy, chain and seed alone on one kind of CPU. Kernels of",
        f"another instruction set differ in the last bits of an action, and that can change a chain: of {len(pairs)}",
        f"chains of the package's policy, {changed} have another row with AVX2 kernels instead of the machine's",
        f"AVX-512, and {ended} of these solved another number of subtasks.",
    )


def _rows(out: Path, name: str) -> list[Row]:
    return read_rows(out / name / "results.jsonl")
