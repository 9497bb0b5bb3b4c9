"""What a policy expected beside what then happened: expected.jpg and expected.json of a rollout, for its report.

A policy that decodes latent tokens has said what it expects to see. From one policy call of each kept video the dLDM
draws these frames, and the video has what the camera saw at those times. PSNR says how near they are; that of the first
frame held still is what any useful expectation exceeds. Policies that decode no tokens leave neither file.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.errors import require
from vw2_robot.storage.arrays import read_arrays
from vw2_robot.storage.files import atomic_write, write_json

from .evaluate import Row
from .video import CAPTION_PX, IMAGE_PX, VideoLayout, VideoPaths

MAX_CHAINS = 6
TILE_PX = 96
GAP_PX = 4

# K expected frames · M latent steps · N codes per step
Pixels = NDArray[np.uint8]


class FrameDecoder(Protocol):
    """Draws what a policy expects; `live.expectation.Expectation` does. `offsets`: control steps of the K frames."""

    offsets: Sequence[int]

    def frames(self, image: Pixels, tokens: NDArray[np.int64]) -> Pixels:
        """Return uint8 [K, h, w, 3] of an image and tokens [M, N]; the first is the image, reduced."""

    def reduced(self, image: Pixels) -> Pixels:
        """Return an image in the size of the frames."""


def write_expected(
    folder: Path, videos: Sequence[tuple[Row, VideoPaths]], decoder: FrameDecoder, layout: VideoLayout
) -> int:
    """Write both files; returns the number of chains in them, 0 where no video is long enough.

    Args:
        folder: Of the rollout.
        videos: Chains with a video whose recording has tokens.
        decoder: The policy's dLDM.
        layout: How the videos' frames follow control steps.
    """
    rows: list[dict[str, Any]] = []
    tiles: list[Pixels] = []
    for row, paths in videos:
        if len(rows) == MAX_CHAINS:
            break
        if (found := _one_call(row, paths, decoder, layout)) is None:
            continue
        subtask, env_step, expected, happened = found
        still = np.broadcast_to(happened[:1], happened.shape)
        rows.append(
            {
                "chain": row["sequence"],
                "instruction": row["instructions"][subtask],
                "solved": subtask < row["solved"],
                "env_step": env_step,
                "psnr": _mean_psnr(expected[1:], happened[1:]),
                "psnr_still": _mean_psnr(still[1:], happened[1:]),
            }
        )
        tiles.append(np.concatenate([_line(expected), _line(happened)]))
    if rows:
        with atomic_write(folder / "expected.jpg") as temporary:
            Image.fromarray(np.concatenate(tiles)).save(temporary, format="JPEG", quality=88)
        content = {"offsets": [int(offset) for offset in decoder.offsets], "chains": rows}
        write_json(folder / "expected.json", content, sealed=True)
    return len(rows)


def has_tokens(recording: Path) -> bool:
    """Return whether a policy's recorded outputs have latent tokens."""
    return "tokens" in read_arrays(recording, cure="run the rollout again")


def _one_call(
    row: Row, paths: VideoPaths, decoder: FrameDecoder, layout: VideoLayout
) -> tuple[int, int, Pixels, Pixels] | None:
    """Return subtask, control step, expected and true frames of the middle call of the last attempted subtask."""
    arrays = read_arrays(paths.recording, cure="run the rollout again")
    subtask = len(row["env_steps"]) - 1
    # The middle call with all expected frames before the end: there something is under way.
    last_call = (row["env_steps"][subtask] - 1 - decoder.offsets[-1]) // layout.n_action_steps
    # Of calls between two frames of the video there is no image.
    call = last_call // 2 // layout.stride * layout.stride
    if call < 0:
        return None
    env_step = call * layout.n_action_steps
    images = _read_images(paths.video)
    begin = layout.begin(row["env_steps"], subtask)
    frames = [images[begin + round((env_step + offset) / layout.steps_per_frame)] for offset in decoder.offsets]
    tokens = arrays["tokens"][arrays["subtask"] == subtask][call]
    return subtask, env_step, decoder.frames(frames[0], tokens), np.stack([decoder.reduced(one) for one in frames])


def _read_images(path: Path) -> list[Pixels]:
    """Return the camera images of a video, without the text above them."""
    program = require("imageio_ffmpeg", extra="report").get_ffmpeg_exe()
    command = [program, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(command, capture_output=True, check=True).stdout
    return list(np.frombuffer(pixels, np.uint8).reshape(-1, CAPTION_PX + IMAGE_PX, IMAGE_PX, 3)[:, CAPTION_PX:])


def _mean_psnr(a: Pixels, b: Pixels) -> float:
    from vw2_robot.image_metrics import psnr

    return round(float(psnr(a, b).mean()), 2)


def _line(frames: Pixels) -> Pixels:
    """Return frames side by side, each `TILE_PX` high, with white between them and below."""
    line = np.full((TILE_PX + GAP_PX, len(frames) * (TILE_PX + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        tile = Image.fromarray(frame).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
        line[:TILE_PX, i * (TILE_PX + GAP_PX) : i * (TILE_PX + GAP_PX) + TILE_PX] = np.asarray(tile)
    return line
