"""The instructions of the tasks.

train        389, labels of the training data: 7 to 20 for each of the 34 tasks
validation   34, one for each task: those of the benchmark
enriched     102, three for each task, in neither of the other two: they test generalization to unseen instructions
"""

from __future__ import annotations

from collections.abc import Sequence
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


@lru_cache(maxsize=len(_FILES))
def _load(file: Path) -> dict[str, tuple[str, ...]]:
    """Return the content of a file of this package, read once."""
    return _read(file)


def _read(file: Path) -> dict[str, tuple[str, ...]]:
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict) or not all(isinstance(entry, list) for entry in content.values()):
        raise ValueError("expected a mapping from task names to lists")
    return {str(task): tuple(str(text) for text in texts) for task, texts in content.items()}
