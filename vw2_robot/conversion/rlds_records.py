"""An RLDS data set as records: every RGB camera and every number, or row of numbers, of a step.

The place of a number becomes its name: `observation/state` is `observation.state`. Depth, texts other than the
instruction, and tensors of two and more axes are left out, and named in the log.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vw2_robot.data.episodes import Part
from vw2_robot.data.sources.openx import known_source
from vw2_robot.data.sources.rlds import RldsSource
from vw2_robot.data.sources.rlds_builder import (
    EPISODE,
    child,
    choose_image_key,
    find_image_keys,
    find_language_key,
    image_path,
    open_builder,
    step_features,
)
from vw2_robot.data.step_names import IS_FIRST, IS_LAST, IS_TERMINAL
from vw2_robot.errors import InputError

from .records import TEXTS, Numbers, Record

_LOG = logging.getLogger(__name__)
_FLAGS = (IS_FIRST, IS_LAST, IS_TERMINAL)
Place = tuple[str, ...]


class RldsRecords:
    """The splits of an RLDS data set; a part is a file."""

    def __init__(self, path: Path, *, splits: Sequence[str] | None, camera: str | None, hz: float | None) -> None:
        """Read the description of the data set.

        Args:
            path: folder of the data set.
            splits: names or TFDS slices; all splits that hold episodes if None.
            camera: the only one; all if None.
            hz: frames per second, if the data set has none.

        Raises:
            InputError: folder, split, camera or rate is wrong.
        """
        builder, folder = open_builder(path)
        source = known_source(builder.info.name)
        self.path = Path(folder)
        self.name: str = builder.info.name
        usual = source.image_keys if source is not None else ()
        there = list(find_image_keys(builder, folder))
        if not there or camera is not None:
            there = [choose_image_key(builder, folder, (camera,) if camera is not None else ())]
        self._cameras = sorted(there, key=lambda name: (name not in usual, name))  # stable: the usual one first
        self._camera_places = {name: image_path(builder, folder, name) for name in self._cameras}
        self._numbers = self._find_numbers(builder, folder, find_language_key(builder, folder, source))
        metadata = child(builder.info.features, EPISODE)
        self._texts = [key for key in TEXTS if getattr(child(metadata, key), "np_dtype", None) == np.object_]
        self._has_end = child(step_features(builder, folder), IS_TERMINAL) is not None
        names = splits or [name for name, info in builder.info.splits.items() if info.num_examples]
        self._sources = [
            (
                name.partition("[")[0],
                RldsSource(folder, splits=(name,), image_key=self._cameras[0], hz=hz, max_skipped=0),
            )
            for name in names
        ]
        self._places = [
            (split, source, number, part)
            for split, source in self._sources
            for number, part in enumerate(source.parts())
        ]

    def parts(self) -> list[tuple[str, Part]]:
        """Return the split and the description of each file."""
        return [(split, part) for split, _, _, part in self._places]

    def read(self, part: int, *, start: int = 0) -> Iterator[Record]:
        """Yield the episodes of one file from number `start` on."""
        split, source, number, _ = self._places[part]
        others = self._cameras[1:]
        places: list[Place] = [
            *(self._camera_places[name] for name in others),
            *(place for place, _ in self._numbers.values()),
            *((EPISODE, key) for key in self._texts),
            *([(IS_TERMINAL,)] if self._has_end else []),
        ]
        # Images of the first camera with text and rate, and everything else, in two passes over the file.
        everything_else = source.read_numbers(number, places, start=start) if places else iter(())
        for episode in source.read(number, start=start):
            name, found = next(everything_else, (episode.episode_id, ()))
            if name != episode.episode_id:
                raise InputError(f"{self.path}: episode {episode.episode_id} has no numbers; copy the data set again")
            values = iter(found)
            cameras = {self._cameras[0]: episode}
            cameras |= {other: replace(episode, images=tuple(map(bytes, next(values)))) for other in others}
            numbers = {name: _rows(next(values), dtype) for name, (_, dtype) in self._numbers.items()}
            texts = {key: bytes(next(values)).decode("utf-8", errors="replace") for key in self._texts}
            is_end = bool(np.ravel(next(values))[-1]) if self._has_end else True
            yield Record(split=split, cameras=cameras, numbers=numbers, texts=texts, terminal=is_end)

    def _find_numbers(self, builder: Any, folder: str, language: Place | None) -> dict[str, tuple[Place, str]]:
        """Return name -> place and dtype of all numbers of a step, and log what is left out."""
        found: dict[str, tuple[Place, str]] = {}
        left_out: list[str] = []

        def walk(features: Any, path: Place) -> None:
            for key, feature in sorted(features.items()):
                place = (*path, key)
                if hasattr(feature, "items"):
                    walk(feature, place)
                elif place in (*self._all_images(builder, folder), language, *((flag,) for flag in _FLAGS)):
                    continue
                elif (
                    np.dtype(feature.np_dtype).kind in "fiub"
                    and len(shape := feature.shape or ()) < 2
                    and None not in shape
                ):
                    found[".".join(place).replace("/", ".")] = (place, np.dtype(feature.np_dtype).name)
                else:
                    left_out.append("/".join(place))

        walk(step_features(builder, folder), ())
        if left_out:
            _LOG.warning("%s: not converted: %s", folder, ", ".join(left_out))
        return found

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one object of this class lives as long as the program
    def _all_images(self, builder: Any, folder: str) -> tuple[Place, ...]:
        return tuple(image_path(builder, folder, name) for name in find_image_keys(builder, folder))


def _rows(values: Any, dtype: str) -> Numbers:
    """Return numbers [T] or [T, n], or the bytes of each row, as [T, n]."""
    if values.dtype == np.object_:
        values = np.stack([np.frombuffer(row, dtype) for row in values])
    return np.asarray(values.reshape(len(values), -1))
