"""What a probe may look at for one latent step: its codes, the change of its pixels, and things that know nothing.

Place in the flow: dLDM and labeled steps -> features -> `probe_latents`. All features of a step come from the frames
up to its end. Rows are the valid steps of all clips, in clip order.
"""

# n clips · T frames · M latent steps · N codes per step · L digits per code · R rows (valid steps)
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.data.labeled_steps import CALVIN_UNITS, LabeledSteps, LabeledVideo
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.dldm.fsq import FSQ
from vw2_robot.models.dldm.vq import VQ
from vw2_robot.pixels import to_model_range

from .probes import principal_components

Quantizer = FSQ | VQ
DIFFERENCE_PX = 16
SETTLING_BATCHES = 30


@dataclass(frozen=True, eq=False)
class StepRows:
    """The valid steps of one data set as rows. group [R] is what must not be split; clip, step [R] say where it is."""

    name: str
    clip: NDArray[np.int64]
    step: NDArray[np.int64]
    episode: NDArray[np.int64]
    group: NDArray[np.int64]
    indices: NDArray[np.int64]
    difference: NDArray[np.float32]
    commanded: NDArray[np.float64]
    moved: NDArray[np.float64] | None
    units: str = CALVIN_UNITS
    """as of `LabeledVideo`"""

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def motion(self) -> NDArray[np.float64]:
        """What can be seen of the motion [R, 7]: how the hand moved; what was commanded where that is not known."""
        return self.commanded if self.moved is None else self.moved


def step_rows(
    video: LabeledVideo, steps: LabeledSteps, indices_nMN: NDArray[np.int64], difference_nMD: NDArray[np.float32]
) -> StepRows:
    """Lay the valid steps out as rows."""
    clip, step = np.nonzero(steps.valid)
    episode = steps.episode[clip]
    return StepRows(
        name=video.name,
        clip=clip,
        step=step,
        episode=episode,
        group=video.group[episode],
        indices=indices_nMN[clip, step],
        difference=difference_nMD[clip, step],
        commanded=steps.commanded[clip, step],
        moved=None if steps.moved is None else steps.moved[clip, step],
        units=video.units,
    )


def encode_steps(
    dldm: DLDM, video: LabeledVideo, steps: LabeledSteps, *, device: torch.device, batch: int = 64
) -> NDArray[np.int64]:
    """Codes [n, M, N] of every clip."""
    found = []
    for i in range(0, len(steps.episode), batch):
        pixels = video.frame_cache.read_batch(steps.episode[i : i + batch], steps.frame_ids[i : i + batch])
        found.append(dldm.indices(to_model_range(torch.from_numpy(pixels).to(device))).cpu().numpy())
    return np.concatenate(found)


def pixel_differences(video: LabeledVideo, steps: LabeledSteps, *, stride: int) -> NDArray[np.float32]:
    """Last frame of each step minus that of the step before, shrunk to 16 x 16: [n, M, 16 * 16 * 3]."""
    edges = steps.frame_ids[:, ::stride]
    found = np.zeros((*steps.valid.shape, DIFFERENCE_PX**2 * 3), np.float32)
    for i, episode in enumerate(steps.episode):
        small = shrink(video.frame_cache.read(int(episode), edges[i]))
        found[i] = np.diff(small, axis=0).reshape(len(small) - 1, -1)
    return found


def shrink(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [T, H, W, 3] -> float [T, 16, 16, 3] in [0, 1], each pixel the mean of those it covers."""
    size = (DIFFERENCE_PX, DIFFERENCE_PX)
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX), np.float32) for frame in frames]
    return np.stack(small) / 255


def one_hot_fsq(indices: NDArray[np.int64], quantizer: Quantizer) -> NDArray[np.float32]:
    """Codes [R, N] -> every digit of every slot as one-hot [R, N * sum(levels)]; a learned codebook has one digit."""
    levels = quantizer.levels
    parts = [indices[..., None] // math.prod(levels[:i]) % level == np.arange(level) for i, level in enumerate(levels)]
    return np.concatenate(parts, axis=-1).reshape(len(indices), -1).astype(np.float32)


@torch.no_grad()
def code_values(indices: NDArray[np.int64], quantizer: Quantizer) -> NDArray[np.float32]:
    """Codes [R, N] -> their values [R, N * L]; those of FSQ lie in [-1, 1]. `quantizer` is on the CPU."""
    return quantizer.codes_of(torch.from_numpy(indices)).numpy().reshape(len(indices), -1).astype(np.float32)


def project(fitted_on: NDArray[np.float32], features: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The first `width` principal components of `fitted_on`, of all rows of `features`."""
    mean, directions = principal_components(fitted_on, width)
    return ((features - mean) @ directions).astype(np.float32)


def untrained_clone(config: DLDMConfig, clips: NDArray[np.uint8], *, seed: int, device: torch.device) -> DLDM:
    """A dLDM that learned nothing: random weights, and running statistics settled on `clips` [n, T, H, W, 3]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dldm = DLDM(config).to(device)
    dldm.train()
    parts = np.array_split(clips, max(1, min(SETTLING_BATCHES, len(clips) // 8)))
    with torch.no_grad():
        for i in range(SETTLING_BATCHES):
            dldm.quantize(dldm.features(to_model_range(torch.from_numpy(parts[i % len(parts)]).to(device))))
    return dldm.eval()
