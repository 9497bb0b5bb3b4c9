"""Exponential moving average (EMA) of weights during training.

Place in the flow: an option of the dLDM stage, off by default as in paper and release. With it, the average is what is
validated, saved under the modules' names and read by the next stage; the trained weights are saved beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn


class Average:
    """Exponential moving averages of modules, by name in `modules`: parameters and running statistics.

    Made before the modules are sharded; then the averages are sharded alike, and each rank updates its own shards.

    Args:
        learning: the modules in training, by name.
        decay: of the average per step, in (0, 1).

    Raises:
        ValueError: the decay is not in (0, 1).
    """

    def __init__(self, learning: Mapping[str, nn.Module], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of an average must lie in (0, 1), found {decay}")
        self.decay = decay
        self.learning = dict(learning)
        self.modules = {name: copy.deepcopy(module).requires_grad_(False) for name, module in learning.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average toward the trained weights after step `step` (from 0)."""
        # Smaller decay in the first steps, so that the random initial weights leave the average quickly.
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, module in self.learning.items():
            new = module.state_dict()
            for key, slow in self.modules[name].state_dict().items():
                if slow.is_floating_point():
                    slow.lerp_(new[key], 1 - keep)  # exact where nothing has changed
                else:  # a count of batches has no average
                    slow.copy_(new[key])
