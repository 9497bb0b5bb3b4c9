"""The latent cache: the codes of every window of every episode, written once, read by everyone after. No TensorFlow.

Place in the flow: dLDM -> latent cache -> AR policy. Method specification 2.5. A window starts at every
`cache_stride`-th frame of an episode and holds the codes of the (up to) M latent steps that follow; its first frame is
the policy's image. Codes are re-encoded per window, not sliced from the episode's codes, since the trunk remembers the
window's past only.

    index.json              format_version, encoder hash, levels, steps, stride, frames digest, counts, slice agreement
    windows-00000.npz       episode int32[n], start int32[n], codes uint16[n, M, N], valid bool[n, M]
"""

# n windows · M latent steps · N codes per step
from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LatentWindows:
    """Some windows: episode index in the frame cache, first frame, codes uint16 [n, M, N], valid bool [n, M]."""

    episode: NDArray[np.int32]
    start: NDArray[np.int32]
    codes: NDArray[np.uint16]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.episode)


def joined(windows: LatentWindows, *, ends: NDArray[np.int64], steps: int) -> LatentWindows:
    """The same windows with `steps` latent steps: each goes on with the one that begins at the frame where it ends.

    Steps behind the last such window are invalid; `steps` below M cuts. `ends`: int [n], the frame that each window
    ends at, which may lie beyond its episode.
    """
    span = int(max(ends.max(initial=0), windows.start.max(initial=0))) + 1
    starts, wanted = (windows.episode.astype(np.int64) * span + frame for frame in (windows.start, ends))
    order = np.argsort(starts)
    place = np.searchsorted(starts, wanted, sorter=order)
    nearest = order[np.minimum(place, len(order) - 1)] if len(order) else order
    follower = np.where(starts[nearest] == wanted, nearest, -1)
    codes, valid, row = [], [], np.arange(len(windows))
    for _ in range(math.ceil(steps / windows.codes.shape[1])):
        there = (row >= 0)[:, None]
        codes.append(np.where(there[..., None], windows.codes[row], 0).astype(np.uint16))
        valid.append(windows.valid[row] & there)
        row = np.where(row >= 0, follower[row], -1)
    return LatentWindows(
        windows.episode, windows.start, np.concatenate(codes, 1)[:, :steps], np.concatenate(valid, 1)[:, :steps]
    )


def write_shard(folder: Path, number: int, windows: LatentWindows) -> None:
    """Write one shard, whole or not at all."""
    path = _shard(folder, number)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, episode=windows.episode, start=windows.start, codes=windows.codes, valid=windows.valid)
    temporary.replace(path)


def missing_shards(folder: Path, count: int) -> list[int]:
    """Numbers of the shards that a cut-off extraction has still to write."""
    return [number for number in range(count) if not _shard(folder, number).is_file()]


def read_shards(folder: Path, count: int) -> LatentWindows:
    """All windows of `count` shards, in order."""
    shards = [_read_shard(_shard(folder, number)) for number in range(count)]
    return LatentWindows(
        *(np.concatenate([getattr(s, name) for s in shards]) for name in ("episode", "start", "codes", "valid"))
    )


def finish(folder: Path, *, shards: int, facts: Mapping[str, Any]) -> None:
    """Write index.json: from now on the folder is a cache."""
    index = {"format_version": FORMAT_VERSION, "shards": shards, **facts}
    temporary = folder / ".index.json.tmp"
    temporary.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / "index.json")


class LatentCache:
    """A finished cache.

    Args:
        folder: where `vw2-extract-latents` wrote it.
        encoder_hash: the dLDM that the reader was made with; None skips the check.
        frames_digest: the frame cache that `LatentWindows.episode` refers to; None skips the check.

    Raises:
        InputError: missing, unfinished, another format version, another encoder, other frames.
    """

    def __init__(self, folder: Path, *, encoder_hash: str | None = None, frames_digest: str | None = None) -> None:
        self.folder = folder
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder} is no finished latent cache (index.json is missing); run vw2-extract-latents")
        self.facts = _read_index(folder / "index.json")
        version = self.facts.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"latent cache {folder} has format_version {version!r}, this release reads {FORMAT_VERSION}; "
                "run vw2-extract-latents again"
            )
        for name, wanted in (("encoder_hash", encoder_hash), ("frames_digest", frames_digest)):
            if wanted is not None and self.facts.get(name) != wanted:
                raise InputError(
                    f"latent cache {folder} was made with {name} {str(self.facts.get(name))[:8]}, "
                    f"expected {wanted[:8]}; "
                    "run vw2-extract-latents again in a new run_dir"
                )
        self.windows = read_shards(folder, int(self.facts["shards"]))

    def of_episodes(self, episodes: list[int]) -> LatentWindows:
        """The windows of these episodes, in cache order."""
        chosen = np.isin(self.windows.episode, episodes)
        w = self.windows
        return LatentWindows(w.episode[chosen], w.start[chosen], w.codes[chosen], w.valid[chosen])


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); run vw2-extract-latents again in a new run_dir") from error
    if not isinstance(index, dict):
        raise InputError(f"{path} holds no JSON object; run vw2-extract-latents again in a new run_dir")
    return index


def _shard(folder: Path, number: int) -> Path:
    return folder / f"windows-{number:05d}.npz"


def _read_shard(path: Path) -> LatentWindows:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return LatentWindows(arrays["episode"], arrays["start"], arrays["codes"], arrays["valid"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); run vw2-extract-latents again in a new run_dir") from error
