"""Writer of CALVIN data sets: demonstrations become a split that `sources.calvin` and the official loaders read.

Each recording is written as a whole, with the number of its first frame, so that several processes can write the same
split at once without communication: frame numbers need not be contiguous in this format, but must not overlap. A small
entry in `.record/` marks a recording as complete. `finish` collects the entries into the files that describe the split
(labels, recordings, scenes, statistics, environment), and the SHA-256 of those into `manifest.json`; the time steps
have checksums of their own. Every file is written to a temporary name and renamed, and its bytes depend on its content
only: a recording that is interrupted at any moment, also by a power failure, and started again ends in the same bytes.

Differences from the published data sets:

- `commanded_actions` is an additional array: the relative actions of the expert, which were executed except for the
  perturbations of `vw2-record perturbations=`. `rel_actions` follows the format, `to_relative_action(actions,
  robot_obs)`: the motion of the arm, which lags behind its target. Played back from the same state, the commands solved
  238 of 238 demonstrations (34 tasks, scenes A and D), `rel_actions` 224; with noise of 0.15 units on both, 133 and 117
  of 170. So the reader of this package gives the commands to fine-tuning where there are any; other readers ignore
  them.
- A labeled window is a whole task, from its beginning to a moment after it was solved, often 30 to 70 time steps;
  published windows have at most 64. A closed-loop rollout starts at the beginning, too. `vw2-record max_window=64`
  cuts.
- `emb` and `embeddings.npy` have the published form, but hold hashed embeddings (`calvin_instructions.py`).
- `auto_lang_ann.npy` holds `language/way` beside `language/task` where the recorder chose among several ways, or where
  a policy began some of the tasks.
- There is no tactile camera; `.record/` and `manifest.json` are additional.
- Recordings of another robot hold its images and `commanded_actions`, as many numbers as `robot.json` beside the splits
  names.
- What `vw2-convert` makes of another data set holds only the arrays that it has, and `source_actions` where its actions
  were scaled to become `rel_actions`, and `latent_tokens` where codes were asked for.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError
from vw2_robot.storage.files import MANIFEST, atomic_write, read_json, sha256_of, sync_files, write_json

from .sources.calvin import CalvinSplit, frame_name
from .sources.calvin_instructions import EMBEDDING_WIDTH, instruction_embedding
from .sources.calvin_scenes import UNKNOWN
from .sources.recorded_robot import CALVIN_ROBOT, RecordedRobot, write_robot

# array -> dtype on disk and shape of one time step (-1: any), as in the published files
STEP_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "rgb_static": ("uint8", (-1, -1, 3)),
    "rgb_gripper": ("uint8", (-1, -1, 3)),
    "depth_static": ("float32", (-1, -1)),
    "depth_gripper": ("float32", (-1, -1)),
    "actions": ("float64", (7,)),
    "rel_actions": ("float64", (7,)),
    "commanded_actions": ("float64", (7,)),
    "robot_obs": ("float64", (15,)),
    "scene_obs": ("float64", (24,)),
    "source_actions": ("float64", (-1,)),
    "latent_tokens": ("int32", (-1,)),
}
SOURCE_ACTIONS = "source_actions"
LATENT_TOKENS = "latent_tokens"
REQUIRED_ARRAYS = ("rgb_static", "actions", "rel_actions", "robot_obs", "scene_obs")
_STATES = ("robot_obs", "scene_obs")


@dataclass(frozen=True)
class Label:
    """One task done within a recording: time steps `start` to `end`, both included, 0 = the recording's first."""

    task: str
    instruction: str
    start: int
    end: int
    way: str = ""
    """how the task was done, where the recorder chose among several ways, and "expert" or "takeover" at its end where a
    policy began some of the tasks
    """


@dataclass(frozen=True)
class RecordingEntry:
    """Description of one recording for the index of a split, stored as one json file."""

    first: int
    last: int
    scene: str
    labels: tuple[Label, ...]
    sums: dict[str, list[float]]
    """state array -> sum over the time steps"""
    squares: dict[str, list[float]]
    """state array -> sum of squares over the time steps"""
    action_low: list[float]
    action_high: list[float]
    failed: tuple[str, ...] = ()
    """Tasks of earlier attempts at this recording that failed; for information only."""

    @staticmethod
    def read(path: Path) -> RecordingEntry:
        """Return the entry that `write_recording` wrote.

        Raises:
            InputError: the file is damaged.
        """
        cure = "delete it: the same vw2-record command then makes this recording again"
        tree = read_json(path, cure=cure)
        try:
            tree["labels"] = tuple(Label(**label) for label in tree["labels"])
            tree["failed"] = tuple(tree["failed"])
            return RecordingEntry(**tree)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); {cure}") from error


class CalvinWriter:
    """Writer of one split of a CALVIN data set; several processes may use one each on disjoint frames."""

    def __init__(
        self,
        root: str | Path,
        split: CalvinSplit = "training",
        *,
        compress_level: int = 1,
        required: Sequence[str] = REQUIRED_ARRAYS,
        robot: RecordedRobot = CALVIN_ROBOT,
    ) -> None:
        """Make the folder of the split.

        Args:
            root: folder of the data set.
            split: `training` or `validation`.
            compress_level: of zlib, 0 (fast, large) to 9 (slow); 1 is the best trade-off for images.
            required: arrays that every recording must have.
            robot: decides the size of `commanded_actions`; `finish` writes its description.
        """
        self._root = Path(root)
        self._robot = robot
        self.folder = self._root / split
        self.split = split
        self.compress_level = compress_level
        self._required = required
        self._entries = self.folder / ".record"
        self._entries.mkdir(parents=True, exist_ok=True)

    def is_complete(self, first_frame: int) -> bool:
        """Return whether the recording that starts at this frame number has been written."""
        return self._entry_path(first_frame).is_file()

    def write_episode(
        self, arrays: Mapping[str, NDArray[Any]], *, first_frame: int, task: str, instruction: str, scene: str
    ) -> None:
        """Write a recording that is one demonstration from its first to its last time step.

        Args:
            arrays: name -> array with the time axis first, see `STEP_ARRAYS`.
            first_frame: number of its first time step in the split.
            task: name of the task done.
            instruction: instruction of the demonstration.
            scene: letter of the CALVIN scene.

        Raises:
            KeyError: `rgb_static` is missing.
            InputError: see `write_recording`.
        """
        label = Label(task, instruction, 0, len(arrays["rgb_static"]) - 1)
        self.write_recording(arrays, first_frame=first_frame, scene=scene, labels=(label,))

    def write_recording(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        first_frame: int,
        scene: str,
        labels: Sequence[Label],
        failed: Sequence[str] = (),
    ) -> None:
        """Write one recording of L time steps.

        Args:
            arrays: name -> array with the time axis first, see `STEP_ARRAYS`.
            first_frame: number of its first time step in the split.
            scene: letter of the CALVIN scene.
            labels: tasks done within the recording.
            failed: tasks of earlier attempts, for information.

        Raises:
            InputError: an array is missing, unknown, or does not have the shape in `STEP_ARRAYS`; a label lies outside.
        """
        length = _checked_length(arrays, self._required, self._robot)
        # Everything is checked before the first file is written.
        for label in labels:
            if not 0 <= label.start <= label.end < length:
                raise InputError(f"{label} does not lie within a recording of {length} time steps")
        # The dtypes of the published data sets.
        typed = {key: np.asarray(value, dtype=STEP_ARRAYS[key][0]) for key, value in arrays.items()}
        paths = [self.folder / frame_name(first_frame + step) for step in range(length)]
        for step, path in enumerate(paths):
            _write(path, _npz_bytes({key: value[step] for key, value in typed.items()}, self.compress_level))
        # The time steps must be on disk before the entry that declares them complete.
        sync_files((*paths, self.folder))
        entry = RecordingEntry(
            first=first_frame,
            last=first_frame + length - 1,
            scene=scene,
            labels=tuple(labels),
            sums={key: typed[key].sum(axis=0).tolist() for key in _STATES if key in typed},
            squares={key: (typed[key] ** 2).sum(axis=0).tolist() for key in _STATES if key in typed},
            action_low=typed["actions"].min(axis=0).tolist() if "actions" in typed else [],
            action_high=typed["actions"].max(axis=0).tolist() if "actions" in typed else [],
            failed=tuple(failed),
        )
        write_json(self._entry_path(first_frame), dataclasses.asdict(entry), sealed=True)

    def adopt(self, folder: Path, entry: RecordingEntry, *, first_frame: int) -> None:
        """Add a recording of another data set by hard links, which take no space.

        Args:
            folder: the split of the other data set.
            entry: description of the recording there.
            first_frame: number of its first time step here.

        Raises:
            OSError: the folder lies on another disk.
        """
        for step in range(entry.last - entry.first + 1):
            place = self.folder / frame_name(first_frame + step)
            place.unlink(missing_ok=True)  # of an interrupted call
            place.hardlink_to(folder / frame_name(entry.first + step))
        # The content is on disk already; only the new names are not.
        sync_files((self.folder,))
        renumbered = dataclasses.replace(entry, first=first_frame, last=first_frame + entry.last - entry.first)
        write_json(self._entry_path(first_frame), dataclasses.asdict(renumbered), sealed=True)

    def entries(self) -> list[RecordingEntry]:
        """Return the complete recordings in frame order."""
        return [RecordingEntry.read(path) for path in sorted(self._entries.glob("episode_*.json"))]

    def finish(
        self, instructions: Mapping[str, str] | None = None, environment: str | None = None
    ) -> list[RecordingEntry]:
        """Write the files that describe the split, and return its recordings.

        Args:
            instructions: task -> the instruction used in evaluation; goes into `embeddings.npy` of a validation split.
            environment: yaml text of the recorded environment, stored as `.hydra/merged_config.yaml`.

        Raises:
            InputError: there is no complete recording.
        """
        entries = self.entries()
        if not entries:
            raise InputError(f"{self.folder} holds no complete demonstration, so there is nothing to describe")
        (self.folder / MANIFEST).unlink(missing_ok=True)  # an old one may list fewer recordings
        scenes: dict[str, list[int]] = {}  # scene -> its first and last frame
        # The table has letters only: a frame that is in no range is of an unknown scene.
        for entry in (entry for entry in entries if entry.scene != UNKNOWN):
            span = scenes.setdefault(f"calvin_scene_{entry.scene}", [entry.first, entry.last])
            span[1] = entry.last
        files = {
            "ep_start_end_ids.npy": _npy_bytes(np.array([(e.first, e.last) for e in entries], dtype=np.int64)),
            "ep_lens.npy": _npy_bytes(np.array([e.last - e.first + 1 for e in entries], dtype=np.int64)),
            "scene_info.npy": _npy_bytes(np.array(scenes, dtype=object)),
            "statistics.yaml": _statistics_yaml(entries).encode(),
            "lang_annotations/auto_lang_ann.npy": _npy_bytes(np.array(_language_labels(entries), dtype=object)),
        }
        if self.split == "validation" and instructions is not None:
            table = {task: {"emb": _embeddings([text]), "ann": [text]} for task, text in instructions.items()}
            files["lang_annotations/embeddings.npy"] = _npy_bytes(np.array(table, dtype=object))
        if environment is not None:
            files[".hydra/merged_config.yaml"] = environment.encode()
        # The manifest is written last: with it a reader can check all files before it.
        for name, content in files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            _write(self.folder / name, content)
        paths = [self.folder / name for name in files]
        sync_files((*paths, *{path.parent for path in paths}))
        write_robot(self._root, self._robot)
        write_json(self.folder / MANIFEST, {"sha256": {name: sha256_of(self.folder / name) for name in files}})
        return entries

    def _entry_path(self, first_frame: int) -> Path:
        return self._entries / f"episode_{first_frame:07d}.json"


def _checked_length(arrays: Mapping[str, NDArray[Any]], required: Sequence[str], robot: RecordedRobot) -> int:
    """Return the number of time steps, after a check of names and shapes."""
    missing = [key for key in required if key not in arrays]
    unknown = [key for key in arrays if key not in STEP_ARRAYS]
    if missing or unknown:
        raise InputError(
            f"demonstration lacks {missing} and has unknown arrays {unknown}; known: {sorted(STEP_ARRAYS)}"
        )
    length = len(arrays["rgb_static"])
    shapes = {key: shape for key, (_, shape) in STEP_ARRAYS.items()} | {"commanded_actions": (robot.action.size,)}
    for key, value in arrays.items():
        step_shape = shapes[key]
        found = np.shape(value)
        fits = len(found) == len(step_shape) + 1 and all(
            size in (-1, found_size) for size, found_size in zip(step_shape, found[1:], strict=True)
        )
        if not fits or found[0] != length or length == 0:
            raise InputError(
                f"{key} has shape {found}, expected ({length} time steps, *{step_shape}) with -1 for any size"
            )
    return length


def _npz_bytes(arrays: Mapping[str, NDArray[Any]], level: int) -> bytes:
    """Return an npz file; unlike that of `np.savez` its bytes depend on the arrays only."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method, compresslevel=level or None) as archive:
        for key, value in arrays.items():
            member = io.BytesIO()
            np.save(member, value, allow_pickle=False)
            info = zipfile.ZipInfo(
                f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0)
            )  # the present time would change the bytes
            info.compress_type = method
            archive.writestr(info, member.getvalue(), compresslevel=level or None)
    return buffer.getvalue()


def _language_labels(entries: list[RecordingEntry]) -> dict[str, Any]:
    """Return the content of `auto_lang_ann.npy`."""
    windows = [(entry.first + label.start, entry.first + label.end) for entry in entries for label in entry.labels]
    labels = [label for entry in entries for label in entry.labels]
    language = {
        "ann": [label.instruction for label in labels],
        "task": [label.task for label in labels],
        "emb": _embeddings([label.instruction for label in labels]),
    }
    if any(label.way for label in labels):
        language["way"] = [label.way for label in labels]
    return {"language": language, "info": {"episodes": [], "indx": windows}}


def _embeddings(instructions: list[str]) -> NDArray[np.float32]:
    """Return embeddings, float32 [N, 1, 384]."""
    rows = [instruction_embedding(instruction) for instruction in instructions]
    return np.array(rows, dtype=np.float32).reshape(-1, 1, EMBEDDING_WIDTH)


def _statistics_yaml(entries: list[RecordingEntry]) -> str:
    """Return the content of `statistics.yaml`: mean and deviation of the states, range of the actions."""
    count = sum(entry.last - entry.first + 1 for entry in entries)
    lines = []
    for key in (key for key in _STATES if key in entries[0].sums):
        # From sums and sums of squares, so that the recordings need not be read again.
        mean = np.sum([entry.sums[key] for entry in entries], axis=0) / count
        variance = np.sum([entry.squares[key] for entry in entries], axis=0) / count - mean**2
        lines += [f"{key}:", "  - _target_: calvin_agent.utils.transforms.NormalizeVector"]
        # Rounding can make the difference of two large numbers negative.
        lines += [f"    mean: {_yaml_list(mean)}", f"    std: {_yaml_list(np.sqrt(np.maximum(variance, 0)))}"]
    if entries[0].action_low:
        lines.append(f"act_min_bound: {_yaml_list(np.min([entry.action_low for entry in entries], axis=0))}")
        lines.append(f"act_max_bound: {_yaml_list(np.max([entry.action_high for entry in entries], axis=0))}")
    return "\n".join(lines) + "\n"


def _yaml_list(values: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:.9f}" for value in values) + "]"  # no exponents: YAML 1.1 reads 1e-05 as text


def _npy_bytes(value: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=value.dtype.hasobject)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write a file; the caller synchronizes it to disk later, together with many others."""
    with atomic_write(path, sync=False) as temporary:
        temporary.write_bytes(content)
