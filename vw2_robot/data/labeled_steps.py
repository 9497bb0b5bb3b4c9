"""Labeled video cut into latent steps: for every step its frames and what the robot really did during it.

For judging codes, not for training: this is the one place where video and true motion meet before fine-tuning. Reads
CALVIN data sets (published ones and our recordings); RLDS ones are read by `labeled_rlds.py`. Frames are decoded once
into a frame cache, the motion is stored in the same folder.

Time alignment: latent step k of a clip covers frames s(k-1)+1 .. sk, the transitions caused by the actions
a[s(k-1)] .. a[sk-1]; in arrays of M steps, entry m is step m + 1. Two descriptions of a step are given:

* `commanded`: the relative actions of the step, summed (units of 0.02 m and 0.05 rad); of the gripper, which is -1 or
  +1, the mean. What a policy is to predict.
* `moved`: how the hand's pose changed from the first to the last frame of the step, in meters and radians, and by how
  many meters the gripper opened. What can be seen.
"""

# E episodes · L frames of an episode · n clips · T frames of a clip · M latent steps · s temporal stride · H, W pixels
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_NAMES, GRIPPER_INDEX
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays, write_arrays
from vw2_robot.storage.locks import lock_folder

from .clips import make_windows
from .episodes import Episode
from .frame_cache import FrameCache, cache_frames
from .sources.calvin import CalvinDataset, CalvinSplit, Trajectory
from .statistics import mean_and_std

MOVED_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "opening")
ROTATION = slice(3, 6)
CALVIN_UNITS = "calvin"


@dataclass(frozen=True, eq=False)
class LabeledVideo:
    """One data set. `group` [E] is equal for episodes that share a frame: they must stay on one side of a split.

    commanded: per episode [L, 7], the actions; moved: per episode [L, 7], the pose (or None where the set has none).
    """

    name: str
    frame_cache: FrameCache
    group: NDArray[np.int64]
    commanded: list[NDArray[np.float64]]
    moved: list[NDArray[np.float64]] | None
    spread: tuple[NDArray[np.float64], NDArray[np.float64]]
    """mean and standard deviation [7] of the actions, see `statistics.mean_and_std`"""
    units: str = CALVIN_UNITS
    """equal where numbers of one data set mean the same in another: one robot, one kind of action"""


@dataclass(frozen=True, eq=False)
class LabeledSteps:
    """Clips of labeled video, and the motion of their steps.

    episode [n]: index in the frame cache; frames [n, T]; valid [n, M]: steps that are wholly inside the episode.
    commanded, moved [n, M, 7]: zero where not valid.
    """

    episode: NDArray[np.int64]
    frame_ids: NDArray[np.int64]
    valid: NDArray[np.bool_]
    commanded: NDArray[np.float64]
    moved: NDArray[np.float64] | None

    @property
    def motion(self) -> NDArray[np.float64]:
        """What can be seen of the motion [n, M, 7]: `moved`, or `commanded` where that is not known."""
        return self.commanded if self.moved is None else self.moved


def open_labeled_calvin(
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
    """Open at most `episodes` trajectories of a CALVIN data set, drawn by `seed`; frames are decoded into `cache` once.

    Raises:
        InputError: no CALVIN data set, or `cache` holds something else.
    """
    dataset = CalvinDataset(path, split)
    count = min(episodes, len(dataset))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count])
    trajectories = [dataset.trajectories[i] for i in drawn]
    cache_frames(
        (_episode(dataset, trajectory) for trajectory in trajectories),
        cache,
        height=height,
        width=width,
        max_skipped=0,
        description={"calvin": str(path.resolve()), "split": split, "episodes": count, "seed": seed},
    )
    frames = FrameCache(cache)
    check_same_episodes(frames, [trajectory.trajectory_id for trajectory in trajectories], path)
    commanded, moved = _read_motion(dataset, trajectories, cache / "motion.npz")
    return LabeledVideo(name, frames, _groups(trajectories), commanded, moved, mean_and_std(commanded))


def check_same_episodes(frame_cache: FrameCache, names: Sequence[str], path: Path | str) -> None:
    """Refuse a complete cache where the data set has changed since, so that other episodes are drawn from it.

    Raises:
        InputError: names the folder to delete.
    """
    if [episode.episode_id for episode in frame_cache.episodes] != list(names):
        raise InputError(
            f"{frame_cache.path} was made from other episodes than are drawn from {path} now; delete "
            f"{frame_cache.path} to have "
            "it made again"
        )


def _episode(dataset: CalvinDataset, trajectory: Trajectory) -> Episode:
    images = tuple(dataset.read_images(trajectory))
    return Episode(f"calvin_{trajectory.scene}", trajectory.trajectory_id, trajectory.instruction, 30.0, images)


def _groups(trajectories: Sequence[Trajectory]) -> NDArray[np.int64]:
    """Number the stretches of frames that are linked by overlap; CALVIN's published windows overlap."""
    group = np.zeros(len(trajectories), np.int64)
    last, number = -1, -1
    for i in sorted(range(len(trajectories)), key=lambda i: trajectories[i].start):
        number += trajectories[i].start > last
        last = max(last, trajectories[i].end)
        group[i] = number
    return group


def _read_motion(
    dataset: CalvinDataset, trajectories: Sequence[Trajectory], file: Path
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]] | None]:
    def read() -> dict[str, NDArray[np.float64]]:
        arrays = {"commanded": np.concatenate([dataset.read_actions(t) for t in trajectories]).astype(np.float64)}
        if dataset.holds(trajectories[0], "robot_obs"):
            state = np.concatenate([dataset.read(t, "robot_obs") for t in trajectories])
            arrays["moved"] = state[:, :7].astype(np.float64)
        return arrays

    found = keep_motion(file, read, lengths=[trajectory.length for trajectory in trajectories])
    return found["commanded"], found.get("moved")


def keep_motion(
    file: Path, read: Callable[[], Mapping[str, NDArray[np.float64]]], *, lengths: Sequence[int]
) -> dict[str, list[NDArray[np.float64]]]:
    """What `read` gives of all episodes in a row, cut into episodes; read once, then kept in `file` (.npz).

    Raises:
        InputError: the file is damaged, or of other episodes.
    """
    cure = "delete it, and it is made again"
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
    """Cut every episode into clips of `frames` frames and say what happened in each step.

    Clips follow one another without overlap, or begin at `every`-th clip frame.

    Raises:
        InputError: no episode is long enough for one step.
    """
    span = stride * -(-(num_frames - 1) // stride)
    pieces: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []
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
        pieces.append((np.full(len(windows.start), index), windows.frame_ids, windows.valid))
    episode_n, frames_nT, valid_nM = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    if not len(episode_n):
        raise InputError(f"{video.name}: no episode has {stride + 1} frames, so there is no latent step to look at")
    edges = frames_nT[:, ::stride]
    commanded = _by_step(video.commanded, episode_n, edges, valid_nM, what=_commanded)
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
    out = np.stack([what(values[e], edge) for e, edge in zip(episode_n, edges, strict=True)])
    return np.where(valid_nM[..., None], out, 0.0)


def _commanded(actions: NDArray[np.float64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Actions [L, 7], edges [M + 1] -> [M, 7]: sums, for the gripper means."""
    total = np.concatenate([np.zeros((1, actions.shape[1])), np.cumsum(actions, axis=0)])
    out = total[edges[1:]] - total[edges[:-1]]
    out[:, GRIPPER_INDEX] /= np.maximum(1, edges[1:] - edges[:-1])
    return out


def _moved(pose: NDArray[np.float64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Poses [L, 7], edges [M + 1] -> differences [M, 7]; angles are taken the short way round."""
    out = pose[edges[1:]] - pose[edges[:-1]]
    out[:, ROTATION] = (out[:, ROTATION] + np.pi) % (2 * np.pi) - np.pi
    return out


def target_names(kind: str) -> tuple[str, ...]:
    """Names of the 7 columns of `commanded` or `moved`."""
    return tuple(ACTION_NAMES) if kind == "commanded" else MOVED_NAMES
