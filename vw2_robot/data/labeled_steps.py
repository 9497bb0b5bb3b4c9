"""Labeled video cut into latent steps: for every step its frames and the true motion of the robot.

It is used to evaluate codes, not to train: before fine-tuning, video and true motion are read together only here. This
file reads data sets in CALVIN's layout (published ones and own recordings); `labeled_rlds.py` reads RLDS data sets.
Frames are decoded once into a frame cache, and the motion is stored in the same folder.

Time alignment: latent step k of a clip covers frames s(k-1)+1 .. sk, the transitions caused by the actions
a[s(k-1)] .. a[sk-1]; in arrays of M steps, entry m is step m + 1. Two descriptions of a step are given:

* `commanded`: the actions of the step, summed (CALVIN: units of 0.02 m and 0.05 rad); of the gripper, which is -1 or
  +1, the mean. This is what a policy predicts.
* `moved`: the change of the end-effector pose from the first to the last frame of the step, in meters and radians, and
  of the gripper opening in meters. This is what the video shows.
"""

# E episodes · L frames of an episode · n clips · T frames of a clip · M latent steps · s temporal stride · H, W pixels
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import GRIPPER
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays, write_arrays
from vw2_robot.storage.locks import lock_folder

from .clips import make_windows
from .episodes import Episode
from .frame_cache import FrameCache, cache_frames
from .sources.calvin import CalvinDataset, Trajectory
from .statistics import mean_and_std

RecordedSplit = Literal["training", "validation"]
MOVED_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "opening")
ROTATION = slice(3, 6)


@dataclass(frozen=True, eq=False)
class LabeledVideo:
    """Episodes of one data set with their motion.

    `group` [E] is equal for episodes that share a frame: they must stay on one side of a split. `commanded` holds the
    actions [L, A] of each episode, `moved` the poses [L, 7], or None if the data set has none.
    """

    name: str
    frame_cache: FrameCache
    group: NDArray[np.int64]
    commanded: list[NDArray[np.float64]]
    moved: list[NDArray[np.float64]] | None
    spread: tuple[NDArray[np.float64], NDArray[np.float64]]
    """mean and standard deviation [A] of the actions, see `statistics.mean_and_std`"""
    units: str
    """equal for two data sets whose numbers mean the same: one robot, one kind of action"""
    action_names: tuple[str, ...]
    """of the A numbers of an action"""


@dataclass(frozen=True, eq=False)
class LabeledSteps:
    """Clips of labeled video, and the motion of their latent steps.

    `episode` [n] is the index in the frame cache, `frame_ids` [n, T] the frames, `valid` [n, M] marks steps that lie
    inside the episode. `commanded` [n, M, A] and `moved` [n, M, 7] are zero where not valid.
    """

    episode: NDArray[np.int64]
    frame_ids: NDArray[np.int64]
    valid: NDArray[np.bool_]
    commanded: NDArray[np.float64]
    moved: NDArray[np.float64] | None

    @property
    def motion(self) -> NDArray[np.float64]:
        """Visible motion [n, M, 7 or A]: `moved`, or `commanded` if the poses are not known."""
        return self.commanded if self.moved is None else self.moved


def open_labeled_steps(
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
    """Open a random sample of the trajectories of a data set in CALVIN's layout; frames are decoded into a cache once.

    Args:
        path: folder of the data set.
        name: of the result.
        cache: folder of the frame cache, also for the motion.
        height: of the cached frames, pixels.
        width: of the cached frames, pixels.
        episodes: at most so many trajectories are sampled.
        seed: of the sample.
        split: which split.

    Raises:
        InputError: it is no CALVIN data set, or `cache` holds something else.
    """
    dataset = CalvinDataset(path, split)
    count = min(episodes, len(dataset))
    sampled = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count])
    trajectories = [dataset.trajectories[i] for i in sampled]
    cache_frames(
        (
            Episode(
                dataset.source_name(trajectory),
                trajectory.trajectory_id,
                trajectory.instruction,
                dataset.robot.hz,
                tuple(dataset.read_images(trajectory)),
            )
            for trajectory in trajectories
        ),
        cache,
        height=height,
        width=width,
        # None may be left out: the motion is read separately, trajectory by trajectory.
        max_skipped=0,
        decode="full",  # raw images: there is nothing to scale
        description={"calvin": str(path.resolve()), "split": split, "episodes": count, "seed": seed},
    )
    frame_cache = FrameCache(cache)
    check_same_episodes(frame_cache, [trajectory.trajectory_id for trajectory in trajectories], path)

    def read() -> dict[str, NDArray[np.float64]]:
        arrays = {"commanded": np.concatenate([dataset.read_actions(t) for t in trajectories]).astype(np.float64)}
        if dataset.holds(trajectories[0], "robot_obs"):
            state = np.concatenate([dataset.read(t, "robot_obs") for t in trajectories])
            # robot_obs begins with position, rotation and gripper opening (calvin specification, section 5).
            arrays["moved"] = state[:, :7].astype(np.float64)
        return arrays

    found = keep_motion(cache / "motion.npz", read, lengths=[trajectory.length for trajectory in trajectories])
    commanded = found["commanded"]
    return LabeledVideo(
        name,
        frame_cache,
        _groups(trajectories),
        commanded,
        found.get("moved"),
        mean_and_std(commanded),
        units=dataset.robot.name,
        action_names=dataset.robot.action.names,
    )


def check_same_episodes(frame_cache: FrameCache, names: Sequence[str], path: Path | str) -> None:
    """Check that a frame cache holds these episodes: the data set may have changed since it was made.

    Args:
        frame_cache: the cache that was made or found.
        names: ids of the E sampled episodes, in the order of the cache.
        path: the data set they are sampled from, for the message.

    Raises:
        InputError: it holds others; the message names the folder to delete.
    """
    if frame_cache.episodes.texts("episode_id") != list(names):
        raise InputError(
            f"{frame_cache.path} was made from other episodes than are sampled from {path} now; delete "
            f"{frame_cache.path} to have it made again"
        )


def _groups(trajectories: Sequence[Trajectory]) -> NDArray[np.int64]:
    """Return the group of each trajectory: those that overlap are in one. CALVIN's published windows overlap."""
    group = np.zeros(len(trajectories), np.int64)
    last = -1
    number = -1
    # Sweep over the trajectories by their start: a gap begins a new group.
    for i in sorted(range(len(trajectories)), key=lambda i: trajectories[i].start):
        number += trajectories[i].start > last
        last = max(last, trajectories[i].end)
        group[i] = number
    return group


def keep_motion(
    file: Path, read: Callable[[], Mapping[str, NDArray[np.float64]]], *, lengths: Sequence[int]
) -> dict[str, list[NDArray[np.float64]]]:
    """Return arrays of all episodes, one entry an episode; they are read once and kept in a file.

    Args:
        file: .npz; made if absent.
        read: returns arrays with all episodes in a row.
        lengths: number of rows of each episode.

    Raises:
        InputError: the file is damaged, or of other episodes.
    """
    cure = "delete it, and it is made again"
    # Reading actions opens every time step of CALVIN, so the result is stored.
    if not file.is_file():
        with lock_folder(file.parent, what="reading actions"):
            write_arrays(file, read())
    stored = read_arrays(file, cure=cure)
    for key, values in stored.items():
        if values.shape[:1] != (sum(lengths),):
            raise InputError(f"{file}: {key} has shape {values.shape}, expected {sum(lengths)} rows; {cure}")
    return {key: np.split(values, np.cumsum(lengths)[:-1]) for key, values in stored.items()}


def cut_steps(
    video: LabeledVideo,
    *,
    num_frames: int,
    stride: int,
    target_hz: float | None = None,
    gap_seconds: float | None = None,
    every: int | None = None,
) -> LabeledSteps:
    """Cut every episode into clips, with the motion of each latent step.

    Args:
        video: the episodes.
        num_frames: frames of a clip.
        stride: frames of a latent step.
        target_hz: see `vw2_robot.data.clips`.
        gap_seconds: see `vw2_robot.data.clips`.
        every: clip frames between the starts of two clips; without overlap if None.

    Raises:
        InputError: no episode is long enough for one step.
    """
    # Clips that follow each other share a frame: the last one of a clip is the anchor of the next.
    span = stride * -(-(num_frames - 1) // stride)
    columns: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []
    for index, episode in enumerate(video.frame_cache.episodes):
        windows = make_windows(
            episode.length,
            num_frames=num_frames,
            cache_stride=every or span,
            hz=episode.hz,
            temporal_stride=stride,
            target_hz=target_hz,
            gap_seconds=gap_seconds,
        )
        columns.append((np.full(len(windows.start), index), windows.frame_ids, windows.valid))
    episode_n, frames_nT, valid_nM = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    if not len(episode_n):
        raise InputError(f"{video.name}: no episode has {stride + 1} frames, so there is no latent step to evaluate")
    edges = frames_nT[:, ::stride]  # the frames [n, M + 1] where steps begin and end
    commanded = _by_step(video.commanded, episode_n, edges, valid_nM, what=partial(_commanded, video.action_names))
    moved = None if video.moved is None else _by_step(video.moved, episode_n, edges, valid_nM, what=_moved)
    return LabeledSteps(episode_n, frames_nT, valid_nM, commanded, moved)


def _by_step(
    values: Sequence[NDArray[np.float64]],
    episode_n: NDArray[np.int64],
    edges: NDArray[np.int64],
    valid_nM: NDArray[np.bool_],
    *,
    what: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return the motion [n, M, A] that `what` computes from the values of an episode; zero where not valid."""
    out = np.stack([what(values[e], edge) for e, edge in zip(episode_n, edges, strict=True)])
    # Beyond the end of an episode edges repeat the last frame; the result means nothing there.
    return np.where(valid_nM[..., None], out, 0.0)


def _commanded(names: Sequence[str], actions: NDArray[np.float64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum [M, A] of actions [L, A] between edges [M + 1]; for the gripper the mean."""
    # Differences of cumulative sums: one pass for steps of any length.
    total = np.concatenate([np.zeros((1, actions.shape[1])), np.cumsum(actions, axis=0)])
    out = total[edges[1:]] - total[edges[:-1]]
    if GRIPPER in names:
        out[:, names.index(GRIPPER)] /= np.maximum(1, edges[1:] - edges[:-1])
    return out


def _moved(pose: NDArray[np.float64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the difference [M, 7] of poses [L, 7] between edges [M + 1]."""
    out = pose[edges[1:]] - pose[edges[:-1]]
    # Angles wrap around: take the difference in [-pi, pi).
    out[:, ROTATION] = (out[:, ROTATION] + np.pi) % (2 * np.pi) - np.pi
    return out


def target_names(kind: str, action_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the columns of `commanded` or `moved`."""
    return action_names if kind == "commanded" else MOVED_NAMES
