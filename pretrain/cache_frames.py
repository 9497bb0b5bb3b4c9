"""RLDS episodes -> frame cache: the only step of pre-training that needs TensorFlow, done once per run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from vw2_robot.data.episodes import Episode
from vw2_robot.data.frames import FrameCache, cache_frames
from vw2_robot.data.openx import find_source
from vw2_robot.data.rlds import read_rlds

from .config import Pretrain


def cache_rlds(config: Pretrain, out: Path) -> FrameCache:
    """Decode and resize every episode of `config.data` into `out`; continues where an earlier call was cut off."""
    data = config.data
    assert data.path is not None
    source = find_source(data.source) if data.source is not None else None

    episodes: Iterator[Episode] = chain.from_iterable(
        read_rlds(str(data.path), split=split, source=source, image_key=data.image_key, max_bad=data.max_bad)
        for split in data.splits
    )
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
                "path": str(Path(data.path).resolve()),
                "splits": list(data.splits),
                "source": data.source,
                "image_key": data.image_key,
            },
            progress=progress,
        )
    return FrameCache(out)
