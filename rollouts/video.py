"""Video of a chain: the policy's images with instruction and outcome, as H.264 mp4 and a poster image.

Frames are the images that the policy was given; nothing is rendered for the video. They play in real time: one image
every `n_action_steps` control steps. Above the image are the instruction, one mark per subtask (solved, failed,
current, not reached) and the outcome, which is shown longer at the end of each subtask. The policy's outputs are
written beside the video (recording.py); the report plots them under it, and an animated image beside it (animation.py).

Which chains are kept is a function of the results alone (`select_chains`), so neither the number of workers nor an
interruption changes the selection.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vw2_robot.contracts import Observation, PolicyOutput
from vw2_robot.storage.files import atomic_write
from vw2_robot.storage.mp4 import Mp4Writer

from .animation import plot_panel, write_animation
from .evaluate import Row
from .recording import Recording
from .report.strips import read_recording

IMAGE_PX = 384
CAPTION_PX = 96
MAX_FPS = 15.0
HOLD_SECONDS = 0.8
"""how long the outcome of a subtask is shown"""
_FILE_NAME = re.compile(r"\.?chain_\d{4,}\.(mp4|jpg|npz|webp)(\.tmp)?")
INK, MUTED, PAPER = "#f4f2ec", "#a8a59c", "#1b1d20"
SOLVED, FAILED, OPEN = "#3fb68b", "#e5704b", "#565a61"


def select_chains(rows: Collection[Row], count: int) -> set[int]:
    """Return the chains to keep a video of: half with the most subtasks solved, half failures, each of another task.

    Of single tasks the first half is one success of each task as well; where tasks run out, a second one of each
    follows. A chain selected from all results is selected from every part of them that contains it, so videos can be
    dropped while the evaluation runs.

    Args:
        rows: The finished chains.
        count: Number of videos.
    """
    best = _one_per_task(rows, level=lambda row: -row["solved"], order=lambda row: row["sequence"])[
        : math.ceil(count / 2)
    ]
    numbers = {row["sequence"] for row in best}
    # Of each task the earliest failure in a chain, in a fixed shuffle: in the order of numbers all videos of failures
    # would show the first few chains. Knuth's multiplicative hash is a bijection on 32 bits.
    failures = _one_per_task(
        (row for row in rows if row["sequence"] not in numbers),
        level=lambda row: int(row["solved"] == len(row["subtasks"])),
        order=lambda row: (row["solved"], (row["sequence"] + 1) * 2_654_435_761 % 2**32),
    )
    return numbers | {row["sequence"] for row in failures[: count // 2]}


def _one_per_task(rows: Iterable[Row], *, level: Callable[[Row], int], order: Callable[[Row], Any]) -> list[Row]:
    """Return rows by level; within a level one for each task at which chains ended, then a second for each, and so on.

    Args:
        rows: The finished chains.
        level: The lower the earlier.
        order: Key that sorts the chains of one level and task.
    """
    count: Counter[tuple[int, str]] = Counter()
    placed = []
    for row in sorted(rows, key=order):
        last = row["subtasks"][min(row["solved"], len(row["subtasks"]) - 1)]
        # Tasks in a fixed order that is not the alphabet's, which would show one kind of task first.
        placed.append((level(row), count[level(row), last], zlib.crc32(last.encode()), row))
        count[level(row), last] += 1
    return [row for *_, row in sorted(placed, key=lambda entry: entry[:3])]


class VideoPaths(NamedTuple):
    """The files of a video; the animated image only where it was asked for."""

    video: Path
    poster: Path
    recording: Path
    animation: Path


def video_paths(folder: Path, number: int) -> VideoPaths:
    """Return the paths of a chain's video, its poster, the policy's outputs and the animated image."""
    return VideoPaths(*(folder / f"chain_{number:04d}.{kind}" for kind in ("mp4", "jpg", "npz", "webp")))


def drop_videos(folder: Path, numbers: Iterable[int]) -> None:
    """Remove the videos of these chains, where there are any."""
    for number in numbers:
        for path in video_paths(folder, number):
            path.unlink(missing_ok=True)


def drop_other_videos(folder: Path, keep: set[int]) -> None:
    """Remove all videos but those of `keep`, and files that a kill left incomplete. Not while workers write.

    Files with other names stay.
    """
    # Also temporary files of wanted videos go: their names differ.
    wanted = {path.name for number in keep for path in video_paths(folder, number)}
    for path in folder.glob("*chain_*"):
        if _FILE_NAME.fullmatch(path.name) and path.name not in wanted:
            path.unlink()


class VideoLayout:
    """How the frames of a video follow control steps.

    Attributes:
        n_action_steps: Control steps per policy call.
        stride: Every how many policy calls an image is kept.
        steps_per_frame: Control steps between two frames of the video.
        fps: Frames per second of the video, so that it plays in real time.
        hold_frames: Frames that show the outcome at the end of each subtask.
    """

    def __init__(self, *, control_hz: float, n_action_steps: int) -> None:
        """Choose a stride so that no video has more than `MAX_FPS` frames a second.

        Args:
            control_hz: Control steps per second of the benchmark.
            n_action_steps: Control steps per policy call.
        """
        self.n_action_steps = n_action_steps
        self.stride = max(1, math.ceil(control_hz / n_action_steps / MAX_FPS))
        self.steps_per_frame = self.stride * n_action_steps
        self.fps = control_hz / self.steps_per_frame
        self.hold_frames = max(1, round(HOLD_SECONDS * self.fps))

    def begin(self, env_steps: Sequence[int], subtask: int) -> int:
        """Return the number of a subtask's first frame.

        Args:
            env_steps: Control steps of each attempted subtask.
            subtask: Position of the subtask within the chain, from 0.
        """
        return sum(-(-steps // self.steps_per_frame) + self.hold_frames for steps in env_steps[:subtask])


class ChainVideo(VideoLayout):
    """The images of one chain: an `evaluate.RolloutCallback` that collects them and then writes a video."""

    needs_images = True

    def __init__(self, *, control_hz: float, n_action_steps: int) -> None:
        super().__init__(control_hz=control_hz, n_action_steps=n_action_steps)
        self._frames: list[list[NDArray[np.uint8]]] = []  # per subtask
        self._calls = 0  # of the current subtask
        self._recording = Recording()

    def on_policy_call(self, subtask: int, observation: Observation, output: PolicyOutput) -> None:
        """Keep the output, and the image of the first camera at every `stride`-th call of a subtask.

        Args:
            subtask: Position of the subtask within the chain, from 0.
            observation: What the policy was given; its images are uint8 [H, W, 3].
            output: What the policy returned, before clipping.
        """
        self._recording.on_policy_call(subtask, observation, output)
        while len(self._frames) <= subtask:
            self._frames.append([])
            self._calls = 0
        # Counted per subtask, so that each subtask begins with an image.
        if self._calls % self.stride == 0:
            self._frames[subtask].append(next(iter(observation["images"].values())))
        self._calls += 1

    def write(
        self, folder: Path, row: Row, *, instructions: Sequence[str], names: Sequence[str], animation: bool = False
    ) -> None:
        """Write the video, its poster and the policy's outputs; they are on disk when this returns.

        Args:
            folder: Folder of videos.
            row: The chain's row.
            instructions: Instruction of each subtask.
            names: Of the numbers of an action.
            animation: Write the animated image as well.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = video_paths(folder, row["sequence"])
        last = write_video(paths.video, (image for _, image in self._pages(row, instructions)), fps=self.fps)
        with atomic_write(paths.poster) as temporary:
            last.save(temporary, format="JPEG", quality=80)
        self._recording.save(paths.recording)
        if animation:
            outputs = read_recording(paths.recording, names=names)
            panel = plot_panel(outputs, row["env_steps"], n_action_steps=self.n_action_steps, height=last.height)
            env_steps = sum(row["env_steps"])
            write_animation(paths.animation, self._pages(row, instructions), panel, env_steps=env_steps, fps=self.fps)

    def _pages(self, row: Row, instructions: Sequence[str]) -> Iterator[tuple[int, Image.Image]]:
        """Yield the frames of the video, each with the control steps of the chain until then."""
        begin = 0  # control steps of the subtasks before
        for subtask, frames in enumerate(self._frames):
            before = ["solved"] * subtask
            after = ["open"] * (len(row["subtasks"]) - subtask - 1)
            for i, frame in enumerate(frames):
                step = i * self.steps_per_frame
                yield begin + step, page(frame, instructions[subtask], [*before, "now", *after], f"step {step}")
            is_solved = subtask < row["solved"]
            env_steps = row["env_steps"][subtask]
            # Not "5/5 not solved", which reads like a number of tasks.
            status = f"solved in {env_steps} steps" if is_solved else "not solved"
            states = [*before, "solved" if is_solved else "failed", *after]
            begin += env_steps
            yield from [(begin, page(frames[-1], instructions[subtask], states, status))] * self.hold_frames


def page(frame: NDArray[np.uint8], instruction: str, states: Sequence[str], status: str) -> Image.Image:
    """Return one frame of a video. The text is above the image, since a player's controls cover the lower edge.

    Args:
        frame: Image of the camera, uint8 [H, W, 3].
        instruction: Instruction of the subtask.
        states: "solved", "failed", "now" or "open" for each subtask of the chain.
        status: Text on the right.
    """
    image = Image.new("RGB", (IMAGE_PX, IMAGE_PX + CAPTION_PX), PAPER)
    image.paste(Image.fromarray(frame).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC), (0, CAPTION_PX))
    canvas = ImageDraw.Draw(image)
    margin = 16
    # The largest font in which the instruction fits into one line.
    for size in range(20, 10, -1):
        font = ImageFont.load_default(size=size)
        if canvas.textlength(instruction, font=font) <= IMAGE_PX - 2 * margin:
            break
    canvas.text((margin, 32), instruction, font=font, fill=INK, anchor="lm")
    y = 69
    for i, state in enumerate(states):
        left = margin + i * 30
        box = (left, y - 5, left + 24, y + 5)
        if state == "now":
            canvas.rounded_rectangle(box, radius=5, outline=INK, width=2)
        else:
            canvas.rounded_rectangle(box, radius=5, fill={"solved": SOLVED, "failed": FAILED, "open": OPEN}[state])
    current = next((i for i in reversed(range(len(states))) if states[i] != "open"), 0) + 1
    small = ImageFont.load_default(size=14)
    number = f"task {current} of {len(states)}"
    canvas.text((margin + 30 * len(states) + 2, y), number, font=small, fill=MUTED, anchor="lm")
    color = SOLVED if status.startswith("solved") else FAILED if status.startswith("not") else MUTED
    canvas.text((IMAGE_PX - margin, y), status, font=small, fill=color, anchor="rm")
    return image


def write_video(path: Path, pages: Iterator[Image.Image], *, fps: float) -> Image.Image:
    """Write a video and return its last frame.

    Args:
        path: The mp4 file.
        pages: Frames of one size, width and height even.
        fps: Frames per second.
    """
    # yuv420p, which needs even sizes; the index first (faststart), so that browsers play it while they load it.
    encoding = ["-crf", "26", "-preset", "medium", "-movflags", "+faststart"]
    with Mp4Writer(path, fps=fps, encoding=encoding) as video:
        for last in pages:
            video.add(np.asarray(last))
    return last
