"""What is ours and not the paper's in pre-training: one switch for each aid, all of them off in the paper's method.

An aid helps small models or short runs. Presets and users set it in the block `aids` alone; `configs/pretrain.yaml`
hands it to the module that it concerns, whose key `KEYS` names. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

KEYS = {
    "role_embedding": "dldm.qformer.role_embedding",
    "difference_values": "dldm.qformer.difference_values",
    "value_positions": "dldm.qformer.value_pos",
    "standardize": "dldm.z_norm",
    "decorrelation": "train_dldm.decorrelation",
    "encoder_augmentation": "train_dldm.encoder_augmentation",
    "decoder_output": "dldm.output",
    "control_dropout": "train_dldm.control_dropout",
    "still_control": "vdm.still_control",
    "code_dropout": "vdm.code_dropout",
    "prediction": "vdm.prediction",
    "noise_shift": "vdm.noise_shift",
    "high_noise": "vdm.high_noise",
    "warp_output": "vdm.warp",
    "reader": "train_dldm.with_reader",
    "restrict_softmax": "policy.restrict_softmax",
    "policy_code_dropout": "train_policy.code_dropout",
}
"""field of `Aids` -> the key of the module that it sets"""


@dataclass(frozen=True)
class Aids:
    """The aids of pre-training. Defaults: none, the paper's method."""

    role_embedding: bool = False
    """the queries know by a learned embedding which of their two frames is the earlier one"""
    difference_values: bool = False
    """the queries read current minus previous frame to begin with, instead of both"""
    value_positions: bool = False
    """the queries read positions with the values too, not only with the keys"""
    standardize: Literal["none", "layer", "batch"] = "none"
    """what is done before FSQ, so that all its levels are used: LayerNorm, or also unit variance over a batch"""
    decorrelation: float = 0.0
    """weight of the mean squared correlation between the FSQ dimensions of a latent step"""
    encoder_augmentation: float = 0.0
    """strength of a drift of view and light that only the encoder sees, so that codes leave it out"""
    decoder_output: Literal["pixels", "change", "warp"] = "pixels"
    """what the dLDM's decoder predicts: pixels, their change from frame 0, or a flow field that moves frame 0"""
    control_dropout: float = 0.0
    """phase 2: share of the samples whose control video is a still one"""
    still_control: bool = False
    """frame 0, repeated, is the control video where there is none"""
    code_dropout: float = 0.0
    """share of the samples whose codes the VDM does not see; guidance in sampling needs it"""
    prediction: Literal["velocity", "change"] = "velocity"
    """what the VDM predicts; change: the difference from frame 0, so that an untrained one is a still clip"""
    noise_shift: float = 1.0
    """factor of the VDM's noise levels in training"""
    high_noise: float = 0.0
    """share of the VDM's samples with so much noise that only codes tell the motion"""
    warp_output: bool = False
    """the VDM moves frame 0 by a flow field and predicts the change from there"""
    reader: bool = False
    """the stage `train_dldm.reader` between the phases: the VDM learns to read the codes of the frozen encoder"""
    restrict_softmax: bool = False
    """the policy's loss compares latent tokens with one another alone, not with the whole vocabulary"""
    policy_code_dropout: float = 0.0
    """share of the policy's samples that predict every code without the codes before it"""

    @property
    def names(self) -> list[str]:
        """The aids that are on, those that are no mere switch with their value: "high_noise=0.7"."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        active = {name: value for name, value in values.items() if value != getattr(OFF, name)}
        return [name if value is True else f"{name}={value}" for name, value in active.items()]


OFF = Aids()
