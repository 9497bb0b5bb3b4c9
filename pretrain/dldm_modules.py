"""All modules of stage `dldm` with state: built, restored, prepared for the hardware, saved.

Place in the flow: under `train_dldm.py`, which trains them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.distributed.sharding import Parallel
from vw2_robot.models.averaging import Average
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.perceptual import PerceptualDistance
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.pixels import to_model_range
from vw2_robot.random_numbers import generator

from .clips import TrainingClips, clip_sampler
from .config import PretrainConfig
from .diagnostics.code_usage import CodeUsageMonitor
from .diagnostics.explained_change import RiseMonitor
from .train_vdm import build_vdm, open_vdm, prepare_vdm

STREAM_INIT = 20
FITTED_BATCHES, FITTED_BATCH = 64, 64
"""of clips, for codes that are not learned: several thousand steps for some hundred borders"""


@dataclass
class Modules:
    """All modules with state: what is trained, its moving averages if there are any, and the counter of codes.

    `vdm` and `codec` are None where phase 2 has no VDM.
    """

    dldm: DLDM
    vdm: VDM | None
    codec: VideoCodec | None
    average: Average | None
    code_usage: CodeUsageMonitor
    rise: RiseMonitor = field(default_factory=RiseMonitor)
    """of the explained change in the reader"""
    perceptual: PerceptualDistance | None = None
    """with frozen weights, in no checkpoint"""
    parallel: Parallel | None = None
    """all of them on all ranks, from `prepare_for_hardware` on"""

    def evaluated(self) -> tuple[DLDM, VDM | None]:
        """Return what is validated and handed on: the averages if there are any, else the trained modules."""
        if self.average is None:
            return self.dldm, self.vdm
        dldm = self.average.modules["dldm"]
        vdm = self.average.modules.get("vdm")
        assert isinstance(dldm, DLDM)
        assert vdm is None or isinstance(vdm, VDM)
        return dldm, vdm

    def to_save(self) -> dict[str, nn.Module]:
        """Return the modules of a checkpoint, by name; trained weights have names of their own beside averages."""
        dldm, vdm = self.evaluated()
        modules: dict[str, nn.Module | None] = {
            "dldm": dldm,
            "vdm": vdm,
            "codec": self.codec,
            "code_usage": self.code_usage,
            "rise": self.rise,
        }
        if self.average is not None:
            # The averages have the plain names: later stages load those and need not know of averaging.
            modules |= {f"learning_{name}": module for name, module in self.average.learning.items()}
        return {name: module for name, module in modules.items() if module is not None}


def build_dldm(config: PretrainConfig) -> DLDM:
    """Return an untrained dLDM; its weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        return DLDM(config.dldm)


def fit_pixel_differences(dldm: DLDM, clips: ClipSampler) -> None:
    """Measure the codes that are not learned (`dldm.fixed_codes`) on the valid steps of some training clips."""
    assert dldm.pixel_differences is not None
    rows = []
    for step in range(FITTED_BATCHES):
        batch = clips.batch(step, FITTED_BATCH)
        edges = dldm.edges(dldm.resized(to_model_range(torch.from_numpy(batch.pixels))))
        rows.append(dldm.pixel_differences.differences(edges)[torch.from_numpy(batch.valid)])
    dldm.pixel_differences.fit(torch.cat(rows))


def build_modules(
    config: PretrainConfig,
    frame_cache: FrameCache,
    train_ids: NDArray[np.int64],
    *,
    device: torch.device,
    resumed: bool,
) -> Modules:
    """Build all modules on the device.

    Args:
        config: their sizes and the seed.
        frame_cache: where the codec is measured, if no stage has done it.
        train_ids: its episodes that train.
        device: where they train.
        resumed: the VDM's weights will come from a checkpoint of this stage, so no prior is read.
    """
    # Built on the CPU, so that the weights do not depend on the device.
    dldm = build_dldm(config)
    if dldm.pixel_differences is not None and not resumed:
        fit_pixel_differences(dldm, clip_sampler(config, frame_cache, train_ids, augment=False))
    dldm = config.hardware.placed(dldm, device)
    vdm = codec = None
    learning: dict[str, nn.Module] = {"dldm": dldm}
    if config.train_dldm.with_vdm:
        # The codec is measured on clips as they are trained on, with augmentation.
        vdm, codec = build_vdm(config) if resumed else open_vdm(config, clip_sampler(config, frame_cache, train_ids))
        vdm = config.hardware.placed(vdm, device)
        codec = config.hardware.placed(codec, device)
        learning["vdm"] = vdm
    # Averages are modules of their own: the trained weights stay as the optimizer left them.
    average = Average(learning, config.train_dldm.ema) if config.train_dldm.ema else None
    usage = CodeUsageMonitor(config.dldm.vocabulary).to(device)
    perceptual = None
    if config.train_dldm.perceptual_weight:
        assert config.train_dldm.perceptual_weights is not None
        perceptual = PerceptualDistance(config.train_dldm.perceptual_weights).to(device)
    return Modules(dldm, vdm, codec, average, usage, perceptual=perceptual)


def restore(path: Path, modules: Modules, training: TrainingClips) -> None:
    """Continue where that checkpoint was written: weights, counted codes, and the position in the training clips.

    Args:
        path: the checkpoint folder of this stage.
        modules: all modules of the run; their weights are replaced in place.
        training: the training clips, which are set to the stored position.

    Raises:
        InputError: the checkpoint is damaged or of another kind, does not fit the modules, or is of a run on other
            clips.
    """
    checkpoint = load_checkpoint(path, kind="dldm")
    learning: dict[str, nn.Module] = {"dldm": modules.dldm}
    if modules.vdm is not None:
        learning["vdm"] = modules.vdm
    checkpoint.load_into(code_usage=modules.code_usage, rise=modules.rise)
    if modules.codec is not None:
        checkpoint.load_into(codec=modules.codec)
    if modules.average is None:
        checkpoint.load_into(**learning)
    else:
        checkpoint.load_into(**modules.average.modules)
        checkpoint.load_into(**{f"learning_{name}": module for name, module in learning.items()})
    training.restore(checkpoint.fact("clips"))


def prepare_for_hardware(config: PretrainConfig, modules: Modules) -> None:
    """Switch on gradient checkpointing, compilation and sharding where the configuration asks for them."""
    if config.hardware.gradient_checkpointing:
        # Recomputes activations in the backward pass: less memory, one more forward pass.
        modules.dldm.checkpoint_gradients()
    if config.hardware.compile:
        # In place: `torch.compile(module)` would put a prefix before all names of parameters in checkpoints.
        modules.dldm.compile_blocks()
    held: dict[str, nn.Module] = {"dldm": modules.dldm}
    if modules.vdm is not None:
        prepare_vdm(config, modules.vdm)
        modules.vdm.trainable_parameters()  # what is trained must be known
        held["vdm"] = modules.vdm
    if modules.average is not None:
        held |= {f"average_{name}": module for name, module in modules.average.modules.items()}
    blocks = [block for module in held.values() if isinstance(module, DLDM | VDM) for block in module.blocks()]
    modules.parallel = Parallel(held, sharding=config.hardware.sharding, blocks=blocks)


def save_dldm(
    config: PretrainConfig,
    path: Path,
    modules: Modules,
    *,
    frames_digest: str,
    clips: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write a checkpoint of the stage; without an optimizer one that is only read, with the dLDM alone.

    Args:
        config: sizes of the modules and the time base, which the checkpoint holds.
        path: its folder.
        modules: the averages if there are any, and the trained weights.
        frames_digest: digest of the frame cache.
        clips: the position in the training clips.
        optimizer: of the current phase.
    """
    dldm, vdm = modules.evaluated()
    has_vdm = vdm is not None and optimizer is not None
    save_checkpoint(
        path,
        kind="dldm",
        config=config_tree(config.dldm),
        modules={"dldm": dldm} if optimizer is None else modules.to_save(),
        facts={
            "encoder_hash": encoder_hash(dldm),
            "vdm": config_tree(config.vdm) if has_vdm else None,
            "codec": config_tree(config.codec) if has_vdm else None,
            "frames_digest": frames_digest,
            "time_base": config.data.time_base,
            "aids": config.aids.names,
            "control_grayscale": config.train_dldm.control_grayscale,
            "clips": clips,
        },
        optimizer=optimizer,
    )


def dldm_folder(folder: str | Path) -> Path:
    """Return the folder of the dLDM stage: the one given, or the one in a run folder."""
    inside = Path(folder) / "dldm"
    is_run = (inside / "latest").is_file() or (inside / "config.json").is_file()
    return inside if is_run else Path(folder)


def encoder_hash(dldm: DLDM) -> str:
    """Return the identity of everything that decides a code: trunk, queries, projection, any codebook."""
    fixed = [] if dldm.pixel_differences is None else [dldm.pixel_differences]
    return weights_digest(dldm.encoder, dldm.qformer, dldm.pre_quant, dldm.fsq, *fixed)
