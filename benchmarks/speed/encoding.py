"""Token extraction at `model=paper` beside its own arithmetic, and of overlapping windows beside one window by itself.

Run: python -m benchmarks.speed --part benchmarks.speed.encoding --seconds 90

One clip of 5 frames, 240 x 416, one thread, float32. The convolutions and matrix products that the encoder calls are
recorded with the shape and memory layout of their operands, and called again alone.

The windows of an episode of 60 frames, in small images: at the paper's size they would take minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.command_line.keys import defaults_of
from vw2_robot.data.clips import make_windows
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.dldm.shared_windows import lay_out

from .row import SpeedRow, interleaved

NUM_FRAMES = 5
WANTED = 0.8
EPISODE_FRAMES = 60
SMALL = {"height": 32, "width": 48}
WINDOWS_WANTED = 1.7
"""the ratio of arithmetic"""
PRODUCTS = {"convolution", "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu"}


class Recorder(TorchDispatchMode):
    """Collects the calls of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.sizes: list[tuple[int, int, int]] = []
        """rows, inner size and columns of each convolution as one matrix product"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            self.calls.append(partial(func, *args, **(kwargs or {})))
        if func.overloadpacket.__name__ == "convolution":
            weight: Tensor = args[1]
            self.sizes.append((out.numel() // out.shape[1], weight[0].numel(), weight.shape[0]))
        return out


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Measure rounds of one clip, then of the windows of one episode, for about that long."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tree = defaults_of("pretrain", "model=paper")
    config = config_from(DLDMConfig, tree["dldm"])
    clip = clip_rows(replace(config, num_frames=NUM_FRAMES), 0.4 * seconds)
    windows = windows_row(replace(config, **SMALL), tree["extract_latents"]["cache_stride"], 0.4 * seconds)
    return [*clip, windows]


def clip_rows(config: DLDMConfig, seconds: float) -> list[SpeedRow]:
    """Measure one clip beside the products that it consists of."""
    dldm = DLDM(config).eval()
    x = fake_clip(config, 1)
    recorder = Recorder()
    with torch.no_grad(), recorder:
        dldm.indices(x)

    @torch.no_grad()
    def alone() -> None:
        for call in recorder.calls:
            call()

    # Plain products of the convolutions' sizes; equal sizes share their operands.
    operands = {(m, k, n): (torch.randn(m, k), torch.randn(k, n)) for m, k, n in set(recorder.sizes)}

    def plain() -> None:
        for size in recorder.sizes:
            torch.mm(*operands[size])

    ways = {"encode": partial(dldm.indices, x), "alone": alone, "mm": plain}
    rounds = interleaved({name: partial(_cpu_seconds, work) for name, work in ways.items()}, seconds=seconds)
    work = 2e-9 * sum(math.prod(size) for size in recorder.sizes)
    why = f"{work:.0f} GFLOP, one thread, CPU time"
    return [
        rounds.row(
            "token extraction, paper",
            ours="encode",
            other="alone",
            against="its convolutions and products alone",
            unit="s/clip",
            wanted=WANTED,
            why=why,
        ),
        rounds.row(
            "token extraction, torch.mm",
            ours="encode",
            other="mm",
            against="torch.mm of the same sizes",
            unit="s/clip",
            wanted=WANTED,
            why=why,
        ),
    ]


def windows_row(config: DLDMConfig, cache_stride: int, seconds: float) -> SpeedRow:
    """Measure the windows of one episode, encoded as token extraction does it, and each from its first frame on."""
    dldm = DLDM(config).eval().requires_grad_(False)  # the counter fails on weights with gradients
    stride = config.temporal_stride
    frame_ids = make_windows(
        EPISODE_FRAMES,
        num_frames=config.num_frames,
        cache_stride=cache_stride,
        hz=10.0,
        temporal_stride=stride,
    ).frame_ids
    video, starts = lay_out(frame_ids, stride=stride, cache_stride=cache_stride)
    frames = fake_clip(replace(config, num_frames=EPISODE_FRAMES), 1)[0]
    ways: dict[str, Callable[[], Tensor]] = {
        "shared": lambda: dldm.window_indices(frames[video], torch.from_numpy(starts)),
        "alone": lambda: dldm.indices(frames[frame_ids]),
    }
    work, codes = {}, {}
    for name, way in ways.items():
        with FlopCounterMode(display=False) as counter:
            codes[name] = way()
        work[name] = counter.get_total_flops() * 1e-9
    equal = (codes["shared"] == codes["alone"]).double().mean().item()
    rounds = interleaved({name: partial(_cpu_seconds, way) for name, way in ways.items()}, seconds=seconds)
    return rounds.row(
        "extraction of overlapping windows",
        ours="shared",
        other="alone",
        against="window by window",
        unit="s/episode",
        wanted=WINDOWS_WANTED,
        why=f"{work['shared']:.0f} of {work['alone']:.0f} GFLOP, {equal:.1%} of the codes equal, one thread, CPU time",
    )


def _cpu_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin
