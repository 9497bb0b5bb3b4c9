"""One training step of each stage at the paper's width on a CPU: seconds and peak memory. One table.

Run: python -m benchmarks.paper_step [--folder DIR]

The programs themselves run, one after the other: the dLDM stage with one step of each phase, in phase 2 with adapters
on a frozen bfloat16 transformer of Cosmos-Predict2-2B's shape, then latents, then one step of the policy. All of it has
the width and depth of `model=paper`; frames, height and width are the smallest that the models take. The transformer
and the VAE are read from a folder that diffusers has saved, with random weights. Needs 16 GiB of memory and 16 GB of
disk. `--layers` makes the transformer less deep.

Peak memory is what the kernel counts (VmHWM): it includes pages of files that are mapped, which the kernel can drop.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import cache_frames
from vw2_robot.models.video.config import Geometry, VDMConfig, WanConfig
from vw2_robot.models.video.cosmos import stock_options
from vw2_robot.models.video.wan import build_vae

REPO = Path(__file__).resolve().parents[2]
SIDE = 32
NUM_FRAMES = 5
BATCH = 4
"""two micro-batches of two clips, the fewest that statistics can be taken over"""
GIB = 2**30
STAGES = {"train_dldm": "dLDM, phases 1 and 2", "extract_latents": "latents", "train_policy": "policy"}


@dataclass(frozen=True)
class Took:
    """What a program, or a part of it, took."""

    seconds: float
    cpu_seconds: float
    """of all threads: on a machine with other work the better measure"""
    peak_bytes: int


def save_folder(folder: Path, layers: int) -> None:
    """Let diffusers save a transformer of the 2B model's shape and a Wan VAE, both with random bfloat16 weights."""
    import diffusers

    preset = yaml.safe_load((REPO / "configs/model/paper.yaml").read_text(encoding="utf-8"))
    geometry = Geometry(channels=16, latent_steps=1, height=4, width=4, queries=4, fsq_dims=4)
    options = stock_options(config_from(VDMConfig, preset["vdm"] | {"layers": layers}), geometry)
    with torch.device("meta"):
        transformer: Any = diffusers.CosmosTransformer3DModel(**options)  # type: ignore[no-untyped-call]
    transformer = nn.Module.to(transformer, torch.bfloat16).to_empty(device="cpu")
    # The same random numbers in all layers: two billion new ones take as long as a training step.
    numbers = torch.randn(max(p.numel() for p in transformer.parameters()), generator=torch.Generator().manual_seed(0))
    scaled: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for value in transformer.parameters():
            if value.ndim < 2:
                value.fill_(1.0)
                continue
            inputs = value[0].numel()
            if inputs not in scaled:
                scaled[inputs] = (numbers * inputs**-0.5).bfloat16()
            value.copy_(scaled[inputs][: value.numel()].view_as(value))
    transformer.save_pretrained(str(folder / "transformer"))
    del transformer
    vae = build_vae(WanConfig())
    nn.Module.to(vae, torch.bfloat16).save_pretrained(str(folder / "vae"))


def save_frames(folder: Path) -> None:
    """Write a frame cache of eight episodes, in each of which a square moves."""
    episodes = []
    for number in range(8):
        rng = np.random.default_rng(number)
        video = np.broadcast_to(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), (9, SIDE, SIDE, 3)).copy()
        for t in range(len(video)):
            video[t, 10:20, 2 * t : 2 * t + 10] = 255
        episodes.append(Episode("squares", str(number), "push the square to the right", 5.0, tuple(video)))
    cache_frames(episodes, folder, height=SIDE, width=SIDE, description={"made": "at random"})


def overrides(folder: Path, layers: int) -> list[str]:
    """Return the command-line overrides of all stages: `model=paper` at reduced height, width and number of frames."""
    loop = {"train_steps": 1, "batch_size": BATCH, "log_every": 1, "save_every": 1, "optim": {"warmup_steps": 1}}
    return [
        "model=paper",
        f"run_dir={folder}/run",
        f"data.frame_cache={folder}/frames",
        "data.validation_fraction=0.25",
        f"dldm.num_frames={NUM_FRAMES}",
        f"dldm.height={SIDE}",
        f"dldm.width={SIDE}",
        f"vdm.weights={folder}/weights",
        f"vdm.layers={layers}",
        "vdm.train=lora",
        "vdm.frozen_precision=bf16",
        f"codec.weights={folder}/weights",
        *(f"++{name}={json.dumps(loop)}".replace('"', "") for name in ("train_dldm.phase1", "train_dldm.phase2")),
        f"++train_policy.loop={json.dumps(loop)}".replace('"', ""),
        f"train_vdm.batch_size={BATCH}",
        "++train_dldm.statistics_group=2",
        "++train_dldm.validation_clips=2",
        "++train_dldm.usage_clips=2",
        "extract_latents.batch_size=2",
        "++hardware.device=cpu",
        "++hardware.micro_batches=2",
        "++hardware.gradient_checkpointing=true",
        "++hardware.validation_batch=2",
    ]


def run_program(stage: str, folder: Path, layers: int) -> Took:
    """Run the program of a stage, and return what it took.

    Args:
        stage: its module in vw2_robot.pretrain.
        folder: with weights, frames and run.
        layers: of the transformer.

    Raises:
        subprocess.CalledProcessError: it failed; its output has been printed.
    """
    command = [sys.executable, "-m", f"vw2_robot.pretrain.{stage}", *overrides(folder, layers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    begin = time.monotonic()
    took = Took(0.0, 0.0, 0)
    with subprocess.Popen(command, env=environment, cwd=folder) as process:
        try:
            while process.poll() is None:
                took = taken(process.pid, since=begin) or took
                time.sleep(0.1)
        finally:
            process.kill()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return took


def taken(process: int, *, since: float) -> Took | None:
    """Return what a process has taken so far; None where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        # The name of the program, in brackets, may hold spaces.
        numbers = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    if not lines:
        return None
    ticks = int(numbers[11]) + int(numbers[12])  # in user and in system mode
    return Took(time.monotonic() - since, ticks / os.sysconf("SC_CLK_TCK"), int(lines[0].split()[1]) * 1024)


def measure(folder: Path, *, layers: int = 28) -> Iterator[tuple[str, Took]]:
    """Run all stages in a folder, which is left with weights, frames and run, and yield what each took.

    Args:
        folder: empty or not there.
        layers: of the transformer; 28 in the 2B model.
    """
    save_folder(folder / "weights", layers)
    save_frames(folder / "frames")
    for stage, name in STAGES.items():
        yield name, run_program(stage, folder, layers)


def main() -> None:
    parser = argparse.ArgumentParser(description="one training step of each stage at the paper's width")
    parser.add_argument("--folder", type=Path, help="where weights and checkpoints go, and stay; default: temporary")
    parser.add_argument("--layers", type=int, default=28, help="of the transformer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(f"{'':30}{'seconds':>9}{'of CPU':>9}{'peak GiB':>10}", flush=True)
        for name, took in measure(options.folder or Path(temporary), layers=options.layers):
            print(f"{name:30}{took.seconds:9.0f}{took.cpu_seconds:9.0f}{took.peak_bytes / GIB:10.2f}", flush=True)
