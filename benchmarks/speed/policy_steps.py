"""Training steps of `model=tiny` on a CPU: the policy and its fine-tuning, against an earlier commit.

Everything that a step takes: its batch of generated video, losses, gradients, AdamW. Nothing is validated or saved.
CPU time with one thread, so that other work on the machine counts little.

    python -m benchmarks.speed --part benchmarks.speed.policy_steps
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.dldm import preset_tree
from benchmarks.gpu.datasets import write_calvin, write_frames
from benchmarks.gpu.measured import Settings
from benchmarks.gpu.presets import changed, pretrain_config
from benchmarks.gpu.training import run_fine_tuning, run_policy

from .before import BEFORE, NO_BEFORE, AnsweringRun, rounds_with_before
from .row import SpeedRow, not_measured

STAGES = {"policy": "policy step", "fine-tuning": "fine-tuning step"}
SIDE, LENGTH, EPISODES = 64, 40, 8
HARDWARE = {"hardware": {"threads": 1}}


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return a row for each stage.

    Args:
        seconds: of all of them; a third goes into starting the processes.
    """
    rows = []
    for stage, name in STAGES.items():
        rounds = rounds_with_before(__name__, stage, seconds=seconds / len(STAGES) * 2 / 3)
        against = f"commit {BEFORE}, CPU time"
        rows.append(
            not_measured(name, unit="ms/step", against=against, wanted=1.5, why=NO_BEFORE)
            if rounds is None
            else rounds.row(name, ours="ours", other="before", against=against, unit="ms/step", wanted=1.5)
        )
    return rows


def main(stage: str) -> None:
    """Train a stage on generated data, as standard input asks for it."""
    with TemporaryDirectory() as temporary, redirect_stdout(sys.stderr):
        folder = Path(temporary)
        settings = Settings(device="cpu", toy=False, folder=folder)
        frames = write_frames(folder / "frames", episodes=EPISODES, length=LENGTH, height=SIDE, width=SIDE)
        config = pretrain_config(changed(preset_tree("tiny"), HARDWARE), settings, frame_cache=frames)
        config.hardware.torch_device()
        with AnsweringRun(folder / "run", torch.device("cpu"), total_steps=10**6, counts=False) as run:
            if stage == "policy":
                run_policy(config, run)
            else:
                calvin = write_calvin(folder / "calvin", length=LENGTH, px=SIDE)
                run_fine_tuning(config, run, settings=settings, calvin=calvin)


if __name__ == "__main__":
    main(sys.argv[1])
