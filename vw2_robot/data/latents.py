"""The latent cache: the codes of every window of every episode, written once and read by later stages.

Place in the flow: dLDM -> latent cache -> AR policy. A window starts at every `cache_stride`-th frame of an episode and
holds the codes of the (up to) M latent steps that follow; its first frame is the policy's image. Codes are encoded for
each window, not sliced from the episode's codes, since the causal trunk sees the past of its window only.

    index.json              format_version, encoder hash, levels, steps, stride, frames digest, counts, slice agreement,
                            the sha256 of each shard, and of itself
    windows-00000.npz       episode int32[n], start int32[n], codes uint16[n, M, N], valid bool[n, M]
"""

# n windows · M latent steps · N codes per step
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays, write_arrays
from vw2_robot.storage.files import read_json, sha256_of, write_json

FORMAT_VERSION = 1
STREAM_SHUFFLE = 43
_CURE = "delete its folder and run vw2-extract-latents again"
_KINDS = {"episode": ("i", 1), "start": ("i", 1), "codes": ("u", 3), "valid": ("b", 2)}
"""array -> kind of its dtype and number of axes"""


@dataclass(frozen=True)
class LatentWindows:
    """Some windows: episode index in the frame cache, first frame, codes uint16 [n, M, N], valid bool [n, M]."""

    episode: NDArray[np.int32]
    start: NDArray[np.int32]
    codes: NDArray[np.uint16]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.episode)


def joined(windows: LatentWindows, *, ends: NDArray[np.int64], latent_steps: int) -> LatentWindows:
    """Return the windows with another number of latent steps.

    Each window is continued with the window that begins at the frame where it ends. Steps behind the last such window
    are invalid.

    Args:
        windows: n windows of M steps.
        ends: int [n], the frame where each window ends, which may lie beyond its episode.
        latent_steps: of the result; fewer than M cuts the windows.
    """
    # One number for each (episode, frame), to look up the window that begins where another ends.
    span = int(max(ends.max(initial=0), windows.start.max(initial=0))) + 1
    starts, wanted = (windows.episode.astype(np.int64) * span + frame for frame in (windows.start, ends))
    order = np.argsort(starts)
    place = np.searchsorted(starts, wanted, sorter=order)
    nearest = order[np.minimum(place, len(order) - 1)] if len(order) else order
    # -1 where no window begins at that frame.
    follower = np.where(starts[nearest] == wanted, nearest, -1)
    # Follow the chain of windows, M steps at a time; a chain that has ended gives zeros that are not valid.
    codes = []
    valid = []
    row = np.arange(len(windows))
    for _ in range(math.ceil(latent_steps / windows.codes.shape[1])):
        there = (row >= 0)[:, None]
        codes.append(np.where(there[..., None], windows.codes[row], 0).astype(np.uint16))
        valid.append(windows.valid[row] & there)
        row = np.where(row >= 0, follower[row], -1)
    return LatentWindows(
        windows.episode,
        windows.start,
        np.concatenate(codes, 1)[:, :latent_steps],
        np.concatenate(valid, 1)[:, :latent_steps],
    )


def anchored(windows: LatentWindows, *, frames: NDArray[np.int64], condition_every: int) -> LatentWindows:
    """Return each window once for every frame that its plan is conditioned on.

    The j-th copy begins, as its image goes, at the j-th of these frames. Its codes are those of the whole window, and
    only the `condition_every` steps that follow the frame are valid: the codes before are the plan so far. A copy
    without any valid step is left out.

    Args:
        windows: n windows of H steps.
        frames: int [n, H / condition_every], where each run of `condition_every` steps begins.
        condition_every: latent steps from one frame to the next.
    """
    count, copies = frames.shape
    run = np.arange(windows.codes.shape[1]) // condition_every
    valid = (windows.valid[:, None] & (run == np.arange(copies)[:, None])).reshape(count * copies, -1)
    kept = valid.any(axis=1)
    rows = np.repeat(np.arange(count), copies)[kept]
    return LatentWindows(
        windows.episode[rows], frames.reshape(-1)[kept].astype(windows.start.dtype), windows.codes[rows], valid[kept]
    )


def shuffled(count: int, *, seed: int) -> NDArray[np.int64]:
    """Return for each of `count` windows the one whose codes it gets; each gives its codes once, none keeps them.

    Args:
        count: of windows.
        seed: of the order.
    """
    order = np.random.default_rng([seed, STREAM_SHUFFLE]).permutation(count)
    given = np.empty(count, np.int64)
    given[order] = np.roll(order, 1)  # each one's is the next in a random circle
    return given


def write_shard(folder: Path, number: int, windows: LatentWindows) -> None:
    """Write one shard atomically.

    Args:
        folder: of the latent cache.
        number: of the shard, counted from 0; it gives the file name.
        windows: the n windows of the shard, M latent steps of N codes each.
    """
    write_arrays(_shard(folder, number), {name: getattr(windows, name) for name in _KINDS})


def missing_shards(folder: Path, count: int) -> list[int]:
    """Return the numbers of the shards that an interrupted extraction has not written yet."""
    return [number for number in range(count) if not _shard(folder, number).is_file()]


def read_shards(folder: Path, count: int) -> LatentWindows:
    """Return all windows of `count` shards, in order.

    Raises:
        InputError: a shard is missing or damaged.
    """
    shards = []
    for path in (_shard(folder, number) for number in range(count)):
        arrays = read_arrays(path, list(_KINDS), cure=_CURE)
        found = {name: (array.dtype.kind, array.ndim) for name, array in arrays.items()}
        if found != _KINDS or len({len(array) for array in arrays.values()}) != 1:
            raise InputError(f"{path} holds no windows: its arrays are {found}, expected {_KINDS}; {_CURE}")
        shards.append(LatentWindows(**arrays))
    sizes = {shard.codes.shape[1:] for shard in shards if len(shard)}
    if len(sizes) > 1:
        raise InputError(f"the shards of latent cache {folder} hold codes of {len(sizes)} different shapes; {_CURE}")
    # An empty shard may have other axes; if all are empty, they are joined as they are.
    shards = [shard for shard in shards if len(shard)] or shards
    return LatentWindows(*(np.concatenate([getattr(shard, name) for shard in shards]) for name in _KINDS))


def finish(folder: Path, *, shards: int, facts: Mapping[str, Any]) -> None:
    """Write index.json, which makes the folder a finished cache.

    Args:
        folder: of the latent cache; all shards must be in it.
        shards: number of shards.
        facts: further entries of index.json, by name: what identifies and describes the cache.
    """
    sums = [sha256_of(_shard(folder, number)) for number in range(shards)]
    index = {"format_version": FORMAT_VERSION, "shards": shards, "sha256": sums, **facts}
    write_json(folder / "index.json", index, sealed=True)


class LatentCache:
    """A finished latent cache, read into memory.

    Args:
        folder: written by `vw2-extract-latents`.
        encoder_hash: expected hash of the dLDM; None skips the check.
        frames_digest: expected digest of the frame cache that `LatentWindows.episode` refers to; None skips the check.

    Raises:
        InputError: it is missing, unfinished or damaged, or has another format version, encoder or frame cache.
    """

    def __init__(self, folder: Path, *, encoder_hash: str | None = None, frames_digest: str | None = None) -> None:
        self.folder = folder
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder} is no finished latent cache (index.json is missing); run vw2-extract-latents")
        self.facts = read_json(folder / "index.json", cure=_CURE)
        if "sha256" in self.facts:  # older caches have no checksums
            self.facts = read_json(folder / "index.json", cure=_CURE, sealed=True)
        version = self.facts.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"latent cache {folder} has format_version {version!r}, this release reads {FORMAT_VERSION}; "
                "run vw2-extract-latents again"
            )
        # Codes are only comparable if they come from the same encoder and the same frames.
        for name, wanted in (("encoder_hash", encoder_hash), ("frames_digest", frames_digest)):
            if wanted is not None and self.facts.get(name) != wanted:
                raise InputError(
                    f"latent cache {folder} was made with {name} {str(self.facts.get(name))[:8]}, "
                    f"expected {wanted[:8]}; run vw2-extract-latents again in a new run_dir"
                )
        count = self.facts.get("shards")
        sums = self.facts.get("sha256")
        if (
            not isinstance(count, int)
            or count < 1
            or not (sums is None or (isinstance(sums, list) and len(sums) == count))
        ):
            raise InputError(f"{folder / 'index.json'} is damaged: shards is {count!r}; {_CURE}")
        for number, wanted in enumerate(sums or ()):
            path = _shard(folder, number)
            if not path.is_file():
                raise InputError(f"{path} is missing; {_CURE}")
            if sha256_of(path) != wanted:
                raise InputError(f"{path} is damaged: it is not what was written (SHA-256 differs); {_CURE}")
        self.windows = read_shards(folder, count)

    def of_episodes(self, episodes: NDArray[np.int64]) -> LatentWindows:
        """Return the windows of these episodes, in cache order."""
        chosen = np.isin(self.windows.episode, episodes)
        w = self.windows
        return LatentWindows(w.episode[chosen], w.start[chosen], w.codes[chosen], w.valid[chosen])


def _shard(folder: Path, number: int) -> Path:
    return folder / f"windows-{number:05d}.npz"
