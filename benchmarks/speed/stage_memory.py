"""The resident memory of each stage of the chain, and whether it grows while the stage runs.

Each program runs by its command line with `model=tiny` on a small frame cache of moving squares, and on as many CALVIN
trajectories. The memory of the process and of its workers is sampled from the first thing that it logs to its end; a
stage is flat where the highest sample of the second half is that of the first.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import cache_frames

from .row import SpeedRow

PX = 64
LENGTH = 40
EPISODES = 24
WANTED = 0.97
"""the memory of the first half over that of the second"""
PAUSE = 0.2


def moving_square(number: int) -> NDArray[np.uint8]:
    """Return a video [LENGTH, PX, PX, 3] of a square on a still random ground."""
    ground = np.random.default_rng(number).integers(0, 256, (PX, PX, 3), dtype=np.uint8)
    video = np.broadcast_to(ground, (LENGTH, PX, PX, 3)).copy()
    for step in range(LENGTH):
        left = (5 * number + (step if number % 2 else -step)) % (PX - 12)
        video[step, 20:32, left : left + 12] = 255
    return video


def write_data(folder: Path) -> None:
    """Write `frames/`, a frame cache, and `calvin/`, a CALVIN data set."""
    episodes = (
        Episode("squares", str(number), "push the square", 5.0, tuple(moving_square(number)))
        for number in range(EPISODES)
    )
    cache_frames(episodes, folder / "frames", height=PX, width=PX, description={"made": "by a benchmark"})
    writer = CalvinWriter(folder / "calvin", "training", compress_level=0)
    for number in range(EPISODES):
        actions = np.random.default_rng(number).uniform(-0.5, 0.5, (LENGTH, 7))
        actions[:, 6] = 1
        writer.write_episode(
            {
                "rgb_static": moving_square(number),
                "actions": actions,
                "rel_actions": actions,
                "robot_obs": np.zeros((LENGTH, 15)),
                "scene_obs": np.zeros((LENGTH, 24)),
            },
            first_frame=100 * number,
            task="push_left" if number % 2 else "push_right",
            instruction="push the square",
            scene="D",
        )
    writer.finish()


@dataclass(frozen=True)
class Stage:
    """A program with its arguments; `begun` is the file that says that it is at work."""

    name: str
    begun: Path
    module: str
    overrides: list[str]


def stages(folder: Path) -> list[Stage]:
    """Return the stages in their order."""
    loop = "{train_steps: 100, batch_size: 8, log_every: 10, save_every: 100, optim: {lr: 0.001, warmup_steps: 5}}"
    run, tuned, rollout = (folder / name for name in ("run", "tuned", "rollout"))
    common = ["model=tiny", f"run_dir={run}", f"data.frame_cache={folder / 'frames'}", "data.validation_fraction=0.2"]
    common += [
        f"++train_vdm={loop}",
        f"++train_dldm.phase1={loop}",
        f"++train_dldm.phase2={loop}",
        f"++train_policy.loop={loop}",
        "++train_dldm.validation_clips=8",
        "aids.reader=false",
        "++hardware={device: cpu, threads: 1}",
    ]
    finetune = [f"policy={run}", f"run_dir={tuned}", f"data.path={folder / 'calvin'}", "data.validation_fraction=0.25"]
    finetune += [f"++loop={loop}", "++hardware={device: cpu, threads: 1}"]
    chains = [f"policy={tuned}", f"run_dir={rollout}", "num_sequences=16", "videos=0", "env.max_steps=60"]
    return [
        Stage("video prior", run / "vdm" / "metrics.jsonl", "pretrain.train_vdm", common),
        Stage("dLDM, both phases", run / "dldm" / "metrics.jsonl", "pretrain.train_dldm", common),
        Stage("extraction", run / "latents" / "plan.json", "pretrain.extract_latents", common),
        Stage("policy", run / "policy" / "metrics.jsonl", "pretrain.train_policy", common),
        Stage("fine-tuning", tuned / "metrics.jsonl", "finetune.train_head", finetune),
        Stage("rollout", rollout / "results.jsonl", "rollouts", chains),
    ]


def resident_mib(process: int) -> float:
    """Return the resident memory of a process and of all its descendants in MiB; shared pages count once each."""
    total = 0.0
    waiting = [process]
    while waiting:
        number = waiting.pop()
        try:
            status = Path(f"/proc/{number}/smaps_rollup").read_text()
            children = Path(f"/proc/{number}/task/{number}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        # Pss: a page that several processes share counts as a part for each of them.
        total += next(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("Pss:"))
        waiting += map(int, children.split())
    return total


def sampled(stage: Stage) -> list[float]:
    """Run a stage and return its memory while it is at work, sample by sample.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", f"vw2_robot.{stage.module}", *stage.overrides]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        samples = []
        while process.poll() is None:
            if stage.begun.exists() and stage.begun.stat().st_size:
                samples.append(resident_mib(process.pid))
            time.sleep(PAUSE)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{stage.module} failed: {log.read()[-1500:]}")
    return samples


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return a row of each stage; `seconds` is not used: the runs are as short as they can be."""
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_data(folder)
        for stage in stages(folder):
            samples = sampled(stage)
            half = len(samples) // 2
            first, second = max(samples[:half]), max(samples[half:])
            ratio = first / second
            why = f"{len(samples)} samples"
            name = f"memory, {stage.name}"
            rows.append(SpeedRow(name, "MiB", second, first, "its first half", ratio, ratio, ratio, WANTED, why))
    return rows
