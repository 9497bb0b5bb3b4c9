"""What fine-tuning begins with: a pre-trained policy and the dLDM that speaks its codes, or an untrained policy.

And what of it trains: all of it, nothing (the head alone), low-rank adapters, or the last layers. Method
specification 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vw2_robot.agent import policy_folder
from vw2_robot.checkpoint import Checkpoint, load_checkpoint
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.clips import TimeBase, effective_hz, time_base_of
from vw2_robot.data.sources.calvin import CALVIN_HZ
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.lora import LoRA
from vw2_robot.models.policy.ar_policy import LatentPolicy, PolicyConfig
from vw2_robot.runs import generator

from .config import FinetuneConfig
from .labeled_windows import window_offsets

STREAM_POLICY, STREAM_LORA = 53, 54


@dataclass(frozen=True)
class StartingPoint:
    """A policy, its dLDM (None where it never had one), actions per latent step, and the checkpoint's facts.

    `stride` counts the time steps of the labeled data: it is the dLDM's own where codes were learned on consecutive
    frames, and as many as a latent step lasts where they were learned at a rate (`facts["time_base"]`).
    """

    policy: LatentPolicy
    dldm: DLDM | None
    stride: int
    facts: dict[str, Any]

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
        """(height, width) of the images that the codes are made from; the policy's own where there is no dLDM."""
        if self.dldm is not None:
            return self.dldm.config.height, self.dldm.config.width
        return self.policy.config.image_px, self.policy.config.image_px


def starting_point(config: FinetuneConfig) -> StartingPoint:
    """Load the pre-trained policy, or draw an untrained one from the seed."""
    if not config.from_scratch:
        policy, dldm, facts = load_pretrained(config.policy)
        stride = actions_per_step(dldm.config, facts, latent_steps=config.latent_steps)
        return StartingPoint(policy, dldm, stride, facts)
    network = config.network
    if network.like is not None:
        found = policy_checkpoint(network.like)
        with found.building():
            dldm_config = config_from(DLDMConfig, found.config["dldm"])
            stride = actions_per_step(dldm_config, found.facts, latent_steps=config.latent_steps)
            network = replace(network, policy=config_from(PolicyConfig, found.config["policy"]), stride=stride)
    policy = LatentPolicy(network.policy, generator=generator(config.seed, 0, stream=STREAM_POLICY))
    return StartingPoint(policy, None, network.stride, {"pretraining": None})


def actions_per_step(dldm: DLDMConfig, facts: Mapping[str, Any], *, latent_steps: int) -> int:
    """Time steps of CALVIN that a latent step spans.

    Raises:
        InputError: CALVIN's rate cannot give what the codes were learned at.
    """
    time_base = time_base_of(facts)
    rate = effective_hz(CALVIN_HZ, temporal_stride=dldm.temporal_stride, **time_base)
    learned = facts.get("latent_hz") or [rate]
    if time_base != time_base_of({}) and not any(math.isclose(rate, known, rel_tol=1e-3) for known in learned):
        raise InputError(
            f"the policy's codes were learned at {' and '.join(f'{known:g}' for known in learned)} frames per second "
            f"(target_hz {time_base['target_hz']}, gap_seconds {time_base['gap_seconds']}), the labeled data at "
            f"{CALVIN_HZ:g} Hz "
            f"give {rate:g}; pre-train with data.target_hz={CALVIN_HZ:g} or less, or with a longer data.gap_seconds"
        )
    return int(
        window_offsets(latent_steps, stride=dldm.temporal_stride, hz=CALVIN_HZ, **time_base)[dldm.temporal_stride]
    )


def policy_checkpoint(path: str) -> Checkpoint:
    """The policy checkpoint meant by `path`: itself, its run folder, one of pretrain-on-openx, or of this package."""
    return load_checkpoint(policy_folder(path), kind="policy")


def load_pretrained(path: str) -> tuple[LatentPolicy, DLDM, dict[str, Any]]:
    """The policy, the dLDM that speaks its codes, and the checkpoint's facts.

    Raises:
        InputError: the checkpoint has no dLDM: it was fine-tuned from scratch.
    """
    checkpoint = policy_checkpoint(path)
    if checkpoint.config.get("dldm") is None:
        raise InputError(f"{checkpoint.path} has no dLDM, it was trained from scratch; give a pre-trained policy")
    policy = LatentPolicy.of_checkpoint(checkpoint)
    with checkpoint.building():
        dldm = DLDM(config_from(DLDMConfig, checkpoint.config["dldm"]))
        checkpoint.load_into(dldm=dldm)
    return policy, dldm, checkpoint.facts


def freeze(policy: LatentPolicy, config: FinetuneConfig) -> LoRA | None:
    """Leave trainable what the preset names; returns the adapters of preset=lora.

    Raises:
        InputError: the language model has fewer than `last_n` layers.
    """
    policy.requires_grad_(config.preset == "full")
    if config.preset == "last_n":
        layers = transformer_layers(policy)
        if config.last_n > len(layers):
            raise InputError(f"last_n={config.last_n}, but the language model has {len(layers)} layers")
        for layer in layers[-config.last_n :]:
            layer.requires_grad_(True)
    if config.preset != "lora":
        return None
    output = policy.backbone.model.get_output_embeddings()
    draw = generator(config.seed, 0, stream=STREAM_LORA)
    return LoRA(policy.backbone, config.lora, generator=draw, skip=(output,))


def transformer_layers(policy: LatentPolicy) -> nn.ModuleList:
    """The layers of the language model: the longest list of modules in it."""
    lists = [module for module in policy.backbone.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def saved_policy(policy: LatentPolicy, adapters: LoRA | None) -> nn.Module:
    """The policy as it goes into a checkpoint: with its adapters in the weights."""
    return policy if adapters is None else _with_backbone(policy, adapters.merged(policy.backbone))


def _with_backbone(policy: LatentPolicy, backbone: nn.Module) -> nn.Module:
    whole = nn.Module()
    for name, child in policy.named_children():
        whole.add_module(name, backbone if name == "backbone" else child)
    return whole


def trainable_parameters(policy: LatentPolicy, adapters: LoRA | None) -> list[nn.Parameter]:
    """What moves beside the head."""
    return [*policy.parameters(), *(adapters.parameters() if adapters is not None else ())]
