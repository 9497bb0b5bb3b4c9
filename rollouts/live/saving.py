"""Saved episodes: a captioned video of each, and a CALVIN data set of the solved ones.

out/video/episode_0000.mp4    out/calvin/training/...    out/episodes.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from PIL.Image import Image as PillowImage

from vw2_robot.storage.files import append_line

from ..video import HOLD_SECONDS, page, write_video
from .control import ChosenWorld
from .session import LiveEpisode

STEPS_PER_FRAME = 2


def save_episode(episode: LiveEpisode, world: ChosenWorld, out: Path) -> list[Path]:
    """Store an episode and return the video, and the data set if it is in it.

    Args:
        episode: what happened.
        world: where it happened; it writes the data set.
        out: folder of all saved episodes.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
    """
    table = out / "episodes.jsonl"
    number = len(table.read_text(encoding="utf-8").splitlines()) if table.is_file() else 0
    written = [out / "video" / f"episode_{number:04d}.mp4"]
    written[0].parent.mkdir(parents=True, exist_ok=True)
    write_video(written[0], _pages(episode, world.control_hz), fps=world.control_hz / STEPS_PER_FRAME)
    # A data set teaches by example, so only what the oracle confirmed goes into it.
    task, instruction = episode.subtask.task, episode.subtask.instruction
    if episode.solved and task is not None:
        written.append(out / "calvin")
        world.write_recording(
            out / "calvin",
            number,
            # A wording that was only taken for the task's must not be learned as one.
            label=(task, episode.subtask.taken_as or instruction),
            images=[step.image for step in episode.env_steps],
            states=[*(step.state for step in episode.env_steps), episode.last.state],
            actions=[step.action for step in episode.env_steps],
        )
    about = {
        "video": written[0].name,
        "instruction": instruction,
        "task": task,
        "taken_as": episode.subtask.taken_as,
        "policy": episode.policy,
        "scene": episode.scene,
        "seed": episode.subtask.seed,
        "env_steps": len(episode.env_steps),
        "solved": episode.solved,
        "dragged": episode.dragged,
    }
    append_line(table, json.dumps(about), sync=True)
    return written


def _pages(episode: LiveEpisode, control_hz: float) -> Iterator[PillowImage]:
    """Yield the frames of the video; the outcome is held at its end."""
    instruction = episode.subtask.instruction
    for step in range(0, len(episode.env_steps), STEPS_PER_FRAME):
        yield page(episode.env_steps[step].image, instruction, ["now"], f"step {step}")
    status = f"{'solved' if episode.solved else 'not solved'} in {len(episode.env_steps)} steps"
    last = page(episode.last.image, instruction, ["solved" if episode.solved else "failed"], status)
    for _ in range(round(HOLD_SECONDS * control_hz / STEPS_PER_FRAME)):
        yield last
