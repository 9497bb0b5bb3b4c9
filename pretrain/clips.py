"""Clips as training batches, from the frame cache or streamed from the data sets, and the way to the device.

Both give the same pixels for the same window. From the cache, batch i is a pure function of (seed, i); a stream has a
position, which goes into every checkpoint. Either way a resumed run sees the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import Augmentation, ClipBatch, ClipSampler
from vw2_robot.data.frames import FrameCache
from vw2_robot.data.stream import ClipStream, StreamBatch, StreamOptions
from vw2_robot.pixels import to_model_range

from .config import Pretrain


class CachedClips:
    """Training clips out of the frame cache."""

    def __init__(self, sampler: ClipSampler) -> None:
        self._sampler = sampler

    def batch(self, step: int, size: int) -> ClipBatch:
        """The clips of one training step."""
        return self._sampler.batch(step, size)

    def state(self) -> None:
        """Nothing: batches depend on the step alone."""

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on where a checkpoint was written."""

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

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on where a checkpoint was written."""
        assert state is not None, "a checkpoint of a streaming run holds the position of its stream"
        self._stream.restore(state)

    def close(self) -> None:
        """Stop the decoding threads."""
        self._stream.close()


def training_clips(
    config: Pretrain, frames: FrameCache, train: list[int], held_out: list[int]
) -> CachedClips | StreamedClips:
    """What a stage trains on. A stream leaves out the held-out episodes of the cache, by their names."""
    data = config.data
    if not data.stream:
        return CachedClips(clip_sampler(config, frames, train))
    from .cache_frames import open_sources

    hidden = {(frames.episodes[index].source, frames.episodes[index].episode_id) for index in held_out}
    options = StreamOptions(
        WindowOptions(frames=config.dldm.frames, stride_s=config.dldm.stride, target_hz=data.target_hz),
        height=config.dldm.height,
        width=config.dldm.width,
        aspect=data.aspect,
        shuffle_bytes=data.shuffle_mb * 2**20,
        max_bad=data.max_bad,
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


def clip_sampler(config: Pretrain, frames: FrameCache, episodes: list[int], *, augment: bool = True) -> ClipSampler:
    """The sampler over these episodes of the cache; batch i is a pure function of (seed, i)."""
    return ClipSampler(
        frames,
        episodes,
        frames=config.dldm.frames,
        stride_s=config.dldm.stride,
        target_hz=config.data.target_hz,
        seed=config.seed,
        augmentation=config.data.augmentation if augment else Augmentation(),
    )


def to_device(batch: ClipBatch | StreamBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(clips float [B, T, 3, H, W] in [-1, 1], valid steps bool [B, M]) on the device; pixels travel as uint8."""
    pixels = torch.from_numpy(batch.pixels).to(device, non_blocking=True)
    return to_model_range(pixels), torch.from_numpy(batch.valid).to(device)
