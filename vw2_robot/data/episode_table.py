"""The episodes of a frame cache as columns of numbers and texts: a million of them open in a tenth of a second.

    episodes.npz    int64 [E]: length, shard, offset; float64 [E]: hz; uint8 [E, 32]: sha256, stored_sha256
                    of each text (source, episode_id, instruction): the UTF-8 bytes one after the other, and int64 [E],
                    the byte behind each
                    digest: the SHA-256 of the index that the table belongs to

A column is read and checked (by the sums of the archive) when it is first used, and nothing is held for an episode but
its places in the columns.
"""

# E episodes
from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays, write_arrays

TABLE = "episodes.npz"
_TEXTS = ("source", "episode_id", "instruction")
_NUMBERS = {"length": np.int64, "shard": np.int64, "offset": np.int64, "hz": np.float64}
_HASHES = ("sha256", "stored_sha256")


@dataclass(frozen=True)
class CachedEpisode:
    """An episode in the cache. `sha256` is computed from the cached pixels, so equal videos have equal hashes."""

    source: str
    episode_id: str
    instruction: str
    hz: float
    length: int
    shard: int
    offset: int
    sha256: str
    stored_sha256: str = ""
    """compressed: of its bytes in the two files"""


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """Return the columns of a table from the rows of its episodes, one at least.

    Raises:
        LookupError, TypeError, ValueError: a row is damaged.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name, kind in _NUMBERS.items():
        values = [row[name] for row in rows]
        if not all(type(value) is (float if kind is np.float64 else int) for value in values):
            raise TypeError(f"{name} is no number everywhere")
        columns[name] = np.array(values, kind)
    for name in _HASHES:
        if name in rows[0]:
            digests = b"".join(bytes.fromhex(row[name]) for row in rows)
            columns[name] = np.frombuffer(digests, np.uint8).reshape(len(rows), 32)
    for name in _TEXTS:
        texts = [row[name].encode() for row in rows]
        columns[name] = np.frombuffer(b"".join(texts), np.uint8)
        columns[f"{name}_ends"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return columns


def write_table(folder: Path, columns: Mapping[str, NDArray[Any]], *, digest: str) -> None:
    """Write the table of a frame cache.

    Args:
        folder: of the cache.
        columns: from `columns_of`.
        digest: of the cache, 64 hexadecimal digits.
    """
    write_arrays(folder / TABLE, {"digest": np.frombuffer(bytes.fromhex(digest), np.uint8), **columns})


class EpisodeTable(Sequence[CachedEpisode]):
    """The episodes of a cache: a sequence of `CachedEpisode`, and its columns.

    Args:
        path: the file of the table, also for messages.
        count: E.
        columns: those that are in memory; the others are read from the file.
        cure: what a user should do about damage, as the end of a message.
    """

    def __init__(self, path: Path, count: int, columns: Mapping[str, NDArray[Any]], *, cure: str) -> None:
        self._path = path
        self._count = count
        self._columns = dict(columns)
        self._cure = cure
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, *, count: int, digest: str, compressed: bool, cure: str) -> EpisodeTable:
        """Open the table of a cache; reads only what is needed to find frames.

        Args:
            folder: of the cache.
            count: E.
            digest: of the cache.
            compressed: whether the cache stores compressed images, which have hashes of their own.
            cure: what a user should do about damage, as the end of a message.

        Raises:
            InputError: it is missing, damaged, or that of another cache.
        """
        path = folder / TABLE
        columns = read_arrays(path, ("digest", *_NUMBERS, "sha256"), cure=cure)
        table = cls(path, count, columns, cure=cure)
        if columns.pop("digest").tobytes().hex() != digest:
            raise InputError(f"{path} does not belong to the index beside it; {cure}")
        if not compressed:
            table._columns["stored_sha256"] = np.zeros((0, 32), np.uint8)
        lengths = table.length
        begins = np.cumsum(lengths) - lengths
        shard = table.shard
        # The first episode of each shard begins at 0 of it, and shards follow each other.
        first = np.diff(shard, prepend=-1) != 0
        wanted = begins - np.maximum.accumulate(np.where(first, begins, 0))
        if lengths.min() < 1 or shard[0] < 0 or (np.diff(shard) < 0).any() or (table.offset != wanted).any():
            raise InputError(f"{path} is damaged: its episodes do not follow each other; {cure}")
        return table

    @property
    def length(self) -> NDArray[np.int64]:
        """Frames [E]."""
        return self._column("length")

    @property
    def hz(self) -> NDArray[np.float64]:
        """Frames per second [E]."""
        return self._column("hz")

    @property
    def shard(self) -> NDArray[np.int64]:
        """Shards [E]; they never decrease."""
        return self._column("shard")

    @property
    def offset(self) -> NDArray[np.int64]:
        """First frames [E] in the shards."""
        return self._column("offset")

    @property
    def sha256(self) -> NDArray[np.uint8]:
        """Hashes [E, 32] of the cached pixels."""
        return self._column("sha256")

    def texts(self, name: str) -> list[str]:
        """Return `source`, `episode_id` or `instruction` of all episodes."""
        return [self._text(name, index) for index in range(self._count)]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> CachedEpisode: ...
    @overload
    def __getitem__(self, index: slice) -> list[CachedEpisode]: ...
    def __getitem__(self, index: int | slice) -> CachedEpisode | list[CachedEpisode]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._count))]
        number = range(self._count)[index]
        stored = self._column("stored_sha256")
        return CachedEpisode(
            source=self._text("source", number),
            episode_id=self._text("episode_id", number),
            instruction=self._text("instruction", number),
            hz=float(self.hz[number]),
            length=int(self.length[number]),
            shard=int(self.shard[number]),
            offset=int(self.offset[number]),
            sha256=self.sha256[number].tobytes().hex(),
            stored_sha256=stored[number].tobytes().hex() if len(stored) else "",
        )

    def _text(self, name: str, number: int) -> str:
        ends = self._column(f"{name}_ends")
        begin = int(ends[number - 1]) if number else 0
        return self._column(name)[begin : int(ends[number])].tobytes().decode()

    def _column(self, name: str) -> NDArray[Any]:
        with self._lock:  # several threads read clips, and a column is read once
            if name not in self._columns:
                self._columns |= read_arrays(self._path, (name,), cure=self._cure)
            column = self._columns[name]
        return column
