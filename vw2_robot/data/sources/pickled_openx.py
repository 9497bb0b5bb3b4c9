"""The unpacked pickle copy of Open-X of the Hugging Face Hub (`jxu124/OpenX-Embodiment`) as an `EpisodeSource`.

One folder per data set, one `.pickle` or `.pkl` file per episode: a dict with `steps` (older: `step`), a list of dicts
with `observation`, whose image is encoded bytes or an array; or a dict with `obs_images` [T, C, H, W].

Python's own unpickler runs code from the file. These files are read by the unpickler of `object_arrays`, which supports
plain containers, numbers, text and NumPy arrays and refuses everything else, torch tensors included. A missing image is
an error that lists the entries of the observation; it is never replaced.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from ..episodes import Episode, Part
from .folder_files import files_below, name_below
from .object_arrays import load_pickle
from .openx import known_source

PICKLE_ENDINGS = (".pickle", ".pkl")
KNOWN_IMAGE_KEYS = ("image", "rgb", "front_rgb", "image_1", "rgb_static", "agentview_rgb", "hand_image")
"""names that are tried in this order, after the image in the table of sources"""
_TEXT_KEYS = ("natural_language_instruction", "language_instruction", "instruction")


class PickledOpenXSource:
    """An `EpisodeSource` whose parts are files with one episode each."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_key: str | None = None,
        hz: float | None = None,
        name: str | None = None,
        files: Sequence[str] | None = None,
    ) -> None:
        """List the files; none is opened.

        Args:
            path: the folder of one data set. Its name is looked up in the table of Open-X sources.
            image_key: which image of the observation; overrides the table.
            hz: frames per second; overrides the table.
            name: of the source; that of the folder if None.
            files: names in the folder to read, in order, instead of all.

        Raises:
            InputError: there is no such folder, it holds no pickle, or the frame rate is not known.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; expected one data set, a pickle per episode")
        self.name = name or self.path.resolve().name
        if files is None:
            found = (file for file in files_below(self.path) if file.suffix in PICKLE_ENDINGS)
            self._files = sorted(found, key=lambda file: name_below(self.path, file))
        else:
            self._files = [self.path / file for file in files]
        if not self._files:
            raise InputError(f"{self.path} holds no {' or '.join(PICKLE_ENDINGS)} file; unpack the archives first")
        # The name of the folder is the name of the data set, which gives rate and image.
        row = known_source(self.name)
        rate = hz if hz is not None else (row.hz if row is not None else None)
        if rate is None or not 0 < rate < math.inf:
            raise InputError(
                f"{self.path}: the frame rate of {self.name!r} is not known (found {rate}); give hz, frames per second "
                "(data.hz=5)"
            )
        self.hz = float(rate)
        named = row.image_keys if row is not None else ()
        self._image_keys = (image_key,) if image_key is not None else (*named, *KNOWN_IMAGE_KEYS)

    def parts(self) -> list[Part]:
        """Return one part per file."""
        return [Part(file.relative_to(self.path).as_posix(), 1) for file in self._files]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        """Yield the episode of one file.

        Raises:
            InputError: the file is damaged, holds code, or has another content than expected.
        """
        # A file has one episode, number 0.
        if start > 0:
            return
        file = self._files[part]
        content = load_pickle(file)
        if not isinstance(content, dict):
            raise InputError(f"{file}: expected a dict, found {type(content).__name__}")
        images: tuple[bytes | NDArray[np.uint8], ...]
        # Two forms: all images in one array with the channels first, or a list of steps.
        if "obs_images" in content:
            stacked = content["obs_images"]
            is_array = isinstance(stacked, np.ndarray)
            if not is_array or stacked.dtype != np.uint8 or stacked.ndim != 4 or stacked.shape[1] != 3:
                raise InputError(f"{file}: obs_images is {_kind(stacked)}; expected uint8 [T, 3, H, W]")
            images = tuple(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)) for image in stacked)
            text = _text_of(content)
        else:
            steps = _steps(file, content)
            images = tuple(self._image(file, number, step["observation"]) for number, step in enumerate(steps))
            # The instruction may be stored in the steps or in their observations; the first that is not empty counts.
            text = next((text for step in steps if (text := _text_of(step) or _text_of(step["observation"]))), "")
        yield Episode(self.name, file.relative_to(self.path).with_suffix("").as_posix(), text, self.hz, images)

    def _image(self, file: Path, step: int, observation: Mapping[str, Any]) -> bytes | NDArray[np.uint8]:
        """Return the image of one step."""
        key, image = next(
            ((key, found) for key in self._image_keys if (found := _entry(observation, key)) is not None), ("", None)
        )
        if image is None:
            raise InputError(
                f"{file}, step {step}: no image under {', '.join(dict.fromkeys(self._image_keys))}; the observation"
                f" holds: {', '.join(sorted(_names(observation)))}. Set image_key to the one that is the image"
            )
        # Encoded bytes may be wrapped into an array without axes.
        if isinstance(image, np.ndarray) and image.shape == () and image.dtype.kind in "SO":
            image = image.item()
        if isinstance(image, bytes):
            return image
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
            return np.asarray(image)
        raise InputError(f"{file}, step {step}: {key} is {_kind(image)}; expected JPEG or PNG bytes or uint8 [H, W, 3]")


def _entry(observation: Mapping[str, Any], key: str) -> Any:
    """Return the entry under a key, where `wrist/rgb` may be a path into nested dictionaries; None if there is none."""
    node: Any = observation
    for part in (key,) if key in observation else key.split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _names(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of all entries, those of nested dictionaries as `wrist/rgb`."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _names(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}"


def _steps(file: Path, content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the steps of an episode, after a check of their form."""
    steps = content.get("steps", content.get("step"))
    if not isinstance(steps, list | tuple) or not steps:
        raise InputError(
            f"{file}: expected a list of steps under 'steps' or 'step', or 'obs_images'; the dict holds "
            f"{', '.join(sorted(map(str, content))) or 'nothing'}"
        )
    for number, step in enumerate(steps):
        if not isinstance(step, dict) or not isinstance(step.get("observation"), dict):
            raise InputError(f"{file}, step {number}: expected a dict with a dict 'observation', found {_kind(step)}")
    return list(steps)


def _text_of(node: Mapping[str, Any]) -> str:
    """Return the instruction, stored as text, bytes, or UTF-8 code points padded with zeros; "" if there is none."""
    value = next((node[key] for key in _TEXT_KEYS if node.get(key) is not None), "")
    # Some data sets list several wordings; the first that is not empty is used.
    if isinstance(value, list | tuple) and all(isinstance(entry, str | bytes) for entry in value):
        value = next((entry for entry in value if entry.strip()), "")
    if isinstance(value, np.ndarray):
        # Language-Table stores its instructions as code points in an integer array.
        integers = value.dtype.kind in "iu"
        value = bytes(value[value > 0].astype(np.uint8)) if integers else value.item() if value.size == 1 else ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return value.strip() if isinstance(value, str) else ""


def _kind(value: Any) -> str:
    """Return type or dtype and shape of a value for a message."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
