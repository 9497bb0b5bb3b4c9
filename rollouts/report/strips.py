"""Action strips: a drawing of a chain's actions over time, predicted and executed, with the latent codes above.

One control step is one unit of the drawing's width, so a strip is as long as its chain and scrolls on the page.
Executed are the commands that the robot got (`vw2_robot.commands`). Predicted is the whole chunk of each policy call
before clipping; its later part is replaced by the next call. Each pixel column of the codes is a control step, each row
one of the N codes of the latent step that is executed; equal codes have equal colors. Reads `videos/chain_0000.npz`,
whose content recording.py describes. Colors are the page's CSS variables.
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
from vw2_robot.contracts import ACTION_NAMES
from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_arrays

# L policy calls · H actions per call · A action dims · E executed actions per call (n_action_steps) · K latent steps
# N codes per latent step · S control steps of the chain
ROW_PX = 104
"""height of one action dimension; the page stretches the drawing to its place"""
UNIT_PX = 40
"""height of the value 1 within it"""
MAX_POINTS = 900
"""of the executed line; longer chains are drawn as means over equally many steps"""
MAX_CHUNKS = 150
"""predicted chunks that are drawn; of more calls every second, third, ... one"""
# Steps of the golden ratio and of its relative in two dimensions: consecutive codes get very different colors.
HUE_STEP = 0.6180339887
LIGHT_STEP = 0.7548776662


@dataclass(frozen=True)
class RecordedOutputs:
    """The policy outputs of a chain.

    Attributes:
        actions: Predicted actions [L, H, A].
        subtask: Position of the subtask of each call [L].
        tokens: Latent codes [L, K, N]; None for policies without.
        names: Of the A numbers of an action.
    """

    actions: NDArray[np.float32]
    subtask: NDArray[np.int64]
    tokens: NDArray[np.int64] | None
    names: tuple[str, ...] = ACTION_NAMES


@dataclass(frozen=True)
class Strip:
    """A drawing and what its template needs.

    Attributes:
        svg: The curves.
        codes: Image of the codes as a data URI; None without codes.
        code_rows: Rows of that image.
        env_steps: Control steps of the chain.
        parts: (number of the subtask from 1, its control steps).
        names: Names of the action dimensions, top to bottom.
        chunk_size: Actions predicted per call.
    """

    svg: str
    codes: str | None
    code_rows: int
    env_steps: int
    parts: list[tuple[int, int]]
    names: tuple[str, ...]
    chunk_size: int


def read_recording(path: Path, *, names: Sequence[str] = ACTION_NAMES) -> RecordedOutputs:
    """Return the recorded outputs of one chain.

    Args:
        path: A file as recording.py writes it.
        names: Of the numbers of an action.

    Raises:
        InputError: The file is incomplete, damaged or holds something else.
    """
    arrays = read_arrays(path, cure="delete it, or run the rollout again")
    actions, subtask, tokens = (arrays.get(name) for name in ("actions", "subtask", "tokens"))
    calls = 0 if subtask is None else subtask.size
    # Shapes and types are checked here once; a run folder may come from other people.
    is_valid = (
        actions is not None
        and subtask is not None
        and calls > 0
        and (actions.ndim, len(actions), actions.dtype.kind) == (3, calls, "f")
        and actions.shape[1] > 0
        and actions.shape[2] == len(names)
        and (subtask.ndim, subtask.dtype.kind) == (1, "i")
        and np.isfinite(actions).all()
        and (
            tokens is None
            or ((tokens.ndim, len(tokens)) == (3, calls) and tokens.dtype.kind in "iu" and tokens.size > 0)
        )
    )
    if not is_valid:
        shapes = {name: [array.dtype.name, *array.shape] for name, array in arrays.items()}
        raise InputError(
            f"{path} holds no recorded outputs: expected actions [calls, H, {len(names)}], subtask [calls] and perhaps "
            f"tokens [calls, K, N], found {shapes}; delete it, or run the rollout again"
        )
    assert actions is not None
    assert subtask is not None
    return RecordedOutputs(actions, subtask, tokens, tuple(names))


def executed_commands(
    outputs: RecordedOutputs, env_steps: Sequence[int], *, n_action_steps: int
) -> NDArray[np.float64]:
    """Return the commands that the robot got: of each call the first ones, cut where a subtask's steps end.

    Args:
        outputs: The policy outputs of the chain.
        env_steps: Control steps of each attempted subtask.
        n_action_steps: Actions executed per policy call.

    Returns:
        Commands [S, A].

    Raises:
        InputError: There are fewer calls than the steps need.
    """
    parts = []
    for position, steps_taken in enumerate(env_steps):
        chunks = outputs.actions[outputs.subtask == position]
        # The row and the recording must be of one run.
        if len(chunks) * n_action_steps < steps_taken:
            raise InputError(
                f"{len(chunks)} recorded policy calls of {n_action_steps} steps for the {steps_taken} steps of one "
                "subtask"
            )
        executed = [commands(chunk, at_least=n_action_steps, names=outputs.names)[:n_action_steps] for chunk in chunks]
        parts.append(np.concatenate(executed)[:steps_taken])
    return np.concatenate(parts)


def plot_strip(outputs: RecordedOutputs, env_steps: Sequence[int], *, n_action_steps: int) -> Strip:
    """Return the strip of a chain.

    Args:
        outputs: The policy outputs of the chain.
        env_steps: Control steps of each attempted subtask.
        n_action_steps: Actions executed per policy call.

    Raises:
        InputError: There are fewer calls than the steps need.
    """
    executed = executed_commands(outputs, env_steps, n_action_steps=n_action_steps)
    total = len(executed)
    height = ROW_PX * len(outputs.names)
    # Zero lines, and a line at the end of each subtask but the last.
    zero = "".join(f"M0 {ROW_PX * dim + ROW_PX // 2}h{total}" for dim in range(len(outputs.names)))
    ends = "".join(f"M{end} 0v{height}" for end in np.cumsum(env_steps)[:-1].tolist())
    body = [f'<path class="z" d="{zero}"/><path class="s" d="{ends}"/>']
    width = -(-total // MAX_POINTS)  # control steps per point of the executed line, rounded up
    for dim in range(len(outputs.names)):
        middle = ROW_PX * dim + ROW_PX // 2
        predicted = _predicted_path(outputs, env_steps, dim, middle, n_action_steps=n_action_steps)
        body.append(f'<path class="p" d="{predicted}"/>')
        means = [(i + width // 2, executed[i : i + width, dim].mean()) for i in range(0, total, width)]
        body.append(f'<path class="e" d="{_path([(x, _y(value, middle)) for x, value in means])}"/>')
    svg = f'<svg viewBox="0 0 {total} {height}" preserveAspectRatio="none">{"".join(body)}</svg>'
    codes = None
    code_rows = 0
    if outputs.tokens is not None:
        image = code_image(outputs, env_steps, n_action_steps=n_action_steps)
        code_rows = image.shape[0]
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", optimize=True)
        codes = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    parts = [(i + 1, steps_taken) for i, steps_taken in enumerate(env_steps)]
    return Strip(svg, codes, code_rows, total, parts, outputs.names, outputs.actions.shape[1])


def code_image(outputs: RecordedOutputs, env_steps: Sequence[int], *, n_action_steps: int) -> NDArray[np.uint8]:
    """Return the codes as an image: column t has the codes of the latent step that covers control step t.

    Args:
        outputs: The policy outputs of the chain, with tokens.
        env_steps: Control steps of each attempted subtask.
        n_action_steps: Actions executed per policy call.

    Returns:
        RGB [N, S, 3].
    """
    assert outputs.tokens is not None
    latent_steps = outputs.tokens.shape[1]
    stride = max(1, outputs.actions.shape[1] // latent_steps)  # control steps per latent step
    columns = []
    for position, steps_taken in enumerate(env_steps):
        tokens = outputs.tokens[outputs.subtask == position]
        call, within = np.divmod(np.arange(steps_taken), n_action_steps)
        columns.append(tokens[call, np.minimum(within // stride, latent_steps - 1)])
    # [N, S]: one row per code of a latent step.
    codes = np.concatenate(columns).T
    # The color is a function of the code alone: a code looks the same on every page. Three cosines, shifted by a third
    # of the circle, give a hue; brightness varies on its own, since hues alone are too few.
    hue = codes * HUE_STEP % 1.0
    light = 0.7 + 0.45 * (codes * LIGHT_STEP % 1.0)
    channels = [255 * light * (0.5 + 0.32 * np.cos(2 * np.pi * (hue - third / 3))) for third in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _predicted_path(
    outputs: RecordedOutputs, env_steps: Sequence[int], dim: int, middle: int, *, n_action_steps: int
) -> str:
    """Return the predicted chunks of one action dimension as an SVG path."""
    skip = -(-len(outputs.actions) // MAX_CHUNKS)
    begin = 0
    paths = []
    for position, steps_taken in enumerate(env_steps):
        for call, chunk in enumerate(outputs.actions[outputs.subtask == position]):
            # Cut at the end of the subtask: what lies beyond would cover the next one.
            shown = chunk[: max(0, steps_taken - call * n_action_steps), dim]
            if call % skip == 0 and len(shown) > 1:  # a single step shows nothing beyond the executed one
                first = begin + call * n_action_steps
                paths.append(_path([(first + j, _y(value, middle)) for j, value in enumerate(shown)]))
        begin += steps_taken
    return "".join(paths)


def _y(value: Any, middle: int) -> int:
    """Return the y coordinate of a value; values beyond -1 .. 1 are clipped just outside."""
    return middle - round(UNIT_PX * float(np.clip(value, -1.25, 1.25)))


def _path(points: Sequence[tuple[int, int]]) -> str:
    """Return an SVG path of relative steps between whole numbers: about five characters a point."""
    (x, y), text = points[0], ""
    for a, b in points[1:]:
        text += f"{'l' if not text else ' '}{a - x} {b - y}"
        x, y = a, b
    return f"M{points[0][0]} {points[0][1]}{text or 'h1'}"
