"""How a shard of the frame cache holds its frames: decoded, or compressed as they came.

    decoded      shard-00000.npy        uint8 [F, H, W, 3], the frames of some episodes one after the other
    compressed   shard-00000.images     the source's own JPEG or PNG images one after the other
                 shard-00000.ends.npy   int64 [F], the byte behind each image

Both give the same pixels, and an episode has the same sha256: that of its decoded and resized pixels. A compressed
image is decoded and resized whenever it is read, as it was when that sha256 was computed. An image that is an array,
such as a simulator's, or that has more bytes than its decoded pixels is stored as PNG in the size of the cache, which
loses nothing either.

The pixels of a JPEG are those of the decoder that is installed; another version of it may round otherwise.
"""

# F frames of a shard · n, B, T frames that are read · H, W pixels
from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import map_array, map_bytes, read_array
from vw2_robot.storage.files import atomic_write

from .episode_table import CachedEpisode
from .episodes import Episode
from .images import Aspect, Decode, read_clip, read_frame

Storage = Literal["decoded", "compressed"]


class FramesOfEpisode(NamedTuple):
    """Some frames [T] of an episode; they must lie in it."""

    episode: CachedEpisode
    frame_ids: NDArray[np.int64]


# --------------------------------------------------------------------------------------------------------- writing


class ShardWriter(Protocol):
    """Frames of the episodes of one shard, before they are written."""

    def add(self, episode: Episode) -> dict[str, Any]:
        """Append all frames of an episode, and return the hashes for its row.

        Raises:
            InputError: a frame cannot be decoded; nothing was appended.
        """

    def save(self, folder: Path, number: int) -> None:
        """Write the files of the shard."""


class DecodedWriter:
    """Frames as they will be read.

    Args:
        num_frames: most frames of the shard.
        height: pixels.
        width: pixels.
        aspect: see `resize_frame`.
        decode: see `images`.
    """

    def __init__(self, num_frames: int, *, height: int, width: int, aspect: Aspect, decode: Decode) -> None:
        self._pixels = np.empty((num_frames, height, width, 3), np.uint8)
        self._aspect = aspect
        self._decode = decode
        self._count = 0

    def add(self, episode: Episode) -> dict[str, Any]:
        """See `ShardWriter`."""
        # Frames of an episode that fails are overwritten by the next one.
        part = self._pixels[self._count : self._count + len(episode)]
        for index in range(len(episode)):
            read_frame(episode, index, part[index], aspect=self._aspect, decode=self._decode)
        self._count += len(episode)
        return {"sha256": hashlib.sha256(part.data).hexdigest()}

    def save(self, folder: Path, number: int) -> None:
        """See `ShardWriter`."""
        with atomic_write(_decoded_path(folder, number)) as temporary, temporary.open("wb") as file:
            np.save(file, self._pixels[: self._count], allow_pickle=False)


class CompressedWriter:
    """Frames as their source stores them.

    Args:
        height: pixels.
        width: pixels.
        aspect: see `resize_frame`.
        decode: see `images`.
    """

    def __init__(self, *, height: int, width: int, aspect: Aspect, decode: Decode) -> None:
        self._frame = np.empty((height, width, 3), np.uint8)
        self._aspect = aspect
        self._decode = decode
        self._images: list[bytes] = []

    def add(self, episode: Episode) -> dict[str, Any]:
        """See `ShardWriter`."""
        pixels = hashlib.sha256()
        images = []
        frame = self._frame
        for index, image in enumerate(episode.images):
            read_frame(episode, index, frame, aspect=self._aspect, decode=self._decode)
            pixels.update(frame.data)
            images.append(image if isinstance(image, bytes) and len(image) <= frame.nbytes else _png(frame))
        ends = np.cumsum([len(image) for image in images], dtype=np.int64)
        self._images += images
        return {"sha256": pixels.hexdigest(), "stored_sha256": _stored_sha256(ends, b"".join(images))}

    def save(self, folder: Path, number: int) -> None:
        """See `ShardWriter`."""
        with atomic_write(_images_path(folder, number)) as temporary, temporary.open("wb") as file:
            file.writelines(self._images)
        with atomic_write(_ends_path(folder, number)) as temporary, temporary.open("wb") as file:
            np.save(file, np.cumsum([len(image) for image in self._images], dtype=np.int64), allow_pickle=False)


def shard_writer(
    storage: Storage, *, num_frames: int, height: int, width: int, aspect: Aspect, decode: Decode
) -> ShardWriter:
    """Return the writer of a shard.

    Args:
        storage: of the cache.
        num_frames: most frames of the shard.
        height: pixels.
        width: pixels.
        aspect: see `resize_frame`.
        decode: see `images`.
    """
    if storage == "compressed":
        return CompressedWriter(height=height, width=width, aspect=aspect, decode=decode)
    return DecodedWriter(num_frames, height=height, width=width, aspect=aspect, decode=decode)


def _png(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)  # 3 times as fast as 6, about as small
    return buffer.getvalue()


def _stored_sha256(ends: NDArray[np.int64], images: bytes | memoryview) -> str:
    digest = hashlib.sha256(ends.astype("<i8").tobytes())
    digest.update(images)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------- reading


class ShardReader(Protocol):
    """Frames of a finished cache. Files are opened when one of their frames is read."""

    def check(self, episode: CachedEpisode) -> bool:
        """Return whether the stored bytes of an episode are those that were written."""

    def file(self, episode: CachedEpisode) -> Path:
        """Return the file of an episode, for messages."""

    def read(self, clips: Sequence[FramesOfEpisode], out: NDArray[np.uint8]) -> None:
        """Read B clips into `out` uint8 [B, T, H, W, 3]."""


class DecodedReader:
    """Decoded frames, at memory speed.

    Args:
        folder: of the cache.
        frames: number of frames of each shard.
        height: pixels.
        width: pixels.
        cure: what a user should do about damage, as the end of a message.
    """

    def __init__(self, folder: Path, frames: NDArray[np.int64], *, height: int, width: int, cure: str) -> None:
        self._folder = folder
        self._frames = frames
        self._size = (height, width)
        self._cure = cure
        self._shards: dict[int, NDArray[np.uint8]] = {}

    def file(self, episode: CachedEpisode) -> Path:
        """See `ShardReader`."""
        return _decoded_path(self._folder, episode.shard)

    def check(self, episode: CachedEpisode) -> bool:
        """See `ShardReader`; costs one reading of all pixels of the episode."""
        stored = self._shard(episode.shard)[episode.offset : episode.offset + episode.length]
        return hashlib.sha256(stored.data).hexdigest() == episode.sha256

    def read(self, clips: Sequence[FramesOfEpisode], out: NDArray[np.uint8]) -> None:
        """See `ShardReader`."""
        for (episode, ids), pixels in zip(clips, out, strict=True):
            # mode="clip" lets numpy write into `out` without a buffer; the caller has checked the bounds.
            np.take(self._shard(episode.shard), ids + episode.offset, axis=0, out=pixels, mode="clip")

    def _shard(self, number: int) -> NDArray[np.uint8]:
        """Return the mapped pixels [F, H, W, 3] of a shard."""
        if number not in self._shards:
            path = _decoded_path(self._folder, number)
            wanted = (int(self._frames[number]), *self._size, 3)
            shard = map_array(path, cure=self._cure)
            if shard.shape != wanted or shard.dtype != np.uint8 or not shard.flags.c_contiguous:
                raise InputError(f"{path} holds {shard.dtype} {shard.shape}, expected uint8 {wanted}; {self._cure}")
            self._shards[number] = shard
        return self._shards[number]


class CompressedReader:
    """Compressed frames, which are decoded in threads when they are read.

    Args:
        folder: of the cache.
        frames: number of frames of each shard.
        aspect: of the cache.
        decode: of the cache.
        threads: that decode; 0 decodes in the thread that reads.
        cure: what a user should do about damage, as the end of a message.
    """

    def __init__(
        self, folder: Path, frames: NDArray[np.int64], *, aspect: Aspect, decode: Decode, threads: int, cure: str
    ) -> None:
        self._folder = folder
        self._frames = frames
        self._aspect = aspect
        self._decode = decode
        self._cure = cure
        self._shards: dict[int, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None

    def file(self, episode: CachedEpisode) -> Path:
        """See `ShardReader`."""
        return _images_path(self._folder, episode.shard)

    def check(self, episode: CachedEpisode) -> bool:
        """See `ShardReader`; decodes nothing."""
        images, ends = self._stored(episode)
        return _stored_sha256(ends, images.data) == episode.stored_sha256

    def read(self, clips: Sequence[FramesOfEpisode], out: NDArray[np.uint8]) -> None:
        """See `ShardReader`.

        Raises:
            InputError: an image cannot be decoded.
        """

        def decode(clip: FramesOfEpisode, pixels: NDArray[np.uint8]) -> None:
            ids = clip.frame_ids.tolist()
            read_clip(self._with_images(clip.episode, ids), ids, pixels, aspect=self._aspect, decode=self._decode)

        for _ in (map if self._decoders is None else self._decoders.map)(decode, clips, out):
            pass

    def _with_images(self, episode: CachedEpisode, frame_ids: list[int]) -> Episode:
        """Return the episode with its images of these frames; the others are empty."""
        stored, ends = self._stored(episode)
        images = [b""] * episode.length
        for frame in set(frame_ids):
            images[frame] = stored[int(ends[frame - 1]) if frame else 0 : int(ends[frame])].tobytes()
        return Episode(episode.source, episode.episode_id, episode.instruction, episode.hz, tuple(images))

    def _stored(self, episode: CachedEpisode) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the bytes of an episode, and where each of its images ends in them."""
        shard, ends = self._shard(episode.shard)
        begin = int(ends[episode.offset - 1]) if episode.offset else 0
        mine = ends[episode.offset : episode.offset + episode.length]
        return shard[begin : int(mine[-1])], mine - begin

    def _shard(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the mapped bytes of a shard, and where each image ends in them."""
        if number not in self._shards:
            path = _ends_path(self._folder, number)
            ends = read_array(path, cure=self._cure)
            if ends.shape != (self._frames[number],) or ends.dtype != np.int64:
                raise InputError(f"{path} holds {ends.dtype} {ends.shape}, expected int64 [{self._frames[number]}]")
            images = map_bytes(_images_path(self._folder, number), cure=self._cure)
            if ends[0] < 1 or (np.diff(ends) < 1).any() or ends[-1] != len(images):
                raise InputError(f"{path} does not fit the {len(images)} bytes beside it; {self._cure}")
            self._shards[number] = (images, ends)
        return self._shards[number]


def shard_reader(
    storage: Storage,
    folder: Path,
    frames: NDArray[np.int64],
    *,
    height: int,
    width: int,
    aspect: Aspect,
    decode: Decode,
    threads: int,
    cure: str,
) -> ShardReader:
    """Return the reader of a cache.

    Args:
        storage: of the cache.
        folder: of the cache.
        frames: number of frames of each shard.
        height: pixels.
        width: pixels.
        aspect: see `resize_frame`.
        decode: see `images`.
        threads: that decode compressed frames.
        cure: what a user should do about damage, as the end of a message.
    """
    if storage == "compressed":
        return CompressedReader(folder, frames, aspect=aspect, decode=decode, threads=threads, cure=cure)
    return DecodedReader(folder, frames, height=height, width=width, cure=cure)


# ------------------------------------------------------------------------------------------------------------ files


def _decoded_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def _images_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.images"


def _ends_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.ends.npy"
