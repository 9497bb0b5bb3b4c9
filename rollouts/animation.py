"""Animated image of a chain (webp): its video, and beside it the latent tokens and commands up to each moment.

For pages that show no videos, such as README: `vw2-rollout animations=true`. What is shown is what happened: tokens are
those that the policy decoded, and of a policy that decodes none the panel states that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vw2_robot.storage.files import atomic_write

from .report.strips import RecordedOutputs, code_image, executed_commands

PANEL_PX = 384
MARGIN_PX, LABELS_PX = 16, 80
TITLE_PX, TOKENS_PX, GAP_PX = 28, 84, 20
INK, MUTED, PAPER, LINE, CURVE = "#f4f2ec", "#a8a59c", "#1b1d20", "#33363b", "#6ea8fe"
QUALITY = 50
"""of webp, 0 to 100"""


class SidePanel(NamedTuple):
    """A chain's tokens and commands over time: with all of them, and before the first."""

    full: Image.Image
    empty: Image.Image


def plot_panel(outputs: RecordedOutputs, env_steps: Sequence[int], *, n_action_steps: int, height: int) -> SidePanel:
    """Return the panel of a chain: latent tokens above, one curve per number of the commands below.

    Args:
        outputs: The policy outputs of the chain.
        env_steps: Control steps of each attempted subtask.
        n_action_steps: Actions executed per policy call.
        height: Of the panel, in pixels.

    Raises:
        InputError: There are fewer calls than the steps need.
    """
    empty = Image.new("RGB", (PANEL_PX, height), PAPER)
    canvas = ImageDraw.Draw(empty)
    large, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    width = PANEL_PX - LABELS_PX - MARGIN_PX
    executed = executed_commands(outputs, env_steps, n_action_steps=n_action_steps)
    has_tokens = outputs.tokens is not None
    tokens_top = MARGIN_PX + TITLE_PX
    commands_top = tokens_top + (TOKENS_PX + GAP_PX if has_tokens else 0) + TITLE_PX
    row_px = (height - commands_top - MARGIN_PX) / len(outputs.names)
    middles = [commands_top + row_px * (dim + 0.5) for dim in range(len(outputs.names))]
    # 1. What does not change: titles, names, zero lines, ends of subtasks.
    title = "latent tokens" if has_tokens else "latent tokens: this policy decodes none"
    canvas.text((MARGIN_PX, MARGIN_PX), title, font=large, fill=INK if has_tokens else MUTED)
    canvas.text((MARGIN_PX, commands_top - TITLE_PX), "commands", font=large, fill=INK)
    for name, middle in zip(outputs.names, middles, strict=True):
        canvas.line((LABELS_PX, middle, LABELS_PX + width, middle), fill=LINE)
        canvas.text((MARGIN_PX, middle), name, font=small, fill=MUTED, anchor="lm")
    for end in np.cumsum(env_steps)[:-1]:
        at = LABELS_PX + end * width / len(executed)
        canvas.line((at, commands_top, at, height - MARGIN_PX), fill=LINE)
    # 2. The codes that were decoded, a row per slot, equal codes in equal colors; the commands that the robot got.
    full = empty.copy()
    if has_tokens:
        codes = Image.fromarray(code_image(outputs, env_steps, n_action_steps=n_action_steps))
        full.paste(codes.resize((width, TOKENS_PX), Image.Resampling.NEAREST), (LABELS_PX, tokens_top))
    canvas = ImageDraw.Draw(full)
    x = LABELS_PX + np.arange(len(executed)) * width / len(executed)
    for dim, middle in enumerate(middles):
        y = middle - 0.42 * row_px * executed[:, dim]
        canvas.line(np.stack([x, y], axis=-1).ravel().tolist(), fill=CURVE, width=2)
    return SidePanel(full, empty)


def write_animation(
    path: Path, pages: Iterable[tuple[int, Image.Image]], panel: SidePanel, *, env_steps: int, fps: float
) -> None:
    """Write pages and, beside each, the panel up to its control step.

    Args:
        path: The webp file.
        pages: (control steps so far, frame of the video), all of one size.
        panel: Of the chain.
        env_steps: Control steps of the chain.
        fps: Frames per second.
    """

    def frames() -> Iterator[Image.Image]:
        for step, page in pages:
            frame = Image.new("RGB", (page.width + PANEL_PX, page.height))
            frame.paste(page, (0, 0))
            frame.paste(panel.empty, (page.width, 0))
            now = LABELS_PX + round((PANEL_PX - LABELS_PX - MARGIN_PX) * step / env_steps)
            frame.paste(panel.full.crop((0, 0, now, page.height)), (page.width, 0))
            yield frame

    rest = frames()
    with atomic_write(path) as temporary:
        next(rest).save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=rest,
            duration=round(1000 / fps),
            loop=0,
            quality=QUALITY,
        )
