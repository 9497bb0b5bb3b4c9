"""Every row of the paper's ablation tables, and both predecessors, is a file of configs/experiment that trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file

from vw2_robot.checkpoint import resolve
from vw2_robot.command_line.config_tree import config_from, config_tree
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiment"
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
LOOP = "{train_steps: 2, batch_size: 2, log_every: 2, save_every: 2, optim: {lr: 0.003, warmup_steps: 1}}"
SMALL = {
    "dldm.num_frames": 5,
    "dldm.height": 16,
    "dldm.width": 16,
    "dldm.stem.spatial_patch_size": 4,
    "dldm.levels": "[{width: 8, blocks: 1}]",
    "++dldm.qformer": "{context: adjacent, depth: 1, heads: 2}",
    "dldm.z_channels": 8,
    "aids.reader": "false",
    "vdm.heads": 1,
    "vdm.head_dim": 12,
    "vdm.layers": 1,
    "++vdm.adaln_lora_dim": 4,
    "vdm.context_width": 8,
    "++vdm.control_width": 8,
    "policy.backbone.hidden": 16,
    "policy.backbone.ffn": 16,
    "policy.backbone.layers": 1,
    "policy.backbone.heads": 2,
    "policy.backbone.kv_heads": 1,
    "policy.image_px": 16,
    "++policy.image_widths": "[8, 8]",
    "++train_vdm": LOOP,
    "++train_dldm.phase1": LOOP,
    "++train_dldm.phase2": LOOP,
    "train_dldm.validation_clips": 4,
    "++train_dldm.usage_clips": 4,
    "++train_policy.loop": LOOP,
    "++extract_latents": "{cache_stride: 4, batch_size: 8}",
}


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of everything that an experiment sets."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def settings(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    below = [entry.rsplit("/", 1)[1] for entry in tree.pop("defaults", []) if entry != "_self_"]
    return {key: value for file in below for key, value in settings(file).items()} | leaves(tree)


def miniature(name: str, frames: Path, run_dir: Path, *more: str) -> PretrainConfig:
    """The experiment with everything small that it does not itself set."""
    own = settings(name)
    small = [f"{key}={value}" for key, value in SMALL.items() if key.lstrip("+") not in own]
    overrides = [
        f"+experiment={name}",
        f"run_dir={run_dir}",
        f"data.frame_cache={frames}",
        "hardware.device=cpu",
        *small,
    ]
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose("pretrain", [*overrides, *more])
    return config_from(PretrainConfig, OmegaConf.to_container(tree, resolve=True))


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "dldm" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_trains_both_phases_with_what_it_sets(name: str, frames_folder: Path, tmp_path: Path) -> None:
    config = miniature(name, frames_folder, tmp_path, "stages=[vdm,dldm]", "data.validation_fraction=0.2")
    resolved = leaves(config_tree(config))
    assert {key: resolved[key] for key in settings(name)} == settings(name)
    pretrain_on_openx(config)
    lines = metrics(tmp_path)
    assert [line["dldm/phase"] for line in lines] == [1, 2]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert (tmp_path / "vdm").is_dir() == config.needs_prior
    renders = config.train_dldm.with_vdm
    assert ("dldm/denoising_loss" in lines[-1]) == renders
    weights = load_file(resolve(tmp_path / "dldm") / "model.safetensors")
    assert any(key.startswith("vdm.") for key in weights) == renders
    if config.needs_prior:
        prior = load_file(resolve(tmp_path / "vdm") / "model.safetensors")
        moved = {key for key, value in prior.items() if not torch.equal(value, weights[key])}
        transformer = {key for key in moved if key.startswith("vdm.transformer.")}
        adapters = {key for key in transformer if "lora" in key}
        assert bool(transformer - adapters) == (config.vdm.train == "full")
        assert bool(adapters) == (config.vdm.train == "lora")
        assert any(key.startswith("vdm.projection.") for key in moved)


def test_every_row_of_the_tables_has_its_file() -> None:
    tables = {
        name: sum(other.startswith(f"{name}_") for other in NAMES) for name in ("a2", "a3", "3a", "3b", "3c", "3d")
    }
    assert tables == {"a2": 4, "a3": 5, "3a": 4, "3b": 4, "3c": 4, "3d": 5}
    assert {"videoworld", "lapa"} <= set(NAMES)


def test_codes_of_a_learned_codebook_reach_the_policy(frames_folder: Path, tmp_path: Path) -> None:
    config = miniature("lapa", frames_folder, tmp_path, "data.validation_fraction=0.2")
    pretrain_on_openx(config)
    tokens = json.loads((resolve(tmp_path / "policy") / "tokens.json").read_text())
    assert tokens["levels"] == [8]
    assert tokens["latent"][1] - tokens["latent"][0] == 8
    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    assert (index["levels"], index["stride"]) == ([8], 4)
