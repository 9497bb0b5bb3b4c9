"""Size and speed of a decoded and of a compressed frame cache: one table.

Run: python -m benchmarks.frame_storage DIR [side], where DIR is an RLDS data set and `side` the size of its images (64)

Batches of random clips are read for two seconds from a cache that lies in memory, so the disk has no part in it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.data.sources.rlds import RldsSource

NUM_FRAMES = 9
BATCH = 32
SECONDS = 2.0


def main(path: str, side: int = 64) -> None:
    source = RldsSource(path, splits=("train",))
    episodes = [episode for part in range(len(source.parts())) for episode in source.read(part)]
    frames = sum(map(len, episodes))
    print(f"{len(episodes)} episodes, {frames} images, stored at {side} x {side}")
    print(f"{'storage':<12}{'threads':>8}{'bytes/frame':>13}{'frames/s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for storage, threads in (("decoded", 0), ("compressed", 0), ("compressed", 2)):
            out = Path(folder) / storage
            cache_frames(episodes, out, height=side, width=side, description={}, storage=storage)
            sampler = ClipSampler(
                cache := FrameCache(out, threads=threads), range(len(cache.episodes)), num_frames=NUM_FRAMES, seed=0
            )
            for step in range(10):  # maps the files and compares the hashes
                sampler.batch(step, BATCH)
            size = sum(file.stat().st_size for file in out.glob("shard-*") if file.suffix != ".jsonl")
            step = 0
            begin = time.perf_counter()
            while (seconds := time.perf_counter() - begin) < SECONDS:
                sampler.batch(step, BATCH)
                step += 1
            rate = step * BATCH * sampler.num_frames / seconds
            print(f"{storage:<12}{threads:>8}{size / frames:>13.0f}{rate:>10.0f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
