"""Data sets -> frame cache: decoded once per run; with RLDS the only step of pre-training that needs TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from vw2_robot.data.episodes import Episode, EpisodeSource
from vw2_robot.data.formats import open_source, recognise
from vw2_robot.data.frames import FrameCache, cache_frames
from vw2_robot.data.mixtures import open_mixture
from vw2_robot.data.openx import find_source
from vw2_robot.data.rlds import RldsSource
from vw2_robot.errors import InputError

from .config import DataConfig, Pretrain


def open_sources(data: DataConfig) -> list[tuple[EpisodeSource, float]]:
    """The data sets that the configuration names, each with its weight; no episode is read.

    Raises:
        InputError: one of them cannot be opened, or two have the same name.
    """
    assert data.path is not None
    if data.mixture is not None:
        assert isinstance(data.path, str)
        members = open_mixture(data.mixture, data.path)
        return [(member.open(splits=data.splits, max_bad=data.max_bad), member.weight) for member in members]
    paths = data.path if isinstance(data.path, list) else [data.path]
    sources = [_open(path, data) for path in paths]
    same = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if same:
        raise InputError(
            f"data.path={paths}: more than one data set is called {', '.join(same)}; episodes are told apart by the "
            "names of their data sets, so rename a folder"
        )
    return [(source, 1.0) for source in sources]


def _open(path: str, data: DataConfig) -> EpisodeSource:
    if "://" in path or recognise(Path(path)) == "rlds" or data.source is not None:
        row = find_source(data.source) if data.source is not None else None
        return RldsSource(path, splits=data.splits, source=row, image_key=data.image_key, max_bad=data.max_bad)
    return open_source(path, image_key=data.image_key)


def _identity(path: str) -> str:
    """A name for the data that does not depend on the working directory."""
    return path if "://" in path else str(Path(path).resolve())


def heads(source: EpisodeSource, *, limit: int | None) -> Iterator[Episode]:
    """All episodes in order, or about `limit` of them: equally many from the head of every part."""
    parts = len(source.parts())
    if limit is None:
        yield from chain.from_iterable(source.read(part) for part in range(parts))
        return
    for part in range(parts):
        share = limit * (part + 1) // parts - limit * part // parts
        if share:
            yield from islice(source.read(part), share)


def cache_sources(config: Pretrain, out: Path) -> FrameCache:
    """Decode and resize the episodes of `config.data` into `out`; continues where an earlier call was cut off."""
    data = config.data
    sources = open_sources(data)
    episodes = chain.from_iterable(heads(source, limit=data.cache_episodes) for source, _ in sources)
    if not (out / "index.json").is_file():  # see that the data can be read before `out` is bound to them
        episodes = chain(list(islice(episodes, 1)), episodes)

    with tqdm(desc="frames", unit="episode", disable=None, dynamic_ncols=True) as bar:

        def progress(stored: int, frames: int) -> None:
            bar.update(stored - bar.n)
            bar.set_postfix(frames=frames, refresh=False)

        cache_frames(
            episodes,
            out,
            height=config.dldm.height,
            width=config.dldm.width,
            aspect=data.aspect,
            max_bad=data.max_bad,
            description={
                "path": [_identity(p) for p in data.path] if isinstance(data.path, list) else _identity(str(data.path)),
                "mixture": data.mixture,
                "splits": list(data.splits),
                "source": data.source,
                "image_key": data.image_key,
                "cache_episodes": data.cache_episodes,
            },
            progress=progress,
        )
    return FrameCache(out)
