"""Where recordings go: a CALVIN split, an RLDS data set, or a folder of videos.

The two classes have the same four methods, so that `record.py` need not know which one it has. CALVIN frames are
written at their final place. The other two formats are containers that must be written in one go: recordings wait under
`<out>.parts/`, which disappears when the container is complete. All are safe to kill and to start again.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.calvin import CalvinSplit
from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.episodes import Demonstration, Episode, encode_jpeg
from vw2_robot.errors import require

from .demonstrations import Recording
from .instructions import load_instructions

Format = Literal["calvin", "rlds", "video"]
FRAMES_PER_RECORDING = 256
"""Frame numbers set aside for each recording in the CALVIN format, so that its place depends on its number alone."""
RLDS_VERSION = "1.0.0"


class CalvinOutput:
    """Splits of a CALVIN data set."""

    def __init__(self, out: Path, *, compress_level: int) -> None:
        self._out, self._level = out, compress_level

    def has(self, split: CalvinSplit, number: int) -> bool:
        """Say whether this recording is complete."""
        return self._writer(split).is_complete(number * FRAMES_PER_RECORDING)

    def add(self, split: CalvinSplit, number: int, recording: Recording) -> None:
        """Write one recording."""
        self._writer(split).write_episode(
            recording.arrays,
            first_frame=number * FRAMES_PER_RECORDING,
            task=recording.task,
            instruction=recording.instruction,
            scene=recording.scene,
            attempts=recording.attempts,
        )

    def attempts(self, split: CalvinSplit) -> list[tuple[str, int]]:
        """Return (task, number of runs it took) of each recording."""
        return [(entry.task, entry.attempts) for entry in self._writer(split).entries()]

    def finish(self, splits: list[CalvinSplit]) -> None:
        """Write what describes the splits."""
        sentences = {task: lines[0] for task, lines in load_instructions("validation").items()}
        for split in splits:
            self._writer(split).finish(sentences)

    def _writer(self, split: CalvinSplit) -> CalvinWriter:
        return CalvinWriter(self._out, split, compress_level=self._level)


Pack = Callable[[Path, dict[CalvinSplit, list[Path]]], None]


class PartsOutput:
    """Recordings that wait in `<out>.parts/` until `pack` makes the container of them."""

    def __init__(self, out: Path, pack: Pack) -> None:
        self._out, self._pack = out, pack
        self._parts = out.with_name(out.name + ".parts")

    def has(self, split: CalvinSplit, number: int) -> bool:
        """Say whether this recording is complete."""
        return self._part(split, number).is_file()

    def add(self, split: CalvinSplit, number: int, recording: Recording) -> None:
        """Write one recording, its pictures as JPEG."""
        jpegs = [np.frombuffer(encode_jpeg(image), dtype=np.uint8) for image in recording.arrays["rgb_static"]]
        about = {key: getattr(recording, key) for key in ("task", "instruction", "scene", "hz", "attempts")}
        path = self._part(split, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(
                file,
                jpeg=np.concatenate(jpegs),
                sizes=np.array([len(jpeg) for jpeg in jpegs]),
                rel_actions=recording.arrays["rel_actions"],
                about=np.array(json.dumps(about)),
            )
        temporary.replace(path)

    def attempts(self, split: CalvinSplit) -> list[tuple[str, int]]:
        """Return (task, number of runs it took) of each recording."""
        abouts = [_about(path) for path in self._paths(split)]
        return [(about["task"], about["attempts"]) for about in abouts]

    def finish(self, splits: list[CalvinSplit]) -> None:
        """Make the container and clear the parts away."""
        self._pack(self._out, {split: self._paths(split) for split in splits})
        shutil.rmtree(self._parts)

    def _paths(self, split: CalvinSplit) -> list[Path]:
        return sorted((self._parts / split).glob("part_*.npz"))

    def _part(self, split: CalvinSplit, number: int) -> Path:
        return self._parts / split / f"part_{number:07d}.npz"


Output = CalvinOutput | PartsOutput


def open_output(form: Format, out: Path, *, world: str, compress_level: int) -> Output:
    """Return the output for a format; `world` ("calvin", "kuka") names an RLDS data set."""
    if form == "calvin":
        return CalvinOutput(out, compress_level=compress_level)
    return PartsOutput(out, functools.partial(_pack_rlds, world) if form == "rlds" else _pack_videos)


def _pack_rlds(world: str, out: Path, parts: dict[CalvinSplit, list[Path]]) -> None:
    from vw2_robot.data.rlds import write_rlds

    names = {"training": "train", "validation": "validation"}
    write_rlds(
        out,
        name=f"vw2_{world}",
        version=RLDS_VERSION,
        episodes={names[split]: (_demonstration(path) for path in paths) for split, paths in parts.items()},
        description=f"Scripted demonstrations from the vw2_robot {world} world; action: as in CALVIN's rel_actions.",
    )


def _pack_videos(out: Path, parts: dict[CalvinSplit, list[Path]]) -> None:
    """One mp4 per recording beside `captions.jsonl`, one object a line: file, instruction, task, scene, hz, frames."""
    ffmpeg = require("imageio_ffmpeg", extra="report")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for split, paths in parts.items():
        (temporary / split).mkdir(parents=True)
        lines = []
        for path in paths:
            demonstration, about = _demonstration(path), _about(path)
            name = path.with_suffix(".mp4").name.replace("part", "video")
            _write_mp4(ffmpeg, temporary / split / name, demonstration.episode)
            caption = {key: about[key] for key in ("instruction", "task", "scene")}
            lines.append(json.dumps({"file": name, **caption, "hz": about["hz"], "frames": len(demonstration.episode)}))
        (temporary / split / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(out)


def _write_mp4(ffmpeg: Any, path: Path, episode: Episode) -> None:
    height, width = episode.decode(0).shape[:2]
    # bitexact and one thread: equal pictures give equal bytes
    exact = ["-threads", "1", "-bitexact", "-map_metadata", "-1"]
    stream = ffmpeg.write_frames(
        str(path), (width, height), fps=episode.hz, quality=7, macro_block_size=2, output_params=exact
    )
    stream.send(None)
    for index in range(len(episode)):
        stream.send(np.ascontiguousarray(episode.decode(index)))
    stream.close()


def _demonstration(path: Path) -> Demonstration:
    about = _about(path)
    with np.load(path, allow_pickle=False) as part:
        jpeg, sizes, actions = part["jpeg"], part["sizes"], part["rel_actions"]
    episode = Episode(
        source=f"vw2_{about['scene']}",
        episode_id=f"{path.parent.name}/{path.stem.removeprefix('part_')}",
        instruction=about["instruction"],
        hz=about["hz"],
        images=tuple(_split_bytes(jpeg, sizes)),
    )
    return Demonstration(episode=episode, actions=actions)


def _split_bytes(joined: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Iterator[bytes]:
    for piece in np.split(joined, np.cumsum(sizes)[:-1]):
        yield piece.tobytes()


def _about(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as part:
        about: dict[str, Any] = json.loads(str(part["about"]))
        return about
