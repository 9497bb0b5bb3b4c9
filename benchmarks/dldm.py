"""Speed of the dLDM: token extraction beside LAPA's LAQ, the vectorized q-former, and on a GPU its training phases.

Run: python -m benchmarks.dldm [--laq CHECKOUT/laq] [--preset h200] [--device auto]

One table. (a) and (b) run anywhere, one thread on a CPU, best of several runs. `--laq` names the folder laq/ of a
checkout of github.com/LatentActionPretraining/LAPA; its model is imported from there, and its rows are left out without
it. LAQ takes pairs of frames, ours whole clips; "frames/s" counts input frames, though LAQ needs two of them for
each code. (c) needs CUDA: clips/s, step time, and MFU, the share of the GPU's bfloat16 peak that the arithmetic of
the step is (counted by torch's flop counter, recomputed activations included).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.command_line.keys import defaults_of
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.dldm.qformer import QFormer
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec, build_codec
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pretrain.config import TrainDLDMConfig
from vw2_robot.pretrain.dldm_losses import phase_one_loss, phase_two_loss
from vw2_robot.random_numbers import SampleNoise

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, vendor's tables
LAQ_TOKENS = 8  # side of LAQ's grid of patches, as published (256 px in patches of 32)


@dataclass(frozen=True)
class Size:
    """One comparison: side of the frames, frames per clip, number of clips, widths of LAQ (none: ours)."""

    preset: str
    px: int
    num_frames: int
    clips: int
    laq_widths: tuple[int, ...] = ()


# Square frames of each preset's size; clips and pairs are chosen so that both sides see about as many frames at once.
# The paper's size is compared with LAQ at equal width and as published, 1024.
SIZES = (Size("tiny", 64, 9, 16), Size("h200", 128, 33, 1), Size("paper", 256, 17, 1, (512, 1024)))


@dataclass(frozen=True)
class Parts:
    """A preset's models on a device."""

    dldm: DLDM
    vdm: VDM
    codec: VideoCodec
    phases: TrainDLDMConfig


def preset_tree(name: str) -> dict[str, Any]:
    """Return the configuration of `pretrain-on-openx` at that size."""
    return defaults_of("pretrain", f"model={name}")


def seconds(run: Callable[[], object], *, repeats: int, device: torch.device) -> float:
    """Return the best time of one call, after one call to warm up."""
    best = float("inf")
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        # The first call warms up.
        best = min(best, time.perf_counter() - begin) if repeat else best
    return best


# (a) token extraction


def load_laq(folder: Path) -> types.ModuleType:
    """Return LAPA's model file, without its package's `__init__`, which imports the trainer."""
    package = types.ModuleType("laq_model")
    package.__path__ = [str(folder / "laq_model")]
    sys.modules["laq_model"] = package
    return importlib.import_module("laq_model.latent_action_quantization")


def build_laq(module: types.ModuleType, *, width: int, px: int, device: torch.device) -> torch.nn.Module:
    """Return LAQ at the published depth, grid and code length, with our width; its quantizer assumes CUDA."""
    quantizer = module.NSVQ
    module.NSVQ = lambda **options: quantizer(**{**options, "device": device})  # type: ignore[attr-defined]
    model: torch.nn.Module = module.LatentActionQuantization(
        dim=width,
        quant_dim=32,
        codebook_size=8,
        image_size=px,
        patch_size=px // LAQ_TOKENS,
        spatial_depth=8,
        temporal_depth=8,
        dim_head=64,
        heads=max(1, width // 64),
        code_seq_len=4,
    )
    module.NSVQ = quantizer  # type: ignore[attr-defined]
    return model.to(device).eval()


def extraction_rows(laq: Path | None, sizes: tuple[Size, ...], device: torch.device, *, repeats: int) -> None:
    """Print frames/s and FLOPs per frame of token extraction; the ratio is ours over LAQ's."""
    print(f"{'token extraction':<26}{'width':>7}{'M params':>10}{'GFLOP/frame':>13}{'frames/s':>11}{'ours is':>9}")
    for size in sizes:
        config = config_from(DLDMConfig, preset_tree(size.preset)["dldm"])
        config = replace(config, height=size.px, width=size.px, num_frames=size.num_frames)
        width = config.levels[-1].width
        dldm = DLDM(config).to(device).eval()
        x = fake_clip(config, size.clips).to(device)
        frames = x.shape[0] * x.shape[1]
        ours = frames / seconds(lambda d=dldm, x=x: d.indices(x), repeats=repeats, device=device)  # type: ignore[misc]
        # Bound as defaults: a closure would see the values of the last size.
        work = _gigaflops(lambda d=dldm, x=x: d.encode(x[:1])) / size.num_frames  # type: ignore[misc]
        parameters = _millions(dldm.encoder, dldm.qformer, dldm.pre_quant)
        name = f"dLDM {size.preset}, {size.px} px"
        print(f"{name:<26}{width:>7}{parameters:>10.1f}{work:>13.2f}{ours:>11.1f}", flush=True)
        for laq_width in () if laq is None else size.laq_widths or (width,):
            assert laq is not None
            _laq_row(load_laq(laq), laq_width, size, pairs=frames // 2, ours=ours, repeats=repeats, device=device)


@torch.no_grad()
def _laq_row(
    module: types.ModuleType, width: int, size: Size, *, pairs: int, ours: float, repeats: int, device: torch.device
) -> None:
    model: Any = build_laq(module, width=width, px=size.px, device=device)
    x = torch.rand(pairs, 3, 2, size.px, size.px, device=device)

    def tokens(x: Tensor = x) -> object:
        return model.inference(x, return_only_codebook_ids=True)

    theirs = 2 * pairs / seconds(tokens, repeats=repeats, device=device)
    work = _gigaflops(lambda: tokens(x[:1])) / 2
    # Without its decoder, which token extraction does not run.
    parameters = _millions(model) - _millions(model.dec_spatial_transformer, model.to_pixels_first_frame)
    name = f"LAQ, {size.px} px"
    print(f"{name:<26}{width:>7}{parameters:>10.1f}{work:>13.2f}{theirs:>11.1f}{ours / theirs:>8.2f}x", flush=True)


def _gigaflops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def _millions(*modules: torch.nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


# (b) the q-former


@torch.no_grad()
def qformer_rows(device: torch.device, *, repeats: int) -> None:
    """Print all latent steps at once against one at a time, at the paper's 23 steps; both must agree."""
    print(f"\n{'q-former, 23 steps':<34}{'at once, ms':>14}{'loop, ms':>11}{'ratio':>8}")
    for width, grid, batch in ((32, 4, 1), (64, 8, 1), (64, 8, 4)):
        config = DLDMConfig(levels=(LevelConfig(width),), qformer=QFormerConfig(heads=4))
        qformer = QFormer(config).to(device).eval()
        f = torch.randn(batch, 24, width, grid, grid, device=device)

        def loop(qformer: QFormer = qformer, f: Tensor = f) -> Tensor:
            return torch.cat([qformer(f[:, k - 1 : k + 1]) for k in range(1, 24)], dim=1)

        torch.testing.assert_close(qformer(f), loop(), atol=1e-4, rtol=1e-4)
        whole = seconds(lambda q=qformer, f=f: q(f), repeats=5 * repeats, device=device)  # type: ignore[misc]
        looped = seconds(loop, repeats=5 * repeats, device=device)
        name = f"width {width}, grid {grid} x {grid}, batch {batch}"
        print(f"{name:<34}{1000 * whole:>14.2f}{1000 * looped:>11.2f}{looped / whole:>8.1f}", flush=True)


# (c) training


def build_parts(preset: str, device: torch.device, *, layers: int | None = None, **change: Any) -> Parts:
    """Return a preset's models with random weights; `change` and `layers` override the VDM's configuration."""
    tree = preset_tree(preset)
    dldm = config_from(DLDMConfig, tree["dldm"])
    codec = config_from(CodecConfig, tree["codec"])
    config = replace(config_from(VDMConfig, tree["vdm"]), **change)
    config = replace(config, layers=layers or config.layers)
    height, width = dldm.height // codec.block, dldm.width // codec.block
    geometry = Geometry(codec.channels, dldm.latent_steps, height, width, dldm.queries, len(dldm.fsq_levels))
    phases = config_from(TrainDLDMConfig, tree["train_dldm"])
    with torch.device(device):
        return Parts(DLDM(dldm), VDM(config, geometry, codec), build_codec(codec), phases)


def measure_step(
    parts: Parts, loss_of: Callable[[], Tensor], parameters: list[torch.nn.Parameter], *, device: torch.device
) -> tuple[float, float]:
    """Return (seconds, FLOPs) of one step: forward under bfloat16 autocast, backward, AdamW."""
    loop = parts.phases.phase2
    optimizer = build_optimizer(parameters, loop.optim)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_of()
        loss.backward()
        optimizer_step(loss.detach(), optimizer, step=0, config=loop.optim, total_steps=loop.train_steps)

    # Counted in the first step, which also warms up.
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return seconds(step, repeats=3, device=device), float(counter.get_total_flops())


def training_row(name: str, clips: int, timed: tuple[float, float], device: torch.device) -> None:
    took, flops = timed
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((peak for known, peak in PEAK_FLOPS.items() if known in card), None)
    # Share of the peak of dense bfloat16 operations; unknown GPUs have none.
    share = f"{100 * flops / took / peak:>8.1f}" if peak else f"{'-':>8}"
    print(f"{name:<34}{clips:>7}{1000 * took:>12.1f}{clips / took:>10.2f}{flops / 1e12:>9.3f}{share}", flush=True)


def phase_rows(preset: str, device: torch.device, *, batch: int | None = None) -> None:
    """Print phases 1 and 2 of a preset, at its batch size or another."""
    parts = build_parts(preset, device)
    clips = batch or parts.phases.phase2.batch_size
    x = fake_clip(parts.dldm.config, clips).to(device)
    valid = torch.ones(clips, parts.dldm.config.latent_steps, dtype=torch.bool, device=device)
    noise = SampleNoise(0, 0, stream=0, samples=range(clips), device=device)
    dldm_only = list(parts.dldm.parameters())
    both = [*dldm_only, *parts.vdm.trainable_parameters()]

    def one() -> Tensor:
        return phase_one_loss(parts.dldm, x, valid)[0]

    def two() -> Tensor:
        return phase_two_loss(parts.dldm, parts.vdm, parts.codec, x, valid, phases=parts.phases, noise=noise)[0]

    for phase, loss_of, learning in (("1", one, dldm_only), ("2", two, both)):
        timed = measure_step(parts, loss_of, learning, device=device)
        training_row(f"phase {phase}, {preset}", clips, timed, device)


def lora_row(device: torch.device, *, layers: int | None = None, **change: Any) -> None:
    """Print one LoRA step of the video diffusion model in the 2B shape: random weights, one clip, latents given."""
    parts = build_parts("paper", device, layers=layers, train="lora", control="light", **change)
    # Recomputed activations, as a 2B model needs them.
    parts.vdm.checkpoint_gradients()
    grid = parts.vdm.geometry
    latents = torch.randn(1, grid.channels, grid.latent_steps + 1, grid.height, grid.width, device=device)
    codes = torch.rand(1, grid.latent_steps, grid.queries, grid.fsq_dims, device=device)
    valid = torch.ones(1, grid.latent_steps, dtype=torch.bool, device=device)
    noise = SampleNoise(0, 0, stream=0, samples=[0], device=device)
    learning = parts.vdm.trainable_parameters()
    loss_of = lambda: parts.vdm.denoising_loss(latents, codes, control_video=latents, valid=valid, noise=noise)  # noqa: E731
    training_row("LoRA step, 2B shape", 1, measure_step(parts, loss_of, learning, device=device), device)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--laq", type=Path, help="folder laq/ of a LAPA checkout")
    arguments.add_argument("--preset", default="h200", help="of the two phases")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--sizes", default="tiny,h200,paper", help="of token extraction")
    arguments.add_argument("--repeats", type=int, default=3)
    chosen = arguments.parse_args()
    cuda = torch.cuda.is_available() and chosen.device != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    if not cuda:
        torch.set_num_threads(1)
    sizes = tuple(size for size in SIZES if size.preset in chosen.sizes.split(","))
    with torch.autocast("cuda", dtype=torch.bfloat16) if cuda else nullcontext():
        extraction_rows(chosen.laq, sizes, device, repeats=chosen.repeats)
        qformer_rows(device, repeats=chosen.repeats)
    print(f"\n{'training step':<34}{'clips':>7}{'ms':>12}{'clips/s':>10}{'TFLOP':>9}{'MFU, %':>8}")
    if not cuda:
        print("not measured: no GPU")
        return
    phase_rows(chosen.preset, device)
    lora_row(device)


if __name__ == "__main__":
    main()
