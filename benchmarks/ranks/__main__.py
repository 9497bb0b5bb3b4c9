"""Two ranks against one on the CPU: speed of phase 1 at the same global batch, and memory of each rank by sharding.

Run: python -m benchmarks.ranks [--steps 12] [--rounds 3]

Speed: one rank with one thread and two ranks with one thread each take turns, so that a busy machine slows both. The
efficiency is the time of one rank over twice that of two. Memory: the largest resident memory of a rank in a training
step over that before the model was built, for the policy with a language model whose weights outweigh all else; beside
it the bytes of weights, gradients and AdamW's moments that a rank holds. Data are random and in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.dldm import preset_tree
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.devices import Sharding
from vw2_robot.distributed.batch_share import BatchShare, PartOfBatch, StatisticsGroups
from vw2_robot.distributed.ranks import gather, global_sum, is_main, joined_ranks
from vw2_robot.distributed.sharding import LossParts, Parallel
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, PolicyConfig
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pretrain.dldm_losses import phase_one_loss
from vw2_robot.random_numbers import generator
from vw2_robot.schedule import OptimConfig

MB = 2**20
OPTIM = OptimConfig(warmup_steps=1)


def phase_one_seconds(*, batch_size: int, train_steps: int, preset: str) -> float:
    """Return the median time of a step of phase 1 on this rank."""
    torch.manual_seed(0)
    dldm = DLDM(config_from(DLDMConfig, preset_tree(preset)["dldm"]))
    share = BatchShare.of(batch_size)
    x = fake_clip(dldm.config, batch_size)[share.rows]
    valid = torch.ones(len(x), dldm.config.latent_steps, dtype=torch.bool)
    groups = StatisticsGroups()
    parallel = Parallel({"dldm": dldm}, sharding="ddp")
    optimizer = build_optimizer(dldm.parameters(), OPTIM)

    def loss_of(x: Tensor, valid: Tensor, part: PartOfBatch) -> LossParts:
        found = phase_one_loss(dldm, x, valid, part=part, groups=groups)
        return LossParts(found.loss, found.metrics)

    taken = []
    for step in range(train_steps + 2):
        begin = time.perf_counter()
        part = PartOfBatch(1 / share.world_size, batch_size, global_sum(valid.sum()))
        loss = parallel.backward(loss_of, [(x, valid, part)]).loss
        optimizer_step(loss, optimizer, step=step, config=OPTIM, total_steps=100)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[2:])  # the first two warm up


def policy_memory(*, sharding: Sharding, width: int, layers: int) -> tuple[float, float, float]:
    """Return MB of this rank: at most resident, of its weights, gradients and moments, and of those of all ranks."""
    before = memory_mb("VmRSS")
    backbone = BackboneConfig(hidden=width, ffn=3 * width, layers=layers, heads=8, kv_heads=8)
    policy = LatentPolicy(PolicyConfig(backbone=backbone), generator=generator(0, 0))
    parallel = Parallel({"policy": policy}, sharding=sharding, blocks=policy.backbone.blocks())
    optimizer = build_optimizer(policy.parameters(), OPTIM)
    image = torch.zeros(1, 3, 64, 64)
    codes = torch.zeros(1, 2, 4, dtype=torch.long)
    valid = torch.ones(1, 2, dtype=torch.bool)

    def loss_of() -> LossParts:
        states = policy.states(policy.prompt(["open the drawer"], image), codes)
        return LossParts(policy.code_loss(states, codes, valid)[0], {})

    for step in range(3):
        if step == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: moments exist, building is over
        loss = parallel.backward(loss_of, [()]).loss
        optimizer_step(loss, optimizer, step=step, config=OPTIM, total_steps=100)
    shards = [getattr(p, "_local_tensor", p) for p in policy.parameters()]
    held = sum(4 * p.numel() * p.element_size() for p in shards) / MB  # weight, gradient, two moments
    whole = sum(4 * p.numel() * p.element_size() for p in policy.parameters()) / MB
    return memory_mb("VmHWM") - before, held, whole


def memory_mb(field: str) -> float:
    """Return a line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def run_rank(options: dict[str, Any]) -> None:
    """Measure what the options say, and print it from rank 0."""
    torch.set_num_threads(1)
    kind = options.pop("kind")
    with joined_ranks():
        found = gather(phase_one_seconds(**options) if kind == "speed" else policy_memory(**options))
        if is_main():
            print(json.dumps(found))


def start_ranks(world_size: int, **options: Any) -> Any:
    """Return what the ranks of a fresh set of processes found, in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ranks", "--rank", json.dumps(options)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed leaves the process, so that peaks are true
                "RANK": str(number),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(world_size)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a rank failed: {[process.returncode for process in processes]}")
    return json.loads(printed[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--preset", default="h200")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rank", help="(internal) options of one rank, as JSON")
    chosen = parser.parse_args()
    if chosen.rank is not None:
        run_rank(json.loads(chosen.rank))
        return
    taken: dict[int, list[float]] = {1: [], 2: []}
    speed = {"kind": "speed", "batch_size": chosen.batch, "train_steps": chosen.steps, "preset": chosen.preset}
    for _ in range(chosen.rounds):
        for size, times in taken.items():
            times.append(max(start_ranks(size, **speed)))
    one, two = (statistics.median(taken[size]) for size in (1, 2))
    print(f"{'phase 1, ' + chosen.preset + ', batch ' + str(chosen.batch):<40}{'ms a step':>12}{'efficiency':>12}")
    print(f"{'1 rank, 1 thread':<40}{1000 * one:>12.0f}{'':>12}")
    print(f"{'2 ranks, 1 thread each':<40}{1000 * two:>12.0f}{one / (2 * two):>12.2f}", flush=True)
    print(f"\n{'policy, MB of a rank':<40}{'resident':>12}{'held':>12}")
    for size, sharding in ((1, "none"), (2, "ddp"), (2, "fsdp")):
        found = start_ranks(size, kind="memory", sharding=sharding, width=chosen.width, layers=chosen.layers)
        resident, held = (max(row[i] for row in found) for i in (0, 1))
        print(f"{f'{size} rank' + 's' * (size > 1) + f', {sharding}':<40}{resident:>12.0f}{held:>12.0f}", flush=True)


if __name__ == "__main__":
    main()
