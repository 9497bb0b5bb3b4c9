"""Cost of the policy's image encoders: training step and policy call, in milliseconds of one thread, and memory.

    python -m benchmarks.speed.image_encoders --sides 64 96 128

`pixels` is as in model=tiny, with blocks proportional to the side; `pretrained` has random weights, which cost as much.
All encoders of a side run in turn in every round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from vw2_robot.models.policy.image_tokens import PixelTokens, PretrainedTokens

from .row import interleaved

BATCH = 32
WIDTH = 128
"""of the image tokens"""


def encoders(side: int) -> dict[str, PixelTokens | PretrainedTokens]:
    """Return the encoders that are compared at a side, by the configuration that makes them."""
    found: dict[str, PixelTokens | PretrainedTokens] = {
        "pixels": PixelTokens(side, (64, 128, 128), WIDTH, block=side // 32)
    }
    for stages, frozen in ((5, 0), (5, 3), (5, 5), (7, 0)):
        found[f"pretrained, image_stages={stages} image_frozen={frozen}"] = PretrainedTokens(
            side, WIDTH, stages=stages, frozen=frozen, imagenet=False
        )
    return found


def cpu_ms(work: Callable[[], object]) -> float:
    """Do the work and return its CPU time."""
    begin = time.process_time()
    work()
    return 1000 * (time.process_time() - begin)


def training(encoder: nn.Module, image: Tensor, instruction: Tensor) -> None:
    """Compute tokens and their gradient."""
    encoder(image, instruction).square().mean().backward()


@torch.inference_mode()
def control(encoder: nn.Module, image: Tensor, instruction: Tensor) -> None:
    """Compute the tokens of one image."""
    encoder(image[:1], instruction[:1])


def kept_mib(encoder: nn.Module, image: Tensor, instruction: Tensor) -> float:
    """Return the memory that the forward pass keeps for the gradient, without weights."""
    weights = {parameter.data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        tokens = encoder(image, instruction)  # alive, so that no address is used twice
    assert tokens.requires_grad
    return sum(kept.values()) / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row for each side and encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=[64, 96, 128], help="multiples of 32, in pixels")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each side")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'px':<6}{'encoder':<46}{'tokens':>8}{'weights':>12}{f'step, {BATCH} images':>17}{'kept':>10}{'call':>10}")
    for side in args.sides:
        image, instruction = torch.rand(BATCH, 3, side, side) * 2 - 1, torch.randn(BATCH, WIDTH)
        compared = encoders(side)
        ways = {
            (name, work.__name__): partial(cpu_ms, partial(work, encoder, image, instruction))
            for name, encoder in compared.items()
            for work in (training, control)
        }
        rounds = interleaved(ways, seconds=args.seconds, min_rounds=3)
        for name, encoder in compared.items():
            step, call = (median(rounds.costs[name, work.__name__]) for work in (training, control))
            weights = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
            kept = f"{kept_mib(encoder, image, instruction):.0f} MiB"
            cells = f"{encoder.count:>8}{weights:>10.2f} M{step:>14.0f} ms{kept:>10}{call:>7.1f} ms"
            print(f"{side:<6}{name:<46}{cells}", flush=True)


if __name__ == "__main__":
    main()
