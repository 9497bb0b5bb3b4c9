"""A chain as a video: what the policy saw, what it was told, how it ended. H.264 mp4 and a poster image.

Frames are the images the policy looked at; nothing is rendered for the video. They play in real time: one image
every `n_action_steps` control steps. Above the image stand the instruction, five pips (solved, failed, under way, not
reached) and the outcome, which is held for a moment at the end of each subtask. Beside the video lie the policy's
answers (recording.py), which the report draws under it.

Which chains are kept is a function of the results alone (`select_chains`), so neither the number of workers nor an
interruption changes the gallery.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vw2_robot.contracts import Observation, PolicyOutput
from vw2_robot.mp4 import Mp4Writer
from vw2_robot.storage.files import atomic_write

from .evaluate import Row
from .recording import Recording

IMAGE_PX = 384
CAPTION_PX = 96
MAX_FPS = 15.0
HOLD_SECONDS = 0.8
_OURS = re.compile(r"\.?chain_\d{4,}\.(mp4|jpg|npz)(\.tmp)?")
INK, MUTED, PAPER = "#f4f2ec", "#a8a59c", "#1b1d20"
SOLVED, FAILED, OPEN = "#3fb68b", "#e5704b", "#565a61"


def select_chains(solved: Mapping[int, int], count: int) -> set[int]:
    """Chains to keep a video of: half with the most subtasks solved, half with the fewest (number -> solved).

    Ties go to the lower number among the best and follow a fixed shuffle among the worst. A chain selected from all
    results is selected from every part of them that contains it, so videos can be dropped while the evaluation runs.
    """
    best = sorted(solved, key=lambda number: (-solved[number], number))[: math.ceil(count / 2)]
    worst = sorted(solved, key=lambda number: (solved[number], _shuffled(number)))[: count // 2]
    return {*best, *worst}


def _shuffled(number: int) -> int:
    return (number + 1) * 2_654_435_761 % 2**32  # Knuth's multiplicative hash: a bijection on 32 bits


class VideoPaths(NamedTuple):
    """The three files of a video."""

    video: Path
    poster: Path
    answers: Path


def video_paths(folder: Path, number: int) -> VideoPaths:
    """Where the video of a chain, its poster and the policy's answers lie."""
    return VideoPaths(*(folder / f"chain_{number:04d}.{kind}" for kind in ("mp4", "jpg", "npz")))


def drop_videos(folder: Path, numbers: Iterable[int]) -> None:
    """Remove what is kept of these chains' videos, where there are any."""
    for number in numbers:
        for path in video_paths(folder, number):
            path.unlink(missing_ok=True)


def drop_other_videos(folder: Path, keep: set[int]) -> None:
    """Remove all videos but those of `keep`, and what a kill left half-written. Not while workers write.

    Files that are no videos of ours stay.
    """
    wanted = {path.name for number in keep for path in video_paths(folder, number)}
    for path in folder.glob("*chain_*"):
        if _OURS.fullmatch(path.name) and path.name not in wanted:
            path.unlink()


class Video:
    """Collects what a policy is shown during one chain, then writes it. An `evaluate.RolloutCallback`."""

    needs_images = True

    def __init__(self, *, control_hz: float, n_action_steps: int) -> None:
        """Keeps every `stride`-th look, so that no video has more than `MAX_FPS` images a second."""
        self.stride = max(1, math.ceil(control_hz / n_action_steps / MAX_FPS))
        self.steps_per_frame = self.stride * n_action_steps
        self.fps = control_hz / self.steps_per_frame
        self._frames: list[list[NDArray[np.uint8]]] = []
        self._looks = 0
        self._recording = Recording()

    def look(self, subtask: int, observation: Observation, output: PolicyOutput) -> None:
        """Take note of one look; the first camera of the observation is recorded."""
        self._recording.look(subtask, observation, output)
        while len(self._frames) <= subtask:
            self._frames.append([])
            self._looks = 0
        if self._looks % self.stride == 0:
            self._frames[subtask].append(next(iter(observation["images"].values())))
        self._looks += 1

    def write(self, folder: Path, row: Row, *, instructions: Sequence[str]) -> None:
        """Write the video, its poster and the answers under `folder`; they are on disk when this returns."""
        folder.mkdir(parents=True, exist_ok=True)
        video, poster, answers = video_paths(folder, row["sequence"])
        last = write_video(video, self._pages(row, instructions), fps=self.fps)
        with atomic_write(poster) as temporary:
            last.save(temporary, format="JPEG", quality=80)
        self._recording.save(answers)

    def _pages(self, row: Row, instructions: Sequence[str]) -> Iterator[Image.Image]:
        hold = max(1, round(HOLD_SECONDS * self.fps))
        for subtask, frames in enumerate(self._frames):
            done = ["solved"] * subtask
            rest = ["open"] * (len(row["subtasks"]) - subtask - 1)
            for i, frame in enumerate(frames):
                yield page(frame, instructions[subtask], [*done, "now", *rest], f"step {i * self.steps_per_frame}")
            success = subtask < row["solved"]
            steps = row["env_steps"][subtask]
            words = f"solved in {steps} steps" if success else f"not solved in {steps} steps"
            ended = page(frames[-1], instructions[subtask], [*done, "solved" if success else "failed", *rest], words)
            yield from [ended] * hold


def page(frame: NDArray[np.uint8], instruction: str, pips: Sequence[str], status: str) -> Image.Image:
    """One frame of a video. The words stand above the image, since a player's controls cover the lower edge."""
    canvas = Image.new("RGB", (IMAGE_PX, IMAGE_PX + CAPTION_PX), PAPER)
    canvas.paste(Image.fromarray(frame).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC), (0, CAPTION_PX))
    draw = ImageDraw.Draw(canvas)
    margin = 16
    font = _font_that_fits(draw, instruction, width=IMAGE_PX - 2 * margin)
    draw.text((margin, 32), instruction, font=font, fill=INK, anchor="lm")
    y = 69
    for i, state in enumerate(pips):
        left = margin + i * 30
        box = (left, y - 5, left + 24, y + 5)
        if state == "now":
            draw.rounded_rectangle(box, radius=5, outline=INK, width=2)
        else:
            draw.rounded_rectangle(box, radius=5, fill={"solved": SOLVED, "failed": FAILED, "open": OPEN}[state])
    current = next((i for i in reversed(range(len(pips))) if pips[i] != "open"), 0) + 1
    small = ImageFont.load_default(size=15)
    draw.text((margin + 30 * len(pips) + 2, y), f"{current}/{len(pips)}", font=small, fill=MUTED, anchor="lm")
    color = SOLVED if status.startswith("solved") else FAILED if status.startswith("not") else MUTED
    draw.text((IMAGE_PX - margin, y), status, font=small, fill=color, anchor="rm")
    return canvas


def _font_that_fits(draw: ImageDraw.ImageDraw, text: str, *, width: int) -> Any:
    for size in range(20, 10, -1):
        font = ImageFont.load_default(size=size)
        if draw.textlength(text, font=font) <= width:
            break
    return font


def write_video(path: Path, pages: Iterator[Image.Image], *, fps: float) -> Image.Image:
    """Write pages of one even size as H.264 (yuv420p, index first, so that browsers play it); returns the last page."""
    encoding = ["-crf", "26", "-preset", "medium", "-movflags", "+faststart"]
    with Mp4Writer(path, fps=fps, encoding=encoding) as video:
        for last in pages:
            video.add(np.asarray(last))
    return last
