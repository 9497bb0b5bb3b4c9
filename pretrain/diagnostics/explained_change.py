"""Explained change: how much of a clip's motion the video model renders from the codes alone, on held-out clips.

    1 - MSE(x0_hat | codes) / MSE(copy of frame 0)

in pixels of the codec's band, without control video, at fixed noise levels t so high that the noisy clip shows no
motion. 0 is a still image, 1 the true clip. The same with the codes of another clip and with null codes stands beside
it: a model that reads the codes is far above both. A clip of one x0_hat is judged and not a sample, since a perfect
sampler of a distribution explains less than its mean.
"""

# B batch · T frames · M latent steps · N codes per step
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from vw2_robot.distributed.ranks import global_sum
from vw2_robot.models.dldm.dldm import DLDM, pad_to_stride
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.pixels import resize_video
from vw2_robot.random_numbers import SampleNoise

from ..targets import frame_error

Chunks = Callable[[], Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]]
"""this rank's clips, a few at a time: positions [b], pixels [b, T, 3, H, W] in [-1, 1], valid steps [b, M]"""

STREAM_EXPLAINED = 32
TIMES = (0.8, 0.9, 0.97)
"""noise levels t; at 0.97 noise is 32 times as large as a change of unit size"""
CODES = ("codes", "shuffled", "null")
EPSILON = 1e-12
EXPLAINED, EXPLAINED_NULL = f"explained_change_t{TIMES[-1]}", f"explained_change_null_t{TIMES[-1]}"
"""at the highest noise level, where the noisy clip says nothing"""


@torch.no_grad()
def explained_change(
    vdm: VDM,
    codec: VideoCodec,
    clips: Chunks,
    codes: Mapping[int, Tensor],
    *,
    seed: int,
    dldm: DLDM | None = None,
) -> dict[str, float]:
    """Return the explained change with right, shuffled and null codes at each t, and the ratio of the losses.

    All ranks call it and get the same values.

    Args:
        vdm: the video model.
        codec: of its latents.
        clips: gives the clips, from the first on each time that it is called.
        codes: quantized codes [M, N, L] of all clips by position.
        seed: of the noise.
        dldm: its decoder is judged on the same clips, in the same band.

    Returns:
        `explained_change_t0.97`, `..._shuffled_t0.97`, `..._null_t0.97` and so on for each t; with a dLDM also
        `explained_change_decoder`.
    """
    names = [(given, t) for given in CODES for t in TIMES]
    errors = torch.zeros(len(names) + 2, dtype=torch.float64)
    for rows, x, valid in clips():
        x = pad_to_stride(x, codec.config.stride)
        latents = codec.encode(x)
        first = latents[:, :, 0]
        target = codec.decode(latents)
        still = first[:, :, None].expand_as(latents)
        errors[-1] += _error(codec.decode(still), target, valid)
        if dldm is not None:
            small = dldm.resized(x)
            encoded = dldm.encode(small)
            rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, small[:, 0])
            errors[-2] += _error(codec.decode(codec.encode(resize_video(rec, *x.shape[-2:]))), target, valid)
        right = torch.stack([codes[int(row)] for row in rows]).to(latents)
        # Those of another clip, not random ones: they have the right distribution and the wrong motion.
        others = torch.stack([codes[(int(row) - 1) % len(codes)] for row in rows]).to(latents)
        control = vdm.still_video(first, latents.shape[2])
        noise = SampleNoise(seed, 0, stream=STREAM_EXPLAINED, samples=rows.tolist(), device=latents.device)
        eps = noise.randn(*latents.shape[1:]).to(latents)
        for number, (given, t) in enumerate(names):
            time = latents.new_full((len(x),), t)
            noisy = (1 - t) * latents + t * eps
            velocity = vdm.velocity(
                noisy,
                time,
                first,
                others if given == "shuffled" else right,
                control_video=control,
                keep_codes=torch.full((len(x),), given != "null", device=latents.device),
            )
            estimate = torch.cat([first[:, :, None], (noisy - t * velocity)[:, :, 1:]], dim=2)
            errors[number] += _error(codec.decode(estimate), target, valid)
    errors = global_sum(errors)
    change = max(float(errors[-1]), EPSILON)
    found = {
        f"explained_change{'' if given == 'codes' else f'_{given}'}_t{t}": 1 - float(error) / change
        for (given, t), error in zip(names, errors, strict=False)
    }
    if dldm is not None:
        found["explained_change_decoder"] = 1 - float(errors[-2]) / change
    return found


class RiseMonitor(nn.Module):
    """Whether a value that should rise still does; a module, since its buffers are saved with the run.

    Attributes:
        best: float [], the highest value so far.
        misses: int [], validations since then.
    """

    best: Tensor
    misses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("best", torch.tensor(torch.finfo(torch.float32).min))
        self.register_buffer("misses", torch.tensor(0))

    def stopped(self, value: float, *, patience: int, min_rise: float) -> bool:
        """Take notice of a validation, and return whether so many in a row were no rise.

        Args:
            value: what was validated.
            patience: validations in a row.
            min_rise: over the best value so far.
        """
        if value >= float(self.best) + min_rise:
            self.best.fill_(value)
            self.misses.zero_()
        else:
            self.misses += 1
        return int(self.misses) >= patience


def _error(video: Float[Tensor, "B T 3 H W"], target: Float[Tensor, "B T 3 H W"], valid: Bool[Tensor, "B M"]) -> Tensor:
    """Return the sum over frames of valid steps, without frame 0, which every video shares."""
    return frame_error(video, target, valid, with_anchor=False, frames=1.0).double().cpu()
