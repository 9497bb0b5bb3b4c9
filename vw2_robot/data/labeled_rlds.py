"""RLDS data sets as labeled video: is a code the same action for another robot?

Beside `labeled_steps.py`, for Open-X sets and our own recordings in that form. What seven numbers an action has says
its rule in the table of sources (`openx_sources.yaml`); sets with other rules are refused, since a wrong reading would
pass for a bad code. Actions are read here for judging codes alone: none of them enters training.

Time alignment: action t is what happens between frame t and frame t + 1. Units and axes are those of the data set, so
`LabeledVideo.units` is its name.
"""

# E episodes · L steps of an episode
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX
from vw2_robot.errors import InputError

from .frame_cache import FrameCache, cache_frames
from .labeled_steps import LabeledVideo, check_same_episodes, keep_motion
from .replay import rlds_transformations
from .sources.calvin import CalvinSplit
from .sources.openx import known_source
from .sources.rlds import RldsSource
from .statistics import mean_and_std
from .step_names import ACTION, OBSERVATION

SPLITS: dict[CalvinSplit, str] = {"training": "train", "validation": "val"}
ACTIONS, STATES = (ACTION,), (OBSERVATION, "state")
GRIPPER_RULES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "as_stored": lambda gripper: gripper,
    "binary_gripper": lambda gripper: np.where(gripper > 0.5, 1.0, -1.0),
    "inverted": lambda gripper: 1 - 2 * np.clip(gripper, 0, 1),
}
"""Rules of actions that are a translation, a rotation and a gripper in one row; how the last becomes -1 .. +1."""
POSE_RULES = {"binary_gripper"}
"""Rules whose sets have the pose of the hand and the opening of the gripper in `observation/state`."""


def open_labeled_rlds(
    path: Path,
    *,
    name: str,
    cache: Path,
    height: int,
    width: int,
    episodes: int,
    seed: int,
    split: CalvinSplit = "training",
) -> LabeledVideo:
    """Open at most `episodes` episodes of an RLDS data set, drawn by `seed`; frames are decoded into `cache` once.

    Raises:
        InputError: no RLDS data set, one whose actions cannot be read, or `cache` holds something else.
    """
    source = RldsSource(path, splits=(SPLITS[split],), max_skipped=0)
    rule = _rule(source)
    drawn = _draw(source, episodes, seed)
    cache_frames(
        (episode for part, numbers in drawn for episode in _pick(source.read(part, start=numbers[0]), numbers)),
        cache,
        height=height,
        width=width,
        max_skipped=0,
        description={"rlds": str(path.resolve()), "split": split, "episodes": episodes, "seed": seed},
    )
    frames = FrameCache(cache)
    found = keep_motion(
        cache / "motion.npz",
        lambda: _motion(source, drawn, frames, rule),
        lengths=[episode.length for episode in frames.episodes],
    )
    group = np.arange(len(frames.episodes))
    actions = found["commanded"]
    spread = (
        rlds_transformations.mean_and_std(actions) if rlds_transformations.is_installed() else mean_and_std(actions)
    )
    return LabeledVideo(name, frames, group, actions, found.get("moved"), spread, units=source.name)


def _rule(source: RldsSource) -> str:
    row = known_source(source.name)
    rule = "unknown" if row is None else row.action
    if rule not in GRIPPER_RULES:
        raise InputError(
            f"{source.path}: it is not known how to make seven numbers of an action of {source.name!r} (rule {rule!r} "
            f"in the table of sources); codes can be judged on sets with the rules {', '.join(GRIPPER_RULES)}"
        )
    return rule


def _draw(source: RldsSource, episodes: int, seed: int) -> list[tuple[int, list[int]]]:
    """Part and sorted numbers in it of at most `episodes` episodes; parts without any are left out."""
    counts = [part.episodes or 0 for part in source.parts()]
    begins = list(accumulate(counts, initial=0))
    drawn: dict[int, list[int]] = {}
    for position in np.sort(np.random.default_rng(seed).permutation(begins[-1])[:episodes]).tolist():
        part = bisect_right(begins, position) - 1
        drawn.setdefault(part, []).append(position - begins[part])
    return list(drawn.items())


def _pick(stream: Iterator[Any], numbers: Sequence[int]) -> Iterator[Any]:
    """Those of a stream that begins at the first of `numbers`."""
    wanted = {number - numbers[0] for number in numbers}
    return (found for i, found in enumerate(islice(stream, max(wanted) + 1)) if i in wanted)


def _motion(
    source: RldsSource, drawn: Sequence[tuple[int, list[int]]], frame_cache: FrameCache, rule: str
) -> dict[str, NDArray[np.float64]]:
    """The actions of the cached episodes, and where the rule knows them the poses, all episodes in a row."""
    keys = (ACTIONS, STATES) if rule in POSE_RULES else (ACTIONS,)
    numbers = [
        found for part, chosen in drawn for found in _pick(source.read_numbers(part, keys, start=chosen[0]), chosen)
    ]
    check_same_episodes(frame_cache, [name for name, _ in numbers], source.path)
    columns = [np.concatenate([values[i] for _, values in numbers]).astype(np.float64) for i in range(len(keys))]
    for key, column in zip(keys, columns, strict=True):
        if column.ndim != 2 or column.shape[1] != ACTION_DIM:
            raise InputError(
                f"{source.path}: {'/'.join(key)} of {source.name!r} has shape {column.shape[1:]} a step, expected "
                f"{ACTION_DIM} numbers by its rule {rule!r} in the table of sources"
            )
    commanded = columns[0].copy()
    commanded[:, GRIPPER_INDEX] = GRIPPER_RULES[rule](commanded[:, GRIPPER_INDEX])
    return {"commanded": commanded} | ({"moved": columns[1]} if rule in POSE_RULES else {})
