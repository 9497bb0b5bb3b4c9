"""Vector quantization with a learned codebook, as in the predecessor LAPA, with the same methods as `FSQ`.

Place in the flow: dLDM queries -> VQ -> latent action tokens, where `dldm.quantizer=vq`. LAPA (Ye et al., "Latent
Action Pretraining from Videos", 2024) has 8 entries of width 32 and four tokens a pair of frames. The default quantizer
is `fsq.py`, which has no codebook that could die.

Training uses noise substitution (Vali and Bäckström, "NSVQ", 2022): instead of the nearest entry e the decoder gets
z + |z - e| * v / |v| with Gaussian v, a point at the right distance in a random direction. Its gradient reaches both z
and e, so there is neither a codebook loss nor a straight-through estimator. In eval mode codes are entries.

Entries that hardly any batch uses are moved onto used ones on a fixed schedule, often at first and never after batch
4500. The noise depends on a saved count of batches alone, so a resumed run samples the same noise.
"""

# B batch · M latent steps · N codes per step · L code dimensions · V codebook
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# An entry that fewer than this share of the batches since the last check used is replaced.
USED_BY_BATCHES = 0.1
# Replacement every `period` batches while their count is below `end`.
SCHEDULE = ((100, 10), (1000, 100), (5000, 500))  # (end, period)
# A replaced entry lands this far from the one it joins, in units of a fresh entry, so that the two can part.
REPLACED_STD = 1e-3
# Random streams of one batch: noise takes the even seeds, replacement the odd ones.
_NOISE = 0
_REPLACE = 1


class VQ(nn.Module):
    """The quantizer. `levels` is (V,): for the code of others it is one dimension of V values.

    Args:
        vocabulary: V, entries of the codebook.
        width: L, numbers of an entry.

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

    def forward(self, z: Float[Tensor, "*batch L"]) -> Float[Tensor, "*batch L"]:
        """Return z plus noise of the size of the quantization error; in eval mode the nearest entry. Both float32."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if not self.training:
                return self.codes_of(self.indices(z))
            self._replace_unused()
            indices = self.indices(z)
            self.used[indices.unique()] += 1
            # NSVQ: the error keeps its length |z - e| and gets a random direction; its gradient reaches z and e.
            error = (z - self.codebook[indices]).norm(dim=-1, keepdim=True)
            generator = torch.Generator().manual_seed(2 * int(self.batches) + _NOISE)
            v = torch.randn(z.shape, generator=generator).to(z.device)
            self.batches += 1
            self.since += 1
            return z + error * v / v.norm(dim=-1, keepdim=True)

    def indices(self, z: Float[Tensor, "*batch L"]) -> Int[Tensor, "*batch"]:
        """Return the index of the entry nearest to z; the inverse of `codes_of`. Not for noisy codes of training."""
        flat = z.detach().float().reshape(-1, z.shape[-1])
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
            generator = torch.Generator().manual_seed(2 * count + _REPLACE)
            dead = (~alive).nonzero().flatten()
            donors = alive.nonzero().flatten()
            chosen = donors[torch.randint(len(donors), (len(dead),), generator=generator).to(donors.device)]
            apart = REPLACED_STD * torch.randn(len(dead), self.codebook.shape[1], generator=generator)
            self.codebook[dead] = self.codebook[chosen] + apart.to(self.codebook)
        self.used.zero_()
        self.since.zero_()
