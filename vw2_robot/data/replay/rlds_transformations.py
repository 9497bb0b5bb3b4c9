"""Windows and statistics by `rlds.transformations`, for the Pythons that it supports (3.10 and 3.11, Linux x86-64).

The ingest processes of a Reverb replay use it to cut windows by the same pattern as Reverb's writer; the statistics of
labeled RLDS sets use it too. The package rlds imports Reverb. Elsewhere numpy computes the same: `window_frames` of
`windows.py` and `mean_and_std` of `statistics.py`. Tests compare each pair.
"""

# n windows · T frames of a window · L steps of an episode · A action dims
from __future__ import annotations

import atexit
import functools
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import require

from ..step_names import ACTION, IS_LAST, OBSERVATION, STEPS
from .reverb_tables import load_reverb, wanted_at, window_pattern


def is_installed() -> bool:
    """Whether rlds can be imported here."""
    return all(importlib.util.find_spec(name) is not None for name in ("rlds", "reverb", "tensorflow"))


def window_frames(start: NDArray[np.int64], offsets: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the steps [n, T] that the windows show which begin at `start` [n], each once, for `offsets` [T].

    The pattern slides over the numbers of the steps instead of their images. This takes a millisecond an episode, after
    a second or two for the first one of each frame rate.
    """
    if not len(start):
        return np.empty((0, len(offsets)), np.int64)
    # Steps as `reverb_writer` sends them: a window is marked at its last step, which may lie behind the episode.
    ends = start + offsets[-1]
    steps = np.arange(ends.max() + 1)
    begins = np.full_like(steps, -1)
    begins[ends] = start
    columns = {
        OBSERVATION: steps,
        "header": begins,
        "table": (begins >= 0).astype(np.int64),
        IS_LAST: steps == steps[-1],
    }
    # The header of a step is the start of its window, to assign the results to `start`.
    found = _sliding(offsets)(columns)
    frames: NDArray[np.int64] = np.stack([column.numpy() for column in found["frames"]], axis=1)
    return frames[np.searchsorted(found["header"].numpy(), start)]


@functools.cache
def _sliding(offsets: tuple[int, ...]) -> Callable[[dict[str, NDArray[Any]]], dict[str, Any]]:
    """Return the function steps -> windows of `window_pattern(offsets)`, as a graph that is traced once."""
    _, tf = load_reverb()
    transformations = _load_rlds().transformations
    types = {OBSERVATION: tf.int64, "header": tf.int64, "table": tf.int64, IS_LAST: tf.bool}

    def slide(columns: dict[str, Any]) -> Any:
        steps = tf.data.Dataset.from_tensor_slices(columns)
        episode = tf.data.Dataset.from_tensors(0).map(lambda _: {STEPS: steps})
        windows = transformations.pattern_map_from_transform(
            episode,
            window_pattern(offsets),
            conditions=[wanted_at(1, transformations.step_spec(episode))],
            respect_episode_boundaries=True,
        )
        return windows.batch(2**31).get_single_element()

    signature = [{name: tf.TensorSpec([None], kind) for name, kind in types.items()}]
    traced: Callable[[dict[str, NDArray[Any]]], dict[str, Any]] = tf.function(slide, input_signature=signature)
    return traced


atexit.register(_sliding.cache_clear)  # a graph that outlives TensorFlow's modules prints errors at exit


def mean_and_std(actions: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation, see `statistics.mean_and_std`."""
    _, tf = load_reverb()
    values = tf.constant(np.concatenate(actions))
    last = tf.constant(np.concatenate([np.arange(len(episode)) == len(episode) - 1 for episode in actions]))
    steps = tf.data.Dataset.from_tensor_slices({ACTION: values, IS_LAST: last})
    episodes = tf.data.Dataset.from_tensors(0).map(lambda _: {STEPS: steps})

    def fields(step: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {ACTION: step[ACTION]}, {ACTION: not step[IS_LAST]}

    mean, std = _load_rlds().transformations.mean_and_std(episodes, fields)
    return mean[ACTION].numpy(), np.asarray(std[ACTION])


def _load_rlds() -> ModuleType:
    load_reverb()  # sets up the environment in which TensorFlow is imported
    return require("rlds", extra="replay")
