"""One episode with everything that is converted: all cameras, all columns of numbers, and its texts.

Columns have LeRobot's names: `action`, `observation.state`, and any other, such as `calvin.rel_actions`. Numbers keep
the type in which they are stored, images the bytes; images that are arrays become PNG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from vw2_robot.data.episodes import Episode
from vw2_robot.errors import InputError

Numbers = NDArray[Any]
ACTION_COLUMN = "action"
STATE_COLUMN = "observation.state"
LATENT_COLUMN = "latent_tokens"
TEXTS = ("task", "scene", "way")
"""texts of an episode beside its instruction, "" where not known"""
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


@dataclass(frozen=True, eq=False)
class Record:
    """An episode of a split: a camera's name -> its images, and a column's name -> its numbers [T, n]."""

    split: str
    cameras: Mapping[str, Episode]
    numbers: Mapping[str, Numbers]
    texts: Mapping[str, str] = field(default_factory=dict)
    terminal: bool = True
    """whether the task was solved, False if the recording was cut off"""

    def __post_init__(self) -> None:
        """Check that there is one row of numbers for each image."""
        for name, values in self.numbers.items():
            if values.ndim != 2 or len(values) != len(self):
                raise InputError(f"{self.where}: {name} has shape {values.shape}, expected ({len(self)} images, n)")
        for name, episode in self.cameras.items():
            if len(episode) != len(self):
                raise InputError(f"{self.where}: camera {name} has {len(episode)} images, the first {len(self)}")

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def episode(self) -> Episode:
        """The images of the first camera, with name, instruction and rate."""
        return next(iter(self.cameras.values()))

    @property
    def where(self) -> str:
        """The episode's name in messages."""
        return f"{self.episode.source}, episode {self.episode.episode_id}"


@dataclass(frozen=True)
class Form:
    """What all episodes of a data set must share: camera -> (H, W), column -> (n, dtype), and the rate."""

    cameras: Mapping[str, tuple[int, int]]
    numbers: Mapping[str, tuple[int, str]]
    hz: float

    @staticmethod
    def of(record: Record) -> Form:
        """Return the form of an episode; decodes its first images."""
        sizes = {name: episode.decode(0).shape for name, episode in record.cameras.items()}
        return Form(
            cameras={name: (height, width) for name, (height, width, _) in sizes.items()},
            numbers={name: (values.shape[1], values.dtype.name) for name, values in record.numbers.items()},
            hz=record.episode.hz,
        )

    def check(self, record: Record) -> None:
        """Compare an episode with this form.

        Raises:
            InputError: they differ; names the first difference.
        """
        found = Form.of(record)
        for what in ("cameras", "numbers", "hz"):
            if (one := getattr(found, what)) != (all_others := getattr(self, what)):
                raise InputError(
                    f"{record.where}: {what} {one}, in the first episode {all_others}; convert data sets that differ "
                    "one by one, or leave columns and cameras out (actions=drop, image_key=...)"
                )


def without_actions(record: Record) -> Record:
    """Return a record with images, instruction and texts alone."""
    return replace(record, numbers={})


def stored_image(episode: Episode, index: int) -> bytes:
    """Return an image compressed without loss: JPEG and PNG as stored, anything else as PNG."""
    image = episode.images[index]
    if isinstance(image, bytes) and image.startswith((_JPEG, _PNG)):
        return image
    buffer = io.BytesIO()
    # Level 1: a quarter larger than the default, in a third of its time.
    Image.fromarray(episode.decode(index)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def is_jpeg(image: bytes) -> bool:
    """Return whether compressed bytes are JPEG."""
    return image.startswith(_JPEG)
