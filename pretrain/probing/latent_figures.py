"""Images of the latent report, written with Pillow alone: swap sheets, nearest-neighbor strips, nuisance samples.

Numbers are in latent_report.json; these are for looking. Pixels are enlarged without smoothing, so what is seen is what
the model saw.
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
LEAST_SIDE = 96
"""Frames smaller than this are enlarged by a whole number."""


def write_columns(path: Path, columns: Sequence[Pixels]) -> None:
    """Columns [rows, H, W, 3] side by side as a PNG."""
    write_grid(path, [[column[row] for column in columns] for row in range(len(columns[0]))])


def write_grid(path: Path, rows: Sequence[Sequence[Pixels]], *, every: int = 1, break_px: int = 0) -> None:
    """Rows of frames [H, W, 3] as a PNG; `break_px` more white after each `every` frames of a row."""
    height, width = rows[0][0].shape[:2]
    scale = max(1, -(-LEAST_SIDE // height))
    height, width = height * scale, width * scale
    most = max(map(len, rows))
    sheet_width = most * (width + GAP) - GAP + (most - 1) // every * break_px
    sheet = np.full((len(rows) * (height + GAP) - GAP, sheet_width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, frame in enumerate(row):
            top, left = r * (height + GAP), c * (width + GAP) + c // every * break_px
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
    """One row for each query: first, middle and last frame of its step, then those of its neighbors."""
    rows = [[frame for number, row in strip for frame in _frames_of(*sets[number], row, stride)] for strip in strips]
    write_grid(path, rows, every=3, break_px=3 * GAP)


def _frames_of(video: LabeledVideo, steps: LabeledSteps, rows: StepRows, row: int, stride: int) -> list[Pixels]:
    begin = int(rows.step[row]) * stride
    times = steps.frame_ids[rows.clip[row]][[begin, begin + stride // 2, begin + stride]]
    return list(video.frame_cache.read(int(rows.episode[row]), times))
