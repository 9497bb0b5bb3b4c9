"""Writer of records as an RLDS data set that `tfds.builder_from_directory` opens, one TFRecord file at a time.

Names have their usual places: `action`, `observation/<camera>`, `observation/state`; a dot in another name is a level
(`calvin.rel_actions` is `calvin/rel_actions`). The files get their final names, which hold the number of files, when
the last one is written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vw2_robot.data.sources.rlds_builder import DESCRIPTION, EPISODE, load_tensorflow
from vw2_robot.data.step_names import DISCOUNT, IS_FIRST, IS_LAST, IS_TERMINAL, OBSERVATION, REWARD, STEPS
from vw2_robot.errors import InputError
from vw2_robot.storage.files import MANIFEST, sha256_of, sync_files, write_json

from .records import TEXTS, Form, Record, is_jpeg, stored_image

VERSION = "1.0.0"


class RldsShards:
    """An RLDS data set; a shard is a file.

    Args:
        folder: of the data set, under its temporary name.
        form: of all records.
        first: a record, which shows how images are compressed.
        out: final folder, which gives the data set its name.
    """

    def __init__(self, folder: Path, form: Form, first: Record, *, out: Path) -> None:
        self._tf, self._tfds = load_tensorflow()
        self._folder = folder
        self._form = form
        clash = [name for name in form.numbers if any(other.startswith(f"{name}.") for other in form.numbers)]
        if clash:
            raise InputError(f"RLDS cannot hold both {clash[0]} and {clash[0]}.*; leave columns out (actions=drop)")
        self._version = out.name if re.fullmatch(r"\d+\.\d+\.\d+", out.name) else VERSION
        self._name = data_set_name(out.parent.name if self._version == out.name else out.name)
        self._jpeg = {name: is_jpeg(stored_image(episode, 0)) for name, episode in first.cameras.items()}
        self._shards: list[dict[str, Any]] = []

    def write(self, number: int, records: Sequence[Record]) -> dict[str, Any]:
        """Write a file of one split, and return the facts that `add` takes."""
        # TFDS writes whole data sets only: one of a single file, whose file is then moved.
        temporary = self._folder / f"shard-{number:05d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        split = records[0].split
        writer = self._tfds.core.SequentialWriter(self._info(temporary), len(records), overwrite=True)
        writer.initialize_splits([split], fail_if_exists=False)
        for record in records:
            writer.add_examples({split: [self._example(record)]})
        writer.close_all()
        info = self._tfds.builder_from_directory(temporary).info.splits[split]
        file = self._folder / f"shard-{number:05d}.tfrecord"
        (temporary / info.filenames[0]).replace(file)
        shutil.rmtree(temporary)
        sync_files((file, self._folder))
        return {"split": split, "file": file.name, "episodes": len(records), "bytes": int(info.num_bytes)}

    def add(self, facts: dict[str, Any]) -> None:
        """Note a shard that is complete."""
        self._shards.append(facts)

    def finish(self, description: str) -> None:
        """Give the files their final names, and write the descriptions of the data set."""
        infos = []
        for split in dict.fromkeys(shard["split"] for shard in self._shards):
            shards = [shard for shard in self._shards if shard["split"] == split]
            template = self._tfds.core.ShardedFileTemplate(
                data_dir=self._folder, dataset_name=self._name, split=split, filetype_suffix="tfrecord"
            )
            for index, shard in enumerate(shards):
                file = self._folder / shard["file"]
                # Moved already, if an earlier start was killed here.
                if file.exists():
                    file.replace(template.sharded_filepath(shard_index=index, num_shards=len(shards)))
            lengths = [shard["episodes"] for shard in shards]
            size = sum(shard["bytes"] for shard in shards)
            infos.append(self._tfds.core.SplitInfo(split, lengths, size, filename_template=template))
        info = self._info(self._folder, description=description)
        info.set_splits(self._tfds.core.splits.SplitDict(infos))
        info.write_to_directory(self._folder)
        # Only the descriptions need checksums: TFRecord files have one for each record.
        write_json(self._folder / MANIFEST, {"sha256": {name: sha256_of(self._folder / name) for name in DESCRIPTION}})

    def _info(self, folder: Path, *, description: str = "") -> Any:
        """Return the description of the data set, or of a single file."""
        features = self._tfds.features
        step: dict[str, Any] = {
            OBSERVATION: {
                name: features.Image(shape=(*size, 3), encoding_format="jpeg" if self._jpeg[name] else "png")
                for name, size in self._form.cameras.items()
            },
            REWARD: features.Scalar(dtype=np.float32),
            DISCOUNT: features.Scalar(dtype=np.float32),
            "language_instruction": features.Text(),
            **{flag: features.Scalar(dtype=np.bool_) for flag in (IS_FIRST, IS_LAST, IS_TERMINAL)},
        }
        for name, (count, dtype) in self._form.numbers.items():
            # TFDS keeps 32 bits of a float64, unless it stores the bytes.
            encoding = "bytes" if dtype == "float64" else "none"
            shape = () if count == 1 else (count,)
            _put(step, name, features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding=encoding))
        texts = {name: features.Text() for name in ("episode_id", *TEXTS)}
        episode = {STEPS: features.Dataset(step), EPISODE: {**texts, "hz": features.Scalar(dtype=np.float64)}}
        identity = self._tfds.core.dataset_info.DatasetIdentity(
            name=self._name, version=self._tfds.core.Version(self._version), data_dir=str(folder), module_name=""
        )
        info = self._tfds.core.DatasetInfo(
            builder=identity, description=description, features=features.FeaturesDict(episode)
        )
        info.set_file_format("tfrecord")  # the format of the public Open-X data sets
        return info

    def _example(self, record: Record) -> dict[str, Any]:
        """Return a record in the form that the TFDS writer takes."""
        last = len(record) - 1
        steps = []
        for index in range(len(record)):
            is_end = index == last and record.terminal
            step: dict[str, Any] = {
                OBSERVATION: {name: self._image(record, name, index) for name in record.cameras},
                "language_instruction": record.episode.instruction,
                REWARD: np.float32(is_end),
                # RLDS: 0 only where the task ended; after a truncated episode the future still counts.
                DISCOUNT: np.float32(not is_end),
                IS_FIRST: index == 0,
                IS_LAST: index == last,
                IS_TERMINAL: is_end,
            }
            for name, values in record.numbers.items():
                _put(step, name, values[index, 0] if values.shape[1] == 1 else values[index])
            steps.append(step)
        texts = {name: record.texts.get(name, "") for name in TEXTS}
        about = {"episode_id": record.episode.episode_id, "hz": np.float64(record.episode.hz), **texts}
        return {STEPS: steps, EPISODE: about}

    def _image(self, record: Record, camera: str, index: int) -> bytes:
        """Return a compressed image, in the one compression that the data set declares."""
        image = stored_image(record.cameras[camera], index)
        if is_jpeg(image) != self._jpeg[camera]:
            raise InputError(f"{record.where}, frame {index}: JPEG and other images are mixed; convert them one by one")
        return image


def data_set_name(text: str) -> str:
    """Return a name as TFDS accepts it: lower case, digits and underscores, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name[:1].isalpha() else f"set_{name}".rstrip("_")


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Put a value at the place that its dotted name describes."""
    *above, last = name.split(".")
    node: Mapping[str, Any] = tree
    for key in above:
        node = node.setdefault(key, {})  # type: ignore[attr-defined]
    node[last] = value  # type: ignore[index]
