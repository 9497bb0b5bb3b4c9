"""The instructions of the tasks.

train        389, labels of the training data: 7 to 20 for each of the 34 tasks
validation   34, one for each task: those of the benchmark
enriched     102, three for each task, in neither of the other two: they test generalization to unseen instructions
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from yaml import YAMLError

from vw2_robot.contracts import Split
from vw2_robot.errors import InputError

_FILES: dict[str, str] = {
    "train": "annotations_training.yaml",
    "validation": "annotations_validation.yaml",
    "enriched": "annotations_enriched.yaml",
}
LEAST_NEARNESS = 0.45
LEAST_LEAD = 0.1
"""of the nearest task over the second"""
NEGATIONS = {"not", "don", "dont", "never"}
"""no known wording has one, and what follows it is not wanted"""


def load_instructions(split: Split) -> dict[str, list[str]]:
    """Return task name -> instructions. "train": 7 to 20 per task; "validation": exactly one.

    Raises:
        InputError: another split.
    """
    if split not in ("train", "validation"):
        raise InputError(f"unknown split {split!r}; known: train, validation")
    return {task: list(texts) for task, texts in _load(Path(__file__).parent / _FILES[split]).items()}


def read_instructions(name_or_file: str) -> dict[str, list[str]]:
    """Return task name -> instructions.

    Args:
        name_or_file: "train", "validation", "enriched", or a yaml file that maps every task to a list.

    Raises:
        InputError: no such name or file, or a task without instructions.
    """
    file = Path(__file__).parent / _FILES[name_or_file] if name_or_file in _FILES else Path(name_or_file)
    if not file.is_file():
        raise InputError(f"unknown instructions {name_or_file!r}; known: {', '.join(_FILES)}, or a yaml file")
    try:
        found = _load(file) if name_or_file in _FILES else _read(file)
    except (YAMLError, TypeError, ValueError) as error:
        raise InputError(f"{file} is no list of instructions for each task ({error})") from error
    # Every task can occur in a chain, so every task needs an instruction.
    if lacking := [task for task in _load(Path(__file__).parent / _FILES["validation"]) if not found.get(task)]:
        raise InputError(f"{file} has no instruction for {', '.join(lacking)}; every task needs at least one")
    return {task: list(texts) for task, texts in found.items()}


def choose_instruction(instructions: Sequence[str], task: str, chain: int | None) -> str:
    """Return one of a task's instructions, as a pure function of task and number of the chain.

    Args:
        instructions: those of the task.
        task: its name.
        chain: number of the chain; None: the first instruction.
    """
    if chain is None or len(instructions) == 1:
        return instructions[0]
    # Independent of Python's salted hash and of the platform.
    seed = np.random.SeedSequence([chain, *task.encode()])
    return instructions[int(seed.generate_state(1)[0]) % len(instructions)]


def nearest_wording(text: str, tasks: Mapping[str, str]) -> str | None:
    """Return the known wording that a text is nearest to; None if none is near, or two tasks are about as near.

    Nearness is the share of the words in common, from 0 to 1. A word counts by how few tasks use it, so that a color
    tells and "the" does not. A word of other tasks alone, as "right" of "left", rules a task out.

    Args:
        text: an instruction.
        tasks: wording -> its task.
    """
    typed = _vocabulary(text)
    if not typed.isdisjoint(NEGATIONS):
        return None
    vocabularies: dict[str, set[str]] = {task: set() for task in tasks.values()}
    for wording, task in tasks.items():
        vocabularies[task] |= _vocabulary(wording)
    users = Counter(word for vocabulary in vocabularies.values() for word in vocabulary)

    def weight(some: frozenset[str]) -> float:
        return float(sum(np.log(len(vocabularies) / max(1, users[word])) for word in some))

    near = dict.fromkeys(vocabularies, (0.0, ""))
    for wording, task in tasks.items():
        if typed & users.keys() <= vocabularies[task] and (whole := weight(typed | _vocabulary(wording))):
            near[task] = max(near[task], (weight(typed & _vocabulary(wording)) / whole, wording))
    second, (best, wording) = sorted(near.values())[-2:]
    return wording if best >= LEAST_NEARNESS and best - second[0] >= LEAST_LEAD else None


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(re.findall("[a-z]+", text.lower()))


@lru_cache(maxsize=len(_FILES))
def _load(file: Path) -> dict[str, tuple[str, ...]]:
    """Return the content of a file of this package, read once."""
    return _read(file)


def _read(file: Path) -> dict[str, tuple[str, ...]]:
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict) or not all(isinstance(entry, list) for entry in content.values()):
        raise ValueError("expected a mapping from task names to lists")
    return {str(task): tuple(str(text) for text in texts) for task, texts in content.items()}
