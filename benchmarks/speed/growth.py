"""How costs grow: episodes of an index, chains, workers, frames of a clip, clips of a batch. A table and a plot.

    python -m benchmarks.speed.growth [--only NAME ...] [--plot docs/growth.svg]

The exponent is the slope of log(seconds) over log(size) in the upper half of the sizes: 1 is linear, and nothing should
be above that. Frames and batch are of the dLDM's encoder and of the policy's decoding with `model=tiny`, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.decode_latency import prompts
from benchmarks.dldm import preset_tree
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import PolicyConfig

from . import cache_opening, chains

REPEAT = 5


@dataclass(frozen=True)
class Curve:
    """Seconds of one piece of work at rising sizes."""

    title: str
    size: str
    sizes: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """The slope in double logarithmic scale, of the upper half of the sizes."""
        first = (len(self.sizes) - 1) // 2
        return float(np.polyfit(np.log(self.sizes[first:]), np.log(self.seconds[first:]), 1)[0])


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the least CPU time of some calls, after one to warm up."""
    work()
    found = []
    for _ in range(REPEAT):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def encoding() -> list[Curve]:
    """Measure the encoder over frames and over clips."""
    torch.manual_seed(0)
    tree = preset_tree("tiny")["dldm"]
    frames = [9, 17, 33, 65, 129]
    by_frames = []
    with torch.inference_mode():
        for count in frames:
            dldm = DLDM(config_from(DLDMConfig, {**tree, "num_frames": count})).eval()
            clip = fake_clip(dldm.config, 1)
            by_frames.append(cpu_seconds(lambda dldm=dldm, clip=clip: dldm.encode(clip)))  # type: ignore[misc]
        dldm = DLDM(config_from(DLDMConfig, tree)).eval()
        batches = [1, 2, 4, 8, 16, 32]
        clips = {size: fake_clip(dldm.config, size) for size in batches}
        by_batch = [cpu_seconds(lambda size=size: dldm.encode(clips[size])) for size in batches]
    return [
        Curve("dLDM, encode a clip", "frames", frames, by_frames),
        Curve("dLDM, encode a batch", "clips", batches, by_batch),
    ]


def decoding() -> list[Curve]:
    """Measure decoding over latent steps and over observations."""
    torch.manual_seed(0)
    config = config_from(PolicyConfig, preset_tree("tiny")["policy"])
    policy = LatentPolicy(config, generator=torch.Generator().manual_seed(0)).eval()
    latent_steps = [1, 2, 4, 8, 16]
    batches = [1, 2, 4, 8, 16, 32]
    with torch.inference_mode():
        one = prompts(policy, 1, torch.device("cpu"))
        by_steps = [cpu_seconds(lambda count=count: policy.decode(one, latent_steps=count)) for count in latent_steps]
        many = {size: prompts(policy, size, torch.device("cpu")) for size in batches}
        by_batch = [cpu_seconds(lambda size=size: policy.decode(many[size], latent_steps=1)) for size in batches]
    return [
        Curve("policy, decode a plan", "latent steps", latent_steps, by_steps),
        Curve("policy, decode a batch", "observations", batches, by_batch),
    ]


def episodes() -> list[Curve]:
    """Measure the opening of frame caches, to the first batch."""
    found = cache_opening.growth()
    return [Curve("open a frame cache", "episodes", list(found), list(found.values()))]


def rollouts() -> list[Curve]:
    """Measure `vw2-rollout` by wall clock, its start included."""
    found = chains.growth()
    return [
        Curve("rollout, two workers", "chains", list(found["chains"]), list(found["chains"].values())),
        Curve("rollout, eight chains", "workers", list(found["workers"]), list(found["workers"].values())),
    ]


CURVES: dict[str, Callable[[], list[Curve]]] = {
    "episodes": episodes,
    "encoding": encoding,
    "decoding": decoding,
    "rollouts": rollouts,
}


def plot(curves: list[Curve], path: Path) -> None:
    """Draw all curves, relative to their first size, with a line for what grows linearly."""
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.7 * rows), layout="constrained")
    for place, curve in enumerate(curves, 1):
        axes = figure.add_subplot(rows, columns, place)
        sizes = np.array(curve.sizes, float)
        axes.loglog(sizes, curve.seconds, marker="o", markersize=4, color="#2a6fb0")
        axes.loglog(sizes, curve.seconds[-1] * sizes / sizes[-1], linestyle=":", color="#777777", label="linear")
        axes.set_title(curve.title, fontsize=10)
        axes.set_xlabel(curve.size, fontsize=9)
        axes.set_ylabel("seconds", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--plot", type=Path, help="SVG or PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = [curve for name in options.only for curve in CURVES[name]()]
    for curve in curves:
        costs = ", ".join(f"{size}: {cost:.3g}" for size, cost in zip(curve.sizes, curve.seconds, strict=True))
        print(f"{curve.title:<30} exponent {curve.exponent:5.2f}   seconds by {curve.size}: {costs}", flush=True)
    if options.plot:
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
