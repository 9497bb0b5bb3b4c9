"""The frame cache: every episode, decoded and resized once, then read by all pixel training without its source.

    out/plan.json          the request (size, aspect, shard length, description of the source); written first
    out/shard-00000.npy    the frames of some episodes, see `frame_storage`: decoded, or compressed in two other files
    out/shard-00000.jsonl  one line an episode: its place in the shard, sha256 of its pixels, instruction, frame rate
    out/episodes.npz       all these lines as columns, see `episode_table`: what a reader opens
    out/index.json         written last: totals and the digest that later stages store

`cache_frames` may be killed at any moment, also by a power failure, and started again with the same arguments: finished
shards are kept, the rest is made, and the folder ends up with the same bytes. One process at a time makes a cache. A
folder without `index.json` is unfinished and is not read.

Damage is detected: the index carries its own sha256, each column its checksum, and what is stored of an episode is
compared with its sha256 when it is first read. Caches of earlier releases are refused: for one seed other episodes were
held out of them, so a run that continued would validate on what it was trained on.

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
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json, write_json, write_text
from vw2_robot.storage.locks import clear_dead_lock, lock_folder

from .episode_table import TABLE, EpisodeTable, columns_of, write_table
from .episodes import Episode
from .frame_storage import FramesOfEpisode, Storage, shard_reader, shard_writer
from .images import Aspect, Decode

# n, B, T frames that are read · H, W pixels
FORMAT_VERSIONS: dict[Storage, int] = {"decoded": 3, "compressed": 4}
_SPLIT = "split 2"
"""which episodes `split_episodes` holds out for a seed; part of the digest: no run continues on another split"""
_LOG = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------- writing


def cache_frames(
    episodes: Iterable[Episode],
    out: Path,
    *,
    height: int,
    width: int,
    description: Mapping[str, Any],
    aspect: Aspect = "stretch",
    decode: Decode = "scaled",
    storage: Storage = "decoded",
    episodes_per_shard: int = 64,
    max_skipped: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Decode, resize and store `episodes` under `out`; continue where an earlier call was interrupted.

    Args:
        episodes: must come in the same order each time; those that are already stored are not decoded again.
        out: the cache folder; made if absent. A finished cache of the same plan is left as it is.
        height: pixels.
        width: pixels.
        description: what the episodes are (path, split, keys), as JSON values; compared when a cache is continued.
        aspect: see `resize_frame`.
        decode: of JPEG that is much larger than needed, see `images`.
        storage: of the frames; the pixels that are read are the same.
        episodes_per_shard: one shard is held in memory and is the unit that is lost when the program is killed.
        max_skipped: episodes with an undecodable frame are named in the log, skipped and counted; one more than this
            stops the run.
        progress: called with (episodes, frames) stored so far after each shard.

    Raises:
        InputError: `out` holds another cache, the episodes are not those of the earlier call, or too many of them are
            unreadable.
    """
    known = aspect in get_args(Aspect) and decode in get_args(Decode) and storage in get_args(Storage)
    if height < 1 or width < 1 or episodes_per_shard < 1 or not known:
        raise InputError(
            f"frame cache: height {height}, width {width}, episodes_per_shard {episodes_per_shard} must be positive, "
            f"aspect {aspect!r} one of {get_args(Aspect)}, decode {decode!r} one of {get_args(Decode)}, storage "
            f"{storage!r} one of {get_args(Storage)}"
        )
    plan = {
        "format_version": FORMAT_VERSIONS[storage],
        "height": height,
        "width": width,
        "aspect": aspect,
        "episodes_per_shard": episodes_per_shard,
        "description": dict(description),
        # Only where they are set, so that other caches keep the plan of earlier releases.
        **({} if decode == "full" else {"decode": decode}),
        **({} if storage == "decoded" else {"storage": storage}),
    }
    plan = json.loads(json.dumps(plan))  # tuples become lists, as they will be when read back
    # A finished cache needs no lock, so that several runs can start on it at once.
    if _is_begun(out, plan) and (out / "index.json").exists():
        clear_dead_lock(out)
        return
    with lock_folder(out, what="making a frame cache"):
        if not _is_begun(out, plan):
            write_json(out / "plan.json", plan)
        _write_shards(out, plan, iter(episodes), max_skipped=max_skipped, progress=progress)


def _write_shards(
    out: Path,
    plan: dict[str, Any],
    stream: Iterator[Episode],
    *,
    max_skipped: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the missing shards, then the index."""
    rows: list[dict[str, Any]] = []
    for number in itertools.count():
        if (shard_rows := _read_rows(out, number)) is None:
            chunk = list(itertools.islice(stream, plan["episodes_per_shard"]))
            if not chunk:
                break
            num_skipped = sum("skipped" in row for row in rows)
            shard_rows = _write_shard(out, number, chunk, plan, max_skipped=max_skipped - num_skipped)
        else:
            # A finished shard: go over its episodes without decoding, and check that they are the same.
            for row in shard_rows:
                episode = next(stream, None)
                found = None if episode is None else (episode.source, episode.episode_id, len(episode))
                expected = (row["source"], row["episode_id"], row["length"])
                if found != expected:
                    raise InputError(
                        f"{out} was begun with other episodes: (source, id, frames) {expected} is stored where the "
                        f"data now have {found}; delete the folder, or give the data it was begun with"
                    )
        rows += shard_rows
        if progress is not None:
            stored = [row for row in rows if "skipped" not in row]
            progress(len(stored), sum(row["length"] for row in stored))
    stored = [row for row in rows if "skipped" not in row]
    if not stored:
        raise InputError(
            f"no episode to store in {out}: the data gave {len(rows)}, all unreadable; check path and split"
        )
    # Later stages find episodes by name, so a name must be unique.
    names = Counter((row["source"], row["episode_id"]) for row in stored)
    if len(names) < len(stored):
        repeated = names.most_common(1)[0][0]
        raise InputError(f"frame cache {out}: episode {repeated} occurs twice; (source, episode id) must be unique")
    index = _index_of(plan, rows)
    write_table(out, columns_of(stored), digest=index["digest"])
    write_json(out / "index.json", index, sealed=True)


def _is_begun(out: Path, plan: dict[str, Any]) -> bool:
    """Return whether `out` holds a cache of this plan, finished or not.

    Raises:
        InputError: it holds something else.
    """
    plan_path = out / "plan.json"
    if not plan_path.exists():
        # A kill before plan.json was written leaves only temporary files and a lock.
        leftovers = (".tmp", ".lock")
        if out.exists() and (not out.is_dir() or any(not entry.name.endswith(leftovers) for entry in out.iterdir())):
            raise InputError(f"{out} exists and is no frame cache; choose another folder or empty this one")
        return False
    # Descriptions of earlier releases have other names for some of their keys.
    found = with_new_keys(read_json(plan_path, cure=_cure(out)))
    plan = with_new_keys(plan)
    differing = sorted(key for key in {*plan, *found} if plan.get(key) != found.get(key))
    if differing:
        pairs = ", ".join(f"{key}: {found.get(key)!r} there, {plan.get(key)!r} requested" for key in differing)
        raise InputError(f"{out} holds a frame cache of another kind ({pairs}); choose another folder or delete it")
    return True


def _write_shard(
    out: Path, number: int, episodes: list[Episode], plan: dict[str, Any], *, max_skipped: int
) -> list[dict[str, Any]]:
    """Write frames first and rows last, since a shard counts as finished when its rows exist; return the rows.

    Raises:
        InputError: more than `max_skipped` episodes are unreadable.
    """
    rows: list[dict[str, Any]] = []
    writer = shard_writer(
        plan.get("storage", "decoded"),
        num_frames=sum(map(len, episodes)),
        height=plan["height"],
        width=plan["width"],
        aspect=plan["aspect"],
        decode=plan.get("decode", "full"),
    )
    offset = 0
    for episode in episodes:
        row: dict[str, Any] = {
            "source": episode.source,
            "episode_id": episode.episode_id,
            "instruction": episode.instruction,
            "hz": float(episode.hz),
            "length": len(episode),
        }
        try:
            if len(episode) == 0 or not (math.isfinite(episode.hz) and episode.hz > 0):
                raise InputError(
                    f"{episode.source}, episode {episode.episode_id}: {len(episode)} frames at {episode.hz} Hz; "
                    "expected at least one frame and a positive rate"
                )
            hashes = writer.add(episode)
        except InputError as error:
            _LOG.warning("episode skipped: %s", error)
            row["skipped"] = str(error)
        else:
            row |= {"shard": number, "offset": offset, **hashes}
            offset += len(episode)
        rows.append(row)
    # Before anything is stored, so that the same call works once the data are repaired.
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    if len(skipped) > max_skipped:
        raise InputError(
            f"too many unreadable episodes: {len(skipped)} where {max_skipped} were allowed; the last: {skipped[-1]}"
        )
    writer.save(out, number)
    write_text(_rows_path(out, number), "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    return rows


def _index_of(plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of index.json. The digest depends on content and order of the episodes, not on the shards."""
    stored = [row for row in rows if "skipped" not in row]
    keys = ("source", "episode_id", "instruction", "hz", "length", "sha256")
    content = [_SPLIT, *([row[key] for key in keys] for row in stored)]
    return {
        **plan,
        "shards": stored[-1]["shard"] + 1,
        "episodes": len(stored),
        "frames": sum(row["length"] for row in stored),
        "skipped": [[row["source"], row["episode_id"]] for row in rows if "skipped" in row],
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    }


# --------------------------------------------------------------------------------------------------------- reading


class FrameCache:
    """A finished frame cache. Opening reads where its episodes are; a shard is mapped when one of its frames is read.

    Several threads may read at once.

    Attributes:
        episodes: one `CachedEpisode` for each, in the order of the source, and all of them as columns.
        height: pixels.
        width: pixels.
        digest: sha256 of content and order; stored with everything that is made from this cache.
        description: as given to `cache_frames`.
    """

    episodes: EpisodeTable
    height: int
    width: int
    digest: str
    description: dict[str, Any]

    def __init__(self, path: Path, *, verify: bool = True, threads: int = 0) -> None:
        """Open a cache.

        Args:
            path: its folder.
            verify: compare what is stored of an episode with its sha256 when it is first read.
            threads: that decode compressed frames; 0 decodes them in the thread that reads.

        Raises:
            InputError: it is unfinished, damaged, or no frame cache; reading frames raises it for damaged ones.
        """
        self.path = Path(path)
        if not (self.path / "index.json").is_file():
            state = "is unfinished: run the command that makes it again and it continues"
            if not (self.path / "plan.json").is_file():
                state = "does not exist or is no frame cache: expected a folder with plan.json and index.json"
            raise InputError(f"frame cache {self.path} {state}")
        index = read_json(self.path / "index.json", cure=_cure(self.path))
        storage = index.get("storage", "decoded")
        version = index.get("format_version")
        if (version, storage) not in [(number, name) for name, number in FORMAT_VERSIONS.items()]:
            raise InputError(
                f"frame cache {self.path} has format version {version} ({storage}), this program reads 3 (decoded) "
                f"and 4 (compressed); {_cure(self.path)}"
            )
        try:
            self.episodes = self._open_table(index)
            self.height = index["height"]
            self.width = index["width"]
            self.digest = index["digest"]
            self.description = dict(index["description"])
            self._reader = shard_reader(
                storage,
                self.path,
                np.bincount(self.episodes.shard, self.episodes.length).astype(np.int64),
                height=self.height,
                width=self.width,
                aspect=index["aspect"],
                decode=index.get("decode", "full"),
                threads=threads,
                cure=_cure(self.path),
            )
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the index of frame cache {self.path} is damaged ({error!r}); {_cure(self.path)}"
            ) from error
        # Frames are checked when they are first read: checking all of them would make opening slow.
        self._unchecked = np.full(len(self.episodes), verify)

    def read(self, episode_index: int, frame_ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return the given frames of one episode as a new array uint8 [n, H, W, 3]."""
        pixels: NDArray[np.uint8] = self.read_batch(np.array([episode_index]), np.asarray(frame_ids, np.int64)[None])[0]
        return pixels

    def read_batch(
        self, episode_indices: NDArray[np.integer[Any]], frame_ids: NDArray[np.integer[Any]]
    ) -> NDArray[np.uint8]:
        """Return frames [B, T] of episodes [B] as a new array uint8 [B, T, H, W, 3]."""
        pixels = np.empty((*frame_ids.shape, self.height, self.width, 3), np.uint8)
        episodes = [self.episodes[index] for index in episode_indices.tolist()]
        for row, (index, episode) in enumerate(zip(episode_indices.tolist(), episodes, strict=True)):
            if frame_ids.shape[1] and not 0 <= int(frame_ids[row].min()) <= int(frame_ids[row].max()) < episode.length:
                raise IndexError(
                    f"frames {frame_ids[row].tolist()} of episode {index}, which has {episode.length} frames"
                )
            if self._unchecked[index]:
                if not self._reader.check(episode):
                    raise InputError(
                        f"{self._reader.file(episode)} is damaged: the frames of {episode.source}, episode "
                        f"{episode.episode_id} are not what was written (SHA-256 differs); {_cure(self.path)}"
                    )
                self._unchecked[index] = False
        clips = zip(episodes, frame_ids.astype(np.int64), strict=True)
        self._reader.read([FramesOfEpisode(*clip) for clip in clips], pixels)
        return pixels

    def _open_table(self, index: Mapping[str, Any]) -> EpisodeTable:
        """Return the episodes that fit the index."""
        cure = _cure(self.path)
        plan = read_json(self.path / "plan.json", cure=cure)
        table = EpisodeTable.open(self.path, count=index["episodes"], digest=index["digest"], cure=cure)
        totals = {"shards": int(table.shard[-1]) + 1, "frames": int(table.length.sum())}
        if any(index[key] != value for key, value in {**plan, **totals}.items()):
            raise InputError(f"{self.path / 'index.json'} does not fit plan.json and {TABLE}; {cure}")
        return table


def split_episodes(
    cache: FrameCache, *, validation_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (training, validation) episode indices, both ascending; equal videos are never on both sides.

    The choice depends on the seed and on the pixels only, not on order, names or shards. With a positive fraction and
    at least two different videos, neither side is empty.

    Args:
        cache: the frame cache whose episodes are split.
        validation_fraction: part of the different videos that is held out, in [0, 1); 0 holds out none.
        seed: of the choice.

    Raises:
        InputError: `validation_fraction` is not in [0, 1).
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise InputError(f"validation_fraction must lie in [0, 1), found {validation_fraction}")
    # Seed and hash are mixed to 64 bits, which order the videos at random and equally for every order of the cache.
    key = np.random.default_rng(seed).integers(2**64, dtype=np.uint64)
    mixed = cache.episodes.sha256[:, :8].copy().view("<u8")[:, 0] ^ key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    videos = np.unique(mixed)
    # Rounded to the nearest, but at least one and never all.
    count = min(len(videos) - 1, max(1, math.floor(validation_fraction * len(videos) + 0.5)))
    is_held_out = mixed < videos[count] if validation_fraction else np.zeros(len(mixed), bool)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


# ------------------------------------------------------------------------------------------------------ small files


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
