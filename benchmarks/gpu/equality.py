"""The loss of phase 1 on the device: in float32 against a CPU, and in bfloat16 against float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vw2_robot.devices import Hardware
from vw2_robot.distributed.batch_share import PartOfBatch, StatisticsGroups
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range
from vw2_robot.pretrain.cache_frames import open_frames, training_split
from vw2_robot.pretrain.clips import clip_sampler
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.diagnostics.code_usage import CodeUsageMonitor
from vw2_robot.pretrain.diagnostics.explained_change import RiseMonitor
from vw2_robot.pretrain.dldm_modules import Modules, build_dldm
from vw2_robot.pretrain.train_dldm import dldm_loss
from vw2_robot.random_numbers import SampleNoise

from .measured import Measured
from .training import Training

CLIPS = 2
RTOL = 1e-4


class LossesDifferError(AssertionError):
    """The device computes another loss than the CPU."""


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute products and convolutions in float32; TF32 has ten bits of mantissa."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.allow_tf32 = was


def loss_on(
    config: PretrainConfig, device: torch.device, x: Tensor, valid: Tensor, *, precision: str
) -> tuple[float, float]:
    """Return the loss of phase 1 and the norm of its gradient, with the weights that the seed gives.

    Args:
        config: of the stage.
        device: where it is computed.
        x: pixels [B, T, 3, H, W] in [-1, 1].
        valid: latent steps [B, M].
        precision: of `hardware.precision`.
    """
    config = replace(config, hardware=Hardware(device.type, precision=precision))  # type: ignore[arg-type]
    dldm: DLDM = build_dldm(config).to(device)
    modules = Modules(dldm, None, None, None, CodeUsageMonitor(config.dldm.vocabulary), RiseMonitor())
    noise = SampleNoise(config.seed, 0, stream=0, samples=range(len(x)))
    part = PartOfBatch(1.0, len(x), valid.sum().to(device))
    loss_of = dldm_loss(config, modules, StatisticsGroups(), phase="phase 1")
    loss = loss_of(x.to(device), valid.to(device), noise, part).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in dldm.parameters() if p.grad is not None])
    return float(loss), float(norm)


def equality_row(training: Training) -> Measured:
    """Compare the losses.

    Raises:
        LossesDifferError: the device's loss in float32 is another one than the CPU's.
    """
    config = training.config()
    config.hardware.torch_device()  # sets threads and TF32 as the programs do
    frame_cache = open_frames(config)
    batch = clip_sampler(config, frame_cache, training_split(config, frame_cache)[0]).batch(0, CLIPS)
    x = to_model_range(torch.from_numpy(batch.pixels))
    valid = torch.from_numpy(batch.valid)
    device = training.device
    with without_tf32():
        reference, reference_norm = loss_on(config, torch.device("cpu"), x, valid, precision="float32")
        exact, exact_norm = loss_on(config, device, x, valid, precision="float32")
    tf32, _ = loss_on(config, device, x, valid, precision="float32")
    bf16, _ = loss_on(config, device, x, valid, precision="bf16")
    difference = abs(exact - reference) / abs(reference)
    norm_difference = abs(exact_norm - reference_norm) / reference_norm
    where = "CUDA against CPU" if device.type == "cuda" else "no CUDA here, a CPU against itself"
    note = (
        f"relative differences of the loss: float32 {difference:.1e} ({where}; gradient norm {norm_difference:.1e}), "
        f"TF32 {abs(tf32 - exact) / abs(exact):.1e}, bf16 {abs(bf16 - exact) / abs(exact):.1e}"
    )
    if not difference <= RTOL:
        raise LossesDifferError(f"{note}; expected at most {RTOL:g} in float32")
    return Measured(
        note=note,
        values={
            "loss_cpu": reference,
            "loss_float32": exact,
            "loss_tf32": tf32,
            "loss_bf16": bf16,
            "float32_difference": difference,
            "gradient_norm_difference": norm_difference,
            "tf32_difference": abs(tf32 - exact) / abs(exact),
            "bf16_difference": abs(bf16 - exact) / abs(exact),
        },
    )
