"""Vector quantization with a learned codebook, as in the predecessor LAPA, with the same methods as `FSQ`.

Place in the flow: dLDM queries -> VQ -> latent action tokens, where `dldm.quantizer=vq`. LAPA (Ye et al., "Latent
Action Pretraining from Videos", 2024) has 8 entries of width 32 and four tokens a pair of frames. The default quantizer
is `fsq.py`, which has no codebook that could die.

Training uses noise substitution (Vali and Bäckström, "NSVQ", 2022): instead of the nearest entry e the decoder gets
z + |z - e| * v / |v| with Gaussian v, a point at the right distance in a random direction. Its gradient reaches both z
and e, so there is neither a codebook loss nor a straight-through estimator. In eval mode codes are entries.

Entries that hardly any batch uses are moved onto used ones on a fixed schedule, often at first and never after batch
4500. The noise of a clip depends on a saved count of batches and on its place in the batch alone: a resumed run samples
the same noise, and so do several ranks.
"""

# B batch · M latent steps · N codes per step · L code dimensions · V codebook
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vw2_robot.distributed.ranks import global_sum, rank, world_size
from vw2_robot.random_numbers import SampleNoise, generator

from ..precision import at_least_float32

# An entry that fewer than this share of the batches since the last check used is replaced.
USED_BY_BATCHES = 0.1
# Replacement every `period` batches while their count is below `end`.
SCHEDULE = ((100, 10), (1000, 100), (5000, 500))  # (end, period)
# A replaced entry lands this far from the one it joins, in units of a fresh entry, so that the two can part.
REPLACED_STD = 1e-3
# Random streams of one batch.
_NOISE = 60
_REPLACE = 61


class VQ(nn.Module):
    """The quantizer. `levels` is (V,): for the code of others it is one dimension of V values.

    Args:
        vocabulary: V, entries of the codebook.
        width: L, numbers of an entry.

    Attributes:
        micro_batches: forward passes of each rank for one batch, which training programs set.

    Raises:
        ValueError: if there are fewer than two codes.
    """

    batches: Tensor
    since: Tensor
    used: Tensor

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        if vocabulary < 2 or width < 1:
            raise ValueError(f"a codebook needs at least 2 codes of width 1, found {vocabulary} of width {width}")
        self.vocabulary = vocabulary
        self.levels = (vocabulary,)
        self.codebook = nn.Parameter(torch.randn(vocabulary, width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.register_buffer("since", torch.zeros((), dtype=torch.long))
        self.register_buffer("used", torch.zeros(vocabulary, dtype=torch.long))
        self.micro_batches = 1
        self._passes = 0
        self._seen = torch.zeros(vocabulary, dtype=torch.bool)

    def forward(self, z: Float[Tensor, "B *batch L"]) -> Float[Tensor, "B *batch L"]:
        """Return z plus noise of the size of the quantization error; in eval mode the nearest entry.

        At least float32, also under autocast.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = at_least_float32(z)
            if not self.training:
                return self.codes_of(self.indices(z))
            if self._passes == 0:
                self._replace_unused()
                self._seen = torch.zeros_like(self.used, dtype=torch.bool)
            indices = self.indices(z)
            self._seen[indices.unique()] = True
            # NSVQ: the error keeps its length |z - e| and gets a random direction; its gradient reaches z and e.
            error = (z - self.codebook[indices]).norm(dim=-1, keepdim=True)
            v = self._noise(z)
            self._passes += 1
            if self._passes == self.micro_batches:
                self._count_batch()
            return z + error * v / v.norm(dim=-1, keepdim=True)

    def _noise(self, z: Tensor) -> Tensor:
        # Positions in the global batch: micro-batch after micro-batch, in each of them rank after rank.
        first = (self._passes * world_size() + rank()) * len(z)
        samples = range(first, first + len(z))
        return SampleNoise(0, int(self.batches), stream=_NOISE, samples=samples, device=z.device).randn(*z.shape[1:])

    def _count_batch(self) -> None:
        """Count the codes of all micro-batches and ranks as one batch."""
        self._passes = 0
        self.used += global_sum(self._seen.long()) > 0
        self.batches += 1
        self.since += 1

    def indices(self, z: Float[Tensor, "*batch L"]) -> Int[Tensor, "*batch"]:
        """Return the index of the entry nearest to z; the inverse of `codes_of`. Not for noisy codes of training."""
        flat = at_least_float32(z.detach()).reshape(-1, z.shape[-1])
        return torch.cdist(flat, self.codebook.detach()).argmin(dim=-1).view(z.shape[:-1])

    def codes_of(self, indices: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch L"]:
        """Return the codebook entry of each index in [0, V)."""
        return self.codebook[indices]

    @torch.no_grad()
    def _replace_unused(self) -> None:
        """On the batches of `SCHEDULE`, move entries that are hardly used onto used ones and reset the counts."""
        count = int(self.batches)
        period = next((period for end, period in SCHEDULE if count < end), None)
        if period is None or count == 0 or count % period:
            return
        alive = self.used >= USED_BY_BATCHES * self.since
        if alive.any():  # with no used entry there is nothing to move onto
            noise = generator(0, count, stream=_REPLACE)
            dead = (~alive).nonzero().flatten()
            donors = alive.nonzero().flatten()
            chosen = donors[torch.randint(len(donors), (len(dead),), generator=noise).to(donors.device)]
            apart = REPLACED_STD * torch.randn(len(dead), self.codebook.shape[1], generator=noise)
            self.codebook[dead] = self.codebook[chosen] + apart.to(self.codebook)
        self.used.zero_()
        self.since.zero_()
