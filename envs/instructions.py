"""The sentences that go with the tasks: 389 to label training data with, and one for each of the 34 to judge by."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from omegaconf import OmegaConf

from vw2_robot.contracts import Split
from vw2_robot.errors import InputError

_FILES: dict[str, str] = {"train": "annotations_training.yaml", "validation": "annotations_validation.yaml"}


def load_instructions(split: Split) -> dict[str, list[str]]:
    """Task name -> its sentences. "train": 7 to 20 per task; "validation": exactly one."""
    if split not in _FILES:
        raise InputError(f"unknown split {split!r}; known: {', '.join(_FILES)}")
    return {task: list(sentences) for task, sentences in _load(_FILES[split]).items()}


@lru_cache(maxsize=2)
def _load(name: str) -> dict[str, tuple[str, ...]]:
    content = OmegaConf.to_container(OmegaConf.load(Path(__file__).parent / name))
    assert isinstance(content, dict)
    return {str(task): tuple(sentences) for task, sentences in content.items()}
