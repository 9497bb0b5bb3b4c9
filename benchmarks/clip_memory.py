"""Memory of a clip stream: resident megabytes while thousands of batches are read. One table.

Run: python -m benchmarks.clip_memory [--batches 10000] [--shuffle-mb 16]

Synthetic RLDS episodes (256 pixels, about 60 MB, more than the shuffle buffer), so that blocks and files are opened and
released all the time; TensorFlow reads them in the same process and is measured too. The last line compares the largest
with the smallest value after the first fifth of the batches.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.clip_loading import write_photos
from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.sources.rlds import RldsSource
from vw2_robot.data.stream import ClipStream, StreamOptions

# /proc counts in pages, which are 4 KiB on x86-64.
PAGE_MB = 4096 / 2**20


def resident_mb() -> float:
    """Return the physical memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_MB


def main() -> None:
    parser = argparse.ArgumentParser(description="resident memory of a clip stream")
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--shuffle-mb", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos" / "1.0.0"
        write_photos(photos)
        cut = WindowOptions(num_frames=5, target_hz=5.0, window_stride=8)
        stream_options = StreamOptions(cut, height=64, width=64, shuffle_bytes=options.shuffle_mb * 2**20)
        print(f"{'batch':>8}{'epoch':>8}{'resident MB':>14}")
        found: list[float] = []
        with ClipStream([(RldsSource(photos), 1.0)], stream_options, seed=0) as stream:
            for number in range(options.batches):
                epoch = int(stream.batch(8).epoch[-1])
                found.append(resident_mb())
                if number % max(1, options.batches // 10) == 0:
                    print(f"{number:>8}{epoch:>8}{found[-1]:>14.1f}", flush=True)
        # The first fifth fills the shuffle buffer.
        settled = found[options.batches // 5 :]
        print(f"largest over smallest after a fifth: {max(settled) / min(settled):.4f}")


if __name__ == "__main__":
    main()
