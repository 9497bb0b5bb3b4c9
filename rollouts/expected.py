"""What a policy expected beside what then happened: expected.jpg and expected.json of a rollout, for its report.

A policy that decodes latent tokens has said what it expects to see. From one policy call of each kept video the dLDM
draws these frames, and the video has what the camera saw at those times. PSNR says how near they are; that of the first
frame held still is what any useful expectation exceeds. Policies that decode no tokens leave neither file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.image_metrics import psnr
from vw2_robot.storage.arrays import read_arrays
from vw2_robot.storage.files import atomic_write, write_json
from vw2_robot.storage.mp4 import read_mp4

from .evaluate import Row
from .live.session import FrameDecoder
from .video import CAPTION_PX, IMAGE_PX, VideoLayout, VideoPaths

MAX_CHAINS = 6
MAX_FRAMES = 5  # of a call that are shown; all are compared
TILE_PX = 96
GAP_PX = 4

# K expected frames · M latent steps · N codes per step
Pixels = NDArray[np.uint8]


def write_expected(
    folder: Path, videos: Sequence[tuple[Row, VideoPaths]], decoder: FrameDecoder, layout: VideoLayout
) -> int:
    """Write both files; returns the number of chains in them, 0 where no video is long enough.

    Args:
        folder: Of the rollout.
        videos: Chains with a video whose recording has tokens.
        decoder: The policy's dLDM (`live.expectation.Expectation`).
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
        shown = _shown(len(expected))
        tiles.append(np.concatenate([_line(expected[shown]), _line(happened[shown])]))
    if rows:
        with atomic_write(folder / "expected.jpg") as temporary:
            Image.fromarray(np.concatenate(tiles)).save(temporary, format="JPEG", quality=88)
        offsets = [int(decoder.offsets[i]) for i in _shown(len(decoder.offsets))]
        content = {"offsets": offsets, "chains": rows}
        write_json(folder / "expected.json", content, sealed=True)
    return len(rows)


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


def _shown(count: int) -> NDArray[np.int64]:
    """Return which of the frames of a call are shown, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(np.int64)


def _read_images(path: Path) -> list[Pixels]:
    """Return the camera images of a video, without the text above them."""
    frames = read_mp4(path, height=CAPTION_PX + IMAGE_PX, width=IMAGE_PX)
    return list(frames[:, CAPTION_PX:])


def _mean_psnr(a: Pixels, b: Pixels) -> float:
    return round(float(psnr(a, b).mean()), 2)


def _line(frames: Pixels) -> Pixels:
    """Return frames side by side, each `TILE_PX` high, with white between them and below."""
    line = np.full((TILE_PX + GAP_PX, len(frames) * (TILE_PX + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        tile = Image.fromarray(frame).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
        line[:TILE_PX, i * (TILE_PX + GAP_PX) : i * (TILE_PX + GAP_PX) + TILE_PX] = np.asarray(tile)
    return line
