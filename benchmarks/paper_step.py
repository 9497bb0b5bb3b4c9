"""One training step of each stage at the paper's width on a CPU: seconds and peak memory. One table.

Run: python -m benchmarks.paper_step [--folder DIR]

The programs themselves are run one after the other: the dLDM stage with one step of each phase, in phase 2 with
adapters on a frozen bfloat16 transformer of Cosmos-Predict2-2B's shape, then latents, then one step of the policy. All
of it has the width and depth of `model=paper`; frames, height and width are the smallest that the models take.
Transformer and VAE are read from a folder that diffusers has saved, with random weights. Needs 12 GiB of memory and
15 GB of disk.

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

import numpy as np
import torch
import yaml
from torch import nn

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import cache_frames
from vw2_robot.models.video.cosmos import build_vae
from vw2_robot.models.video.vdm import Geometry, VDMConfig, stock_options

REPO = Path(__file__).resolve().parents[1]
SIDE = 32
NUM_FRAMES = 5
BATCH = 4
"""two micro-batches of two clips, the fewest that statistics can be taken over"""
GIB = 2**30


@dataclass(frozen=True)
class Took:
    """What a program, or a part of it, took."""

    seconds: float
    peak_bytes: int


def save_folder(folder: Path) -> None:
    """Let diffusers save a transformer of the 2B model's shape and a Wan VAE, both with random bfloat16 weights."""
    import diffusers

    preset = yaml.safe_load((REPO / "configs/model/paper.yaml").read_text(encoding="utf-8"))
    geometry = Geometry(channels=16, latent_steps=1, height=4, width=4, queries=4, fsq_dims=4)
    options = stock_options(config_from(VDMConfig, preset["vdm"]), geometry)
    with torch.device("meta"):
        transformer = diffusers.CosmosTransformer3DModel(**options)
    transformer = nn.Module.to(transformer, torch.bfloat16).to_empty(device="cpu")
    # The same random numbers everywhere: two billion new ones take as long as a training step.
    numbers = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        for value in transformer.parameters():
            if value.ndim < 2:
                value.fill_(1.0)
                continue
            flat = value.view(-1)
            for begin in range(0, len(flat), len(numbers)):
                part = flat[begin : begin + len(numbers)]
                part.copy_(numbers[: len(part)])
            value *= value[0].numel() ** -0.5
    transformer.save_pretrained(str(folder / "transformer"))
    del transformer
    vae = build_vae(96, dim_mult=(1, 2, 4, 4), res_blocks=2)
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


def overrides(folder: Path) -> list[str]:
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


def run_program(stage: str, folder: Path, *more: str) -> Iterator[Took]:
    """Run the program of a stage, and yield what it has taken at each checkpoint and at its end.

    Args:
        stage: its module in vw2_robot.pretrain.
        folder: with weights, frames and run.
        more: further overrides.

    Raises:
        subprocess.CalledProcessError: it failed; its output has been printed.
    """
    command = [sys.executable, "-m", f"vw2_robot.pretrain.{stage}", *overrides(folder), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    begin = time.monotonic()
    peak = seen = 0
    checkpoints = folder / "run" / stage.removeprefix("train_") / "checkpoints"
    with subprocess.Popen(command, env=environment, cwd=folder) as process:
        try:
            while process.poll() is None:
                peak = max(peak, peak_of(process.pid))
                found = len(list(checkpoints.glob("step_*")))
                if found > seen:
                    seen = found
                    yield Took(time.monotonic() - begin, peak)
                time.sleep(0.1)
        finally:
            process.kill()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    yield Took(time.monotonic() - begin, peak)


def peak_of(process: int) -> int:
    """Return the most physical memory that a process has had so far, in bytes; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def measure(folder: Path) -> dict[str, Took]:
    """Run all stages in a folder, which is left with weights, frames and run, and return what each took.

    Args:
        folder: empty or not there.
    """
    begin = time.monotonic()
    save_folder(folder / "weights")
    save_frames(folder / "frames")
    found = {"weights and frames are made": Took(time.monotonic() - begin, peak_of(os.getpid()))}
    *_, end = run_program("train_dldm", folder)
    found["dLDM, phase 1 and 2"] = end
    for stage, name in (("extract_latents", "latents"), ("train_policy", "policy")):
        *_, end = run_program(stage, folder)
        found[name] = end
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="one training step of each stage at the paper's width")
    parser.add_argument("--folder", type=Path, help="where weights and checkpoints go, and stay; default: temporary")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(f"{'':30}{'seconds':>9}{'peak GiB':>10}")
        for name, took in measure(options.folder or Path(temporary)).items():
            print(f"{name:30}{took.seconds:9.0f}{took.peak_bytes / GIB:10.2f}", flush=True)


if __name__ == "__main__":
    main()
