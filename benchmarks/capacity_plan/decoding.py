"""CPU time in which the project's reader decodes and resizes a frame: measured on RLDS episodes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from vw2_robot.data.episodes import Episode, encode_jpeg
from vw2_robot.data.images import read_clip, resize_frame
from vw2_robot.data.sources.rlds import RldsSource

# Height and width of a clip -> milliseconds of a core for each of its frames, by side of the stored JPEG. Measured with
# `--measure` on Bridge V2's debug set, whose frames have 64 x 64 pixels; 256 x 256, the usual size in Open-X, are these
# frames enlarged. One core of an AMD EPYC 9005, Pillow 13.
DECODE_MS: dict[tuple[int, int], dict[int, float]] = {
    (128, 128): {64: 0.14, 256: 0.60},
    (240, 416): {64: 0.53, 256: 0.83},
    (480, 832): {64: 1.63, 256: 2.48},
}
STORED_SIDE = 256
ROUNDS = 5


def measure_decoding(folder: str | Path, *, height: int, width: int, seconds: float = 0.5) -> dict[int, float]:
    """Return milliseconds of CPU time for each frame by side of the stored one: as it is, and enlarged to 256 x 256.

    Args:
        folder: an RLDS data set with square frames.
        height: of the clip that is filled.
        width: of the clip that is filled.
        seconds: least length of each of the rounds, whose median counts.
    """
    source = RldsSource(folder)
    stored = [episode for part in range(len(source.parts())) for episode in source.read(part)]
    side = stored[0].decode(0).shape[0]
    return {
        stored_side: median(_round_ms(episodes, height, width, seconds) for _ in range(ROUNDS))
        for stored_side, episodes in {
            side: stored,
            STORED_SIDE: [_enlarged(episode, STORED_SIDE) for episode in stored],
        }.items()
    }


def _enlarged(episode: Episode, side: int) -> Episode:
    frames = (resize_frame(episode.decode(i), height=side, width=side) for i in range(len(episode)))
    return replace(episode, images=tuple(encode_jpeg(frame) for frame in frames))


def _round_ms(episodes: list[Episode], height: int, width: int, seconds: float) -> float:
    """Return the mean over all frames, read in this thread for at least some seconds."""
    begin = time.process_time()
    frames = 0
    while time.process_time() - begin < seconds:
        for episode in episodes:
            out = np.empty((len(episode), height, width, 3), np.uint8)
            read_clip(episode, range(len(episode)), out)
            frames += len(episode)
    return 1000 * (time.process_time() - begin) / frames
