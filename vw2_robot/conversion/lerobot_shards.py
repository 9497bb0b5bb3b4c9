"""Writer of records as a LeRobotDataset v3.0, one data file (and one video per camera) at a time.

Images lie inside the data files and keep every pixel, or in videos (`storage="video"`, H.264). LeRobot itself is not
needed. The table of episodes has further columns `vw2.*`, which LeRobot ignores: what this package knows of an episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, ACTION_NAMES
from vw2_robot.errors import InputError, require
from vw2_robot.storage.files import atomic_write, sync_files, write_text
from vw2_robot.storage.mp4 import Mp4Writer

from .action_meaning import ActionMeaning
from .column_statistics import SAMPLED_IMAGES, histogram, image_statistics, number_statistics
from .config import StoredImages
from .lerobot_records import CAMERA_PREFIX, TERMINAL, TEXT_PREFIX
from .records import ACTION_COLUMN, TEXTS, Form, Numbers, Record, stored_image

FILES_PER_CHUNK = 1000
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
# Every second frame a key frame, as LeRobot does: training reads single frames.
_ENCODING = ("-crf", "15", "-g", "2", "-bitexact", "-map_metadata", "-1")
_INDICES = {"timestamp": "float32"} | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")


class LeRobotShards:
    """A LeRobotDataset; a shard is a data file, with its videos and its rows of the table of episodes.

    Args:
        folder: of the data set.
        form: of all records.
        meaning: of their action.
        storage: of the images.
        robot: `robot_type` of the description.
    """

    def __init__(self, folder: Path, form: Form, meaning: ActionMeaning, *, storage: StoredImages, robot: str) -> None:
        self._arrow = require("pyarrow", extra="lerobot")
        self._parquet = require("pyarrow.parquet", extra="lerobot")
        odd = [name for name, size in form.cameras.items() if size[0] % 2 or size[1] % 2]
        if storage == "video" and odd:
            raise InputError(
                f"camera {odd[0]} has images of {form.cameras[odd[0]]}: a video needs even sizes; storage=image"
            )
        self._folder = folder
        self._form = form
        self._meaning = meaning
        self._storage = storage
        self._robot = robot
        self._cameras = {name: f"{CAMERA_PREFIX}{name}" for name in form.cameras}
        self._tasks: dict[str, int] = {}
        self._splits: dict[str, list[int]] = {}
        self._episodes = self._frames = 0
        self._files: list[Path] = []
        self._histograms: dict[str, Any] = {}
        self._sampled = 0

    def write(self, number: int, records: Sequence[Record]) -> dict[str, Any]:
        """Write a data file with episodes of one split, and return the facts that `add` takes."""
        place = {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}
        tasks = dict(self._tasks)
        rows: list[dict[str, Any]] = []
        histograms = {name: np.zeros((3, 256), np.int64) for name in self._cameras}
        sampled = 0
        schema = self._schema()
        first = frame = self._frames
        data = self._folder / _DATA.format(**place)
        data.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(data) as temporary,
            self._parquet.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
        ):
            for index, record in enumerate(records, start=self._episodes):
                task = tasks.setdefault(record.episode.instruction, len(tasks))
                writer.write_table(self._table(record, schema, episode=index, first=frame, task=task))
                statistics: dict[str, Any] = {key: number_statistics(value) for key, value in record.numbers.items()}
                shown = np.unique(np.linspace(0, len(record) - 1, SAMPLED_IMAGES).astype(int)).tolist()
                for name, episode in record.cameras.items():
                    counted = histogram([episode.decode(i) for i in shown])
                    histograms[name] += counted
                    statistics[self._cameras[name]] = image_statistics(counted, images=len(shown))
                sampled += len(shown)
                rows.append(self._row(record, statistics, place, episode=index, first=frame, begin=first))
                frame += len(record)
        if self._storage == "video":
            for name, key in self._cameras.items():
                self._write_video(self._folder / _VIDEO.format(video_key=key, **place), name, records)
        table = self._folder / _EPISODES.format(**place)
        table.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(table) as temporary:
            self._parquet.write_table(self._arrow.Table.from_pylist(rows), temporary, write_page_checksum=True)
        return {
            "file": str(data.relative_to(self._folder)),
            "split": records[0].split,
            "episodes": len(records),
            "frames": frame - first,
            "tasks": tasks,
            "histograms": {name: counted.tolist() for name, counted in histograms.items()},
            "sampled": sampled,
        }

    def add(self, facts: dict[str, Any]) -> None:
        """Count a shard that is complete."""
        # A JSON file has sorted keys: the numbers give the order.
        self._tasks = dict(sorted(facts["tasks"].items(), key=lambda item: item[1]))
        span = self._splits.setdefault(facts["split"], [self._episodes, self._episodes])
        self._episodes = span[1] = self._episodes + facts["episodes"]
        self._frames += facts["frames"]
        self._files.append(self._folder / facts["file"])
        self._sampled += facts["sampled"]
        for name, counted in facts["histograms"].items():
            self._histograms[name] = self._histograms.get(name, 0) + np.array(counted)

    def finish(self, description: str) -> None:
        """Write `meta/`, and a card that holds the description."""
        meta = self._folder / "meta"
        info = {
            "codebase_version": "v3.0",
            "robot_type": self._robot,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(self._form.hz) if self._form.hz == int(self._form.hz) else self._form.hz,
            "splits": {split: f"{first}:{end}" for split, (first, end) in self._splits.items()},
            "data_path": _DATA,
            "video_path": _VIDEO if self._storage == "video" else None,
            "features": self._features(),
        }
        statistics: dict[str, Any] = {
            key: image_statistics(self._histograms[name], images=self._sampled) for name, key in self._cameras.items()
        }
        for name, (count, _) in self._form.numbers.items():
            statistics[name] = number_statistics(self._column(name, count))
        write_text(meta / "info.json", json.dumps(info, indent=4))
        write_text(meta / "stats.json", json.dumps(statistics, indent=4))
        with atomic_write(meta / "tasks.parquet") as temporary:
            self._parquet.write_table(self._task_table(), temporary)
        write_text(
            self._folder / "README.md", f"---\ntags: [LeRobot]\ntask_categories: [robotics]\n---\n\n{description}\n"
        )
        sync_files((meta, self._folder))

    def _features(self) -> dict[str, Any]:
        """Return `features` of the description."""
        features: dict[str, Any] = {}
        for name, (height, width) in self._form.cameras.items():
            feature = {"dtype": self._storage, "shape": [height, width, 3], "names": ["height", "width", "channels"]}
            video = {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": self._form.hz,
                "video.channels": 3,
                "has_audio": False,
            }
            features[self._cameras[name]] = feature | ({"info": video} if self._storage == "video" else {})
        for name, (count, dtype) in self._form.numbers.items():
            named = name == ACTION_COLUMN and self._meaning.units != "unknown" and count == ACTION_DIM
            features[name] = {"dtype": dtype, "shape": [count], "names": list(ACTION_NAMES) if named else None}
        return features | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _INDICES.items()}

    def _schema(self) -> Any:
        """Return the columns of a data file, with the note by which Hugging Face's `datasets` recognizes images."""
        arrow = self._arrow
        fields, noted = [], dict[str, Any]()
        if self._storage == "image":
            for key in self._cameras.values():
                fields.append(arrow.field(key, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])))
                noted[key] = {"_type": "Image"}
        numbers = {name: (count, dtype) for name, (count, dtype) in self._form.numbers.items()}
        for name, (count, dtype) in (numbers | {name: (1, dtype) for name, dtype in _INDICES.items()}).items():
            kind = _arrow_type(arrow, dtype)
            value = {"dtype": dtype, "_type": "Value"}
            fields.append(arrow.field(name, kind if count == 1 else arrow.list_(kind, count)))
            noted[name] = value if count == 1 else {"feature": value, "length": count, "_type": "Sequence"}
        return arrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": noted}})})

    def _table(self, record: Record, schema: Any, *, episode: int, first: int, task: int) -> Any:
        """Return the rows of one episode."""
        arrow = self._arrow
        length = len(record)
        frames = np.arange(length)
        columns: dict[str, Any] = {}
        if self._storage == "image":
            for name, key in self._cameras.items():
                images = [{"bytes": stored_image(record.cameras[name], i), "path": None} for i in range(length)]
                columns[key] = arrow.array(images, schema.field(key).type)
        indices: dict[str, Numbers] = {
            "timestamp": (frames / self._form.hz).astype(np.float32)[:, None],
            "frame_index": frames[:, None],
            "episode_index": np.full((length, 1), episode),
            "index": first + frames[:, None],
            "task_index": np.full((length, 1), task),
        }
        for name, values in {**record.numbers, **indices}.items():
            flat = arrow.array(np.ascontiguousarray(values).ravel())
            count = values.shape[1]
            columns[name] = flat if count == 1 else arrow.FixedSizeListArray.from_arrays(flat, count)
        return arrow.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _row(
        self,
        record: Record,
        statistics: Mapping[str, Any],
        place: Mapping[str, int],
        *,
        episode: int,
        first: int,
        begin: int,
    ) -> dict[str, Any]:
        """Return the row of an episode in the table of episodes.

        Args:
            record: the episode.
            statistics: of its columns.
            place: chunk and number of the files that hold it.
            episode: its number.
            first: number of its first frame in the data set.
            begin: number of the first frame in the files.
        """
        row: dict[str, Any] = {"episode_index": episode, "tasks": [record.episode.instruction], "length": len(record)}
        row |= {f"data/{key}": value for key, value in place.items()}
        row |= {"dataset_from_index": first, "dataset_to_index": first + len(record)}
        if self._storage == "video":
            times = {"from_timestamp": (first - begin) / self._form.hz}
            times["to_timestamp"] = times["from_timestamp"] + len(record) / self._form.hz
            for key in self._cameras.values():
                row |= {f"videos/{key}/{name}": value for name, value in {**place, **times}.items()}
        row |= {f"stats/{key}/{name}": value for key, found in statistics.items() for name, value in found.items()}
        row |= {f"meta/episodes/{key}": value for key, value in place.items()}
        row |= {f"{TEXT_PREFIX}{name}": record.texts.get(name, "") for name in TEXTS}
        return row | {
            f"{TEXT_PREFIX}episode_id": record.episode.episode_id,
            TERMINAL: "yes" if record.terminal else "no",
        }

    def _write_video(self, path: Path, camera: str, records: Sequence[Record]) -> None:
        """Write the images of one camera, all episodes one after the other."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with Mp4Writer(path, fps=self._form.hz, encoding=list(_ENCODING)) as video:
            for record in records:
                for index in range(len(record)):
                    video.add(record.cameras[camera].decode(index))

    def _column(self, name: str, count: int) -> NDArray[Any]:
        """Return a column of all data files."""
        columns = [self._parquet.read_table(file, columns=[name])[name].combine_chunks() for file in self._files]
        flat = [column if count == 1 else column.flatten() for column in columns]
        return np.concatenate([part.to_numpy(zero_copy_only=False) for part in flat]).reshape(-1, count)

    def _task_table(self) -> Any:
        """Return the instructions as pandas would write them, with the text as its index."""
        columns = {"task_index": list(self._tasks.values()), "task": list(self._tasks)}
        described = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
            for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ]
        about = {"index_columns": ["task"], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
        return self._arrow.table(columns).replace_schema_metadata({"pandas": json.dumps(about)})


def _arrow_type(arrow: Any, dtype: str) -> Any:
    """Return Arrow's type of numbers; its names differ from NumPy's for bool alone."""
    return arrow.bool_() if dtype == "bool" else arrow.from_numpy_dtype(np.dtype(dtype))
