"""How many codes the dLDM uses: counted in training, with alarms, and over the data at the end.

Few different codes, or a perplexity near 1, mean that the codes have collapsed: a good reconstruction can hide that
(method 5.1).
"""

# B batch · M latent steps · N codes per step · V codebook
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.distributed.ranks import global_sum, is_main, rank, world_size
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range
from vw2_robot.storage.files import write_json

from ..config import PretrainConfig, TrainDLDMConfig
from .explained_change import EXPLAINED, EXPLAINED_NULL

USAGE_BATCH = 64


def used_and_perplexity(histogram: Int[Tensor, " V"]) -> tuple[int, float]:
    """Return the number of different codes, and the exponential of the entropy of their distribution, 1 to V."""
    share = histogram.double() / histogram.sum().clamp(min=1)
    # 0 log 0 = 0: codes that never occur are left out of the sum.
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    return int((histogram > 0).sum()), float(entropy.exp())


class CodeUsageMonitor(nn.Module):
    """Counter of the codes of training batches between two validations, and the alarms for what stays wrong.

    A module, since its buffers are saved with the run: a resumed run logs what it would have logged.

    Args:
        vocabulary: V.

    Attributes:
        counts: int [V], the codes since the last call of `alarms`.
        streaks: int [3], how many validations in a row found collapsed codes, codes that the VDM ignores, and codes
            that explain hardly more change than none.
    """

    counts: Tensor
    streaks: Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(vocabulary, dtype=torch.long))
        self.register_buffer("streaks", torch.zeros(3, dtype=torch.long))

    def count(self, histogram: Int[Tensor, " V"]) -> None:
        """Add the codes of one batch: how often each occurred in valid steps, over all ranks."""
        self.counts += histogram

    def metrics(self) -> dict[str, float]:
        """Return different codes, dead codes, perplexity and entropy since the last call of `alarms`."""
        used, perplexity = used_and_perplexity(self.counts)
        return {
            "dldm/train_codes_used": used,
            "dldm/dead_codes": len(self.counts) - used,
            "dldm/train_perplexity": perplexity,
            "dldm/entropy_bits": math.log2(perplexity),
        }

    def alarms(self, validation: Mapping[str, float], phases: TrainDLDMConfig) -> list[str]:
        """Return the alarms that are due after a validation, and count from zero again.

        An alarm is given once, at the `alarm_after`-th validation in a row that misses a limit, and again only after
        one that keeps it.

        Args:
            validation: what `validation.validate` returned.
            phases: the limits.
        """
        perplexity = used_and_perplexity(self.counts)[1]
        shuffle = validation.get("dldm/shuffle_ratio", math.inf)  # without a VDM nothing can ignore the codes
        # n counted codes cannot be more than n different ones, and a single code has perplexity 1: the limit is a share
        # of what could have been.
        floor = 1 + phases.perplexity_alarm * (min(len(self.counts), int(self.counts.sum())) - 1)
        explained = validation.get(f"dldm/{EXPLAINED}", math.inf) - validation.get(f"dldm/{EXPLAINED_NULL}", 0.0)
        # `not >=`, so that a ratio that is not a number counts as missed.
        missed = [perplexity < floor, not shuffle >= phases.shuffle_alarm, not explained >= phases.explained_alarm]
        self.streaks.copy_((self.streaks + 1) * torch.tensor(missed, device=self.streaks.device))
        self.counts.zero_()
        collapsed, ignored, unread = (int(streak) == phases.alarm_after for streak in self.streaks)
        alarms = []
        if collapsed:
            alarms.append(
                f"ALARM codes collapse: perplexity {perplexity:.2f} in training, below {floor:.2f} at "
                f"{phases.alarm_after} validations in a row; aids.standardize=batch and a lower learning rate help"
            )
        if ignored:
            alarms.append(
                f"ALARM codes ignored: the VDM loses only {shuffle:.3f} x with the codes of another clip (limit "
                f"{phases.shuffle_alarm}) at {phases.alarm_after} validations in a row; raise "
                f"aids.control_dropout, or aids.noise_shift where the VDM is trained from scratch"
            )
        if unread:
            alarms.append(
                f"ALARM codes not read: without control video they explain {explained:.3f} more of the change than "
                f"none (limit {phases.explained_alarm}) at {phases.alarm_after} validations in a row; where the VDM is "
                "trained from scratch, aids.reader, aids.high_noise and aids.warp_output help"
            )
        return alarms


@torch.no_grad()
def code_usage(dldm: DLDM, frame_cache: FrameCache, config: PretrainConfig, *, device: torch.device) -> dict[str, Any]:
    """Count codes over `train_dldm.usage_clips` windows of all episodes, and write codes.json: in total and by slot.

    Args:
        dldm: encodes the windows; its parameters must be on `device`.
        frame_cache: the frames of all episodes.
        config: gives the number and length of the windows, their time base, the seed, and the folder of codes.json.
        device: of the dLDM.

    Returns:
        What codes.json holds: histogram [V], by_slot [N][V], used, perplexity, clips.
    """
    histogram_NV = torch.zeros(config.dldm.queries, dldm.fsq.vocabulary, dtype=torch.long)
    # Both sides of the split and no augmentation: this is what the next stage encodes.
    sampler = ClipSampler(
        frame_cache,
        np.arange(len(frame_cache.episodes)),
        num_frames=config.dldm.num_frames,
        temporal_stride=config.dldm.temporal_stride,
        **config.data.time_base,
        seed=config.seed,
    )
    clips = config.train_dldm.usage_clips
    # Ranks share the batches; all encode equally many, since sharded modules run in step.
    batches = math.ceil(clips / USAGE_BATCH)
    size = config.hardware.validation_batch
    for i in range(rank(), -(-batches // world_size()) * world_size(), world_size()):
        counted = i < batches
        i = min(i, batches - 1)
        count = min(USAGE_BATCH, clips - i * USAGE_BATCH)
        # As many forward passes for a shorter last batch, for the same reason.
        for begin in range(0, USAGE_BATCH, size):
            rows = np.arange(min(begin, count - 1), min(begin + size, count))
            batch = sampler.batch(i, count, rows)
            x = to_model_range(torch.from_numpy(batch.pixels).to(device)).to(next(dldm.parameters()).dtype)
            with config.hardware.autocast(device):  # as the next stage encodes
                indices = dldm.indices(dldm.resized(x)).cpu()
            valid = torch.from_numpy(batch.valid) & (counted and begin < count)
            # By slot, since in the total a collapsed slot hides behind the others.
            for slot in range(config.dldm.queries):
                valid_indices = indices[..., slot][valid]
                histogram_NV[slot] += torch.bincount(valid_indices, minlength=dldm.fsq.vocabulary)
    histogram_NV = global_sum(histogram_NV)
    used, perplexity = used_and_perplexity(histogram_NV.sum(0))
    usage = {
        "histogram": histogram_NV.sum(0).tolist(),
        "by_slot": histogram_NV.tolist(),
        "used": used,
        "perplexity": perplexity,
        "clips": clips,
    }
    if is_main():
        write_json(config.stage_dir("dldm") / "codes.json", usage, sealed=True)
    return usage
