"""Images of the latent report, written with Pillow alone: swap sheets, nearest-neighbor strips, nuisance samples.

Numbers are in latent_report.json. Pixels are enlarged without smoothing, so the images show what the model sees.
"""

# H, W pixels of a frame · s temporal stride
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.data.labeled_steps import LabeledSteps, LabeledVideo
from vw2_robot.storage.files import atomic_write

from .features import StepRows

Pixels = NDArray[np.uint8]
GAP = 4
MIN_SIDE = 96
"""Frames smaller than this are enlarged by a whole number."""


def write_columns(path: Path, columns: Sequence[Pixels]) -> None:
    """Write columns [rows, H, W, 3] side by side as a PNG."""
    write_grid(path, [[column[row] for column in columns] for row in range(len(columns[0]))])


def write_grid(path: Path, rows: Sequence[Sequence[Pixels]], *, every: int = 1, break_px: int = 0) -> None:
    """Write rows of frames [H, W, 3] as a PNG, with `break_px` more white after each `every` frames of a row.

    Frames with a height below `MIN_SIDE` pixels are enlarged by a whole number.

    Args:
        path: of the PNG.
        rows: frames uint8 [H, W, 3] in 0..255, all of one size; a row may be shorter than others.
        every: number of frames between two breaks, at least 1.
        break_px: width of a break in pixels of the PNG, beside the gap of `GAP` pixels between frames.
    """
    scale = max(1, -(-MIN_SIDE // rows[0][0].shape[0]))  # rounded up
    height, width = (scale * side for side in rows[0][0].shape[:2])
    columns = max(map(len, rows))
    sheet_width = columns * (width + GAP) - GAP + (columns - 1) // every * break_px
    sheet = np.full((len(rows) * (height + GAP) - GAP, sheet_width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, frame in enumerate(row):
            top = r * (height + GAP)
            left = c * (width + GAP) + c // every * break_px
            sheet[top : top + height, left : left + width] = frame.repeat(scale, 0).repeat(scale, 1)
    with atomic_write(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def write_strips(
    path: Path,
    strips: Sequence[Sequence[tuple[int, int]]],
    sets: Sequence[tuple[LabeledVideo, LabeledSteps, StepRows]],
    *,
    stride: int,
) -> None:
    """Write one row of frames for each query: first, middle and last frame of its step, then those of its neighbors.

    Args:
        path: of the PNG.
        strips: a query and its neighbors, each as (number of the data set, row in it).
        sets: the data sets.
        stride: clip frames of a latent step.
    """
    sheet = []
    for strip in strips:
        frames: list[Pixels] = []
        for number, row in strip:
            video, steps, rows = sets[number]
            begin = int(rows.step[row]) * stride
            frame_ids = steps.frame_ids[rows.clip[row]][[begin, begin + stride // 2, begin + stride]]
            frames += list(video.frame_cache.read(int(rows.episode[row]), frame_ids))
        sheet.append(frames)
    write_grid(path, sheet, every=3, break_px=3 * GAP)
