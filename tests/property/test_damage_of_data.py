"""Damage of data on disk is never silent: a flipped bit or a cut file ends in an InputError, or changes nothing.

For everything that the package writes and reads back as data. 200 pieces of damage in all, random but the same each
time; what is read from a damaged copy is compared with what was read before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.episodes import Demonstration, Episode
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.data.labels import choose_labels, read_labels, write_labels
from vw2_robot.data.latents import LatentCache, LatentWindows, finish, write_shard
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.errors import InputError
from vw2_robot.storage.files import verify


def episodes(size: tuple[int, int]) -> list[Episode]:
    rng = np.random.default_rng(0)
    images = [tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(n)) for n in (3, 2, 4)]
    return [Episode("made_up", f"train/{n}", f"lift block {n}", 5.0 + n, some) for n, some in enumerate(images)]


def write_frames(folder: Path) -> None:
    bad = Episode("made_up", "train/bad", "", 5.0, (b"no image",))
    some = [*episodes((4, 5)), bad]
    cache_frames(some, folder, height=4, width=5, description={"path": "x"}, episodes_per_shard=2)


def read_frames(folder: Path) -> Any:
    cache = FrameCache(folder)
    pixels = [cache.read(n, range(episode.length)) for n, episode in enumerate(cache.episodes)]
    return list(cache.episodes), cache.digest, cache.description, [part.tobytes() for part in pixels]


def write_latents(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, n in enumerate((5, 3)):
        codes = rng.integers(0, 60_000, (n, 2, 4)).astype(np.uint16)
        index = np.arange(n, dtype=np.int32)
        write_shard(folder, number, LatentWindows(index // 2, index, codes, rng.random((n, 2)) < 0.5))
    finish(folder, shards=2, facts={"encoder_hash": "e" * 64, "frames_digest": "f" * 64, "hz": [5.0]})


def read_latents(folder: Path) -> Any:
    cache = LatentCache(folder)
    w = cache.windows
    return cache.facts, [(array.shape, array.tobytes()) for array in (w.episode, w.start, w.codes, w.valid)]


def write_calvin(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        writer = CalvinWriter(folder, split)
        for number in range(2):
            arrays = {
                "rgb_static": rng.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8),
                **{key: rng.uniform(-1, 1, (3, 7)) for key in ("actions", "rel_actions", "commanded_actions")},
                "robot_obs": rng.normal(size=(3, 15)),
                "scene_obs": rng.normal(size=(3, 24)),
            }
            writer.write_episode(
                arrays, first_frame=10 * number, task="lift", instruction="lift it", scene="AB"[number]
            )
        writer.finish({"lift": "lift it"}, "scene: A\n")


def read_calvin(folder: Path) -> Any:
    found: list[Any] = []
    for split in ("training", "validation"):
        verify(folder / split, cure="copy it again")  # also what only other programs read
        found.append(CalvinWriter(folder, split).entries())
        for kind in ("labeled", "recordings"):
            dataset = CalvinDataset(folder, split, trajectories=kind)
            keys = ("rgb_static", "actions", "rel_actions", "robot_obs", "scene_obs")
            for trajectory in dataset.trajectories:
                arrays = (dataset.read_actions(trajectory), *dataset.read_together(trajectory, keys))
                found.append((trajectory, [array.tobytes() for array in arrays]))
    return found


def write_label_file(folder: Path) -> None:
    folder.mkdir()
    names = [f"episode {n}" for n in range(9)]
    write_labels(folder / "labels.json", choose_labels(["a", "b", "c"] * 3, names, fraction=0.5, seed=3))


def write_rlds(folder: Path) -> None:
    pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (extra openx)")
    from vw2_robot.data.rlds_writer import write_rlds as write

    some = [Demonstration(episode, np.zeros((len(episode), 7))) for episode in episodes((8, 8))]
    write(folder, name="made_up", version="1.0.0", episodes={"train": some}, max_episodes_per_shard=2)


def read_rlds(folder: Path) -> Any:
    from vw2_robot.data.sources.rlds import RldsSource

    source = RldsSource(folder, max_skipped=0)
    found = [episode for part in range(len(source.parts())) for episode in source.read(part)]
    return [(e.source, e.episode_id, e.instruction, e.hz, e.images) for e in found]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut a file, or turn one bit; half of the bits near an end, where the headers lie."""
    if rng.random() < 0.2:
        return data[: rng.integers(len(data))]
    near = int(rng.integers(min(len(data), 100))) * (1 if rng.random() < 0.5 else -1)
    place = near if rng.random() < 0.5 else int(rng.integers(len(data)))
    damaged = bytearray(data)
    damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


@pytest.mark.parametrize(
    ("write", "read", "times"),
    [
        (write_frames, read_frames, 60),
        (write_latents, read_latents, 40),
        (write_calvin, read_calvin, 60),
        (write_label_file, lambda folder: read_labels(folder / "labels.json"), 20),
        (write_rlds, read_rlds, 20),
    ],
    ids=["frame cache", "latent cache", "CALVIN", "labels", "RLDS"],
)
def test_damage_is_never_silent(
    tmp_path: Path, write: Callable[[Path], None], read: Callable[[Path], Any], times: int
) -> None:
    write(tmp_path / "whole")
    wanted, rng = read(tmp_path / "whole"), np.random.default_rng(times)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    files = sorted(file for file in (tmp_path / "damaged").rglob("*") if file.is_file())
    refused = 0
    for _ in range(times):
        file = files[rng.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(damage(whole, rng))
        try:
            assert read(tmp_path / "damaged") == wanted, f"damage of {file.name} was read in silence"
        except InputError as error:
            assert str(tmp_path / "damaged") in str(error)  # noqa: PT017 - either outcome is right
            refused += 1
        file.write_bytes(whole)
    assert refused > times / 2
