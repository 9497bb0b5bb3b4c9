"""The labeled data sets of a latent report: opened, cut into clips and encoded."""

# n clips · T frames · M latent steps · H, W pixels
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.data.clips import TimeBase
from vw2_robot.data.labeled_rlds import open_labeled_rlds
from vw2_robot.data.labeled_steps import LabeledSteps, LabeledVideo, RecordedSplit, cut_steps, open_labeled_steps
from vw2_robot.data.sources.formats import recognize
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM

from .code_swap import Changes, MovingClips, change_of
from .features import StepRows, encode_steps, pixel_differences, step_rows, untrained_clone
from .latent_map import moving_rows
from .probes import Split

UNTRAINED_CLIPS = 256
SWAP_STEPS = 4
"""Longest clip of the swap test, in latent steps: about a second; over more, the end effector returns."""
SWAP_BYTES = 2**29
READ_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Labeled:
    """One data set.

    Attributes:
        video: its frames and actions.
        steps: its clips, cut into latent steps.
        rows: the valid steps, with the codes of the dLDM.
        untrained: the same steps, with the codes of an untrained dLDM.
        time_base: in which clips were cut.
    """

    video: LabeledVideo
    steps: LabeledSteps
    rows: StepRows
    untrained: StepRows
    time_base: TimeBase

    def facts(self) -> dict[str, Any]:
        """Return name, sizes, units, and mean and standard deviation of the actions in them."""
        mean, std = self.video.spread
        return {
            "name": self.video.name,
            "demonstrations": len(self.video.frame_cache.episodes),
            "clips": len(self.steps.episode),
            "steps": len(self.rows),
            "units": self.video.units,
            "action_names": list(self.video.action_names),
            "actions": {"mean": mean.tolist(), "std": std.tolist()},
        }

    def first_steps(self, rows: NDArray[np.int64], *, stride: int) -> NDArray[np.uint8]:
        """Return the frames of the first steps of the clips of these rows, uint8 [R, stride + 1, H, W, 3]."""
        clip = self.rows.clip[rows]
        return self.video.frame_cache.read_batch(self.steps.episode[clip], self.steps.frame_ids[clip, : stride + 1])


def open_sets(
    paths: Sequence[str],
    *,
    names: Sequence[str] | None,
    cache: Path,
    split: RecordedSplit,
    episodes: int,
    time_base: TimeBase,
    seed: int,
    dldm: DLDM,
    device: torch.device,
) -> list[Labeled]:
    """Decode, cut and encode every data set, with the dLDM and with an untrained clone of it.

    Args:
        paths: their folders.
        names: what they are called; None: `short_names`.
        cache: folder of their frame caches.
        split: of each data set.
        episodes: at most so many demonstrations of each.
        time_base: in which clips are cut.
        seed: of the choice of demonstrations and of the clone's weights.
        dldm: in evaluation mode, on the device.
        device: where clips are encoded.

    Raises:
        InputError: a folder is no labeled data set, has fewer than three separate demonstrations, or nothing moves.
    """
    shape = dldm.config
    videos = [
        open_video(Path(path), name, cache=cache, shape=shape, split=split, episodes=episodes, seed=seed)
        for path, name in zip(paths, names or short_names([Path(path) for path in paths]), strict=True)
    ]
    cut = [cut_steps(video, num_frames=shape.num_frames, stride=shape.temporal_stride, **time_base) for video in videos]
    for video, steps in zip(videos, cut, strict=True):
        check_motion(video, steps)
    # Running statistics of the clone settle on clips of the first data set.
    first = cut[0]
    clips = videos[0].frame_cache.read_batch(first.episode[:UNTRAINED_CLIPS], first.frame_ids[:UNTRAINED_CLIPS])
    clone = untrained_clone(shape, clips, seed=seed, device=device)
    sets = []
    for video, steps in zip(videos, cut, strict=True):
        difference = pixel_differences(video, steps, stride=shape.temporal_stride)
        trained, untrained = (
            step_rows(video, steps, encode_steps(model, video, steps, device=device), difference)
            for model in (dldm, clone)
        )
        sets.append(Labeled(video, steps, trained, untrained, time_base))
    return sets


def check_motion(video: LabeledVideo, steps: LabeledSteps) -> None:
    """Check before anything is encoded that something moves; a converter may have left zeros.

    Raises:
        InputError: the motion is the same in all latent steps.
    """
    motion = steps.motion[steps.valid][:, :3]
    if not moving_rows(motion).any():
        what = "the actions are" if video.moved is None else "the pose of the end effector (robot_obs) is"
        raise InputError(
            f"{video.name}: {what} the same in all {len(motion)} latent steps, so there is no motion to find in codes; "
            "give a data set in which the robot moves, or leave this one out of labeled"
        )


def open_video(
    path: Path, name: str, *, cache: Path, shape: DLDMConfig, split: RecordedSplit, episodes: int, seed: int
) -> LabeledVideo:
    """Open one data set with labels, RLDS or one file per time step, as in `open_sets`.

    Args:
        path: folder of the data set.
        name: what it is called.
        cache: folder of the frame caches; that of this data set is a folder in it.
        shape: the dLDM's configuration; gives height and width of the frames in pixels.
        split: of the data set.
        episodes: at most so many demonstrations.
        seed: of the choice of demonstrations.

    Raises:
        InputError: it has fewer than three demonstrations that share no frame.
    """
    # The frame cache's name holds all that decides its content, so data sets may share the folder.
    reader = open_labeled_rlds if recognize(path) == "rlds" else open_labeled_steps
    video = reader(
        path,
        name=name,
        cache=cache / f"{name}-{split}-{shape.height}x{shape.width}-{episodes}-{seed}",
        height=shape.height,
        width=shape.width,
        episodes=episodes,
        seed=seed,
        split=split,
    )
    if len(set(video.group.tolist())) < 3:
        raise InputError(
            f"{path}: a probe needs at least 3 demonstrations that share no frame (training, validation, test), "
            f"found {len(set(video.group.tolist()))}; record more, or name a larger data set"
        )
    return video


def in_common_units(sets: Sequence[Labeled], splits: Sequence[Split]) -> list[tuple[list[Labeled], list[Split]]]:
    """Return the data sets grouped by units, with their splits, in the order of their first ones."""
    alike: dict[str, tuple[list[Labeled], list[Split]]] = {}
    for labeled, split in zip(sets, splits, strict=True):
        members, sides = alike.setdefault(labeled.video.units, ([], []))
        members.append(labeled)
        sides.append(split)
    return list(alike.values())


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as it takes to make them differ.

    Raises:
        InputError: a folder is named twice.
    """
    resolved = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["_".join(path.parts[-depth:]).strip("/") for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"labeled names a folder twice: {', '.join(map(str, paths))}")


def dense_changes(sets: Sequence[Labeled], splits: Sequence[Split], *, count: int, stride: int) -> Changes:
    """Return changes of images over windows of `count` steps that begin at every step, of all data sets together.

    Args:
        sets: data sets in the same units.
        splits: of their rows; windows of a demonstration are on the same side.
        count: latent steps of a window.
        stride: clip frames of a latent step.
    """
    changes = []
    motions = []
    sides = []
    for labeled, split in zip(sets, splits, strict=True):
        video = labeled.video
        steps = cut_steps(video, num_frames=1 + stride * count, stride=stride, **labeled.time_base, every=stride)
        whole = np.flatnonzero(steps.valid.all(1))
        # In parts: the frames of all windows at once may not fit into memory.
        for part in np.array_split(whole, max(1, len(whole) // READ_AT_ONCE)):
            ends = video.frame_cache.read_batch(steps.episode[part], steps.frame_ids[part][:, [0, -1]])
            changes.append(change_of(ends[:, 0], ends[:, 1]))
        # Translations of consecutive steps add up to that of the window; rotations do not.
        motions.append(steps.motion[whole, :, :3].sum(1))
        # By episode: these windows begin elsewhere than the rows, but lie on the side of their demonstration.
        sides.append([np.isin(steps.episode[whole], labeled.rows.episode[side]) for side in split])
    split = Split(*(np.concatenate(side) for side in zip(*sides, strict=True)))
    return Changes(np.concatenate(changes), np.concatenate(motions), split)


def swap_steps(labeled: Labeled) -> int:
    """Return the latent steps of a clip of the swap test."""
    return min(SWAP_STEPS, labeled.steps.valid.shape[1])


def whole_clips(labeled: Labeled, split: Split, *, seed: int) -> MovingClips:
    """Return the first `swap_steps` latent steps of each clip in which all of these are valid.

    Args:
        labeled: the data set.
        split: of its rows.
        seed: of the choice where the pixels would take more than half a gigabyte.
    """
    steps = labeled.steps
    rows = labeled.rows
    count = swap_steps(labeled)
    stride = (steps.frame_ids.shape[1] - 1) // steps.valid.shape[1]
    frame_ids = steps.frame_ids[:, : 1 + stride * count]
    whole = np.flatnonzero(steps.valid[:, :count].all(1))
    height = labeled.video.frame_cache.height
    width = labeled.video.frame_cache.width
    max_clips = max(64, SWAP_BYTES // (frame_ids.shape[1] * height * width * 3))
    whole = np.sort(np.random.default_rng([seed, 8]).permutation(whole)[:max_clips])
    # The first row of each clip; all rows of a clip are on the same side.
    first_row = np.searchsorted(rows.clip, whole)
    return MovingClips(
        name=labeled.video.name,
        pixels=labeled.video.frame_cache.read_batch(steps.episode[whole], frame_ids[whole]),
        displacement=steps.motion[whole, :count, :3].sum(1),
        group=labeled.video.group[steps.episode[whole]],
        split=Split(*(side[first_row] for side in split)),
    )
