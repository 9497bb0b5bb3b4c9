"""Random numbers of training: pure functions of (seed, stream, step, sample), so a run stores no generator state.

`generator` is one sequence for a step. `SampleNoise` has a sequence for every sample of a global batch: which rank
computes the sample, and in which micro-batch, changes none of its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Odd 64-bit constants of SplitMix64 and of xxHash: neighbors get seeds without a common pattern.
_SEED = 0x9E3779B97F4A7C15
_STREAM = 0xBF58476D1CE4E5B9
_STEP = 0x94D049BB133111EB
_SAMPLE = 0xC2B2AE3D27D4EB4F


def generator(seed: int, step: int, *, stream: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that depends on (seed, stream, step) alone.

    Args:
        seed: of the run.
        step: training step, or any other number.
        stream: separates uses of randomness in the same step.
        device: of the numbers; those of a GPU differ from those of the CPU.
    """
    return torch.Generator(device).manual_seed(_mixed(seed, stream, step, 0))


def _mixed(seed: int, stream: int, step: int, sample: int) -> int:
    return (seed * _SEED + stream * _STREAM + step * _STEP + sample * _SAMPLE) & (2**63 - 1)


class SampleNoise:
    """Random numbers of the samples of a batch, each from a generator of its own.

    Numbers are float32 or int64, also for a model in another precision, and come on `device`.

    Args:
        seed: of the run.
        step: training step, or any other number.
        stream: separates uses of randomness in the same step.
        samples: positions of the samples in the global batch.
        device: where the numbers are made; those of a GPU differ from those of the CPU.
    """

    def __init__(
        self, seed: int, step: int, *, stream: int, samples: Iterable[int], device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._generators = [
            # + 1: sample 0 is not the sequence that `generator` gives.
            torch.Generator(self.device).manual_seed(_mixed(seed, stream, step, int(sample) + 1))
            for sample in samples
        ]

    def __len__(self) -> int:
        return len(self._generators)

    def rand(self, *shape: int) -> Tensor:
        """Return [B, *shape], uniform in [0, 1)."""
        return self._stacked(lambda g: torch.rand(shape, generator=g, device=self.device, dtype=torch.float32))

    def randn(self, *shape: int) -> Tensor:
        """Return [B, *shape], normal with mean 0 and variance 1."""
        return self._stacked(lambda g: torch.randn(shape, generator=g, device=self.device, dtype=torch.float32))

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        """Return int64 [B, *shape], uniform in low .. high - 1."""
        return self._stacked(lambda g: torch.randint(low, high, shape, generator=g, device=self.device))

    def _stacked(self, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
        # The order of the calls on one sample is part of its numbers; other samples have no part in it.
        return torch.stack([sample(generator) for generator in self._generators])
