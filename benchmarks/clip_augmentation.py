"""Clips per second from the frame cache, with and without augmentation: one table.

Run: python -m benchmarks.clip_augmentation

Random images of 64 x 64 pixels, 9 frames per clip; seconds are CPU seconds of one process, so other load changes
little. Real episodes take the same time: the cache holds uncompressed pixels.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from vw2_robot.data.clips import Augmentation, ClipSampler
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import FrameCache, cache_frames

SIZE = 64
LENGTH = 40
EPISODES = 200
NUM_FRAMES = 9
BATCH = 64
BATCHES = 30
CASES = {
    "no augmentation": Augmentation(),
    "flip": Augmentation(flip=0.5),
    "brightness, contrast, color": Augmentation(brightness=0.2, contrast=0.2, color=0.1),
    "crop": Augmentation(crop_min_scale=0.7),
    "all": Augmentation(crop_min_scale=0.7, flip=0.5, brightness=0.2, contrast=0.2, color=0.1),
}


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        episodes = (
            Episode("noise", str(n), "", 10.0, tuple(rng.integers(0, 256, (LENGTH, SIZE, SIZE, 3), dtype=np.uint8)))
            for n in range(EPISODES)
        )
        cache_frames(episodes, Path(folder) / "cache", height=SIZE, width=SIZE, description={})
        cache = FrameCache(Path(folder) / "cache")
        print(f"{'augmentation':<30}{'clips/s':>10}")
        for name, augmentation in CASES.items():
            sampler = ClipSampler(cache, range(EPISODES), num_frames=NUM_FRAMES, seed=0, augmentation=augmentation)
            # Warm-up: maps the cache into memory.
            sampler.batch(0, BATCH)
            begin = time.process_time()
            for step in range(BATCHES):
                sampler.batch(step, BATCH)
            print(f"{name:<30}{BATCH * BATCHES / (time.process_time() - begin):>10.0f}")


if __name__ == "__main__":
    main()
