"""The camera-cut test: what do codes say where nothing was done, but the camera moved, cut, or the light changed?

A still frame is made into a clip in which only the camera or the light changes; nothing acts. A cut jumps to an image
of another demonstration. For each kind:

* `to_actions`: distance of its code to the codes of random actions, over the distance of action codes among themselves.
  Below 1, the code looks like one of the actions; above 1, it stands apart.
* `sensitivity`: how far the code is from that of the unchanging frame, over how far an action's code is from it. Near
  0, the nuisance leaves no trace in the code; near 1, it leaves as much as an action.
* `on_action`: distance between the codes of a real clip with and without the nuisance, over the distance of action
  codes among themselves. Near 0, codes ignore it; near 1, they become those of another action.
* `phantom_motion`: what the linear probe reads from it, over the true motion of actions (both root mean square).

Distances are root mean squares over the digits of a step's codes, in [0, 2]. `pixel_change` says how strong a nuisance
is beside an action: mean absolute change of the image over one step, as a ratio. Only the first step of a clip is
looked at.
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
    """Resize the box (left, top, right, bottom) of a frame to the whole frame; outside of it, edges are repeated."""
    height, width = frame.shape[:2]
    margin = max(height, width) // 2
    padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    inner = (box[0] + margin, box[1] + margin, box[2] + margin, box[3] + margin)
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.BILINEAR, box=inner))


def shift_camera(clip: Pixels, amount_T: NDArray[np.float64], angle: float) -> Pixels:
    """Move the view by amount * side in one direction."""
    height, width = clip.shape[1:3]
    moved = [
        (amount * SHIFT_SHARE * width * np.cos(angle), amount * SHIFT_SHARE * height * np.sin(angle))
        for amount in amount_T
    ]
    return np.stack([crop_to(f, (dx, dy, width + dx, height + dy)) for f, (dx, dy) in zip(clip, moved, strict=True)])


def zoom_camera(clip: Pixels, amount_T: NDArray[np.float64], angle: float) -> Pixels:
    """Zoom in for angles below pi, out above."""
    height, width = clip.shape[1:3]
    sign = 1.0 if angle < np.pi else -1.0
    inset = [amount * sign * ZOOM_SHARE / 2 for amount in amount_T]
    return np.stack(
        [
            crop_to(f, (m * width, m * height, width * (1 - m), height * (1 - m)))
            for f, m in zip(clip, inset, strict=True)
        ]
    )


def change_light(clip: Pixels, amount_T: NDArray[np.float64], angle: float) -> Pixels:
    """Brighten for angles below pi, darken above."""
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
    """Judge every kind on the first step of the clips [R, T, H, W, 3].

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
    amount, angle = np.arange(clips.shape[1]) / stride, rng.uniform(0, 2 * np.pi, len(clips))
    still, others = np.repeat(clips[:, :1], clips.shape[1], axis=1), _others(group, rng)

    def disturb(kind: str, on: Pixels) -> Pixels:
        return np.stack([KINDS[kind](clip, amount, a) for clip, a in zip(on, angle, strict=True)])

    def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> dict[str, Any]:
        return score_ratio(above, below, group, rng=np.random.default_rng([seed, 4]))

    made = {"still": still} | {kind: disturb(kind, still) for kind in KINDS}
    made["camera_cut"] = np.concatenate([still[:, :1], still[others[:, 0]][:, 1:]], axis=1)
    unmoved = _encode(dldm, still, device)
    action, rest = code_values(_encode(dldm, clips, device), quantizer), code_values(unmoved, quantizer)
    among = _distance(action[:, None], action[others]).mean(1)
    kinds: dict[str, Any] = {}
    for kind, pixels in made.items():
        indices = _encode(dldm, pixels, device)
        codes = code_values(indices, quantizer)
        read = _translation(probe, indices, quantizer) - _translation(probe, unmoved, quantizer)
        kinds[kind] = {
            "pixel_change": ratio(_pixel_change(pixels, stride), _pixel_change(clips, stride)),
            "to_actions": ratio(_distance(codes[:, None], action[others]).mean(1), among),
            "sensitivity": ratio(_distance(codes, rest), _distance(action, rest)),
            "phantom_motion": _root(ratio((read**2).sum(1), (motion[:, :3] ** 2).sum(1))),
        }
        if kind in KINDS:
            disturbed = code_values(_encode(dldm, disturb(kind, clips), device), quantizer)
            kinds[kind]["on_action"] = ratio(_distance(disturbed, action), among)
    return {"frames": len(clips), "action_distance": round(float(among.mean()), 5), "kinds": kinds}


def nuisance_examples(clips: Pixels, stride: int) -> list[list[Pixels]]:
    """Rows of an image: first frame, then the last one of the step under each kind, then that of the real step."""
    amount = np.arange(stride + 1) / stride
    rows = []
    for number, clip in enumerate(clips):
        still = np.repeat(clip[:1], stride + 1, axis=0)
        changed = [change(still, amount, 0.25 * np.pi)[-1] for change in KINDS.values()]
        rows.append([clip[0], *changed, clips[number - 1][0], clip[stride]])
    return rows


def _encode(dldm: DLDM, clips: Pixels, device: torch.device, *, batch: int = 64) -> NDArray[np.int64]:
    """Codes [R, N] of the first step."""
    found = [
        dldm.indices(to_model_range(torch.from_numpy(clips[i : i + batch]).to(device)))[:, 0].cpu().numpy()
        for i in range(0, len(clips), batch)
    ]
    return np.concatenate(found)


def _others(group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """For each clip, the numbers [R, J] of clips of other demonstrations."""
    return np.stack([rng.choice(np.flatnonzero(group != g), size=COMPARED) for g in group])


def _distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    distance: NDArray[np.float64] = np.sqrt(((a.astype(np.float64) - b) ** 2).mean(-1))
    return distance


def _pixel_change(clips: Pixels, stride: int) -> NDArray[np.float64]:
    """Mean absolute difference between the first frame and the last one of the first step."""
    change: NDArray[np.float64] = np.abs(clips[:, stride].astype(np.float64) - clips[:, 0]).mean(axis=(1, 2, 3))
    return change


def _translation(probe: LinearProbe, indices: NDArray[np.int64], quantizer: Quantizer) -> NDArray[np.float64]:
    return probe.predict(one_hot_fsq(indices, quantizer))[:, :3]


def _root(entry: dict[str, Any]) -> dict[str, Any]:
    """The square root of a ratio of squares and of its interval."""
    low, high = entry["ci95"]
    return {"ratio": _sqrt(entry["ratio"]), "ci95": [_sqrt(low), _sqrt(high)]}


def _sqrt(value: float | None) -> float | None:
    return None if value is None else round(value**0.5, 5)
