"""The camera-cut test: the codes of clips in which nothing acts, but the camera moves or cuts, or the light changes.

A still frame is made into a clip in which only the camera or the light changes. A cut jumps to an image of another
demonstration. For each kind:

* `to_actions`: distance of its code to the codes of random actions, over the distance of action codes among themselves.
  Below 1, the code looks like one of the actions; above 1, it stands apart.
* `sensitivity`: how far the code is from that of the unchanging frame, over how far an action's code is from it. Near
  0, the nuisance leaves no trace in the code; near 1, it leaves as much as an action.
* `on_action`: distance between the codes of a real clip with and without the nuisance, over the distance of action
  codes among themselves. Near 0, codes ignore it; near 1, they become those of another action.
* `phantom_motion`: the motion that the linear probe predicts for it, over the true motion of actions (both root mean
  square).

Distances are root mean squares over the FSQ dimensions of a step's codes, in [0, 2]. `pixel_change` compares the
strength of a nuisance with that of an action: mean absolute change of the image over one step, as a ratio. Only the
first step of a clip is used.
"""

# R base frames (= clips) · T frames · N codes per step · D numbers of a step's codes · J action codes compared with
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range

from .features import Quantizer, code_values, one_hot_fsq
from .probes import LinearProbe, score_ratio

SHIFT_SHARE, ZOOM_SHARE, LIGHT_SHARE = 0.06, 0.06, 0.15
"""Strength over one latent step: shares of the image's side, of its size, of its brightness."""
COMPARED = 16
Pixels = NDArray[np.uint8]


def crop_to(frame: Pixels, box: tuple[float, float, float, float]) -> Pixels:
    """Resize the box (left, top, right, bottom) of a frame to its whole size; outside the frame, edges are repeated."""
    height, width = frame.shape[:2]
    # More than any nuisance moves the view.
    margin = max(height, width) // 2
    padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    inner = (box[0] + margin, box[1] + margin, box[2] + margin, box[3] + margin)
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.BILINEAR, box=inner))


def shift_camera(clip: Pixels, amount_T: NDArray[np.float64], angle: float) -> Pixels:
    """Move the view by amount * share of the side, in the direction of the angle.

    Args:
        clip: uint8 frames [T, H, W, 3], in [0, 255].
        amount_T: [T], shift of each frame, in latent steps: 0 is none, 1 that of one whole step.
        angle: direction of the shift in radians, in [0, 2 pi); 0 is to the right, pi / 2 is down.

    Returns:
        The shifted clip, uint8 [T, H, W, 3].
    """
    height, width = clip.shape[1:3]
    # The direction of the shift is the clip's angle, its size grows with time.
    moved = [
        (amount * SHIFT_SHARE * width * np.cos(angle), amount * SHIFT_SHARE * height * np.sin(angle))
        for amount in amount_T
    ]
    return np.stack([crop_to(f, (dx, dy, width + dx, height + dy)) for f, (dx, dy) in zip(clip, moved, strict=True)])


def zoom_camera(clip: Pixels, amount_T: NDArray[np.float64], angle: float) -> Pixels:
    """Zoom in for angles below pi, out above.

    Args:
        clip: uint8 frames [T, H, W, 3], in [0, 255].
        amount_T: [T], zoom of each frame, in latent steps: 0 is none, 1 that of one whole step.
        angle: radians, in [0, 2 pi); only the side of pi it is on matters.

    Returns:
        The zoomed clip, uint8 [T, H, W, 3].
    """
    height, width = clip.shape[1:3]
    sign = 1.0 if angle < np.pi else -1.0
    # Half of it on each side.
    inset = [amount * sign * ZOOM_SHARE / 2 for amount in amount_T]
    return np.stack(
        [
            crop_to(f, (m * width, m * height, width * (1 - m), height * (1 - m)))
            for f, m in zip(clip, inset, strict=True)
        ]
    )


def change_light(clip: Pixels, amount_T: NDArray[np.float64], angle: float) -> Pixels:
    """Brighten for angles below pi, darken above.

    Args:
        clip: uint8 frames [T, H, W, 3], in [0, 255].
        amount_T: [T], change of each frame, in latent steps: 0 is none, 1 that of one whole step.
        angle: radians, in [0, 2 pi); only the side of pi it is on matters.

    Returns:
        The changed clip, uint8 [T, H, W, 3], rounded and clipped to [0, 255].
    """
    sign = 1.0 if angle < np.pi else -1.0
    gain = 1 + sign * LIGHT_SHARE * amount_T
    return np.clip(np.rint(clip * gain[:, None, None, None]), 0, 255).astype(np.uint8)


KINDS: dict[str, Callable[[Pixels, NDArray[np.float64], float], Pixels]] = {
    "camera_shift": shift_camera,
    "camera_zoom": zoom_camera,
    "light": change_light,
}


def nuisance_test(
    dldm: DLDM,
    quantizer: Quantizer,
    clips: Pixels,
    group: NDArray[np.int64],
    *,
    probe: LinearProbe,
    motion: NDArray[np.float64],
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Measure every kind on the first step of the clips [R, T, H, W, 3].

    Args:
        dldm: the model, in eval mode.
        quantizer: its quantizer, on the CPU.
        clips: moving clips of demonstrations that `probe` was not fitted on; their first frames are the base frames.
        group: [R] demonstrations; intervals are over these.
        probe: one-hot codes of a step -> motion [7], its first three entries are the translation.
        motion: true motion [R, 7] of the first step.
        seed: of directions and pairs.
        device: where the model is.
    """
    rng = np.random.default_rng([seed, 3])
    stride = dldm.config.temporal_stride
    # In latent steps: 1 at the last frame of the first one.
    amount = np.arange(clips.shape[1]) / stride
    angle = rng.uniform(0, 2 * np.pi, len(clips))
    still = np.repeat(clips[:, :1], clips.shape[1], axis=1)
    others = sample_others(group, rng)

    def add_nuisance(kind: str, clips: Pixels) -> Pixels:
        return np.stack([KINDS[kind](clip, amount, a) for clip, a in zip(clips, angle, strict=True)])

    def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> dict[str, Any]:
        return score_ratio(above, below, group, rng=np.random.default_rng([seed, 4]))

    cases = {"still": still} | {kind: add_nuisance(kind, still) for kind in KINDS}
    cases["camera_cut"] = np.concatenate([still[:, :1], still[others[:, 0]][:, 1:]], axis=1)
    still_indices = encode_first_step(dldm, still, device)
    still_codes = code_values(still_indices, quantizer)
    still_motion = probe.predict(one_hot_fsq(still_indices, quantizer))[:, :3]
    action_codes = code_values(encode_first_step(dldm, clips, device), quantizer)
    among_actions = code_distance(action_codes[:, None], action_codes[others]).mean(1)
    kinds: dict[str, Any] = {}
    for kind, pixels in cases.items():
        indices = encode_first_step(dldm, pixels, device)
        codes = code_values(indices, quantizer)
        # Against the still clip, so that the probe's own offset is no phantom motion.
        phantom = probe.predict(one_hot_fsq(indices, quantizer))[:, :3] - still_motion
        # A ratio of mean squares, whose root is taken below; the root keeps the order of the interval's ends.
        squares = ratio((phantom**2).sum(1), (motion[:, :3] ** 2).sum(1))
        kinds[kind] = {
            "pixel_change": ratio(pixel_change(pixels, stride), pixel_change(clips, stride)),
            "to_actions": ratio(code_distance(codes[:, None], action_codes[others]).mean(1), among_actions),
            "sensitivity": ratio(code_distance(codes, still_codes), code_distance(action_codes, still_codes)),
            "phantom_motion": {
                "ratio": square_root(squares["ratio"]),
                "ci95": [square_root(bound) for bound in squares["ci95"]],
            },
        }
        # Not for a cut, which shows another demonstration, nor for the still frame, which has no nuisance.
        if kind in KINDS:
            with_nuisance = code_values(encode_first_step(dldm, add_nuisance(kind, clips), device), quantizer)
            kinds[kind]["on_action"] = ratio(code_distance(with_nuisance, action_codes), among_actions)
    return {"frames": len(clips), "action_distance": round(float(among_actions.mean()), 5), "kinds": kinds}


def nuisance_examples(clips: Pixels, stride: int) -> list[list[Pixels]]:
    """Return rows of an image: first frame, the last one of the step under each kind, then that of the true step."""
    amount = np.arange(stride + 1) / stride
    rows = []
    for number, clip in enumerate(clips):
        still = np.repeat(clip[:1], stride + 1, axis=0)
        changed = [change(still, amount, 0.25 * np.pi)[-1] for change in KINDS.values()]
        # The clip before it; for the first one index -1, the last.
        cut = clips[number - 1][0]
        rows.append([clip[0], *changed, cut, clip[stride]])
    return rows


def encode_first_step(dldm: DLDM, clips: Pixels, device: torch.device, *, batch_size: int = 64) -> NDArray[np.int64]:
    """Return the codes [R, N] of the first step of each clip.

    Args:
        dldm: the model, on `device` and in eval mode.
        clips: uint8 [R, T, H, W, 3], in [0, 255].
        device: where the model is.
        batch_size: clips encoded at once.
    """
    found = [
        dldm.indices(to_model_range(torch.from_numpy(clips[i : i + batch_size]).to(device)))[:, 0].cpu().numpy()
        for i in range(0, len(clips), batch_size)
    ]
    return np.concatenate(found)


def sample_others(group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return, for each clip, the numbers [R, J] of clips of other demonstrations."""
    return np.stack([rng.choice(np.flatnonzero(group != one), size=COMPARED) for one in group])


def code_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the root mean square difference of code values [..., D]."""
    distance: NDArray[np.float64] = np.sqrt(((a.astype(np.float64) - b) ** 2).mean(-1))
    return distance


def pixel_change(clips: Pixels, stride: int) -> NDArray[np.float64]:
    """Return the mean absolute difference [R] between the first frame and the last one of the first step."""
    change: NDArray[np.float64] = np.abs(clips[:, stride].astype(np.float64) - clips[:, 0]).mean(axis=(1, 2, 3))
    return change


def square_root(value: float | None) -> float | None:
    """Return the root, rounded as in `probes.finite`; None stays None."""
    return None if value is None else round(value**0.5, 5)
