"""The frame cache: every episode decoded and resized once, then read at memory speed. All pixel training reads this.

    out/plan.json          what was asked for (size, aspect, shard length, description of the source); written first
    out/shard-00000.npy    uint8 [F, H, W, 3], the frames of some episodes one after the other; memory-mapped by readers
    out/shard-00000.jsonl  one line an episode: where it lies in the shard, sha256 of its pixels, words, rate
    out/index.json         written last: totals and the digest that later stages store

`cache_frames` may be killed or cut off from power at any moment and started again with the same arguments: finished
shards are kept, the rest is made, and the folder ends up with the same bytes. One process at a time makes a cache. A
folder without `index.json` is unfinished and is not read.

Nothing damaged is read in silence: the index must be what `plan.json` and the rows give, which is worked out at every
opening, and the pixels of an episode must have the sha256 in its row, which is compared when they are first read.

`split_episodes` decides what is held out, by the sha256 of the cached pixels. Public samples contain the same video
under two names (the `val` split of the small Bridge V2 sample is its `train` split in another order); equal pixels
always land on the same side.

No TensorFlow, no torch, no pickle.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import map_array
from vw2_robot.storage.files import atomic_write, read_json, write_json, write_text
from vw2_robot.storage.locks import clear_dead_lock, lock_folder

from .episodes import Episode

# F frames of a shard · n, B, T frames asked for · H, W pixels
FORMAT_VERSION = 1
Aspect = Literal["stretch", "pad"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedEpisode:
    """One line of the index. `sha256` is taken over the cached pixels, so equal videos have equal hashes."""

    source: str
    episode_id: str
    instruction: str
    hz: float
    length: int
    shard: int
    offset: int
    sha256: str


def resize_frame(frame: NDArray[np.uint8], *, height: int, width: int, aspect: Aspect = "stretch") -> NDArray[np.uint8]:
    """Resize uint8 [h, w, 3] to [height, width, 3] with an antialiased bilinear filter.

    `stretch` ignores the aspect ratio (as the release does); `pad` keeps it and centers the image on black.
    """
    if frame.shape[:2] == (height, width):
        return frame
    if aspect == "stretch":
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    scale = min(height / frame.shape[0], width / frame.shape[1])
    inner_h = min(height, max(1, math.floor(frame.shape[0] * scale + 0.5)))
    inner_w = min(width, max(1, math.floor(frame.shape[1] * scale + 0.5)))
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top : top + inner_h, left : left + inner_w] = resize_frame(frame, height=inner_h, width=inner_w)
    return padded


# --------------------------------------------------------------------------------------------------------- writing


def cache_frames(
    episodes: Iterable[Episode],
    out: Path,
    *,
    height: int,
    width: int,
    description: Mapping[str, Any],
    aspect: Aspect = "stretch",
    episodes_per_shard: int = 64,
    max_skipped: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Decode, resize and store `episodes` under `out`; continue where an earlier call was cut off.

    Args:
        episodes: must come in the same order each time; those that are already stored are skipped without decoding.
        out: the cache folder; made if absent. A finished cache of the same plan is left as it is.
        height: pixels.
        width: pixels.
        description: what the episodes are (path, split, keys), as JSON values; compared when a cache is continued.
        aspect: see `resize_frame`.
        episodes_per_shard: one shard is held in memory and is the unit that is lost when the program is killed.
        max_skipped: episodes with an undecodable frame are named in the log, skipped and counted; one more stops the
        run. progress: called with (episodes, frames) stored so far after each shard.

    Raises:
        InputError: `out` holds another cache, the episodes are not those of the earlier call, or too many are bad.
    """
    if height < 1 or width < 1 or episodes_per_shard < 1 or aspect not in get_args(Aspect):
        raise InputError(
            f"frame cache: height {height}, width {width}, episodes_per_shard {episodes_per_shard} must be positive, "
            f"aspect {aspect!r} one of {get_args(Aspect)}"
        )
    plan = {
        "format_version": FORMAT_VERSION,
        "height": height,
        "width": width,
        "aspect": aspect,
        "episodes_per_shard": episodes_per_shard,
        "description": dict(description),
    }
    plan = json.loads(json.dumps(plan))  # tuples become lists, as they will be when read back
    if _is_begun(out, plan) and (out / "index.json").exists():
        clear_dead_lock(out)
        return
    with lock_folder(out, what="making a frame cache"):
        if not _is_begun(out, plan):
            write_json(out / "plan.json", plan)
        _fill(out, plan, iter(episodes), max_skipped=max_skipped, progress=progress)


def _fill(
    out: Path,
    plan: dict[str, Any],
    stream: Iterator[Episode],
    *,
    max_skipped: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make the missing shards, then the index."""
    rows: list[dict[str, Any]] = []
    for number in itertools.count():
        if (shard_rows := _read_rows(out, number)) is None:
            chunk = list(itertools.islice(stream, plan["episodes_per_shard"]))
            if not chunk:
                break
            bad = sum("skipped" in row for row in rows)
            shard_rows = _make_shard(out, number, chunk, plan, bad_allowed=max_skipped - bad)
        else:
            _skip_stored(out, stream, shard_rows)
        rows += shard_rows
        if progress is not None:
            stored = [row for row in rows if "skipped" not in row]
            progress(len(stored), sum(row["length"] for row in stored))
    stored = [row for row in rows if "skipped" not in row]
    if not stored:
        raise InputError(
            f"no episode to store in {out}: the data gave {len(rows)}, all unreadable; check path and split"
        )
    names = Counter((row["source"], row["episode_id"]) for row in stored)
    if len(names) < len(stored):
        repeated = names.most_common(1)[0][0]
        raise InputError(f"frame cache {out}: episode {repeated} occurs twice; (source, episode id) must be unique")
    write_json(out / "index.json", _index_of(plan, rows))


def _is_begun(out: Path, plan: dict[str, Any]) -> bool:
    """Whether `out` holds a cache of this plan, finished or not.

    Raises:
        InputError: it holds something else.
    """
    plan_path = out / "plan.json"
    if not plan_path.exists():
        ours = (".tmp", ".lock")
        if out.exists() and (not out.is_dir() or any(not entry.name.endswith(ours) for entry in out.iterdir())):
            raise InputError(f"{out} exists and is no frame cache; choose another folder or empty this one")
        return False
    found = read_json(plan_path, cure=_cure(out))
    differing = sorted(key for key in {*plan, *found} if plan.get(key) != found.get(key))
    if differing:
        pairs = ", ".join(f"{key}: {found.get(key)!r} there, {plan.get(key)!r} asked for" for key in differing)
        raise InputError(f"{out} holds a frame cache of another kind ({pairs}); choose another folder or delete it")
    return True


def _make_shard(
    out: Path, number: int, episodes: list[Episode], plan: dict[str, Any], *, bad_allowed: int
) -> list[dict[str, Any]]:
    """Write pixels first and rows last: a shard is finished when its rows exist."""
    rows: list[dict[str, Any]] = []
    pixels = np.empty((sum(map(len, episodes)), plan["height"], plan["width"], 3), np.uint8)
    offset = 0
    for episode in episodes:
        row: dict[str, Any] = {
            "source": episode.source,
            "episode_id": episode.episode_id,
            "instruction": episode.instruction,
            "hz": float(episode.hz),
            "length": len(episode),
        }
        part = pixels[offset : offset + len(episode)]
        try:
            _decode_into(part, episode, aspect=plan["aspect"])
        except InputError as error:
            _LOG.warning("episode skipped: %s", error)
            row["skipped"] = str(error)
        else:
            row |= {"shard": number, "offset": offset, "sha256": hashlib.sha256(part.data).hexdigest()}
            offset += len(part)
        rows.append(row)
    _stop_at_too_many_bad(rows, bad_allowed)  # before anything is stored: repaired data get a second chance
    with atomic_write(_shard_path(out, number)) as temporary, temporary.open("wb") as file:
        np.save(file, pixels[:offset], allow_pickle=False)
    write_text(_rows_path(out, number), "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    return rows


def _decode_into(pixels: NDArray[np.uint8], episode: Episode, *, aspect: Aspect) -> None:
    if len(episode) == 0 or not (math.isfinite(episode.hz) and episode.hz > 0):
        raise InputError(
            f"{episode.source}, episode {episode.episode_id}: {len(episode)} frames at {episode.hz} Hz; "
            "expected at least one frame and a positive rate"
        )
    height, width = pixels.shape[1:3]
    for index in range(len(episode)):
        pixels[index] = resize_frame(episode.decode(index), height=height, width=width, aspect=aspect)


def _skip_stored(out: Path, stream: Iterator[Episode], rows: list[dict[str, Any]]) -> None:
    for row in rows:
        episode = next(stream, None)
        found = None if episode is None else (episode.source, episode.episode_id, len(episode))
        stored = (row["source"], row["episode_id"], row["length"])
        if found != stored:
            raise InputError(
                f"{out} was begun with other episodes: (source, id, frames) {stored} is stored where the data now have "
                f"{found}; delete the folder, or give the data it was begun with"
            )


def _stop_at_too_many_bad(rows: list[dict[str, Any]], allowed: int) -> None:
    bad = [row["skipped"] for row in rows if "skipped" in row]
    if len(bad) > allowed:
        raise InputError(f"too many unreadable episodes: {len(bad)} where {allowed} were allowed; the last: {bad[-1]}")


def _index_of(plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What index.json says of these rows. The digest knows content and order, not how they were cut into shards."""
    stored = [row for row in rows if "skipped" not in row]
    keys = ("source", "episode_id", "instruction", "hz", "length", "sha256")
    return {
        **plan,
        "shards": stored[-1]["shard"] + 1,
        "episodes": len(stored),
        "frames": sum(row["length"] for row in stored),
        "skipped": [[row["source"], row["episode_id"]] for row in rows if "skipped" in row],
        "digest": hashlib.sha256(json.dumps([[row[key] for key in keys] for row in stored]).encode()).hexdigest(),
    }


# --------------------------------------------------------------------------------------------------------- reading


class FrameCache:
    """A finished cache. Opening reads index and rows; frames are mapped when first asked for.

    Attributes:
        episodes: one `CachedEpisode` for each, in the order of the source.
        height: pixels.
        width: pixels.
        digest: sha256 of content and order; stored by what is made from this cache.
        description: as given to `cache_frames`.
    """

    episodes: list[CachedEpisode]
    height: int
    width: int
    digest: str
    description: dict[str, Any]

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        """Open a cache.

        Args:
            path: its folder.
            verify: compare the pixels of an episode with their sha256 when they are first read.

        Raises:
            InputError: it is unfinished, damaged, or no frame cache; reading frames raises the same.
        """
        self.path = Path(path)
        index = self._read_index()
        try:
            rows = [row for number in range(index["shards"]) for row in self._rows(number)]
            for number in itertools.count(index["shards"]):  # shards that hold no frame, since all was skipped
                if not _rows_path(self.path, number).is_file():
                    break
                rows += self._rows(number)
            stored = [row for row in rows if "skipped" not in row]
            if _index_of(read_json(self.path / "plan.json", cure=_cure(self.path)), rows) != index:
                raise InputError(f"{self.path / 'index.json'} does not fit plan.json and the rows; {_cure(self.path)}")
            names = CachedEpisode.__dataclass_fields__
            self.episodes = [CachedEpisode(**{name: row[name] for name in names}) for row in stored]
            self.height, self.width, self.digest = index["height"], index["width"], index["digest"]
            self.description = dict(index["description"])
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the index of frame cache {self.path} is damaged ({error!r}); {_cure(self.path)}"
            ) from error
        self._shards: dict[int, NDArray[np.uint8]] = {}
        self._unchecked = set(range(len(self.episodes))) if verify else set[int]()

    def read(self, episode_index: int, frame_ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return the given frames of one episode as a new array uint8 [n, H, W, 3]."""
        pixels: NDArray[np.uint8] = self.read_batch(np.array([episode_index]), np.asarray(frame_ids, np.int64)[None])[0]
        return pixels

    def read_batch(
        self, episode_indices: NDArray[np.integer[Any]], frame_ids: NDArray[np.integer[Any]]
    ) -> NDArray[np.uint8]:
        """Return frames [B, T] of episodes [B] as a new array uint8 [B, T, H, W, 3]."""
        pixels = np.empty((*frame_ids.shape, self.height, self.width, 3), np.uint8)
        for row, episode_index in enumerate(episode_indices.tolist()):
            episode = self.episodes[episode_index]
            if frame_ids.shape[1] and not 0 <= int(frame_ids[row].min()) <= int(frame_ids[row].max()) < episode.length:
                raise IndexError(
                    f"frames {frame_ids[row].tolist()} of episode {episode_index}, which has {episode.length} frames"
                )
            if episode_index in self._unchecked:
                self._check(episode_index)
            np.take(self._shard(episode.shard), frame_ids[row] + episode.offset, axis=0, out=pixels[row], mode="clip")
        return pixels

    def _check(self, episode_index: int) -> None:
        """Compare the pixels of an episode with its row; that costs one reading of them."""
        episode = self.episodes[episode_index]
        pixels = self._shard(episode.shard)[episode.offset : episode.offset + episode.length]
        if hashlib.sha256(pixels.data).hexdigest() != episode.sha256:
            raise InputError(
                f"{_shard_path(self.path, episode.shard)} is damaged: the pixels of {episode.source}, episode "
                f"{episode.episode_id} are not what was written (SHA-256 differs); {_cure(self.path)}"
            )
        self._unchecked.discard(episode_index)

    def _shard(self, number: int) -> NDArray[np.uint8]:
        if number not in self._shards:
            path = _shard_path(self.path, number)
            wanted = (sum(e.length for e in self.episodes if e.shard == number), self.height, self.width, 3)
            shard = map_array(path, cure=_cure(self.path))
            if shard.shape != wanted or shard.dtype != np.uint8 or not shard.flags.c_contiguous:
                raise InputError(
                    f"{path} holds {shard.dtype} {shard.shape}, expected uint8 {wanted}; {_cure(self.path)}"
                )
            self._shards[number] = shard
        return self._shards[number]

    def _rows(self, number: int) -> list[dict[str, Any]]:
        """The rows of a shard; what `_index_of` leaves out of them is where the frames lie, which is checked here."""
        rows = _read_rows(self.path, number)
        if rows is None:
            raise InputError(f"{_rows_path(self.path, number)} is missing; {_cure(self.path)}")
        offset = 0
        for row in rows:
            if "skipped" not in row:
                if (row["shard"], row["offset"]) != (number, offset) or row["length"] < 1:
                    raise InputError(f"{_rows_path(self.path, number)} is damaged; {_cure(self.path)}")
                offset += row["length"]
        return rows

    def _read_index(self) -> dict[str, Any]:
        if not (self.path / "index.json").is_file():
            state = "is unfinished: run the command that makes it again and it continues"
            if not (self.path / "plan.json").is_file():
                state = "does not exist or is no frame cache: expected a folder with plan.json and index.json"
            raise InputError(f"frame cache {self.path} {state}")
        index = read_json(self.path / "index.json", cure=_cure(self.path))
        if index.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"frame cache {self.path} has format version {index.get('format_version')}, this program reads "
                f"{FORMAT_VERSION}; {_cure(self.path)}"
            )
        return index


def split_episodes(cache: FrameCache, *, validation_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return (training, validation) episode indices, both ascending; equal videos are never on both sides.

    The choice depends on the seed and on the pixels only, not on order, names or shards. With a positive fraction and
    at least two different videos, neither side is empty.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise InputError(f"validation_fraction must lie in [0, 1), found {validation_fraction}")
    videos = {episode.sha256 for episode in cache.episodes}
    count = min(len(videos) - 1, max(1, math.floor(validation_fraction * len(videos) + 0.5)))
    if validation_fraction == 0.0:
        count = 0
    held_out = set(sorted(videos, key=lambda video: hashlib.sha256(f"{seed}\0{video}".encode()).hexdigest())[:count])
    sides: tuple[list[int], list[int]] = ([], [])
    for number, episode in enumerate(cache.episodes):
        sides[episode.sha256 in held_out].append(number)
    return sides


# ------------------------------------------------------------------------------------------------------ small files


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def _rows_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.jsonl"


def _read_rows(folder: Path, number: int) -> list[dict[str, Any]] | None:
    path = _rows_path(folder, number)
    if not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n") if line]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {_cure(folder)}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is damaged: expected one JSON object a line; {_cure(folder)}")
    return rows


def _cure(folder: Path) -> str:
    return f"delete {folder} and make it again"
