"""One LoRA step at the paper's size: phase 2 around the frozen 2B transformer in bfloat16, random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.cosmos import is_adapter
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import build_codec
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.diagnostics.code_usage import CodeUsageMonitor
from vw2_robot.pretrain.diagnostics.explained_change import RiseMonitor
from vw2_robot.pretrain.dldm_modules import Modules

from .datasets import write_frames
from .machine import Machine, forget_memory
from .measured import Measured, Settings
from .memory import plan_clips
from .presets import lora_tree, pretrain_config
from .timed_run import TimedRun
from .training import Training, measured_step, run_phase

# The paper's clip first; shorter ones where it does not fit.
NUM_FRAMES = (93, 49, 25)
TOY_FRAMES = (9,)


def build_on(device: torch.device, config: PretrainConfig) -> Modules:
    """Return modules with random weights, made on the device: two billion numbers take long on a CPU.

    Args:
        device: of the weights.
        config: their sizes.
    """
    with torch.device(device):
        dldm = DLDM(config.dldm)
        vdm = VDM(config.vdm, config.geometry, config.codec)
        codec = build_codec(config.codec)
    fill(vdm.transformer)
    vdm.finish_prior()
    monitor = CodeUsageMonitor(config.dldm.vocabulary).to(device)
    return Modules(dldm.to(device), vdm.to(device), codec.to(device), None, monitor, RiseMonitor())


@torch.no_grad()
def fill(transformer: nn.Module) -> None:
    """Give values to a transformer that would be read from a folder: norms begin at one, matrices keep their size."""
    for name, value in transformer.named_parameters():
        if is_adapter(f".{name}"):
            continue
        if value.ndim < 2:
            value.fill_(1.0)
        else:
            value.normal_(std=value[0].numel() ** -0.5)


def lora_row(training: Training) -> Measured:
    """Measure the step with the longest clip that fits."""
    lengths = TOY_FRAMES if training.settings.toy else NUM_FRAMES
    for num_frames in lengths:
        try:
            return lora_step(training.settings, training.machine, num_frames=num_frames)
        except torch.cuda.OutOfMemoryError:
            if num_frames == lengths[-1]:
                raise
    raise AssertionError("there is no length of a clip")


def lora_step(settings: Settings, machine: Machine, *, num_frames: int) -> Measured:
    """Measure the step with clips of one length.

    Args:
        settings: device and folder.
        machine: for the bound.
        num_frames: of the clip.
    """
    device = torch.device(settings.device)
    forget_memory(device)
    tree = lora_tree(settings, num_frames=num_frames)
    size = tree["dldm"]
    frames = write_frames(
        settings.folder / f"lora_frames_{num_frames}",
        episodes=2,
        length=num_frames,
        height=size["height"],
        width=size["width"],
    )
    config = pretrain_config(tree, settings, frame_cache=frames)
    config.hardware.torch_device()
    planned = plan_clips(config, "phase 2", recompute=True).of(1)
    folder = Path(tempfile.mkdtemp(dir=settings.folder))
    modules = build_on(device, config)
    assert modules.vdm is not None
    parameters = sum(p.numel() for p in modules.vdm.transformer.parameters())
    with TimedRun(folder, device, total_steps=config.train_dldm.total) as run:
        run_phase(config, run, name="phase 2", modules=modules)
    note = (
        f"{parameters / 1e9:.2f} B parameters, {num_frames} frames of {size['height']} x {size['width']}, "
        "recomputed activations"
    )
    found = measured_step(run, machine, samples=1, unit="clips", planned=planned, note=note)
    found.values |= {"num_frames": num_frames, "transformer_parameters": parameters}
    return found
