"""What a policy answered during a chain, drawn: each action dimension over time, predicted and executed, and its codes.

One control step is one unit of the drawing's width, so a strip is as long as its chain and scrolls inside its place.
Executed is what the robot was told (`vw2_robot.commands`); predicted is the whole chunk of each look before clipping,
its later part replaced by the next look. Every pixel column of the codes is a control step, every row one of the N
codes of the latent step being executed; equal codes have equal colors. Reads `videos/chain_0000.npz`, which holds what
recording.py describes; colors are the page's CSS variables.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.commands import commands
from vw2_robot.contracts import ACTION_DIM, ACTION_NAMES
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays

# L looks · H actions per look · A action dims · E steps between looks · K latent steps · N codes per step · S steps
ROW, UNIT = 104, 40
"""height of one action dimension, and of the value 1 in it; the page stretches the drawing to its place"""
MAX_POINTS = 900
"""of the executed line; longer chains are drawn as means over equally many steps"""
MAX_CHUNKS = 150
"""predicted chunks that are drawn; of more looks every second, third, ... one"""
HUE_STEP, LIGHT_STEP = 0.6180339887, 0.7548776662
"""shares of the color circle and of the range of brightness between a code and the next: neighbors look unlike"""


@dataclass(frozen=True)
class Answers:
    """A chain's answers: actions [L, H, A] as predicted, subtask [L], tokens [L, K, N] or None."""

    actions: NDArray[np.float32]
    subtask: NDArray[np.int64]
    tokens: NDArray[np.int64] | None


@dataclass(frozen=True)
class Strip:
    """A drawing and what its template needs. parts: (number of the subtask, its steps); chunk_size: steps predicted."""

    svg: str
    codes: str | None
    code_rows: int
    steps: int
    parts: list[tuple[int, int]]
    names: tuple[str, ...]
    chunk_size: int


def read_answers(path: Path) -> Answers:
    """The recorded answers of one chain.

    Raises:
        InputError: the file is torn, damaged or holds something else.
    """
    arrays = read_arrays(path, cure="delete it, or run the rollout again")
    actions, subtask, tokens = (arrays.get(name) for name in ("actions", "subtask", "tokens"))
    looks = 0 if subtask is None else subtask.size
    fits = (
        actions is not None
        and subtask is not None
        and looks > 0
        and (actions.ndim, len(actions), actions.dtype.kind) == (3, looks, "f")
        and actions.shape[1] > 0
        and actions.shape[2] == ACTION_DIM
        and (subtask.ndim, subtask.dtype.kind) == (1, "i")
        and np.isfinite(actions).all()
        and (
            tokens is None
            or ((tokens.ndim, len(tokens)) == (3, looks) and tokens.dtype.kind in "iu" and tokens.size > 0)
        )
    )
    if not fits:
        shapes = {name: [array.dtype.name, *array.shape] for name, array in arrays.items()}
        raise InputError(
            f"{path} holds no recorded answers: expected actions [looks, H, {ACTION_DIM}], subtask [looks] and perhaps "
            f"tokens [looks, K, N], found {shapes}; delete it, or run the rollout again"
        )
    assert actions is not None
    assert subtask is not None
    return Answers(actions, subtask, tokens)


def executed(answers: Answers, steps: Sequence[int], *, every: int) -> NDArray[np.float64]:
    """What the robot was told, [S, A]: of each look the first `every` commands, cut where a subtask's steps end.

    Raises:
        InputError: fewer looks than the steps need.
    """
    parts = []
    for position, taken in enumerate(steps):
        looks = answers.actions[answers.subtask == position]
        if len(looks) * every < taken:
            raise InputError(f"{len(looks)} recorded looks of {every} steps for the {taken} steps of one subtask")
        told = [commands(chunk, at_least=every)[:every] for chunk in looks]
        parts.append(np.concatenate(told)[:taken])
    return np.concatenate(parts)


def draw(answers: Answers, steps: Sequence[int], *, every: int) -> Strip:
    """The strip of a chain with these steps per attempted subtask."""
    told = executed(answers, steps, every=every)
    height = ROW * ACTION_DIM
    body = [_frame(steps, height)]
    for dim in range(ACTION_DIM):
        middle = ROW * dim + ROW // 2
        body.append(f'<path class="p" d="{_predicted(answers, steps, dim, middle, every=every)}"/>')
        body.append(f'<path class="e" d="{_line(told[:, dim], middle)}"/>')
    svg = f'<svg viewBox="0 0 {len(told)} {height}" preserveAspectRatio="none">{"".join(body)}</svg>'
    codes, rows = None, 0
    if answers.tokens is not None:
        image = code_image(answers, steps, every=every)
        codes, rows = _png(image), image.shape[0]
    parts = [(i + 1, taken) for i, taken in enumerate(steps)]
    return Strip(svg, codes, rows, len(told), parts, ACTION_NAMES, answers.actions.shape[1])


def code_image(answers: Answers, steps: Sequence[int], *, every: int) -> NDArray[np.uint8]:
    """RGB [N, S, 3]: column t shows the codes of the latent step that covers control step t of its chunk."""
    assert answers.tokens is not None
    latent_steps, chunk_size = answers.tokens.shape[1], answers.actions.shape[1]
    stride = max(1, chunk_size // latent_steps)
    columns = []
    for position, taken in enumerate(steps):
        tokens = answers.tokens[answers.subtask == position]
        look, within = np.divmod(np.arange(taken), every)
        columns.append(tokens[look, np.minimum(within // stride, latent_steps - 1)])
    return _colors(np.concatenate(columns).T)


def _colors(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """RGB of each code, the same on every page; codes next to each other differ in hue."""
    hue, light = codes * HUE_STEP % 1.0, 0.7 + 0.45 * (codes * LIGHT_STEP % 1.0)
    channels = [255 * light * (0.5 + 0.32 * np.cos(2 * np.pi * (hue - third / 3))) for third in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _png(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _frame(steps: Sequence[int], height: int) -> str:
    """Zero lines, and a line at the end of each subtask but the last."""
    total = sum(steps)
    zero = "".join(f"M0 {ROW * dim + ROW // 2}h{total}" for dim in range(ACTION_DIM))
    ends = "".join(f"M{end} 0v{height}" for end in np.cumsum(steps)[:-1].tolist())
    return f'<path class="z" d="{zero}"/><path class="s" d="{ends}"/>'


def _line(values: NDArray[np.float64], middle: int) -> str:
    width = -(-len(values) // MAX_POINTS)
    points = [(i, values[i : i + width].mean()) for i in range(0, len(values), width)]
    return _path([(i + width // 2, _height(value, middle)) for i, value in points])


def _predicted(answers: Answers, steps: Sequence[int], dim: int, middle: int, *, every: int) -> str:
    skip = -(-len(answers.actions) // MAX_CHUNKS)
    begin, paths = 0, []
    for position, taken in enumerate(steps):
        for look, chunk in enumerate(answers.actions[answers.subtask == position]):
            shown = chunk[: max(0, taken - look * every), dim]
            if look % skip == 0 and len(shown) > 1:  # a single step says nothing beyond the executed one
                first = begin + look * every
                paths.append(_path([(first + j, _height(value, middle)) for j, value in enumerate(shown)]))
        begin += taken
    return "".join(paths)


def _height(value: Any, middle: int) -> int:
    """Where a value is drawn; what lies beyond -1 .. 1 is cut off just outside."""
    return middle - round(UNIT * float(np.clip(value, -1.25, 1.25)))


def _path(points: Sequence[tuple[int, int]]) -> str:
    """Relative steps between whole numbers: about five characters a point."""
    (x, y), text = points[0], ""
    for a, b in points[1:]:
        text += f"{'l' if not text else ' '}{a - x} {b - y}"
        x, y = a, b
    return f"M{points[0][0]} {points[0][1]}{text or 'h1'}"
