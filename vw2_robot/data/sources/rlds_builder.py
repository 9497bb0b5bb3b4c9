"""RLDS data sets in a folder or a bucket: open one, and find its images and its instruction.

Only this file imports TensorFlow and TFDS, when a function is called; they see no GPU, so that torch keeps it. A data
set is opened from its folder (`builder_from_directory`), never by name, so the network is used only if the path says so
(`gs://...`). `rlds` reads the episodes.

A description may name any Python class, and TFDS imports the module of a class that it does not know. Such descriptions
are refused before TFDS reads them. Descriptions that this package wrote are compared with their `manifest.json`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vw2_robot.errors import InputError, require
from vw2_robot.llvm_conflicts import import_triton_first, local_symbols_first
from vw2_robot.storage.files import read_json, verify

from ..step_names import OBSERVATION, STEPS
from .openx import OBSERVATION_TEXT, STEP_TEXT, OpenXSource, known_source

DESCRIPTION = ("dataset_info.json", "features.json")
MAX_ENTRIES = 2**28
"""Limit of the numbers in one entry of a step: five images of 4096 x 4096, or a gigabyte of floats."""
COPY_AGAIN = "copy the data set again"

EPISODE = "episode_metadata"
EPISODE_TEXTS = ("language_instruction", "natural_language_instruction", "instruction", "language", "task")


@functools.cache
def load_tensorflow() -> tuple[ModuleType, ModuleType]:
    """Return the modules tensorflow and tensorflow_datasets, imported without log messages and without a GPU."""
    tfds = _load_tfds()
    prepare_tensorflow()
    with local_symbols_first():
        tf = require("tensorflow", extra="openx")
    tf.config.set_visible_devices([], "GPU")
    tf.get_logger().setLevel("ERROR")  # TensorFlow warns that its reader of record files is deprecated
    return tf, tfds


def prepare_tensorflow() -> None:
    """Prepare the import of TensorFlow: no log messages, no files in the working directory, torch first.

    TensorFlow 2.21 must be imported after a CUDA build of torch. Otherwise torch finds no GPU (it gets TensorFlow's
    stub of the CUDA runtime), and triton, which torch imports late, ends the process (`llvm_conflicts`).
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - pathlib raises here: neither HOME nor an entry for the user
        os.environ.setdefault("KERAS_HOME", os.devnull)  # Keras would make a folder called ~
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        import_triton_first()


def _load_tfds() -> ModuleType:
    """Import TFDS alone: it opens a local data set without TensorFlow, which takes half a gigabyte and seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")  # otherwise TFDS searches for the metadata server of a cloud machine
    if importlib.util.find_spec("tensorflow") is None:
        require("tensorflow", extra="openx")  # fail now, not when the first episode is read
    return require("tensorflow_datasets", extra="openx")


@dataclass(frozen=True)
class RLDSDescription:
    """A data set on disk: `splits` name -> episodes, `image_keys` name -> (H, W), `hz` as in the table or None."""

    path: str
    name: str
    version: str
    splits: dict[str, int]
    num_bytes: int
    image_keys: dict[str, tuple[int | None, int | None]]
    language_key: tuple[str, ...] | None
    hz: float | None


def describe_rlds(path: str | os.PathLike[str]) -> RLDSDescription:
    """Return a description of a data set folder, without reading an episode."""
    builder, folder = open_builder(path)
    name = builder.info.name
    source = known_source(name)
    return RLDSDescription(
        path=folder,
        name=name,
        version=str(builder.info.version),
        splits={split: int(info.num_examples) for split, info in builder.info.splits.items()},
        num_bytes=sum(int(info.num_bytes) for info in builder.info.splits.values()),
        image_keys=find_image_keys(builder, folder),
        language_key=find_language_key(builder, folder, source),
        hz=source.hz if source is not None else None,
    )


def open_builder(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Return the TFDS builder of a data set and the folder that holds its files."""
    tfds = _load_tfds()
    folder = _version_folder(os.fspath(path).rstrip("/") or "/")
    try:
        if "://" not in folder:
            return _open_local(tfds, folder), folder
        # Open a local copy of the description: TFDS by itself knows fewer kinds of paths than TensorFlow.
        with tempfile.TemporaryDirectory() as local:
            for name in DESCRIPTION:
                load_tensorflow()[0].io.gfile.copy(f"{folder}/{name}", f"{local}/{name}")
            return _open_local(tfds, local), folder
    except InputError:
        raise
    except Exception as error:  # TFDS, json and protobuf raise many types for a damaged description
        raise InputError(
            f"{folder} cannot be opened as a TFDS data set ({type(error).__name__}: {first_line(error)}); its "
            "dataset_info.json or features.json is damaged: copy them again"
        ) from error


def _open_local(tfds: ModuleType, folder: str) -> Any:
    """Return the builder of a local folder, after checking that opening it imports nothing but TFDS."""
    verify(Path(folder), cure=COPY_AGAIN, names=DESCRIPTION)
    features = Path(folder) / "features.json"
    # TFDS registers the features that it knows by their full class name.
    known = tfds.features.FeatureConnector._registered_features
    for name in _class_names(read_json(features, cure=COPY_AGAIN)):
        if name not in known or not name.startswith("tensorflow_datasets."):
            raise InputError(
                f"{features} names {name!r}, which is no feature of TFDS: opening the data set would import that "
                "module. Convert the data set to TFDS's own features"
            )
    return tfds.builder_from_directory(folder)


def _class_names(description: object) -> Iterator[str]:
    """Yield every class that a features.json names, also in JSON inside its texts."""
    # A stack instead of recursion: a hostile file may be nested more deeply than Python allows.
    waiting = [description]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
            names = (node.get(key) for key in ("pythonClassName", "python_class_name", "type"))
            yield from (name for name in names if isinstance(name, str) and "." in name)
        elif isinstance(node, list):
            waiting += node
        elif isinstance(node, str) and "{" in node:
            with contextlib.suppress(ValueError, RecursionError):
                waiting.append(json.loads(node))


def list_files(folder: str, pattern: str) -> list[str]:
    """Return the sorted paths below a folder that match; `gs://...` and other remote paths use TensorFlow.

    Raises:
        InputError: a remote folder cannot be reached.
    """
    if "://" not in folder:
        return sorted(map(str, Path(folder).glob(pattern)))
    tf, _ = load_tensorflow()
    try:
        return sorted(tf.io.gfile.glob(f"{folder}/{pattern}"))
    except tf.errors.NotFoundError:
        return []
    except tf.errors.OpError as error:
        raise InputError(
            f"{folder} cannot be reached ({type(error).__name__}: {first_line(error)}); check the name, the network "
            "and your credentials"
        ) from error


def _version_folder(path: str) -> str:
    """Return the folder of the data set that lies in `path` itself, or the only one that lies below."""
    if "://" not in path:
        path = str(Path(path))
        if not Path(path).is_dir():
            what = f"{path} is a file" if Path(path).exists() else f"there is no folder {path}"
            raise InputError(f"{what}; expected the folder of an RLDS data set such as .../bridge_dataset/1.0.0")
    # The folder itself, its versions, or the versions of one configuration.
    found = [
        file.rpartition("/")[0] or "."
        for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
        for file in list_files(path, pattern)
    ]
    if not found or (found[0] != path and len(found) > 1):
        inside = ", ".join(folder.removeprefix(path).strip("/") for folder in found[:8])
        what = f"holds {len(found)} data sets ({inside}): name one of them" if found else "is no TFDS data set"
        raise InputError(f"{path} {what}; expected a folder with dataset_info.json, features.json and the shards")
    folder = found[0]
    if not list_files(folder, "features.json"):
        raise InputError(f"{folder} has no features.json beside its dataset_info.json: copy the data set again")
    return folder


def child(features: Any, key: str) -> Any:
    """Return one entry of a TFDS features dict, None if it is absent or `features` is no dict."""
    return features[key] if hasattr(features, "keys") and key in features else None


def step_features(builder: Any, folder: str) -> Any:
    """Return the features of a step.

    Raises:
        InputError: the set is not in RLDS form.
    """
    features = builder.info.features
    step = getattr(child(features, STEPS), "feature", None)
    if not hasattr(child(step, OBSERVATION), "items"):
        raise InputError(
            f"{folder} is a TFDS data set but not in RLDS form: expected steps with an observation, found "
            f"{sorted(features) if hasattr(features, 'keys') else features}"
        )
    return step


def entries(step: Any, keys: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Return only the features of a step at these places, nested as before."""
    wanted: dict[str, Any] = {}
    for *above, last in keys:
        place = functools.reduce(lambda node, key: node.setdefault(key, {}), above, wanted)
        place[last] = functools.reduce(lambda node, key: node[key], (*above, last), step)
    return wanted


def check_shapes(features: Any, folder: str) -> None:
    """Check that the shapes of the fields that will be read are possible.

    TensorFlow divides by the sizes in a description and allocates memory for them; wrong ones end the process.

    Raises:
        InputError: a size below 1, or more than `MAX_ENTRIES` numbers.
    """
    waiting = [features.get_serialized_info()]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
            continue
        sizes = [size for size in node.shape if size is not None]
        if min(sizes, default=1) < 1 or math.prod(sizes) > MAX_ENTRIES:
            raise InputError(
                f"{folder}/features.json states the shape {node.shape}; expected sizes of at least 1 and at most "
                f"{MAX_ENTRIES} numbers in all; {COPY_AGAIN}"
            )


def find_image_keys(builder: Any, folder: str) -> dict[str, tuple[int | None, int | None]]:
    """Return image name -> (H, W) for all RGB images in the observation; None where the size varies."""
    return {name: (shape[0], shape[1]) for name, (_, shape) in _images(builder, folder).items()}


def image_path(builder: Any, folder: str, name: str) -> tuple[str, ...]:
    """Return the place of the image of that name in a step.

    Args:
        builder: the TFDS builder of the data set.
        folder: of the data set, for error messages.
        name: of the image, a key of `find_image_keys`; `wrist/rgb` is an image in a nested dictionary.

    Returns:
        The keys from the step down to the image; the first is "observation".

    Raises:
        KeyError: the observation has no image of that name.
    """
    return _images(builder, folder)[name][0]


def _images(builder: Any, folder: str) -> dict[str, tuple[tuple[str, ...], tuple[int | None, ...]]]:
    """Return name -> (path in a step, shape); the name of an image in a nested dictionary is `wrist/rgb`."""

    def walk(features: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[int | None, ...]]]:
        for key, feature in sorted(features.items()):
            if hasattr(feature, "items"):
                yield from walk(feature, (*path, key))
            # Three channels of bytes: depth maps and masks are no images.
            elif len(feature.shape or ()) == 3 and feature.shape[2] == 3 and feature.np_dtype == np.uint8:
                yield (*path, key), feature.shape

    found = walk(step_features(builder, folder)[OBSERVATION], (OBSERVATION,))
    return {"/".join(path[1:]): (path, shape) for path, shape in found}


def choose_image_key(builder: Any, folder: str, keys: Sequence[str]) -> str:
    """Return the first of `keys` that the data set has; without keys, its only image.

    Args:
        builder: the TFDS builder of the data set.
        folder: of the data set, for error messages.
        keys: names of images, the preferred one first; may be empty.

    Raises:
        InputError: there is none, or a choice is needed.
    """
    available = find_image_keys(builder, folder)
    for key in keys or (list(available) if len(available) == 1 else ()):
        if key in available:
            return key
    if not available:
        held = ", ".join(sorted(step_features(builder, folder)["observation"].keys())) or "nothing"
        raise InputError(f"{folder} has no image: expected uint8 [H, W, 3] in the observation, which holds: {held}")
    sizes = ", ".join(f"{name} {height or '?'}x{width or '?'}" for name, (height, width) in available.items())
    reason = f"has no image {keys[0]!r}" if keys else f"is no known source and holds {len(available)} images"
    raise InputError(f"{folder} {reason}; set image_key to one of: {sizes}")


def find_language_key(builder: Any, folder: str, source: OpenXSource | None) -> tuple[str, ...] | None:
    """Return the place of the instruction in a step; None if there is none.

    It is taken from the table of sources, else from the places that most data sets use. Some data sets store the
    instruction once for an episode: then the path begins with "episode_metadata".

    Args:
        builder: the TFDS builder of the data set.
        folder: of the data set, for error messages.
        source: the row of the data set in the table of sources; None if it has none.
    """
    candidates: tuple[tuple[str, ...], ...] = (
        *((source.language_key,) if source is not None else ()),
        STEP_TEXT,
        OBSERVATION_TEXT,
    )
    # The first place that exists: the table may describe another version of the data set.
    for path in candidates:
        node = step_features(builder, folder)
        for key in path:
            node = child(node, key)
        if node is not None:
            return path
    metadata = child(builder.info.features, EPISODE)
    for key in EPISODE_TEXTS:
        if getattr(child(metadata, key), "np_dtype", None) == np.object_:  # text, not an index into a list
            return (EPISODE, key)
    return None


def first_line(error: Exception) -> str:
    """Return the first line of an error of TFDS or TensorFlow, whose messages can be a page long."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
