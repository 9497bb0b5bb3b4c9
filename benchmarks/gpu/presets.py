"""Configurations of the rows: `model=h200` and the LoRA step of `model=paper`, and their miniatures for a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from benchmarks.capacity_plan.stages import Preset
from benchmarks.dldm import preset_tree
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.pretrain.config import PretrainConfig

from .measured import Settings

FINETUNE = Path(__file__).resolve().parents[2] / "configs" / "finetune.yaml"
Tree = dict[str, Any]

# What a miniature changes: every part is there, none takes long.
TOY_DLDM: Tree = {
    "num_frames": 5,
    "height": 16,
    "width": 16,
    "stem": {"patch": "pixel", "temporal_patch_size": 4, "spatial_patch_size": 4, "spatial_kernel_size": 1},
    "levels": [{"width": 8, "blocks": 1}],
    "qformer": {"context": "adjacent", "depth": 1, "heads": 2},
    "z_channels": 8,
}
TOY_VDM: Tree = {
    "heads": 1,
    "head_dim": 12,
    "layers": 1,
    "adaln_lora_dim": 4,
    "context_width": 8,
    "control_width": 8,
    "projection_layers": 1,
    "projection_head_dim": 8,
}
TOY_POLICY: Tree = {
    "backbone": {"hidden": 16, "ffn": 16, "layers": 2, "heads": 2, "kv_heads": 1},
    "image": "pixels",
    "image_px": 16,
    "image_block": 2,
    "image_widths": [8, 8],
}
TOY_BATCH = 4


def changed(tree: Tree, changes: Tree) -> Tree:
    """Return nested values with some of them changed; lists are replaced as a whole."""
    out = dict(tree)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = changed(out[key], value) if nested else value
    return out


def h200_tree(settings: Settings) -> Tree:
    """Return the sections of `model=h200`; as a miniature those of `model=tiny`, made smaller."""
    if not settings.toy:
        return preset_tree("h200")
    loop = {"batch_size": TOY_BATCH}
    return changed(
        preset_tree("tiny"),
        {
            "dldm": TOY_DLDM,
            "vdm": TOY_VDM,
            "policy": TOY_POLICY,
            "train_vdm": loop,
            "train_dldm": {"phase1": loop, "phase2": loop},
            "train_policy": {"loop": loop},
            "hardware": {"precision": "bf16", "threads": 1},
        },
    )


def lora_tree(settings: Settings, *, num_frames: int) -> Tree:
    """Return the sections of `model=paper` with LoRA on frozen bfloat16 weights, one clip a step.

    Args:
        settings: miniature or not.
        num_frames: of the clip.
    """
    loop = {"batch_size": 1}
    tree = changed(
        preset_tree("paper"),
        {
            "dldm": {"num_frames": num_frames},
            # The folder of the weights is never opened here: frozen weights in bfloat16 are for pretrained ones.
            "vdm": {"train": "lora", "control": "light", "frozen_precision": "bf16", "weights": "random"},
            "codec": {"init": "random"},
            "train_dldm": {"phase1": loop, "phase2": loop},
            "hardware": {"gradient_checkpointing": True},
        },
    )
    if not settings.toy:
        return tree
    wan = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "res_blocks": 1}
    return changed(
        tree,
        {
            "dldm": {**TOY_DLDM, "num_frames": num_frames, "width": 32},
            "vdm": TOY_VDM,
            "codec": {"wan": wan},
            "policy": TOY_POLICY,
            "hardware": {"threads": 1},
        },
    )


def pretrain_config(
    tree: Tree, settings: Settings, *, frame_cache: Path, changes: Tree | None = None
) -> PretrainConfig:
    """Return the configuration of the pre-training programs.

    Args:
        tree: sections of a preset.
        settings: device and folder.
        frame_cache: what is trained on.
        changes: of the tree.
    """
    common: Tree = {
        "run_dir": str(settings.folder / "pretrain"),
        "data": {"frame_cache": str(frame_cache), "validation_fraction": 0.25},
        # Where phase 2 begins, the reconstruction is validated once; two clips are enough for that.
        "train_dldm": {"validation_clips": 2},
        "hardware": {"device": settings.device},
    }
    return config_from(PretrainConfig, changed(changed(tree, common), changes or {}))


def preset_of(tree: Tree, config: PretrainConfig) -> Preset:
    """Return the preset that the capacity plan takes."""
    return Preset("gpu", config.dldm, config.vdm, config.codec, tree)


def finetune_config(settings: Settings, *, policy: Path, data: Path, changes: Tree | None = None) -> FinetuneConfig:
    """Return the defaults of `vw2-finetune` on a device.

    Args:
        settings: device and folder.
        policy: checkpoint of the pre-trained policy.
        data: a CALVIN data set.
        changes: of the defaults.
    """
    tree: Tree = yaml.safe_load(FINETUNE.read_text(encoding="utf-8"))
    sections = {key: value for key, value in tree.items() if key not in ("defaults", "hydra")}
    ours: Tree = {
        "run_dir": str(settings.folder / "finetune"),
        "policy": str(policy),
        "data": {"path": str(data), "validation_fraction": 0.25, "frame_cache": str(settings.folder / "calvin_frames")},
        "hardware": {"device": settings.device, "precision": "bf16"},
    }
    if settings.toy:
        ours = changed(ours, {"loop": {"batch_size": TOY_BATCH}, "hardware": {"threads": 1}})
    return config_from(FinetuneConfig, changed(changed(sections, ours), changes or {}))
