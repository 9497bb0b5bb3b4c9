"""Where the time of a training step of `model=tiny` goes: torch's profiler, one thread, ten steps.

python -m benchmarks.speed.step_profile "phase 1"
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.dldm import preset_tree
from benchmarks.gpu.datasets import write_calvin, write_frames
from benchmarks.gpu.measured import Settings
from benchmarks.gpu.presets import changed, pretrain_config
from benchmarks.gpu.timed_run import TimedRun
from benchmarks.gpu.training import run_fine_tuning, run_phase, run_policy, run_prior
from vw2_robot.pretrain.config import PretrainConfig

WARM_UP, STEPS = 8, 10
SIDE, LENGTH, EPISODES = 64, 40, 8
KINDS = {
    "convolutions": ("convolution",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "attention"),
    "copies": ("copy_", "aten::cat", "unshuffle", "gather", "index", "fill_", "zero_"),
    "norms": ("norm",),
    "AdamW": ("adamw", "Adam"),
}
"""parts of the names of operations; the first kind that fits counts"""


class ProfiledRun(TimedRun):
    """A run of a few steps under the profiler."""

    def steps(self, stop: int | None = None, *, what: str = "") -> Iterator[int]:
        """Yield step numbers, and print the shares at the end.

        Args:
            stop: not reached.
            what: not used.
        """
        yield from range(self.start, self.start + WARM_UP)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            yield from range(self.start + WARM_UP, self.start + WARM_UP + STEPS)
        spent: dict[str, float] = {}
        for event in profile.key_averages():
            kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "others")
            spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
        total = sum(spent.values())
        print(f"{total / STEPS / 1000:.0f} ms a step under the profiler")
        for kind, part in sorted(spent.items(), key=lambda item: -item[1]):
            print(f"  {kind:<18}{part / total:>6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["video prior", "phase 1", "phase 2", "policy", "fine-tuning"])
    stage = parser.parse_args().stage
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = Settings(device="cpu", toy=False, folder=folder)
        frames = write_frames(folder / "frames", episodes=EPISODES, length=LENGTH, height=SIDE, width=SIDE)
        tree = changed(preset_tree("tiny"), {"hardware": {"threads": 1}})
        config = pretrain_config(tree, settings, frame_cache=frames)
        config.hardware.torch_device()
        calvin = write_calvin(folder / "calvin", length=LENGTH, px=SIDE) if stage == "fine-tuning" else folder
        loops: dict[str, Callable[[PretrainConfig, TimedRun], None]] = {
            "video prior": run_prior,
            "phase 1": partial(run_phase, name="phase 1"),
            "phase 2": partial(run_phase, name="phase 2"),
            "policy": run_policy,
            "fine-tuning": partial(run_fine_tuning, settings=settings, calvin=calvin),
        }
        with ProfiledRun(folder / "run", torch.device("cpu"), total_steps=10**6, counts=False) as run:
            loops[stage](config, run)


if __name__ == "__main__":
    main()
