"""Report of data sets as a web page: clips of every source as training reads them, each image with its time.

A clip is cut by the functions for training clips (`vw2_robot.data.clips`), so the page shows whether the camera is the
right one, whether the instruction fits, and how much happens in a latent step. The shown episodes depend on the data
set only: parts spread evenly over it, and the middle of each episode. The page is one file and follows the light or
dark setting of the browser.

A source that cannot be read is shown with the error; the others are not affected.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vw2_robot import __version__
from vw2_robot.data.clips import clip_offsets, padded_frames, windows_at
from vw2_robot.data.episodes import Episode, EpisodeSource
from vw2_robot.data.sources.formats import open_source
from vw2_robot.data.sources.lerobot_dataset import describe_lerobot
from vw2_robot.errors import InputError, MissingExtraError, require
from vw2_robot.limits import Rate
from vw2_robot.storage.files import write_text

from .data_sets import DataSet

IMAGE_PX = 168
"""Height of an image on the page."""


@dataclass(frozen=True)
class ClipOptions:
    """Clips on the page; the numbers have the same meaning as in `vw2_robot.data.clips`."""

    count: int = 3
    """number of clips of each data set"""
    num_frames: int = 9
    """frames of a clip"""
    temporal_stride: int = 4
    """frames of a latent step"""
    hz: Rate | None = None
    """frames per second of data sets without a known rate"""
    target_hz: Rate | None = None
    """frames per second of a clip; null: those of the source, or set by gap_seconds"""
    gap_seconds: Rate | None = None
    """seconds of a latent step; null: set by the frame rate"""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.count < 1:
            raise ValueError(f"clips.count={self.count}, expected at least 1")
        # Called for its checks; they do not depend on the rate.
        clip_offsets(
            self.num_frames,
            temporal_stride=self.temporal_stride,
            hz=1.0,
            target_hz=self.target_hz,
            gap_seconds=self.gap_seconds,
        )


@dataclass(frozen=True)
class Sample:
    """A data set on the page: its clips, or the problem that prevents them."""

    data_set: DataSet
    clips: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""


def write_data_report(data_sets: Sequence[DataSet], out: Path, options: ClipOptions) -> list[Sample]:
    """Write the page.

    Args:
        data_sets: one section each.
        out: the file; its folder is made if absent.
        options: which clips are shown.

    Returns:
        The content of each section, with the problems found while reading.
    """
    samples = [_sample(data_set, options) for data_set in data_sets]
    jinja2 = require("jinja2", extra="report")
    template = importlib.resources.files("vw2_robot.doctor").joinpath("data_report.html.jinja")
    # Escaped: names and instructions come from data sets of others.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    frames = padded_frames(options.num_frames, options.temporal_stride)
    if options.gap_seconds is not None:
        spacing = f"a latent step of {options.temporal_stride} frames lasts {options.gap_seconds:g} s"
    elif options.target_hz is not None:
        spacing = f"at {options.target_hz:g} Hz, or slower where the source is"
    else:
        spacing = "consecutive"
    page = environment.from_string(template.read_text(encoding="utf-8")).render(
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        sources=[{**_facts(sample.data_set), "clips": sample.clips, "problem": sample.problem} for sample in samples],
        rule=f"{frames} frames, {spacing}",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page.encode("utf-8", "backslashreplace").decode())  # file names need not be valid UTF-8
    return samples


def _facts(data_set: DataSet) -> dict[str, Any]:
    """Return the description of a data set for the template."""
    splits = ", ".join(f"{name} {'?' if count is None else f'{count:,}'}" for name, count in data_set.splits.items())
    return {
        "name": data_set.name,
        "path": str(data_set.path),
        "format": data_set.format,
        "version": data_set.version,
        "splits": splits or "–",
        "hz": f"{data_set.hz:g} Hz" if data_set.hz else "rate with each episode" if data_set.splits else "–",
        "size": format_bytes(data_set.num_bytes),
        "note": data_set.note,
        "problems": data_set.problems,
    }


def format_bytes(count: int | None) -> str:
    """Return a readable size such as "7.0 MB"; "?" if it is not known."""
    if count is None:
        return "?"
    size = float(count)
    units = ["B", "kB", "MB", "GB", "TB"]
    # From 999.5 on, rounding would show four digits.
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units = units[1:]
    return f"{size:.0f} {units[0]}" if size >= 99.5 or units[0] == "B" else f"{size:.1f} {units[0]}"


# ------------------------------------------------------------------------------------------------------------ clips


def _sample(data_set: DataSet, options: ClipOptions) -> Sample:
    """Return the clips of a data set, or the problem that prevents them."""
    # The given rate is tried second: it is meant for data sets without a rate of their own.
    rates = [None] if options.hz is None or data_set.hz is not None else [None, options.hz]
    problem = ""
    for hz in rates:
        try:
            source = open_preview(data_set, hz=hz)
            return Sample(data_set, [_clip(episode, options) for episode in spread_episodes(source, options.count)])
        except InputError as error:
            problem = str(error)
        # Another rate would not help against these.
        except (MissingExtraError, OSError) as error:
            return Sample(data_set, problem=str(error))
    return Sample(data_set, problem=problem)


def open_preview(data_set: DataSet, *, hz: float | None = None) -> EpisodeSource:
    """Open a data set with default choices: the first split and the first of several cameras."""
    kind = data_set.format
    splits = list(data_set.splits)
    if kind == "rlds":
        return open_source(data_set.path, format=kind, split=splits[0] if splits else None, hz=hz)
    # The first of several cameras, where training would ask for a choice.
    if kind == "lerobot":
        return open_source(
            data_set.path, format=kind, image_key=next(iter(describe_lerobot(data_set.path).cameras), None)
        )
    if kind == "calvin":
        split = splits[0] if splits else "training"
        labeled = (data_set.path / split / "lang_annotations" / "auto_lang_ann.npy").is_file()
        return open_source(data_set.path, format=kind, split=split, trajectories="labeled" if labeled else "recordings")
    return open_source(data_set.path, format=kind, hz=hz)


def spread_episodes(source: EpisodeSource, count: int) -> Iterator[Episode]:
    """Yield up to `count` episodes of parts that are spread evenly over the source; no other episodes are read."""
    parts = len(source.parts())
    chosen = [number * parts // count for number in range(count)] if parts >= count else list(range(parts))
    left = count
    for number, part in enumerate(chosen):
        # The rest is divided equally among the remaining parts, rounded up.
        here = -(-left // (len(chosen) - number))
        for _, episode in zip(range(here), source.read(part), strict=False):
            left -= 1
            yield episode


def _clip(episode: Episode, options: ClipOptions) -> dict[str, Any]:
    """Return the clip in the middle of an episode for the template."""
    offsets = clip_offsets(
        options.num_frames,
        temporal_stride=options.temporal_stride,
        hz=episode.hz,
        target_hz=options.target_hz,
        gap_seconds=options.gap_seconds,
    )
    # The middle of the episode: the beginning often shows no motion.
    start = max(0, (len(episode) - int(offsets[-1])) // 2)
    windows = windows_at(np.array([start]), np.array([len(episode)]), offsets[None], options.temporal_stride)
    numbers = windows.frame_ids[0].tolist()
    # A frame that the clip repeats is encoded once.
    images = {number: _image(episode, number) for number in dict.fromkeys(numbers)}
    frames = []
    for position, number in enumerate(numbers):
        # Latent step k ends with frame k * temporal_stride of the clip; frame 0 is the anchor.
        step = -(-position // options.temporal_stride)
        is_end = position % options.temporal_stride == 0
        frames.append(
            {
                "image": images[number],
                "time": f"{number / episode.hz:.2f} s",
                "number": number,
                "role": "anchor" if position == 0 else f"step {step}" if is_end else "",
                "real": step == 0 or bool(windows.valid[0, step - 1]),
            }
        )
    height, width = episode.decode(numbers[0]).shape[:2]
    seconds = max(1, len(episode) - 1) / episode.hz
    return {
        "episode": episode.episode_id,
        "instruction": episode.instruction,
        "length": len(episode),
        "seconds": f"{len(episode) / episode.hz:.1f}",
        "size": f"{width} x {height}",
        "valid": int(windows.valid.sum()),
        "steps": windows.valid.shape[1],
        # places of the frames on the time axis of the episode, in percent
        "marks": [round(100 * number / episode.hz / seconds, 3) for number in numbers],
        "frames": frames,
    }


def _image(episode: Episode, number: int) -> str:
    """Return a frame, reduced in size, as a data URL."""
    image = Image.fromarray(episode.decode(number))
    width = max(1, round(image.width * IMAGE_PX / image.height))
    image = image.resize((width, IMAGE_PX), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
