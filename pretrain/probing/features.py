"""The features of a latent step that probes predict motion from: its codes, the change of its pixels, and baselines.

Place in the flow: dLDM and labeled steps -> features -> `probe_latents`. All features of a step come from the frames
up to its end. Rows are the valid steps of all clips, in clip order.
"""

# n clips · T frames · M latent steps · N codes per step · L FSQ dimensions per code · R rows (valid steps)
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.data.labeled_steps import LabeledSteps, LabeledVideo
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
    """The valid steps of one data set as rows.

    Attributes:
        name: of the data set.
        clip: [R], the clip that each is from.
        step: [R], its place in the clip.
        episode: [R], the episode.
        group: [R], the demonstration, which is never split.
        indices: [R, N], codes.
        difference: [R, D], change of the shrunk pixels.
        commanded: [R, A], the summed actions.
        moved: [R, 7], how the end effector moved; None where that is not recorded.
        units: as of `LabeledVideo`, as the next one.
        action_names: of the A numbers of an action.
    """

    name: str
    clip: NDArray[np.int64]
    step: NDArray[np.int64]
    episode: NDArray[np.int64]
    group: NDArray[np.int64]
    indices: NDArray[np.int64]
    difference: NDArray[np.float32]
    commanded: NDArray[np.float64]
    moved: NDArray[np.float64] | None
    units: str
    action_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def motion(self) -> NDArray[np.float64]:
        """The motion that images show [R, 7 or A]: how the end effector moved; what was commanded if unknown."""
        return self.commanded if self.moved is None else self.moved


def step_rows(
    video: LabeledVideo, steps: LabeledSteps, indices_nMN: NDArray[np.int64], difference_nMD: NDArray[np.float32]
) -> StepRows:
    """Return the valid steps as rows.

    Args:
        video: the data set.
        steps: its clips.
        indices_nMN: codes of all steps.
        difference_nMD: pixel differences of all steps.
    """
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
        action_names=video.action_names,
    )


def encode_steps(
    dldm: DLDM, video: LabeledVideo, steps: LabeledSteps, *, device: torch.device, batch_size: int = 64
) -> NDArray[np.int64]:
    """Return the codes [n, M, N] of every clip.

    Args:
        dldm: the model that encodes; its quantizer gives the codes.
        video: the data set; its frame cache holds the pixels.
        steps: n clips of the data set, with the ids [n, T] of their frames.
        device: of the model; pixels are moved there.
        batch_size: clips that are encoded at once.

    Returns:
        int64 [n, M, N], also of steps that are not valid.
    """
    found = []
    for i in range(0, len(steps.episode), batch_size):
        pixels = video.frame_cache.read_batch(steps.episode[i : i + batch_size], steps.frame_ids[i : i + batch_size])
        found.append(dldm.indices(to_model_range(torch.from_numpy(pixels).to(device))).cpu().numpy())
    return np.concatenate(found)


def pixel_differences(video: LabeledVideo, steps: LabeledSteps, *, stride: int) -> NDArray[np.float32]:
    """Return the last frame of each step minus that of the step before, shrunk to 16 x 16: [n, M, 16 * 16 * 3].

    Args:
        video: the data set; its frame cache holds the pixels.
        steps: n clips of the data set, with the ids [n, T] of their frames.
        stride: frames of a latent step.

    Returns:
        float32 [n, M, 16 * 16 * 3] in [-1, 1], also of steps that are not valid.
    """
    # Every stride-th frame ends one step and begins the next.
    edges = steps.frame_ids[:, ::stride]
    found = np.zeros((*steps.valid.shape, DIFFERENCE_PX**2 * 3), np.float32)
    # Clip by clip: the pixels of all clips at once may not fit into memory.
    for i, episode in enumerate(steps.episode):
        small = shrink(video.frame_cache.read(int(episode), edges[i]))
        found[i] = np.diff(small, axis=0).reshape(len(small) - 1, -1)
    return found


def shrink(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uint8 [T, H, W, 3] as float [T, 16, 16, 3] in [0, 1], each pixel the mean of those it covers."""
    size = (DIFFERENCE_PX, DIFFERENCE_PX)
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX), np.float32) for frame in frames]
    return np.stack(small) / 255


def one_hot_fsq(indices: NDArray[np.int64], quantizer: Quantizer) -> NDArray[np.float32]:
    """Return every FSQ dimension of codes [R, N] as one-hot [R, N * sum(levels)]; a learned codebook has one."""
    levels = quantizer.levels
    # A code is a number in mixed radix: dimension i counts in units of the product of the levels before it.
    parts = [indices[..., None] // math.prod(levels[:i]) % level == np.arange(level) for i, level in enumerate(levels)]
    return np.concatenate(parts, axis=-1).reshape(len(indices), -1).astype(np.float32)


@torch.no_grad()
def code_values(indices: NDArray[np.int64], quantizer: Quantizer) -> NDArray[np.float32]:
    """Return the values [R, N * L] of codes [R, N]; those of FSQ lie in [-1, 1]. `quantizer` is on the CPU."""
    return quantizer.codes_of(torch.from_numpy(indices)).numpy().reshape(len(indices), -1).astype(np.float32)


def project(fitted_on: NDArray[np.float32], features: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the coordinates of all rows of `features` on the first `width` principal components of `fitted_on`.

    Args:
        fitted_on: [R', D], rows that the mean and the principal components are computed from.
        features: [R, D], rows to project.
        width: number of principal components, at most.

    Returns:
        float32 [R, width]; fewer columns if `fitted_on` varies in fewer directions.
    """
    mean, directions = principal_components(fitted_on, width)
    return ((features - mean) @ directions).astype(np.float32)


def quantize_components(
    fitted_on: NDArray[np.floating[Any]], components: NDArray[np.floating[Any]], quantizer: Quantizer, queries: int
) -> NDArray[np.int64]:
    """Return codes [R, N] of principal components: as many dimensions, each with as many levels, as codes have.

    Within a dimension all levels are equally frequent on the rows `fitted_on`. The first N components, which vary most,
    become the first dimension of each code.

    Args:
        fitted_on: [R', C], components of the rows that borders between levels are computed from.
        components: [R, C], those of the rows to quantize; of them the first N * L are used.
        quantizer: gives the levels.
        queries: N, codes of a step.
    """
    levels = quantizer.levels
    indices = np.zeros((len(components), queries), np.int64)
    for number in range(min(queries * len(levels), components.shape[1])):
        dimension, code = divmod(number, queries)
        level = levels[dimension]
        borders = np.quantile(fitted_on[:, number], np.arange(1, level) / level)
        # A code is a number in mixed radix, as in `one_hot_fsq`.
        indices[:, code] += np.searchsorted(borders, components[:, number]) * math.prod(levels[:dimension])
    return indices


def untrained_clone(config: DLDMConfig, clips: NDArray[np.uint8], *, seed: int, device: torch.device) -> DLDM:
    """Return a dLDM with random weights, its running statistics settled on `clips` [n, T, H, W, 3].

    Without settled statistics its codes would all be alike, and too weak a baseline.

    Args:
        config: configuration of the model.
        clips: uint8 [n, T, H, W, 3], the clips that settle the statistics.
        seed: of the random weights.
        device: where the model is built and run.

    Returns:
        The model, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dldm = DLDM(config).to(device)
    dldm.train()
    # About thirty batches, over and over, until the running statistics have settled.
    parts = np.array_split(clips, max(1, min(SETTLING_BATCHES, len(clips) // 8)))
    with torch.no_grad():
        for i in range(SETTLING_BATCHES):
            dldm.quantize(dldm.features(to_model_range(torch.from_numpy(parts[i % len(parts)]).to(device))))
    return dldm.eval()
