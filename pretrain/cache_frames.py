"""Opening of data sets and of the frame cache that is made from them.

Episodes are stored once per run, as `data.frame_storage` says. With RLDS data sets this is the only step of
pre-training that needs TensorFlow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vw2_robot.data.episodes import Episode, EpisodeSource, SkippedEpisodes, TooManySkippedError
from vw2_robot.data.frame_cache import FrameCache, cache_frames, split_episodes
from vw2_robot.data.sources.formats import open_training, recognize
from vw2_robot.data.sources.mixtures import open_mixture
from vw2_robot.data.sources.openx import find_source
from vw2_robot.data.sources.published_mixture import ENDING, open_published_mixture
from vw2_robot.data.sources.rlds import RldsSource
from vw2_robot.distributed import ranks
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json, write_json

from .config import DataConfig, PretrainConfig


def open_frames(config: PretrainConfig) -> FrameCache:
    """Return the frame cache of this run; it is made from the data sets first if it is not there.

    All ranks must call it together: rank 0 makes the cache, then the others open it.

    Raises:
        InputError: no data were named, they cannot be read, or ranks see different caches.
    """
    with ranks.main_first():
        cache = _open_or_make(config)
    ranks.check_same(
        "the frame cache",
        {"path": str(cache.path), "digest": cache.digest},
        advice="give all ranks the same data.frame_cache, or a run_dir that all machines share",
    )
    return cache


def _open_or_make(config: PretrainConfig) -> FrameCache:
    data = config.data
    if data.frame_cache is not None:
        cache = FrameCache(Path(data.frame_cache), threads=data.decode_threads)
        if (cache.height, cache.width) != config.clip_size:
            height, width = config.clip_size
            raise InputError(
                f"data.frame_cache={data.frame_cache} holds {cache.height} x {cache.width} images, "
                f"dLDM and VDM expect {height} x {width}"
            )
        return cache
    if data.path is None:
        raise InputError(
            "no data: set data.path to the folder of a data set (for example .../bridge_dataset/1.0.0), or "
            "data.frame_cache to a frame cache made before"
        )
    folder = config.stage_dir("frames")
    return cache_sources(config, folder) if ranks.is_main() else FrameCache(folder, threads=data.decode_threads)


def training_split(config: PretrainConfig, cache: FrameCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of (training, validation) episodes; equal videos never lie on both sides."""
    return split_episodes(cache, validation_fraction=config.data.validation_fraction, seed=config.seed)


def open_sources(data: DataConfig) -> list[tuple[EpisodeSource, float]]:
    """Open the data sets that the configuration names, and return each with its weight; no episode is read.

    Raises:
        InputError: one of them cannot be opened, or two have the same name.
    """
    assert data.path is not None
    if data.mixture is not None:
        assert isinstance(data.path, str)
        if data.mixture.endswith(ENDING):
            return open_published_mixture(Path(data.mixture), Path(data.path))
        members = open_mixture(data.mixture, data.path)
        splits = data.splits or ("train",)
        return [(member.open(splits=splits, max_skipped=data.max_skipped), member.weight) for member in members]
    paths = data.path if isinstance(data.path, list) else [data.path]
    opened = [_open_path(path, data) for path in paths]
    # Counted per path: several splits of one data set share its name.
    names = Counter(name for sources in opened for name in {source.name for source in sources})
    same = [name for name, count in names.items() if count > 1]
    if same:
        raise InputError(
            f"data.path={paths}: more than one data set is called {', '.join(same)}; episodes are identified by the "
            "names of their data sets, so rename a folder"
        )
    return [(source, 1.0) for sources in opened for source in sources]


def _open_path(path: str, data: DataConfig) -> Sequence[EpisodeSource]:
    # RLDS apart from other formats: `open_training` takes neither a row of the Open-X table nor `max_skipped`.
    if "://" in path or recognize(Path(path)) == "rlds" or data.source is not None:
        row = find_source(data.source) if data.source is not None else None
        return [
            RldsSource(
                path,
                splits=data.splits or ("train",),
                source=row,
                image_key=data.image_key,
                hz=data.hz,
                max_skipped=data.max_skipped,
            )
        ]
    return open_training(path, splits=data.splits, image_key=data.image_key, hz=data.hz)


def read_first(source: EpisodeSource, *, limit: int | None, skipped: SkippedEpisodes) -> Iterator[Episode]:
    """Yield all episodes in order, or about `limit` of them: equally many from the beginning of every part.

    Where a part cannot be read, such as a truncated video, the rest of it is left out and counted in `skipped`.

    Args:
        source: the data set.
        limit: how many episodes; None: all.
        skipped: counts what could not be read.

    Raises:
        TooManySkippedError: there is more of that than allowed.
    """
    parts = source.parts()
    for number, part in enumerate(parts):
        # Rounded so that the shares of all parts add up to the limit.
        share = None if limit is None else limit * (number + 1) // len(parts) - limit * number // len(parts)
        read = 0
        try:
            for episode in islice(source.read(number), share):
                yield episode
                read += 1
        # It is an InputError too, and must not be counted as one more damaged part.
        except TooManySkippedError:
            raise
        except InputError as error:
            # A part that does not know its number of episodes counts as one.
            wanted = [count for count in (share, part.episodes) if count is not None]
            skipped.add(error, count=max(1, min(wanted, default=0) - read))


def cache_sources(config: PretrainConfig, out: Path) -> FrameCache:
    """Decode and resize the episodes of `config.data` into `out`; an interrupted call is continued by the next."""
    data = config.data
    sources = open_sources(data)
    skipped = SkippedEpisodes(data.max_skipped)
    episodes = chain.from_iterable(
        read_first(source, limit=data.cache_episodes, skipped=skipped) for source, _ in sources
    )
    was_complete = (out / "index.json").is_file()
    if not was_complete:
        # Read one episode before `out` is bound to the data: data that cannot be read leave no folder behind.
        episodes = chain(list(islice(episodes, 1)), episodes)
    # Absolute paths, so that the identity of the data does not depend on the working directory.
    paths = data.path if isinstance(data.path, list) else [str(data.path)]
    absolute = [path if "://" in path else str(Path(path).resolve()) for path in paths]

    with tqdm(desc="frames", unit="episode", disable=None, dynamic_ncols=True) as bar:

        def progress(stored: int, num_frames: int) -> None:
            bar.update(stored - bar.n)
            bar.set_postfix(frames=num_frames, refresh=False)

        # The description binds the folder: other data or options are refused instead of mixed in.
        cache_frames(
            episodes,
            out,
            height=config.clip_size[0],
            width=config.clip_size[1],
            aspect=data.aspect,
            decode=data.decode,
            storage=data.frame_storage,
            max_skipped=data.max_skipped,
            description={
                "path": absolute if isinstance(data.path, list) else absolute[0],
                "mixture": data.mixture,
                "splits": list(data.splits or ("train",)),
                "source": data.source,
                "image_key": data.image_key,
                "cache_episodes": data.cache_episodes,
                # Only where it is set, so that caches from before this option keep their description.
                **({} if data.hz is None else {"hz": data.hz}),
            },
            progress=progress,
        )
    report_new_parts(out, [source for source, _ in sources], was_complete=was_complete)
    return FrameCache(out, threads=data.decode_threads)


def report_new_parts(out: Path, sources: Sequence[EpisodeSource], *, was_complete: bool) -> None:
    """Print which parts were added to the data sets since the cache was complete: they are not in it.

    Args:
        out: folder of the cache; parts.json in it lists the parts that the data sets had then.
        sources: the data sets as they are now.
        was_complete: False writes parts.json anew.
    """
    file = out / "parts.json"
    parts = [[source.name, part.name, part.episodes] for source in sources for part in source.parts()]
    known = None
    if was_complete and file.exists():
        known = read_json(file, cure="restore it, or delete it to have it made again")
    if known is None:
        write_json(file, {"parts": parts}, sealed=True)
        return
    # A part counts as new if its number of episodes changed, too.
    before = set(map(tuple, known["parts"]))
    if new := [f"{source}: {name}" for source, name, count in parts if (source, name, count) not in before]:
        shown = ", ".join(new[:5]) + (", ..." if len(new) > 5 else "")
        print(
            f"frames: {len(new)} of {len(parts)} parts of the data ({shown}) are not in {out}, which was complete "
            "before they came or changed; use another run_dir, or delete this one, to train on them",
            flush=True,
        )
