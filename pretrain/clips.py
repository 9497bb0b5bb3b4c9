"""Clips as training batches, and the way to the device.

They come from one of three places:

    frame cache         the default
    data sets           `data.stream=true`: read, cut and shuffled all the time, in this process
    replay              `replay=memory` or `replay=reverb`: windows that a thread or processes elsewhere have cut

All give the same pixels for the same window. From the cache, batch i is a pure function of (seed, i); a stream and a
replay have a position, which goes into every checkpoint. A resumed run sees the batches it would have seen; from a
Reverb server, it sees none of those that its checkpoint counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import Augmentation, ClipBatch, ClipSampler
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.stream import ClipStream, StreamBatch, StreamOptions
from vw2_robot.errors import InputError
from vw2_robot.pixels import to_model_range

from .config import PretrainConfig
from .replayed_clips import ReplayedClips

Position = Mapping[str, Any] | None


class CachedClips:
    """Training clips out of the frame cache."""

    def __init__(self, sampler: ClipSampler) -> None:
        self._sampler = sampler

    def batch(self, step: int, size: int) -> ClipBatch:
        """The clips of one training step."""
        return self._sampler.batch(step, size)

    def state(self) -> None:
        """Nothing: batches depend on the step alone."""

    def restore(self, state: Position) -> None:
        """Go on where a checkpoint was written."""
        _came_from("the frame cache", state)

    def close(self) -> None:
        """Nothing is open."""


class StreamedClips:
    """Training clips straight from the data sets; `batch` must be called for every step, in order."""

    def __init__(self, stream: ClipStream) -> None:
        self._stream = stream

    def batch(self, step: int, size: int) -> StreamBatch:
        """The next clips."""
        return self._stream.batch(size)

    def state(self) -> dict[str, Any]:
        """The position after the last batch."""
        return self._stream.state()

    def restore(self, state: Position) -> None:
        """Go on where a checkpoint was written."""
        self._stream.restore(_came_from("a stream", state))

    def close(self) -> None:
        """Stop the decoding threads."""
        self._stream.close()


def _came_from(kind: str, state: Position) -> Mapping[str, Any]:
    """Return the position if a run on clips of this kind has stored it.

    Raises:
        InputError: a run on others has.
    """
    found = "the frame cache" if state is None else "a replay" if "replay" in state else "a stream"
    if found != kind:
        raise InputError(
            f"the checkpoint was written by a run whose clips came from {found}, now they come from {kind}; go on with "
            "the old data.stream and replay, or use another run_dir"
        )
    return state or {}


TrainingClips = CachedClips | StreamedClips | ReplayedClips


def training_clips(
    config: PretrainConfig, frame_cache: FrameCache, train: list[int], held_out: list[int], folder: Path
) -> TrainingClips:
    """What the stage in `folder` trains on. A stream and a replay leave held-out episodes out by name."""
    data = config.data
    if config.replay is not None:
        return ReplayedClips(config, config.replay, frame_cache, held_out, folder=folder / "replay")
    if not data.stream:
        return CachedClips(clip_sampler(config, frame_cache, train))
    from .cache_frames import open_sources

    hidden = {(frame_cache.episodes[index].source, frame_cache.episodes[index].episode_id) for index in held_out}
    options = StreamOptions(
        WindowOptions(num_frames=config.dldm.num_frames, temporal_stride=config.dldm.temporal_stride, **data.time_base),
        height=config.dldm.height,
        width=config.dldm.width,
        aspect=data.aspect,
        shuffle_bytes=data.shuffle_mb * 2**20,
        max_skipped=data.max_skipped,
        augmentation=data.augmentation,
    )
    stream = ClipStream(
        open_sources(data),
        options,
        seed=config.seed,
        threads=data.decode_threads,
        keep=lambda episode: (episode.source, episode.episode_id) not in hidden,
    )
    return StreamedClips(stream)


def clip_sampler(
    config: PretrainConfig, frame_cache: FrameCache, episodes: list[int], *, augment: bool = True
) -> ClipSampler:
    """The sampler over these episodes of the cache; batch i is a pure function of (seed, i).

    Raises:
        InputError: there is no episode on this side of the split, or none is long enough.
    """
    if not episodes:
        different = len({episode.sha256 for episode in frame_cache.episodes})
        raise InputError(
            f"data.validation_fraction={config.data.validation_fraction}: nothing can be held out of "
            f"{frame_cache.path}, "
            f"whose {len(frame_cache.episodes)} episodes are {different} different videos; training needs at least "
            f"two, "
            "since it is judged on video that it has not seen"
        )
    return ClipSampler(
        frame_cache,
        episodes,
        num_frames=config.dldm.num_frames,
        temporal_stride=config.dldm.temporal_stride,
        **config.data.time_base,
        seed=config.seed,
        augmentation=config.data.augmentation if augment else Augmentation(),
    )


def to_device(batch: ClipBatch | StreamBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(clips float [B, T, 3, H, W] in [-1, 1], valid steps bool [B, M]) on the device; pixels travel as uint8."""
    pixels = torch.from_numpy(batch.pixels).to(device, non_blocking=True)
    return to_model_range(pixels), torch.from_numpy(batch.valid).to(device)
