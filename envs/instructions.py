"""The sentences that go with the tasks.

train        389, to label training data with: 7 to 20 for each of the 34 tasks
validation   34, one for each task: what the benchmark asks with
enriched     102, three for each task, in neither of the other two: does the policy follow words it never met?
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
    """Task name -> its sentences. "train": 7 to 20 per task; "validation": exactly one."""
    if split not in ("train", "validation"):
        raise InputError(f"unknown split {split!r}; known: train, validation")
    return {task: list(sentences) for task, sentences in _load(Path(__file__).parent / _FILES[split]).items()}


def read_instructions(name_or_file: str) -> dict[str, list[str]]:
    """Task name -> sentences to ask with: a name above, or a yaml file of one's own that maps every task to a list.

    Raises:
        InputError: no such name or file, or a task without sentences.
    """
    file = Path(__file__).parent / _FILES[name_or_file] if name_or_file in _FILES else Path(name_or_file)
    if not file.is_file():
        raise InputError(f"unknown sentences {name_or_file!r}; known: {', '.join(_FILES)}, or a yaml file")
    try:
        found = _load(file) if name_or_file in _FILES else _read(file)
    except (YAMLError, TypeError, ValueError) as error:
        raise InputError(f"{file} is no list of sentences for each task ({error})") from error
    if lacking := [task for task in _load(Path(__file__).parent / _FILES["validation"]) if not found.get(task)]:
        raise InputError(f"{file} has no sentence for {', '.join(lacking)}; every task needs at least one")
    return {task: list(sentences) for task, sentences in found.items()}


def choose_instruction(sentences: Sequence[str], task: str, chain: int | None) -> str:
    """Which of several sentences asks for a task in a chain: a function of task and chain alone; None: the first."""
    if chain is None or len(sentences) == 1:
        return sentences[0]
    seed = np.random.SeedSequence([chain, *task.encode()])
    return sentences[int(seed.generate_state(1)[0]) % len(sentences)]


@lru_cache(maxsize=len(_FILES))
def _load(file: Path) -> dict[str, tuple[str, ...]]:
    return _read(file)


def _read(file: Path) -> dict[str, tuple[str, ...]]:
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict) or not all(isinstance(entry, list) for entry in content.values()):
        raise ValueError("expected a mapping from task names to lists")
    return {str(task): tuple(str(sentence) for sentence in sentences) for task, sentences in content.items()}
