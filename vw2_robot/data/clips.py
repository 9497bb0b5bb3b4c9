"""Clips: windows of T frames of an episode, their valid latent steps, and random batches of them from the frame cache.

Time alignment (docs/concepts.md): frame 0 of a clip is the anchor, latent step k covers frames s(k-1)+1 .. sk. A clip
whose T-1 is no multiple of s is read up to the next multiple; an episode that ends earlier repeats its last frame. A
step is valid only if all its frames lie inside the episode, and every loss must respect `valid`.

Time is configured in seconds, not in frames, since sources run from 2 to 30 Hz. A run sets one of two options or none
(none: consecutive frames, as released). Both keep the fraction until rounding.

* `target_hz`, the frame rate of a clip: every hz/target_hz-th frame. A source slower than `target_hz` is read frame by
  frame and no frame is repeated, so its latent steps last longer than s / target_hz.
* `gap_seconds`, the duration of a latent step: step k ends at frame round(k * gap_seconds * hz), at least one frame
  after the previous step. 0.6 s is usual for latent actions on Open-X. Where a source has fewer than s frames in that
  time, a clip repeats some of them.

Only these functions turn seconds into frames; training from the cache, streams and replays all call them.
Clip k of `ClipSampler.batch` is a pure function of (seed, step, k): a resumed run sees the batches it would have seen,
with any number of ranks. Everything is numpy, uint8 [0, 255] HWC; `vw2_robot.pixels` turns it into [-1, 1] CHW.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.errors import InputError

from .frame_cache import FrameCache

# B batch · T frames · M latent steps · s temporal stride (argument `temporal_stride`) · H, W pixels · n windows


class TimeBase(TypedDict):
    """The time options of clips. Codes depend on them, so checkpoints store them as `time_base`."""

    target_hz: float | None
    gap_seconds: float | None


def time_base_of(facts: Mapping[str, Any]) -> TimeBase:
    """Return the time base stored in the facts of a checkpoint; consecutive frames where none is stored."""
    stored = facts.get("time_base") or {}
    return TimeBase(target_hz=stored.get("target_hz"), gap_seconds=stored.get("gap_seconds"))


def padded_frames(num_frames: int, temporal_stride: int) -> int:
    """Return T rounded up so that T-1 is a multiple of the stride."""
    return 1 + temporal_stride * math.ceil((num_frames - 1) / temporal_stride)


def frame_offsets(
    num_frames: int,
    *,
    hz: float,
    target_hz: float | None = None,
    gap_seconds: float | None = None,
    temporal_stride: int = 4,
) -> NDArray[np.int64]:
    """Return the positions [T] of a clip's frames in the episode, relative to its first.

    They never decrease, and each latent step ends at least one frame after the one before. Without `gap_seconds` no
    frame is repeated.

    Args:
        num_frames: T.
        hz: frame rate of the episode.
        target_hz: see the top of this file.
        gap_seconds: see the top of this file.
        temporal_stride: frames of a latent step; used with `gap_seconds` only.

    Raises:
        InputError: both `target_hz` and `gap_seconds` are given, or a rate or time is not positive.
    """
    if target_hz is not None and gap_seconds is not None:
        raise InputError(
            f"give target_hz or gap_seconds, not both: found target_hz {target_hz} and gap_seconds {gap_seconds}"
        )
    if not all(value > 0 for value in (hz, temporal_stride, target_hz, gap_seconds) if value is not None):
        raise InputError(
            f"clips need positive rates, times and stride: source {hz} Hz, target_hz {target_hz}, gap_seconds "
            f"{gap_seconds}, stride {temporal_stride}"
        )
    ratio = _ratio(hz, target_hz, gap_seconds, temporal_stride)
    # floor(x + 0.5) rounds halves up; np.round rounds them to even numbers, which would make spacings uneven.
    offsets: NDArray[np.int64] = np.floor(np.arange(num_frames) * ratio + 0.5).astype(np.int64)
    return offsets


def _ratio(hz: float, target_hz: float | None, gap_seconds: float | None, temporal_stride: int) -> float:
    """Return the spacing of clip frames in episode frames."""
    if gap_seconds is not None:
        # A step lasts at least one episode frame, also for a slow source.
        return max(1.0, gap_seconds * hz) / temporal_stride
    # A source slower than the target is read frame by frame.
    return 1.0 if target_hz is None else max(1.0, hz / target_hz)


def effective_hz(
    hz: float, target_hz: float | None, *, gap_seconds: float | None = None, temporal_stride: int = 4
) -> float:
    """Return the frame rate of clips of a source with `hz` frames per second; repeated frames count.

    Args:
        hz: frame rate of the source, Hz.
        target_hz: frame rate of a clip, Hz; None for no such limit. Not used with `gap_seconds`.
        gap_seconds: duration of a latent step, seconds; None if it is not set.
        temporal_stride: frames of a latent step; used with `gap_seconds` only.

    Returns:
        The frame rate in Hz. A source slower than `target_hz` keeps its own.
    """
    if gap_seconds is not None:
        return hz / _ratio(hz, target_hz, gap_seconds, temporal_stride)
    return min(hz, target_hz or hz)


@dataclass(frozen=True, eq=False)
class Windows:
    """n windows of one episode: start [n] and frame_ids [n, T] in episode frames; valid [n, M] for each latent step."""

    start: NDArray[np.int64]
    frame_ids: NDArray[np.int64]
    valid: NDArray[np.bool_]


def make_windows(
    length: int,
    *,
    num_frames: int,
    cache_stride: int,
    hz: float,
    temporal_stride: int = 4,
    target_hz: float | None = None,
    gap_seconds: float | None = None,
) -> Windows:
    """Cut an episode into windows for the latent cache.

    Only windows with at least one valid step are made, so an episode of fewer than s + 1 frames gives none. The steps
    of a window are valid up to the end of the episode: `valid.sum(axis=1)` latent
    steps are stored.

    Args:
        length: frames of the episode.
        num_frames: T; read up to the next multiple of the stride plus one.
        cache_stride: clip frames between the starts of two windows.
        hz: frame rate of the episode.
        temporal_stride: frames of a latent step.
        target_hz: see the top of this file.
        gap_seconds: see the top of this file.

    Raises:
        InputError: a setting is not possible.
    """
    if cache_stride < 1:
        raise InputError(f"cache_stride must be at least 1, found {cache_stride}")
    offsets = clip_offsets(
        num_frames, temporal_stride=temporal_stride, hz=hz, target_hz=target_hz, gap_seconds=gap_seconds
    )
    # Repeated frames make more clip frames than episode frames, at most s times as many.
    count = 1 + max(0, length) * (temporal_stride if gap_seconds is not None else 1) // cache_stride
    clip_frames = frame_offsets(
        count * cache_stride, hz=hz, target_hz=target_hz, gap_seconds=gap_seconds, temporal_stride=temporal_stride
    )
    # Several clip frames may show one episode frame: each start counts once.
    start = np.unique(clip_frames[::cache_stride])
    # The first latent step must lie inside the episode.
    start = start[start + offsets[temporal_stride] < length]
    return windows_at(
        start, np.full_like(start, length), np.broadcast_to(offsets, (len(start), len(offsets))), temporal_stride
    )


def clip_offsets(
    num_frames: int,
    *,
    temporal_stride: int,
    hz: float,
    target_hz: float | None = None,
    gap_seconds: float | None = None,
) -> NDArray[np.int64]:
    """Return the `frame_offsets` of a clip that is extended to a whole number of latent steps.

    Args:
        num_frames: frames of the clip before it is extended, at least 2.
        temporal_stride: frames of a latent step, at least 1.
        hz: frame rate of the episode, Hz.
        target_hz: frame rate of the clip, Hz; see the top of this file.
        gap_seconds: duration of a latent step, seconds; see the top of this file.

    Returns:
        Offsets int64 [T] in episode frames, where T is `num_frames` rounded up so that T-1 is a multiple of the stride.

    Raises:
        InputError: there are too few frames, both `target_hz` and `gap_seconds` are given, or a rate, time or stride is
            not positive.
    """
    if num_frames < 2 or temporal_stride < 1:
        raise InputError(f"clips need num_frames >= 2 (found {num_frames}) and stride >= 1 (found {temporal_stride})")
    return frame_offsets(
        padded_frames(num_frames, temporal_stride),
        hz=hz,
        target_hz=target_hz,
        gap_seconds=gap_seconds,
        temporal_stride=temporal_stride,
    )


def windows_at(
    start: NDArray[np.int64], length: NDArray[np.int64], offsets: NDArray[np.int64], temporal_stride: int
) -> Windows:
    """Return the windows that begin at `start` [n] in episodes of `length` [n] frames, for `offsets` [n, T].

    Frames behind the end of an episode repeat its last frame.

    Args:
        start: int [n], the first frame of each window.
        length: int [n], the number of frames of the episode of each window.
        offsets: int [n, T], the frames of each window relative to its first, in episode frames; T-1 is a multiple of
            the stride.
        temporal_stride: frames of a latent step.
    """
    wanted = start[:, None] + offsets
    last = (length - 1)[:, None]
    # Offsets never decrease, so a step lies inside the episode if its last frame does.
    return Windows(
        start=start, frame_ids=np.minimum(wanted, last), valid=wanted[:, temporal_stride::temporal_stride] <= last
    )


# -------------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Augmentation:
    """Random changes that are equal for all frames of a clip, for very small data sets; all off by default."""

    crop_min_scale: float = 1.0
    """Smallest area of the random crop as a fraction of the image; it keeps the aspect ratio and is resized back."""
    flip: float = 0.0
    """Probability of a left-right flip. Instructions are not changed, so use it only where no text is used."""
    brightness: float = 0.0
    """All channels are multiplied by a factor from [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Distances from mid-gray are multiplied by a factor from [1 - x, 1 + x]."""
    color: float = 0.0
    """Each channel is multiplied by a factor of its own from [1 - x, 1 + x]."""

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_min_scale <= 1.0 or not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"crop_min_scale must lie in (0, 1] and flip in [0, 1], found {self}")
        if not all(0.0 <= value < 1.0 for value in (self.brightness, self.contrast, self.color)):
            raise ValueError(f"brightness, contrast and color must lie in [0, 1), found {self}")


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """pixels uint8 [B, T, H, W, 3]; valid bool [B, M]; episode (cache index) and start (first frame) int64 [B]."""

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    episode: NDArray[np.int64]
    start: NDArray[np.int64]


class ClipSampler:
    """A sampler of random clips from a cache, uniform over all (episode, start) with enough valid steps.

    Args:
        cache: the frames.
        episode_indices: which episodes may be used.
        num_frames: T; read up to the next multiple of the stride plus one.
        seed: the samples depend on it and on `step` only.
        temporal_stride: frames of a latent step.
        target_hz: see the top of this file.
        gap_seconds: see the top of this file.
        min_valid_steps: valid steps of each clip; an episode that is too short for that is still used from its first
            frame, if it has one valid step.
        augmentation: off by default.

    Raises:
        InputError: no episode has one valid step.
    """

    def __init__(
        self,
        cache: FrameCache,
        episode_indices: Sequence[int] | NDArray[np.int64],
        *,
        num_frames: int,
        seed: int,
        temporal_stride: int = 4,
        target_hz: float | None = None,
        gap_seconds: float | None = None,
        min_valid_steps: int = 1,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.cache = cache
        self.seed = seed
        self.temporal_stride = temporal_stride
        self.augmentation = augmentation or Augmentation()
        self.num_frames = padded_frames(num_frames, temporal_stride)
        self.latent_steps = (self.num_frames - 1) // temporal_stride
        if not 1 <= min_valid_steps <= self.latent_steps:
            raise InputError(
                f"min_valid_steps must lie in 1..{self.latent_steps} for {num_frames} frames, found {min_valid_steps}"
            )
        chosen = np.asarray(episode_indices, np.int64)
        # Offsets depend on the frame rate only: one row of the table for each rate.
        hz = cache.episodes.hz[chosen]
        rates = np.unique(hz)
        table = [
            clip_offsets(
                num_frames, temporal_stride=temporal_stride, hz=hz, target_hz=target_hz, gap_seconds=gap_seconds
            )
            for hz in rates.tolist()
        ]
        self._offsets = np.array(table, np.int64).reshape(len(rates), self.num_frames)
        rate = np.searchsorted(rates, hz)
        length = cache.episodes.length[chosen]
        # An episode is used if its first latent step is complete.
        usable = length > self._offsets[rate, temporal_stride]
        if not usable.any():
            longest = int(length.max(initial=0))
            raise InputError(
                f"none of {len(chosen)} episodes of {cache.path} is long enough for one latent step: the longest has "
                f"{longest} frames, a step needs {temporal_stride + 1} clip frames (target_hz {target_hz}, "
                f"gap_seconds {gap_seconds}): use a higher target_hz, a shorter gap_seconds or longer episodes"
            )
        self._episode = chosen[usable]
        self._rate = rate[usable]
        self._length = length[usable]
        # All (episode, start) pairs are numbered through; `_ends` is where the numbers of each episode end.
        starts = self._length - self._offsets[self._rate, min_valid_steps * temporal_stride]
        counts = np.maximum(1, starts)
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts

    def __len__(self) -> int:
        """Return the number of different (episode, start) pairs."""
        return int(self._ends[-1])

    def batch(self, step: int, batch_size: int, rows: NDArray[np.int64] | None = None) -> ClipBatch:
        """Return the clips of one training step.

        Args:
            step: number of the training step.
            batch_size: clips of the global batch.
            rows: positions int [B] in the global batch of the clips to read, in any order; None: all. A clip depends on
                its position alone, not on what else is read.
        """
        # The whole batch is sampled, which is cheap, so that the number of ranks changes nothing.
        mine = slice(None) if rows is None else rows
        rng = np.random.default_rng([self.seed, step])
        pair = rng.integers(len(self), size=batch_size)[mine]
        chosen = np.searchsorted(self._ends, pair, side="right")
        start = pair - self._begins[chosen]
        windows = windows_at(start, self._length[chosen], self._offsets[self._rate[chosen]], self.temporal_stride)
        episode = self._episode[chosen]
        pixels = self.cache.read_batch(episode, windows.frame_ids)
        if self.augmentation != Augmentation():
            # A seed for each clip: its augmentation does not depend on the other clips of the batch.
            seeds = np.random.default_rng([self.seed, step, 1]).integers(2**63, size=batch_size)[mine]
            for clip, clip_seed in zip(pixels, seeds.tolist(), strict=True):
                augment(clip, self.augmentation, np.random.default_rng(clip_seed))
        return ClipBatch(pixels=pixels, valid=windows.valid, episode=episode, start=start)


def augment(clip: NDArray[np.uint8], options: Augmentation, rng: np.random.Generator) -> None:
    """Augment a clip uint8 [T, H, W, 3] in place, all frames alike.

    Args:
        clip: pixels uint8 [T, H, W, 3] in [0, 255]; changed in place.
        options: how strong each change may be.
        rng: generator of the random numbers; its state advances equally for all options.
    """
    # All random numbers are sampled whether used or not, so that one option does not change the others.
    height, width = clip.shape[1:3]
    # The area is uniform, so the side is its square root.
    side = math.sqrt(rng.uniform(options.crop_min_scale, 1.0))
    top, left = rng.uniform(0.0, 1.0 - side, 2) * (height, width)
    flip = rng.random() < options.flip
    gain = rng.uniform(1 - options.brightness, 1 + options.brightness)
    contrast = rng.uniform(1 - options.contrast, 1 + options.contrast)
    color = rng.uniform(1 - options.color, 1 + options.color, 3)
    if side < 1.0:
        # Crop and resizing in one step, which reads the pixels once.
        box = (left, top, left + side * width, top + side * height)
        for frame in clip:
            frame[:] = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR, box=box)
    if flip:
        clip[:] = clip[:, :, ::-1].copy()
    if options.brightness or options.contrast or options.color:
        # A table of 256 values for each channel: exact, and faster than arithmetic on every pixel.
        levels = np.arange(256)[None] * (gain * color)[:, None]
        table = np.clip(np.rint((levels - 127.5) * contrast + 127.5), 0, 255).astype(np.uint8)
        tall = Image.fromarray(clip.reshape(-1, width, 3))
        clip[:] = np.asarray(tall.point(table.ravel().tolist())).reshape(clip.shape)
