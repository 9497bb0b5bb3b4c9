"""The policy that fine-tuning begins with, pre-trained (with the dLDM of its codes) or not, and what of it trains.

What trains is all of it, nothing (the head alone), low-rank adapters, or the last layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vw2_robot.agent import policy_folder
from vw2_robot.checkpoint import Checkpoint, load_checkpoint
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.clips import TimeBase, effective_hz, time_base_of
from vw2_robot.data.sources.recorded_robot import RecordedRobot, read_robot
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.lora import LoRA
from vw2_robot.models.policy.acting import check_acting
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import PolicyConfig
from vw2_robot.random_numbers import generator

from .config import FinetuneConfig
from .labeled_windows import window_offsets

STREAM_POLICY, STREAM_LORA = 53, 54


@dataclass(frozen=True)
class PolicyInit:
    """A policy to fine-tune.

    Attributes:
        policy: with pre-trained or random weights.
        dldm: of its codes; None for an untrained policy.
        stride: actions per latent step, which are time steps of the labeled data. It is the dLDM's temporal stride
            where codes were learned on consecutive frames, and as many as a latent step lasts where they were learned
            at a rate (`facts["time_base"]`).
        facts: of the checkpoint.
        robot: of the labeled data: rate, camera and actions.
    """

    policy: LatentPolicy
    dldm: DLDM | None
    stride: int
    facts: dict[str, Any]
    robot: RecordedRobot

    @property
    def time_base(self) -> TimeBase:
        """How the codes are timed; without a dLDM there are none, and a window is its actions."""
        return time_base_of(self.facts if self.dldm is not None else {})

    @property
    def clip_stride(self) -> int:
        """s, clip frames of a latent step."""
        return self.dldm.config.temporal_stride if self.dldm is not None else self.stride

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the images that the codes are made from; the policy's where there is no dLDM."""
        if self.dldm is not None:
            return self.dldm.config.height, self.dldm.config.width
        return self.policy.config.image_px, self.policy.config.image_px


def init_policy(config: FinetuneConfig) -> PolicyInit:
    """Load the pre-trained policy, or build an untrained one whose weights depend on the seed alone.

    Raises:
        InputError: there is no such policy, it has no dLDM, it cannot act as wanted, or its codes do not fit the rate
            of the labeled data.
    """
    robot = read_robot(Path(config.data.path))
    if not config.from_scratch:
        policy, dldm, facts = load_pretrained(config.policy)
        check_acting(policy, config.acting)
        stride = actions_per_step(dldm.config, facts, hz=robot.hz, latent_steps=config.latent_steps)
        return PolicyInit(policy, dldm, stride, facts, robot)
    network = config.network
    # Sizes of another policy, none of its weights: the baseline that shows what pre-training brings.
    if network.like is not None:
        found = policy_checkpoint(network.like)
        with found.building():
            dldm_config = config_from(DLDMConfig, found.config["dldm"])
            stride = actions_per_step(dldm_config, found.facts, hz=robot.hz, latent_steps=config.latent_steps)
            network = replace(network, policy=config_from(PolicyConfig, found.config["policy"]), stride=stride)
    policy = LatentPolicy(network.policy, generator=generator(config.seed, 0, stream=STREAM_POLICY))
    check_acting(policy, config.acting)
    return PolicyInit(policy, None, network.stride, {"pretraining": None}, robot)


def actions_per_step(dldm: DLDMConfig, facts: Mapping[str, Any], *, hz: float, latent_steps: int) -> int:
    """Return the time steps of the labeled data that a latent step spans.

    Args:
        dldm: for its temporal stride.
        facts: of the policy's checkpoint, with the time base of its codes.
        hz: rate of the labeled data.
        latent_steps: of a window.

    Raises:
        InputError: this rate cannot give what the codes were learned at.
    """
    time_base = time_base_of(facts)
    rate = effective_hz(hz, temporal_stride=dldm.temporal_stride, **time_base)
    # Where the checkpoint does not have the fact, nothing can be compared, and the rate is taken to fit.
    learned_at = facts.get("latent_hz") or [rate]
    if time_base != time_base_of({}) and not any(math.isclose(rate, known, rel_tol=1e-3) for known in learned_at):
        rates = " and ".join(f"{known:g}" for known in learned_at)
        raise InputError(
            f"the policy's codes were learned at {rates} frames per second "
            f"(target_hz {time_base['target_hz']}, gap_seconds {time_base['gap_seconds']}), the labeled data at "
            f"{hz:g} Hz give {rate:g}; pre-train with data.target_hz={hz:g} or less, or with a longer "
            "data.gap_seconds"
        )
    return int(window_offsets(latent_steps, stride=dldm.temporal_stride, hz=hz, **time_base)[dldm.temporal_stride])


def policy_checkpoint(path: str) -> Checkpoint:
    """Load the policy checkpoint at `path`: itself, a run folder of it, builtin:NAME, or owner/name on the Hub."""
    return load_checkpoint(policy_folder(path), kind="policy")


def load_pretrained(path: str) -> tuple[LatentPolicy, DLDM, dict[str, Any]]:
    """Load a pre-trained policy, the dLDM of its codes, and the checkpoint's facts.

    Raises:
        InputError: the checkpoint has no dLDM: it was fine-tuned from scratch.
    """
    checkpoint = policy_checkpoint(path)
    dldm = DLDM.of_policy(checkpoint)
    return LatentPolicy.from_checkpoint(checkpoint), dldm, checkpoint.facts


def freeze(policy: LatentPolicy, config: FinetuneConfig) -> LoRA | None:
    """Leave trainable what the preset names, and return the adapters of preset=lora.

    Raises:
        InputError: the language model has fewer than `last_n` layers.
    """
    # Frozen parameters get no optimizer state and no weight decay.
    policy.requires_grad_(config.preset == "full")
    if config.preset == "last_n":
        layers = policy.backbone.blocks()
        if config.last_n > len(layers):
            raise InputError(f"last_n={config.last_n}, but the language model has {len(layers)} layers")
        # Those nearest to the head. Embeddings, image tokens and the final norm stay as they were pre-trained.
        for layer in layers[-config.last_n :]:
            layer.requires_grad_(True)
    if config.preset != "lora":
        return None
    # Logits are computed from the weight of this layer itself (`Backbone.logits`): an adapter on it would do nothing.
    output = policy.backbone.model.get_output_embeddings()
    noise = generator(config.seed, 0, stream=STREAM_LORA)
    # Adapters start as no change: the first step sees the pre-trained policy.
    return LoRA(policy.backbone, config.lora, generator=noise, skip=(output,))


def saved_policy(policy: LatentPolicy, adapters: LoRA | None) -> nn.Module:
    """Return the policy as it goes into a checkpoint: with its adapters merged into the weights."""
    if adapters is None:
        return policy
    # A module of the same parts but for the backbone; the policy that trains keeps its adapters apart.
    backbone = adapters.merged(policy.backbone)
    merged = nn.Module()
    for name, child in policy.named_children():
        merged.add_module(name, backbone if name == "backbone" else child)
    return merged


def trainable_parameters(policy: LatentPolicy, adapters: LoRA | None) -> list[nn.Parameter]:
    """Return the parameters that train beside the head's; frozen ones are left out by the optimizer."""
    # The order is part of every checkpoint, which stores optimizer states by number.
    return [*policy.parameters(), *(adapters.parameters() if adapters is not None else ())]
