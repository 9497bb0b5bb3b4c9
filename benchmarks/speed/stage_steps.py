"""Training steps of pre-training that another process asks for, in whichever tree PYTHONPATH names.

    PYTHONPATH=TREE python benchmarks/speed/stage_steps.py

`training_steps.py` runs it for this tree and for an older one, so nothing here may need what the older one lacks. A
line of stdin, the name of a stage, is answered by the CPU seconds of a step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.dldm import build_parts, preset_tree
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.optim import LoopConfig, build_optimizer, optimizer_step
from vw2_robot.pretrain.dldm_losses import phase_one_loss, phase_two_loss
from vw2_robot.random_numbers import SampleNoise


def build_stage(name: str) -> Callable[[], None]:
    """Return a training step of prior, phase1 or phase2 at `model=tiny`, with random weights and clips."""
    torch.manual_seed(0)
    parts = build_parts("tiny", torch.device("cpu"))
    dldm, vdm, codec, phases = parts.dldm, parts.vdm, parts.codec, parts.phases
    loops = {
        "prior": config_from(LoopConfig, preset_tree("tiny")["train_vdm"]),
        "phase1": phases.phase1,
        "phase2": phases.phase2,
    }
    loop = loops[name]
    count = loop.batch_size
    # With the memory layout of clips from uint8: colors last.
    x = dldm.config.fake_clip(count).movedim(2, -1).contiguous().movedim(-1, 2)
    valid = torch.ones(count, dldm.config.latent_steps, dtype=torch.bool)
    codes = x.new_zeros(count, dldm.config.latent_steps, dldm.config.queries, dldm.config.code_dims)
    learning = [] if name == "phase1" else vdm.trainable_parameters(prior=name == "prior")
    optimizer = build_optimizer([*([] if name == "prior" else dldm.parameters()), *learning], loop.optim)

    def loss_of(noise: SampleNoise) -> Tensor:
        if name == "prior":
            return vdm.denoising_loss(
                codec.encode(x), codes, control_video=None, valid=valid, noise=noise, drop_codes=True
            )
        if name == "phase1":
            return phase_one_loss(dldm, x, valid, decorrelation=phases.decorrelation).loss
        return phase_two_loss(dldm, vdm, codec, x, valid, phases=phases, noise=noise).loss

    def step() -> None:
        loss = loss_of(SampleNoise(0, 0, stream=0, samples=range(count)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer_step(loss.detach(), optimizer, step=0, config=loop.optim, total_steps=loop.train_steps)

    return step


def main() -> None:
    stages: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in stages:
            stages[name] = build_stage(name)
        begin = time.process_time()
        stages[name]()
        print(time.process_time() - begin, flush=True)


if __name__ == "__main__":
    main()
