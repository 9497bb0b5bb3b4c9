"""The episodes of a frame cache as columns of numbers and texts: a million of them open in a tenth of a second.

    episodes.npz    length, shard, offset int64 [E]; hz float64 [E]; sha256 uint8 [E, 32]
                    stored_sha256 uint8 [E, 32], or [0, 32] where the cache holds decoded frames
                    source, episode_id, instruction: UTF-8 bytes, one text after the other
                    source_ends, episode_id_ends, instruction_ends int64 [E]: the byte behind each text
                    digest uint8 [32]: of the cache that the table belongs to

A column is read and checked (by the sums of the archive) when it is first used, and nothing is held for an episode but
its places in the columns.
"""

# E episodes
from __future__ import annotations

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
    for name, missing in (("sha256", None), ("stored_sha256", "")):
        digests = b"".join(bytes.fromhex(row.get(name, missing)) for row in rows)
        columns[name] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
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

    @classmethod
    def open(cls, folder: Path, *, count: int, digest: str, cure: str) -> EpisodeTable:
        """Open the table of a cache; reads only what is needed to find frames.

        Args:
            folder: of the cache.
            count: E.
            digest: of the cache.
            cure: what a user should do about damage, as the end of a message.

        Raises:
            InputError: it is missing, damaged, or that of another cache.
        """
        table = cls(folder / TABLE, count, {}, cure=cure)
        if table._column("digest").tobytes().hex() != digest:
            raise InputError(f"{table._path} does not belong to the index beside it; {cure}")
        begins = np.cumsum(table.length) - table.length
        # Shards follow each other, and the first episode of each begins at its frame 0.
        rise = np.diff(table.shard, prepend=-1)
        offset = begins - np.maximum.accumulate(np.where(rise, begins, 0))
        if table.length.min() < 1 or rise[0] < 1 or rise.min() < 0 or (table.offset != offset).any():
            raise InputError(f"{table._path} is damaged: its episodes do not follow each other; {cure}")
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
        if name not in self._columns:
            column = read_arrays(self._path, (name,), cure=self._cure)[name]
            if name.endswith("_ends") or name in _NUMBERS:
                fits = column.shape == (self._count,) and column.dtype == _NUMBERS.get(name, np.int64)
            elif name in _TEXTS:
                ends = self._column(f"{name}_ends")
                fits = column.dtype == np.uint8 and np.diff(ends, prepend=0).min() >= 0 and column.shape == (ends[-1],)
            else:
                fits = column.dtype == np.uint8 and column.ndim in (1, 2) and column.shape[-1] == 32
                fits &= column.ndim == 1 or len(column) in (0, self._count)
            if not fits:
                raise InputError(f"{self._path} is damaged: {name} is {column.dtype} {column.shape}; {self._cure}")
            self._columns[name] = column
        return self._columns[name]
