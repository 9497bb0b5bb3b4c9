"""What the video model reads in the codes of labeled data: explained change and shuffle ratio on their test clips.

Place in the flow: labeled data and the checkpoint's VDM -> `diagnostics` -> latent report. The measures are those of
phase 2, on clips of known data sets: seen in training, or not.
"""

# n clips · T frames · M latent steps
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.devices import Hardware
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.pixels import to_model_range

from ..diagnostics.explained_change import explained_change
from ..diagnostics.validation import shuffle_ratios
from .datasets import Labeled
from .probes import Split, finite

STREAM_CLIPS = 23
SHUFFLE_RATIO = "shuffle_ratio_no_control"


@torch.no_grad()
def judge_video_model(
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    labeled: Labeled,
    split: Split,
    *,
    clips: int,
    seed: int,
    hardware: Hardware,
) -> dict[str, float | int | None]:
    """Return what the video model reads in the codes of one data set.

    Args:
        dldm: in evaluation mode, on the device.
        vdm: in evaluation mode, on the device.
        codec: of its latents, on the device.
        labeled: the data set.
        split: of its rows.
        clips: at most so many test clips.
        seed: of their choice and of the noise.
        hardware: its device, and how many clips are in one chunk.

    Returns:
        {"clips": their number, "shuffle_ratio_no_control": ratio} and the values of `explained_change`.
    """
    device = hardware.torch_device()
    chosen = interleaved_clips(labeled, split, clips=clips, seed=seed)

    def chunks() -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        for rows in np.split(
            np.arange(len(chosen)), range(hardware.validation_batch, len(chosen), hardware.validation_batch)
        ):
            clip = chosen[rows]
            pixels = labeled.video.frame_cache.read_batch(labeled.steps.episode[clip], labeled.steps.frame_ids[clip])
            x = to_model_range(torch.from_numpy(pixels).to(device))
            yield rows, x, torch.from_numpy(labeled.steps.valid[clip]).to(device)

    codes = {int(row): one for rows, x, _ in chunks() for row, one in zip(rows, dldm.encode(x).codes_BMNL, strict=True)}
    explained = explained_change(vdm, codec, chunks, codes, seed=seed, dldm=dldm)
    # Without the control video alone: with it the codes are needed less.
    ratios = shuffle_ratios(dldm, vdm, codec, chunks, codes, seed=seed, grayscale=True, with_control=False)
    found: dict[str, float | None] = {name: finite(value) for name, value in explained.items()}
    return {"clips": len(chosen), SHUFFLE_RATIO: finite(ratios[f"dldm/{SHUFFLE_RATIO}"]), **found}


def interleaved_clips(labeled: Labeled, split: Split, *, clips: int, seed: int) -> NDArray[np.int64]:
    """Return test clips, as evenly from all demonstrations as possible, neighbors from different ones.

    Shuffled codes are those of the neighbor; of the same demonstration they may show the same motion.

    Args:
        labeled: the data set.
        split: of its rows.
        clips: at most so many.
        seed: of their order.
    """
    rng = np.random.default_rng([seed, STREAM_CLIPS])
    test = rng.permutation(np.unique(labeled.rows.clip[split.test]))
    groups, group = np.unique(labeled.video.group[labeled.steps.episode[test]], return_inverse=True)
    # One clip of each demonstration, in random but constant order of these, then a second one of each, and so on.
    round_of = np.array([np.count_nonzero(group[:i] == one) for i, one in enumerate(group)])
    return test[np.lexsort((rng.permutation(len(groups))[group], round_of))][:clips]
