"""Training clips from one of three places, and their transfer to the device.

    frame cache         the default
    data sets           `data.stream=true`: read, cut and shuffled during training, in this process
    replay              `replay=memory` or `replay=reverb`: windows that a thread or other processes have cut

All give the same pixels for the same window. Each rank reads its share of the global batch. From the cache, batch i is
a pure function of (seed, i); a stream and a replay have a position, which goes into every checkpoint. A resumed run
sees the batches it would have seen; from a Reverb server, it sees none of those that its checkpoint counts.
"""

# B batch · T frames · M latent steps

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import Augmentation, ClipBatch, ClipSampler
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.sharded_stream import ShardedStream, default_shards
from vw2_robot.data.stream import StreamBatch, StreamOptions
from vw2_robot.distributed import ranks
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.errors import InputError
from vw2_robot.pixels import to_model_range

from .config import PretrainConfig
from .prefetched_clips import PrefetchedClips
from .replayed_clips import ReplayedClips

Position = Mapping[str, Any] | None


class CachedClips:
    """Training clips from the frame cache."""

    def __init__(self, sampler: ClipSampler) -> None:
        self._sampler = sampler

    def batch(self, step: int, share: BatchShare) -> ClipBatch:
        """Return this rank's clips of one training step, in the order of `share.rows`."""
        return self._sampler.batch(step, share.batch_size, share.rows)

    def snapshot(self) -> None:
        """Return nothing: batches depend on the step alone."""

    def rewind(self, snapshot: Position) -> None:
        """Do nothing, as there is no position."""

    def state(self, snapshot: Position = None) -> None:
        """Return nothing, as there is no position."""

    def restore(self, state: Position) -> None:
        """Check that the checkpoint's run read the frame cache as well."""
        _check_origin("the frame cache", state)

    def close(self) -> None:
        """Do nothing: no file stays open."""


class StreamedClips:
    """Training clips from the data sets themselves; `batch` must be called for every step, in order."""

    def __init__(self, stream: ShardedStream) -> None:
        self._stream = stream

    def batch(self, step: int, share: BatchShare) -> StreamBatch:
        """Return this rank's next clips, in the order of `share.rows`."""
        return self._stream.batch(step, share.batch_size, share.rows)

    def snapshot(self) -> dict[str, Any]:
        """Return the position of this rank after the last batch."""
        return self._stream.snapshot()

    def rewind(self, snapshot: Position) -> None:
        """Go back to a snapshot that was taken since the share changed last."""
        self._stream.rewind(snapshot or {})

    def state(self, snapshot: Position = None) -> dict[str, Any]:
        """Return the position of all ranks, after the last batch or at their snapshots; all must call it together."""
        return self._stream.state(snapshot)

    def restore(self, state: Position) -> None:
        """Continue from the position that a checkpoint holds."""
        self._stream.restore(_check_origin("a stream", state))

    def close(self) -> None:
        """Stop the decoding threads."""
        self._stream.close()


def _check_origin(kind: str, state: Position) -> Mapping[str, Any]:
    """Return the position if a run on clips from there has stored it.

    Raises:
        InputError: the checkpoint is of a run on other clips.
    """
    found = "the frame cache" if state is None else "a replay" if "replay" in state else "a stream"
    if found != kind:
        raise InputError(
            f"the checkpoint was written by a run whose clips came from {found}, now they come from {kind}; continue "
            "with the old data.stream and replay, or use another run_dir"
        )
    return state or {}


TrainingClips = CachedClips | StreamedClips | ReplayedClips | PrefetchedClips


def training_clips(
    config: PretrainConfig,
    frame_cache: FrameCache,
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
    folder: Path,
) -> TrainingClips:
    """Return the clips that a stage trains on.

    Args:
        config: `data` and `replay` say where they come from.
        frame_cache: decides which episodes are held out.
        train: its episodes that train; read where the clips come from the cache.
        held_out: its other episodes, which a stream and a replay leave out by name.
        folder: of the stage; a replay in memory stores its windows there.
    """
    data = config.data
    if config.replay is not None:
        return ReplayedClips(config, config.replay, frame_cache, held_out, folder=folder / "replay")
    if not data.stream:
        return _prefetched(config, CachedClips(clip_sampler(config, frame_cache, train)))
    from .cache_frames import open_sources  # with RLDS it needs TensorFlow

    # By name, since a stream reads the data sets themselves and knows no index of the cache.
    hidden = {(episode.source, episode.episode_id) for episode in map(frame_cache.episodes.__getitem__, held_out)}
    sources = open_sources(data)
    shards = data.stream_shards or default_shards(sources)
    options = StreamOptions(
        WindowOptions(num_frames=config.dldm.num_frames, temporal_stride=config.dldm.temporal_stride, **data.time_base),
        height=config.clip_size[0],
        width=config.clip_size[1],
        aspect=data.aspect,
        decode=data.decode,
        shuffle_bytes=data.shuffle_mb * 2**20,
        # Several shards mix files already, and each more reader is one more open file of every source.
        interleaved_readers=2 if shards == 1 else 1,
        max_skipped=data.max_skipped,
        augmentation=data.augmentation,
    )
    stream = ShardedStream(
        sources,
        options,
        seed=config.seed,
        shards=shards,
        gather=ranks.gather,
        threads=data.decode_threads,
        keep=lambda episode: (episode.source, episode.episode_id) not in hidden,
    )
    return _prefetched(config, StreamedClips(stream))


def _prefetched(config: PretrainConfig, clips: CachedClips | StreamedClips) -> TrainingClips:
    ahead = config.data.prefetch_batches if config.data.decode_threads else 0
    if not ahead:
        return clips
    return PrefetchedClips(clips, ahead=ahead, pinned=config.hardware.torch_device().type == "cuda")


def clip_sampler(
    config: PretrainConfig, frame_cache: FrameCache, episodes: NDArray[np.int64], *, augment: bool = True
) -> ClipSampler:
    """Return the sampler of clips of these episodes of the cache; batch i is a pure function of (seed, i).

    Args:
        config: how clips are cut and augmented.
        frame_cache: where the frames are.
        episodes: indices of the episodes.
        augment: False gives clips as they are.

    Raises:
        InputError: there is no episode on this side of the split, or none is long enough.
    """
    if not len(episodes):
        # By content: copies of one video always lie on one side of the split.
        different = len(np.unique(frame_cache.episodes.sha256, axis=0))
        raise InputError(
            f"data.validation_fraction={config.data.validation_fraction}: nothing can be held out of "
            f"{frame_cache.path}, whose {len(frame_cache.episodes)} episodes are {different} different videos; "
            "training needs at least two, since it is validated on video that it has not seen"
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
    """Return (clips float [B, T, 3, H, W] in [-1, 1], valid steps bool [B, M]) on the device."""
    # As uint8 to the device, a quarter of the bytes; floats are made there.
    pixels = torch.from_numpy(batch.pixels).to(device, non_blocking=True)
    return to_model_range(pixels), torch.from_numpy(batch.valid).to(device)
