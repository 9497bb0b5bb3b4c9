"""Training clips sampled from a replay, in this process or on a server: the third kind beside those of `clips`.

    replay=memory                           a thread reads data.path; bounded by replay.max_bytes
    replay=reverb replay.address=HOST:PORT  `vw2-replay fill` processes, on this or other machines (docs/scaling.md)

The frame cache alone decides what is held out, so every window is checked when it is sampled, whoever cut it: one of a
held-out episode is dropped. So is one of an episode that the cache does not have, since it might be held out elsewhere;
the episode is logged and counted against `data.max_skipped`, as are images that cannot be decoded. Only if
`data.cache_episodes` limits the cache to some of the episodes are all others trained on.

Several ranks sample from shares of the data (memory) or queues of their own (reverb). So the clips of a run depend on
the number of ranks, and it continues with the same number only.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import Augmentation, augment, padded_frames
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.images import ImageError
from vw2_robot.data.replay.ingest import IngestPlan, ingest
from vw2_robot.data.replay.open_replay import ReplayConfig, open_replay
from vw2_robot.data.replay.windows import Replay, ReplayWindow, ReplayWriter, batch_of, decode_window
from vw2_robot.data.stream import StreamBatch
from vw2_robot.distributed import ranks
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.errors import InputError

from .config import PretrainConfig

# B batch · T frames · H, W pixels
_LOG = logging.getLogger(__name__)
STREAM_AUGMENTATION = 4
_ENDLESS = 2**31  # epochs: training ends by its steps
_MAX_DROPPED_IN_A_ROW = 10_000  # windows without one between them that may be trained on


class ReplayedClips:
    """Training clips from a replay; `batch` must be called for every step, in order.

    The replay is opened by the first call of `batch` or `state`.

    Args:
        config: `data` fills a replay in memory, `dldm` says how clips are cut.
        replay: `config.replay`.
        frame_cache: decides what is held out.
        held_out: indices of its held-out episodes.
        folder: where a memory replay stores its windows, unless `replay.path` names a folder.

    Attributes:
        skipped: what was left out so far: where -> why.
    """

    def __init__(
        self,
        config: PretrainConfig,
        replay: ReplayConfig,
        frame_cache: FrameCache,
        held_out: NDArray[np.int64],
        *,
        folder: Path,
    ) -> None:
        # Beside the checkpoints of this stage, which refer to the stored windows.
        if replay.engine == "memory" and replay.path is None:
            replay = dataclasses.replace(replay, path=str(folder))
        self._config = config
        self._options = replay
        self._frame_cache = frame_cache
        names = list(zip(frame_cache.episodes.texts("source"), frame_cache.episodes.texts("episode_id"), strict=True))
        self._known = set(names)
        self._held_out = {names[index] for index in held_out}
        self._closing = ExitStack()
        self._replay: Replay | None = None
        self._position: Mapping[str, Any] | None = None
        threads = config.data.decode_threads
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self.skipped: dict[str, str] = {}

    def batch(self, step: int, share: BatchShare) -> StreamBatch:
        """Return this rank's next clips, in the order of `share.rows`.

        Args:
            step: the training step, which decides the augmentation.
            share: of this rank.

        Raises:
            ReplayTimeout: not so many windows came within `replay.timeout_seconds`.
            InputError: the replay has come to its end, its windows are not those of this configuration, or too much
                was skipped.
        """
        windows: list[ReplayWindow] = []
        clips: list[NDArray[np.uint8]] = []
        # A window that cannot be decoded is replaced by the next usable one, so batches are full.
        rows = share.rows.tolist()
        while len(windows) < len(rows):
            sampled = self._sample_usable(len(rows) - len(windows))
            decoded = (self._decoders.map if self._decoders is not None else map)(self._decode, sampled)
            for window, clip in zip(sampled, decoded, strict=True):
                if isinstance(clip, ImageError):
                    self._skip(f"{window.source}, episode {window.episode_id} from frame {window.start}", str(clip))
                else:
                    windows.append(window)
                    clips.append(clip)
        if self._config.data.augmentation != Augmentation():
            for row, clip in zip(rows, clips, strict=True):
                # A generator of its own for each clip: what it gets does not depend on the clips before it.
                key = [self._config.seed, STREAM_AUGMENTATION, step, row]
                augment(clip, self._config.data.augmentation, np.random.default_rng(key))
        return batch_of(windows, np.stack(clips), temporal_stride=self._config.dldm.temporal_stride)

    def state(self) -> dict[str, Any]:
        """Return the positions of all ranks after the last batch; all of them must call it together.

        The replay stores its windows first.

        Raises:
            ReplayTimeout: that took longer than `replay.checkpoint_timeout_seconds`.
        """
        replay = self._open()
        store = partial(replay.checkpoint, timeout_seconds=self._options.checkpoint_timeout_seconds)
        if self._options.engine == "memory":  # each rank has its own
            store()
        else:
            ranks.gather(None)  # no rank samples from the server while it stores what it has sent
            ranks.on_main(store)
        positions = ranks.gather({"skipped": dict(self.skipped), "position": replay.state()})
        # A single rank stores it as before there were several.
        return {"replay": self._options.engine, **(positions[0] if len(positions) == 1 else {"ranks": positions})}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from the position that a checkpoint holds.

        Raises:
            InputError: its run sampled from no replay, from one of the other engine, or with another number of ranks.
        """
        if state is None or state.get("replay") != self._options.engine:
            raise InputError(
                f"the checkpoint was written by a run with replay={(state or {}).get('replay', 'null')}, this one has "
                f"replay={self._options.engine}; continue with the replay of that run, or use another run_dir"
            )
        positions = state.get("ranks", [state])
        if len(positions) != ranks.world_size():
            raise InputError(
                f"the checkpoint was written by {len(positions)} ranks that each sampled from a share of the replay, "
                f"now WORLD_SIZE is {ranks.world_size()}; continue with the old number of ranks, or use another "
                "run_dir (runs on the frame cache or with data.stream=true continue with any number)"
            )
        # Opened again at that position by the next `batch`.
        self._closing.close()
        self._replay = None
        mine = positions[ranks.rank()]
        self._position = mine["position"]
        self.skipped = dict(mine["skipped"])

    def close(self) -> None:
        """Close the replay and stop the decoding threads."""
        self._closing.close()
        self._replay = None
        if self._decoders is not None:
            self._decoders.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------------------------------------------- sampling

    def _open(self) -> Replay:
        if self._replay is None:
            opening = open_replay(
                self._options,
                rank=ranks.rank(),
                ranks=ranks.world_size(),
                seed=self._config.seed,
                fill=self._fill,
                state=self._position,
            )
            self._replay = self._closing.enter_context(opening)
        return self._replay

    def _fill(self, writer: ReplayWriter) -> None:
        from .cache_frames import open_sources  # with RLDS it needs TensorFlow

        data = self._config.data
        plan = IngestPlan(
            self._cut, seed=self._config.seed, epochs=_ENDLESS, ingest=ranks.rank(), ingests=ranks.world_size()
        )
        ingest(open_sources(data), plan, writer)

    @property
    def _cut(self) -> WindowOptions:
        """How this run's clips are cut."""
        config = self._config
        return WindowOptions(
            config.dldm.num_frames, temporal_stride=config.dldm.temporal_stride, **config.data.time_base
        )

    def _sample_usable(self, count: int) -> list[ReplayWindow]:
        """Return one to `count` windows that may be trained on."""
        replay = self._open()
        dropped = 0
        while dropped < _MAX_DROPPED_IN_A_ROW:
            windows = replay.sample(count, timeout_seconds=self._options.timeout_seconds)
            if len(windows) < count:
                raise InputError(
                    f"the replay has delivered all of its windows: {count} clips were wanted, {len(windows)} were "
                    "left; fill it anew with more epochs (vw2-replay fill data.epochs=...), or train for fewer steps"
                )
            if usable := [window for window in windows if self._is_usable(window)]:
                return usable
            dropped += len(windows)
        raise InputError(
            f"the last {dropped} windows of the replay were all of held-out or unknown episodes; "
            "fill it from more data, or lower data.validation_fraction"
        )

    def _is_usable(self, window: ReplayWindow) -> bool:
        cut = self._cut
        # Windows cut in another time base have the same shape and other motion, so each one is compared.
        wanted: tuple[Any, ...] = padded_frames(cut.num_frames, cut.temporal_stride), cut.target_hz, cut.gap_seconds
        found: tuple[Any, ...] = len(window.frames), window.target_hz, window.gap_seconds
        if cut.gap_seconds is not None:  # then the frames of a clip depend on the temporal stride too
            wanted, found = (*wanted, cut.temporal_stride), (*found, window.temporal_stride)
        if found != wanted:
            raise InputError(
                f"the replay holds windows of (num_frames, target_hz, "
                f"gap_seconds{', temporal_stride' * (len(found) > 3)}) {found}, "
                f"this run trains on {wanted}; start vw2-replay serve and vw2-replay fill with those (num_frames, "
                "data.windows.*), or change dldm.num_frames, data.target_hz and data.gap_seconds"
            )
        name = window.source, window.episode_id
        if name in self._held_out:
            return False
        if name in self._known or self._config.data.cache_episodes is not None:
            return True
        self._skip(
            f"{window.source}, episode {window.episode_id}",
            f"the replay holds episode {window.episode_id} of {window.source}, which is not in the frame cache "
            f"{self._frame_cache.path}, so it is unknown whether it is held out; fill both from the same data (the "
            "same name of the folder, the same split), or set data.cache_episodes if the cache holds only some of them",
        )
        return False

    def _decode(self, window: ReplayWindow) -> NDArray[np.uint8] | ImageError:
        data = self._config.data
        pixels = np.empty((len(window.frames), *self._config.clip_size, 3), np.uint8)
        try:
            decode_window(window, pixels, aspect=data.aspect, decode=data.decode)
        except ImageError as error:
            return error
        return pixels

    def _skip(self, where: str, why: str) -> None:
        """Log what is left out, each place once, and stop when there is too much of it."""
        if where in self.skipped:
            return
        self.skipped[where] = why
        if len(self.skipped) > (allowed := self._config.data.max_skipped):
            raise InputError(
                f"too many damaged images and unknown episodes: {len(self.skipped)} where data.max_skipped={allowed}; "
                f"the last: {why}"
            )
        _LOG.warning("left out: %s", why)
