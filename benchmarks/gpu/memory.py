"""Memory of a training step of some clips, as `benchmarks.memory_plan` counts it without a GPU, and what fits.

Weights, gradients, AdamW's two moments, and all that autograd keeps: that of the first clip, and for each further one
the difference between two clips and one, since bfloat16 copies of the weights are kept once. With recomputed
activations the largest block is added. A lower bound: see `benchmarks.memory_plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from benchmarks.capacity_plan.stages import PHASE_ONE, PRIOR, Preset, policy_stages
from benchmarks.memory_plan import (
    HEADROOM,
    PHASE_TWO,
    kept_by,
    learning_bytes,
    models_without_data,
    weight_bytes,
)
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.video_codec import build_codec
from vw2_robot.pretrain.config import PretrainConfig

ClipStage = Literal["video prior", "phase 1", "phase 2"]
STEPS = {"video prior": PRIOR, "phase 1": PHASE_ONE, "phase 2": PHASE_TWO}
MICRO_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes of a stage: of its weights and their states, of the first sample of a forward pass, of each further one."""

    states: int
    first: int
    further: int

    def of(self, samples: int) -> int:
        """Return the bytes with that many samples in a forward pass."""
        return self.states + self.first + (samples - 1) * self.further


def plan_clips(config: PretrainConfig, stage: ClipStage, *, recompute: bool = False) -> PlannedMemory:
    """Count a stage that trains on clips.

    Args:
        config: sizes of dLDM, VDM and codec.
        stage: which one.
        recompute: with `hardware.gradient_checkpointing`.
    """
    step = STEPS[stage]
    with torch.device("meta"):
        codec = build_codec(config.codec)
    with models_without_data(config.dldm, config.vdm, config.geometry, config.codec) as (dldm, vdm):
        learning = learning_bytes(step.learning(dldm, vdm))
        weights = weight_bytes(vdm, codec) + (0 if stage == "video prior" else weight_bytes(dldm))
        largest = 0
        if recompute:
            largest = kept_by(dldm, vdm, step)[0].largest
            dldm.checkpoint_gradients()
            vdm.checkpoint_gradients()
        one, two = (
            kept_by(dldm, vdm, replace(step, forward=partial(step.forward, clips=clips)))[0].bytes for clips in (1, 2)
        )
    return PlannedMemory(weights + learning, one + largest, two - one + largest)


def plan_policy(config: PretrainConfig, preset: Preset, *, fine_tuning: bool) -> PlannedMemory:
    """Count pre-training or fine-tuning of the policy; beside the latter lies the dLDM that encodes its codes.

    Args:
        config: sizes of the dLDM.
        preset: sizes of the policy.
        fine_tuning: with the action head.
    """
    found = list(policy_stages(preset))[fine_tuning]
    with torch.device("meta"):
        beside = weight_bytes(DLDM(config.dldm)) if fine_tuning else 0
    return PlannedMemory(found.sharded + found.learning + beside, found.kept, found.kept)


def micro_batches_that_fit(planned: PlannedMemory, batch: int, memory_bytes: int | None) -> list[int]:
    """Return numbers of micro-batches with which a batch fits, the fewest first; 1 alone where memory is not known.

    Args:
        planned: of the stage.
        batch: samples of a step.
        memory_bytes: of the device.
    """
    if memory_bytes is None:
        return [1]
    possible = [count for count in MICRO_BATCHES if batch % count == 0]
    return [count for count in possible if planned.of(batch // count) < HEADROOM * memory_bytes] or possible[-1:]
