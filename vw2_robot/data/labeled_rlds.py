"""RLDS data sets as labeled video, to test whether a code means the same action for another robot.

Like `labeled_steps.py`, for Open-X data sets and own recordings in that form. The rule of a data set in the table of
sources (`openx_sources.yaml`) says how to make seven numbers of its actions. Data sets with other rules are refused,
since misread actions would look like poor codes. Actions are read only to evaluate codes: none of them enters training.

Time alignment: action t happens between frame t and frame t + 1. Units and axes are those of the data set, so
`LabeledVideo.units` is its name.
"""

# E episodes · L steps of an episode
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, ACTION_NAMES, GRIPPER_INDEX
from vw2_robot.errors import InputError

from .frame_cache import FrameCache, cache_frames
from .labeled_steps import LabeledVideo, RecordedSplit, check_same_episodes, keep_motion
from .replay import rlds_transformations
from .sources.openx import known_source
from .sources.rlds import RldsSource
from .statistics import mean_and_std
from .step_names import ACTION, OBSERVATION

SPLITS: dict[RecordedSplit, str] = {"training": "train", "validation": "val"}
ACTIONS = (ACTION,)
STATES = (OBSERVATION, "state")
GRIPPER_RULES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "as_stored": lambda gripper: gripper,
    "binary_gripper": lambda gripper: np.where(gripper > 0.5, 1.0, -1.0),
    "inverted": lambda gripper: 1 - 2 * np.clip(gripper, 0, 1),
}
"""Rules of actions that are a translation, a rotation and a gripper in one row -> how the gripper becomes -1 .. +1."""
POSE_RULES = {"binary_gripper"}
"""Rules of data sets with end-effector pose and gripper opening in `observation/state`."""


def open_labeled_rlds(
    path: Path,
    *,
    name: str,
    cache: Path,
    height: int,
    width: int,
    episodes: int,
    seed: int,
    split: RecordedSplit = "training",
) -> LabeledVideo:
    """Open a random sample of the episodes of an RLDS data set; frames are decoded into a cache once.

    Args:
        path: folder of the data set.
        name: of the result.
        cache: folder of the frame cache, also for the actions.
        height: of the cached frames, pixels.
        width: of the cached frames, pixels.
        episodes: at most so many episodes are sampled.
        seed: of the sample.
        split: which split.

    Raises:
        InputError: it is no RLDS data set, its actions cannot be read, or `cache` holds something else.
    """
    source = RldsSource(path, splits=(SPLITS[split],), max_skipped=0)
    row = known_source(source.name)
    rule = "unknown" if row is None else row.action
    if rule not in GRIPPER_RULES:
        raise InputError(
            f"{source.path}: it is not known how to make seven numbers of an action of {source.name!r} (rule {rule!r} "
            f"in the table of sources); codes can be judged on sets with the rules {', '.join(GRIPPER_RULES)}"
        )
    # Sample episodes of the whole split, then sort them by file: part -> numbers in it.
    counts = [part.episodes or 0 for part in source.parts()]
    begins = list(accumulate(counts, initial=0))
    sampled: dict[int, list[int]] = {}
    for position in np.sort(np.random.default_rng(seed).permutation(begins[-1])[:episodes]).tolist():
        part = bisect_right(begins, position) - 1
        sampled.setdefault(part, []).append(position - begins[part])
    cache_frames(
        (
            episode
            for part, numbers in sampled.items()
            for episode in _pick(source.read(part, start=numbers[0]), numbers)
        ),
        cache,
        height=height,
        width=width,
        # None may be left out: the actions are read separately, episode by episode.
        max_skipped=0,
        description={"rlds": str(path.resolve()), "split": split, "episodes": episodes, "seed": seed},
    )
    frame_cache = FrameCache(cache)
    found = keep_motion(
        cache / "motion.npz",
        lambda: _read_motion(source, sampled, frame_cache, rule),
        lengths=frame_cache.episodes.length.tolist(),
    )
    group = np.arange(len(frame_cache.episodes))  # episodes share no frames here
    actions = found["commanded"]
    spread = (
        rlds_transformations.mean_and_std(actions) if rlds_transformations.is_installed() else mean_and_std(actions)
    )
    return LabeledVideo(
        name, frame_cache, group, actions, found.get("moved"), spread, units=source.name, action_names=ACTION_NAMES
    )


def _pick(stream: Iterator[Any], numbers: Sequence[int]) -> Iterator[Any]:
    """Yield the items with these ascending numbers from a stream that begins at the first of them."""
    # Episodes in between are read, too: records can only be read in order.
    wanted = {number - numbers[0] for number in numbers}
    return (found for i, found in enumerate(islice(stream, max(wanted) + 1)) if i in wanted)


def _read_motion(
    source: RldsSource, sampled: Mapping[int, list[int]], frame_cache: FrameCache, rule: str
) -> dict[str, NDArray[np.float64]]:
    """Return the actions of the cached episodes, and their poses if the data set has them, all episodes in a row."""
    keys = (ACTIONS, STATES) if rule in POSE_RULES else (ACTIONS,)
    numbers = [
        found
        for part, chosen in sampled.items()
        for found in _pick(source.read_numbers(part, keys, start=chosen[0]), chosen)
    ]
    check_same_episodes(frame_cache, [name for name, _ in numbers], source.path)
    columns = [np.concatenate([values[i] for _, values in numbers]).astype(np.float64) for i in range(len(keys))]
    for key, column in zip(keys, columns, strict=True):
        if column.ndim != 2 or column.shape[1] != ACTION_DIM:
            raise InputError(
                f"{source.path}: {'/'.join(key)} of {source.name!r} has shape {column.shape[1:]} a step, expected "
                f"{ACTION_DIM} numbers by its rule {rule!r} in the table of sources"
            )
    # All rules bring the gripper to -1 (closed) .. +1 (open).
    commanded = columns[0].copy()
    commanded[:, GRIPPER_INDEX] = GRIPPER_RULES[rule](commanded[:, GRIPPER_INDEX])
    return {"commanded": commanded} | ({"moved": columns[1]} if rule in POSE_RULES else {})
