"""Clips per second of `ClipStream` and of other loaders: one table.

Run: python -m benchmarks.clip_loading [--bridge FOLDER] [--dlimp CHECKOUT] [--window-stride 8] [--rounds 5]

Two data sets: real Bridge V2 episodes (64 x 64 pixels, four cameras) where `--bridge` names them, and episodes of
256 x 256 pixels at 15 Hz, synthesized here and stored as RLDS. Clips of 9 frames at 5 Hz, 64 and 128 pixels.

    pillow        a decode bound: only decode and resize the needed frames of clips in memory, all of it by Pillow
    ClipStream    read, shuffle, decode, resize, batch
    tfds          plain TFDS with default decoding of everything; windows cut from the decoded episodes, unshuffled
    dlimp         the loader that Octo uses, in Octo's order: chunk, flatten, shuffle, decode, resize, batch.
                  Needs a checkout of github.com/kvablack/dlimp. Octo resizes every image (Lanczos filter), also to
                  the size that it has; where sizes are equal, a second row omits that

Each runs in a process of its own with the same number of threads; they alternate for some rounds, and the speed-up of
ClipStream is the median over rounds of the ratio within a round. CPU time is that of all threads. Overlapping clips
share no decoding in ClipStream and dlimp; plain TFDS decodes a frame once for all windows that contain it, so small
window strides favor it, at the cost of decoded episodes in memory.

`speed_rows` compares ClipStream with dlimp and with the decode bound alone. The environment variables VW2_BRIDGE and
VW2_DLIMP stand for the two options there.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import frame_offsets, make_windows
from vw2_robot.data.episodes import Demonstration, Episode, encode_jpeg
from vw2_robot.data.rlds_writer import write_rlds
from vw2_robot.data.sources.rlds import RldsSource
from vw2_robot.data.stream import ClipStream, StreamOptions

from .speed.row import Rounds, SpeedRow, not_measured

BRIDGE = "../shared/openx/bridge_dataset/1.0.0"
NUM_FRAMES = 9
TARGET_HZ = 5.0
BATCH = 16
SHUFFLED_CLIPS = 500
HZ = 15.0  # of the synthetic data set, which stores it with each episode


@dataclass(frozen=True)
class Case:
    """One data set and how it is read."""

    title: str
    folder: str
    image_key: str
    px: int
    native: bool
    """whether images have that size already"""
    window_stride: int
    threads: int
    dlimp: str | None

    def windows(self, length: int, hz: float) -> NDArray[np.int64]:
        """Return the frames [n, T] of all clips of an episode."""
        stride = self.window_stride
        return make_windows(length, num_frames=NUM_FRAMES, cache_stride=stride, hz=hz, target_hz=TARGET_HZ).frame_ids


# ------------------------------------------------------------------------------------------------------ loaders


def pillow(case: Case) -> Iterator[int]:
    """Decode only: episodes are in memory and in random order before the clock starts."""
    source = RldsSource(case.folder, image_key=case.image_key)
    clips = [
        # Padding repeats the last frame, which is decoded once.
        [episode.images[frame] for frame in dict.fromkeys(frames)]
        for number in range(len(source.parts()))
        for episode in source.read(number)
        for frames in case.windows(len(episode), episode.hz).tolist()
    ]
    order = np.random.default_rng(0).permutation(len(clips)).tolist()

    def decode(number: int) -> list[NDArray[np.uint8]]:
        pixels = []
        for data in clips[number]:
            with Image.open(io.BytesIO(data)) as stored:
                image = stored.convert("RGB")
                if image.size != (case.px, case.px):
                    image = image.resize((case.px, case.px), Image.Resampling.BILINEAR)
                pixels.append(np.asarray(image))
        return pixels

    # The pool decodes a whole batch, as a loader would.
    endless = itertools.cycle(order)
    with ThreadPoolExecutor(case.threads) as pool:
        while True:
            yield len(list(pool.map(decode, itertools.islice(endless, BATCH), chunksize=4)))


def clip_stream(case: Case) -> Iterator[int]:
    """Load with `ClipStream`."""
    source = RldsSource(case.folder, image_key=case.image_key)
    cut = WindowOptions(NUM_FRAMES, target_hz=TARGET_HZ, window_stride=case.window_stride)
    options = StreamOptions(cut, case.px, case.px, shuffle_bytes=16 * 2**20)
    with ClipStream([(source, 1.0)], options, seed=0, threads=case.threads) as stream:
        while True:
            yield len(stream.batch(BATCH).start)


def tfds(case: Case) -> Iterator[int]:
    """Decode everything in the data set; then cut, resize and batch windows."""
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(case.folder)
    hz = RldsSource(case.folder, image_key=case.image_key).hz or HZ
    clips: list[NDArray[np.uint8]] = []
    for _ in itertools.count():
        for episode in builder.as_dataset(split="train"):
            # One batch per episode: 500 is longer than any of them.
            steps = next(iter(episode["steps"].batch(500)))
            images = steps["observation"][case.image_key].numpy()
            for frames in case.windows(len(images), hz):
                clips.append(np.stack([_resized(image, case.px) for image in images[frames]]))
                if len(clips) == BATCH:
                    yield len(np.stack(clips))
                    clips.clear()


def _resized(image: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (px, px):
        return image
    return np.asarray(Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR))


def dlimp_as_stored(case: Case) -> Iterator[int]:
    """Run `dlimp_as_octo` without its resize."""
    return dlimp_as_octo(case, resize=False)


def dlimp_as_octo(case: Case, *, resize: bool = True) -> Iterator[int]:
    """Load in Octo's order: cheap operations on whole episodes, a shuffle of undecoded clips, then the images."""
    assert case.dlimp is not None
    sys.path.insert(0, case.dlimp)
    import dlimp
    import tensorflow as tf
    import tensorflow_datasets

    hz = RldsSource(case.folder, image_key=case.image_key).hz or HZ
    offsets = frame_offsets(NUM_FRAMES, hz=hz, target_hz=TARGET_HZ)
    # Longer than any episode; cut to its length in `chunk`.
    starts = frame_offsets(10_000, hz=hz, target_hz=TARGET_HZ)[:: case.window_stride]

    def chunk(episode: Any) -> Any:
        images = episode["observation"][case.image_key]
        length = tf.shape(images, out_type=tf.int64)[0]
        # As in `make_windows`: the first latent step, four frames, must lie inside the episode.
        start = tf.boolean_mask(starts, starts + offsets[4] < length)
        frames = tf.minimum(start[:, None] + offsets, length - 1)
        instructions = tf.repeat(episode["language_instruction"][:1], tf.shape(frames)[0])
        return {"images": tf.gather(images, frames), "instructions": instructions}

    def decode(clip: Any) -> Any:
        found = dlimp.vmap(lambda held: {"image": one(held["image"])})({"image": clip["images"]})
        return {"images": found["image"], "instructions": clip["instructions"]}

    def one(data: Any) -> Any:
        image = tf.io.decode_image(data, expand_animations=False, dtype=tf.uint8)
        return dlimp.transforms.resize_image(image, size=(case.px, case.px)) if resize else image

    builder = tensorflow_datasets.builder_from_directory(case.folder)
    dataset = dlimp.DLataset.from_rlds(builder, split="train", shuffle=True).repeat().traj_map(chunk)
    # The budget is in GB; it bounds the buffers that tf.data sizes by itself.
    dataset = dataset.flatten().shuffle(SHUFFLED_CLIPS).frame_map(decode).batch(BATCH).with_ram_budget(1)
    for batch in dataset.iterator():
        yield len(batch["images"])


LOADERS: dict[str, Callable[[Case], Iterator[int]]] = {
    "pillow": pillow,
    "ClipStream": clip_stream,
    "tfds": tfds,
    "dlimp": dlimp_as_octo,
    "dlimp, no resize": dlimp_as_stored,
}


# ----------------------------------------------------------------------------------------------------------- rounds


def run_loader(name: str, case: Case, clips: int, pipe: Connection) -> None:
    """Run in a process of its own: answer each message with seconds and CPU seconds per clip."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    next(LOADERS[name](case))  # imports, and finds the data
    pipe.send(None)
    while pipe.recv():
        batches = LOADERS[name](case)
        # Warm-up: buffers fill, files open.
        for _ in range(4):
            next(batches)
        begin = time.perf_counter()
        cpu = time.process_time()
        done = 0
        while done < clips:
            done += next(batches)
        pipe.send(((time.perf_counter() - begin) / done, (time.process_time() - cpu) / done))
        batches.close()  # type: ignore[attr-defined]


def loaders_of(case: Case) -> list[str]:
    """Return the names of all loaders that can read the data of a case."""
    with_dlimp = ["dlimp", "dlimp, no resize"] if case.native else ["dlimp"]
    return ["pillow", "ClipStream", "tfds", *(with_dlimp if case.dlimp is not None else [])]


def measure(
    case: Case, names: Sequence[str], *, rounds: int, clips: int, seconds: float = math.inf
) -> dict[str, list[tuple[float, float]]]:
    """Return for each loader the seconds and CPU seconds of a clip, round by round.

    Args:
        case: the data.
        names: of the loaders.
        rounds: how many; fewer where they would take longer than `seconds`, but one at least.
        clips: of a round.
        seconds: how long all of it may take.
    """
    deadline = time.perf_counter() + seconds
    # The threads of TensorFlow do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pipes = {}
    processes = []
    for name in names:
        pipes[name], end = context.Pipe()
        processes.append(context.Process(target=run_loader, args=(name, case, clips, end), daemon=True))
        processes[-1].start()
    for name in names:
        pipes[name].recv()  # all start at once
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        begin = time.perf_counter()
        for name in names:
            pipes[name].send(True)
            found[name].append(pipes[name].recv())
        if time.perf_counter() + (time.perf_counter() - begin) > deadline:
            break
    for name, process in zip(names, processes, strict=True):
        pipes[name].send(False)
        process.join()
    return found


def print_rows(case: Case, found: dict[str, list[tuple[float, float]]]) -> None:
    """Print one row for each loader."""
    # Ratios within a round: both loaders saw the same load of the machine.
    ours = found["ClipStream"]
    for name, times in found.items():
        wall, cpu = (median(each[kind] for each in times) for kind in (0, 1))
        gains = [median(a[kind] / b[kind] for a, b in zip(times, ours, strict=True)) for kind in (0, 1)]
        print(f"{case.title:<26}{name:<18}{1 / wall:>9.0f}{1000 * cpu:>12.2f}{gains[0]:>10.2f}{gains[1]:>10.2f}")
    if case.dlimp is None:
        print(f"{case.title:<26}{'dlimp':<18} not measured: name a checkout with --dlimp")


def write_photos(folder: Path, *, episodes: int = 48, length: int = 60, px: int = 256) -> None:
    """Store synthetic episodes: a smooth image with noise that moves, about 20 kB per frame."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    wide = np.asarray(coarse.resize((2 * px, 2 * px), Image.Resampling.BICUBIC)).astype(np.int16)
    photo = np.clip(wide + rng.normal(0, 4, wide.shape), 0, 255).astype(np.uint8)

    def demonstrations() -> Iterator[Demonstration]:
        for number in range(episodes):
            # A window that moves over one large image: cheap, and it compresses like a photo.
            left, top = rng.integers(0, px - length, 2).tolist()
            views = (photo[top : top + px, left + step : left + step + px] for step in range(length))
            images = tuple(encode_jpeg(np.ascontiguousarray(view), quality=90) for view in views)
            yield Demonstration(Episode("photos", str(number), "push the block", HZ, images), np.zeros((length, 7)))

    write_rlds(folder, name="photos", version="1.0.0", episodes={"train": demonstrations()}, max_episodes_per_shard=24)


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return the rows of the speed table; both loaders of a row have two threads."""
    bridge = os.environ.get("VW2_BRIDGE", BRIDGE)
    dlimp = os.environ.get("VW2_DLIMP")
    shared: dict[str, Any] = {"window_stride": 8, "threads": 2, "dlimp": dlimp}
    wanted = {"RLDS to clips, 64 px, CPU": 1.8, "RLDS to clips, 64 px, wall": 1.5}
    rows = []
    if dlimp is None or not Path(bridge).is_dir() or find_spec("tensorflow") is None:
        why = (
            "set VW2_DLIMP to a checkout of github.com/kvablack/dlimp, VW2_BRIDGE to bridge_dataset/1.0.0; extra openx"
        )
        rows = [
            not_measured(name, unit="ms/clip", against="dlimp", wanted=least, why=why) for name, least in wanted.items()
        ]
    else:
        case = Case("", bridge, "image_0", px=64, native=True, **shared)
        costs = measure(case, ["ClipStream", "dlimp, no resize"], rounds=15, clips=600, seconds=0.6 * seconds)
        for (name, least), kind in zip(wanted.items(), (1, 0), strict=True):
            rounds = Rounds({loader: [1000 * each[kind] for each in found] for loader, found in costs.items()})
            against = "dlimp without resize"
            rows.append(
                rounds.row(
                    name, ours="ClipStream", other="dlimp, no resize", against=against, unit="ms/clip", wanted=least
                )
            )
    name = "256 to 128 px against decoding"
    against = "Pillow: decode, resize; CPU time"
    if find_spec("tensorflow") is None:
        return [*rows, not_measured(name, unit="ms/clip", against=against, wanted=1.5, why="needs the extra openx")]
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos" / "1.0.0"
        write_photos(photos, episodes=24)
        case = Case("", str(photos), "image", px=128, native=False, **shared)
        costs = measure(case, ["ClipStream", "pillow"], rounds=9, clips=200, seconds=0.25 * seconds)
    rounds = Rounds({loader: [1000 * cpu for _, cpu in found] for loader, found in costs.items()})
    return [*rows, rounds.row(name, ours="ClipStream", other="pillow", against=against, unit="ms/clip", wanted=1.5)]


def main() -> None:
    parser = argparse.ArgumentParser(description="clips per second of the loaders")
    parser.add_argument("--bridge", default=BRIDGE, help="RLDS folder with real episodes")
    parser.add_argument("--dlimp", help="checkout of github.com/kvablack/dlimp")
    parser.add_argument("--window-stride", type=int, default=8, help="clip frames between the starts of windows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(f"{'data':<26}{'loader':<18}{'clips/s':>9}{'cpu ms/clip':>12}{'wall x':>10}{'cpu x':>10}")
    shared: dict[str, Any] = {
        "window_stride": options.window_stride,
        "threads": options.threads,
        "dlimp": options.dlimp,
    }
    if Path(options.bridge).is_dir():
        bridge = Case("Bridge V2, 64 px, real", options.bridge, "image_0", px=64, native=True, **shared)
        print_rows(bridge, measure(bridge, loaders_of(bridge), rounds=options.rounds, clips=1600))
    else:
        print(f"{'Bridge V2, 64 px, real':<26} not measured: no folder {options.bridge}")
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos" / "1.0.0"
        write_photos(photos)
        made = Case("256 px, to 128", str(photos), "image", px=128, native=False, **shared)
        print_rows(made, measure(made, loaders_of(made), rounds=options.rounds, clips=480))


if __name__ == "__main__":
    main()
