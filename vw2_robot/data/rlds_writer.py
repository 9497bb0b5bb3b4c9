"""Writer of demonstrations as an RLDS data set.

The place in the flow: recordings of a simulator -> RLDS. `tfds.builder_from_directory` opens the folder, so other
programs can read it; this package reads it with `RldsSource`. TensorFlow is imported by `rlds_builder.load_tensorflow`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vw2_robot.errors import InputError
from vw2_robot.storage.files import MANIFEST, atomic_folder, sha256_of, temporary_name, write_json
from vw2_robot.storage.locks import lock_folder

from .episodes import Demonstration, encode_jpeg
from .sources.rlds_builder import DESCRIPTION, load_tensorflow
from .step_names import ACTION, DISCOUNT, IS_FIRST, IS_LAST, IS_TERMINAL, OBSERVATION, REWARD, STEPS


def write_rlds(
    out: Path,
    *,
    name: str,
    version: str,
    episodes: Mapping[str, Iterable[Demonstration]],
    description: str = "",
    max_episodes_per_shard: int = 100,
) -> None:
    """Write demonstrations as a TFDS data set that `tfds.builder_from_directory(out)` opens.

    Steps hold `observation/image` (JPEG), `action` float32 [A], `language_instruction`, `reward` (1 on the last step of
    a terminal episode), `discount`, `is_first`, `is_last`, `is_terminal`; episodes hold `episode_id` and `hz`,
    and `way` if the first one has a way. Where an episode has one action fewer than images, the last step's action is
    zero. `out` appears when it is complete.

    Args:
        out: the new folder, usually `<name>/<version>`.
        name: of the data set, lower case with underscores.
        version: three numbers, `1.0.0`.
        episodes: split name -> episodes, consumed one by one; all have one size of images and one of actions.
        description: free text about the origin.
        max_episodes_per_shard: episodes in one file.

    Raises:
        InputError: name or version is not possible, the folder exists, there is no episode, or sizes differ.
    """
    tf, tfds = load_tensorflow()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise InputError(f"a data set needs a name like vw2_arms and a version like 1.0.0, found {name!r}, {version!r}")
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder or delete it")
    # The lock is that of the temporary folder: a recording that ends here holds the lock of `out` already.
    lock = lock_folder(temporary_name(out), what="writing an RLDS data set", beside=True)
    with lock, atomic_folder(out) as folder:
        writer: Any = None
        size: tuple[int, ...] | None = None
        action_size = 0
        metadata: tuple[str, ...] = ("episode_id", "hz")
        for split, demonstrations in episodes.items():
            for demonstration in demonstrations:
                # A data set has to declare its form, which the first episode gives.
                if writer is None:
                    size = demonstration.episode.decode(0).shape
                    action_size = demonstration.actions.shape[1]
                    metadata += ("way",) if demonstration.way else ()
                    form = (size, action_size, metadata)
                    writer = _writer(tf, tfds, folder, name, version, form, description, max_episodes_per_shard)
                    writer.initialize_splits(list(episodes), fail_if_exists=False)
                writer.add_examples({split: [_example(demonstration, size, action_size, metadata)]})
        if writer is None:
            raise InputError(f"no episode to write to {out}")
        writer.close_all()
        # Only the descriptions need checksums: TFRecord files have one for each record.
        write_json(folder / MANIFEST, {"sha256": {name: sha256_of(folder / name) for name in DESCRIPTION}})


def _writer(
    tf: ModuleType,
    tfds: ModuleType,
    folder: Path,
    name: str,
    version: str,
    form: tuple[tuple[int, ...], int, tuple[str, ...]],
    description: str,
    max_episodes_per_shard: int,
) -> Any:
    """Return a TFDS writer for data sets of this form: sizes of images and actions, names of an episode's metadata."""
    features = tfds.features
    size, action_size, metadata = form
    known = {"episode_id": features.Text(), "hz": features.Scalar(dtype=np.float64), "way": features.Text()}
    step = {
        OBSERVATION: {"image": features.Image(shape=size, encoding_format="jpeg")},
        ACTION: features.Tensor(shape=(action_size,), dtype=np.float32),
        "language_instruction": features.Text(),
        REWARD: features.Scalar(dtype=np.float32),
        DISCOUNT: features.Scalar(dtype=np.float32),
        IS_FIRST: features.Scalar(dtype=np.bool_),
        IS_LAST: features.Scalar(dtype=np.bool_),
        IS_TERMINAL: features.Scalar(dtype=np.bool_),
    }
    episode = {
        STEPS: features.Dataset(step),
        "episode_metadata": {name: known[name] for name in metadata},
    }
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, description=description, features=features.FeaturesDict(episode))
    info.set_file_format("tfrecord")  # the format of the public Open-X data sets
    return tfds.core.SequentialWriter(info, max_episodes_per_shard, overwrite=True)


def _example(
    demonstration: Demonstration, size: tuple[int, ...] | None, action_size: int, metadata: tuple[str, ...]
) -> dict[str, Any]:
    """Return a demonstration in the form that the TFDS writer takes; for the arguments see `_writer`."""
    episode = demonstration.episode
    actions = demonstration.actions.astype(np.float32)
    if actions.shape[1] != action_size:
        raise InputError(
            f"{episode.source}, episode {episode.episode_id}: actions of {actions.shape[1]} numbers, the set has "
            f"{action_size}"
        )
    steps = []
    for index in range(len(episode)):
        pixels = episode.decode(index)
        if pixels.shape != size:
            raise InputError(
                f"{episode.source}, episode {episode.episode_id}, frame {index}: {pixels.shape}, the set has {size}"
            )
        stored = episode.images[index]
        is_last = index == len(episode) - 1
        # JPEG is kept as it is: compressing it again would lose quality.
        is_jpeg = isinstance(stored, bytes) and stored.startswith(b"\xff\xd8")
        steps.append(
            {
                OBSERVATION: {"image": stored if is_jpeg else encode_jpeg(pixels)},
                ACTION: actions[index] if index < len(actions) else np.zeros(action_size, np.float32),
                "language_instruction": episode.instruction,
                REWARD: np.float32(is_last and demonstration.terminal),
                # RLDS: 0 only where the task ended; after a truncated episode the future still counts.
                DISCOUNT: np.float32(not (is_last and demonstration.terminal)),
                IS_FIRST: index == 0,
                IS_LAST: is_last,
                IS_TERMINAL: is_last and demonstration.terminal,
            }
        )
    known = {"episode_id": episode.episode_id, "hz": np.float64(episode.hz), "way": demonstration.way}
    return {STEPS: steps, "episode_metadata": {name: known[name] for name in metadata}}
