"""The dynamics-enhanced latent dynamics model: a clip becomes a few discrete codes per latent step, and back.

Place in the flow: clips -> dLDM -> latent codes. Causal encoder, learnable queries (q-former), FSQ, decoder; method
specification sections 1.1 to 1.5. The video diffusion model that takes appearance off the codes is in `vdm.py`; phases
and stop-gradients are in `pretrain/dldm_losses.py`.

Time alignment, an interface that the action head relies on: feature step 0 is frame 0 alone (the anchor); latent step k
(1 .. M) covers frames s(k-1)+1 .. sk, the transitions caused by actions a[s(k-1)] .. a[sk-1]. In tensors of M steps,
entry m is latent step m + 1. No code depends on a frame after the end of its step.
"""

# B batch · T frames · K = 1 + ceil((T-1)/s) feature steps · M = K-1 latent steps · N codes per step · L digits per code
# C feature width · h, w feature grid · s temporal stride
from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .causal_video import CausalEncoder
from .code_decoder import CodeDecoder
from .config import DLDMConfig
from .fsq import FSQ
from .qformer import QFormer
from .vq import VQ


class Encoded(NamedTuple):
    """What the encoder says of a clip: the anchor feature f_0, the codes, and their indices."""

    anchor_BChw: Tensor
    codes_BMNL: Tensor
    indices_BMN: Tensor


def pad_to_stride(x: Float[Tensor, "B T 3 H W"], stride: int) -> Float[Tensor, "B T2 3 H W"]:
    """Repeat the last frame until T - 1 is a multiple of the stride; the last step then covers copies (mask it out)."""
    missing = -(x.shape[1] - 1) % stride
    return x if missing == 0 else torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)


class Standardize(nn.Module):
    """Zero mean and unit variance for each digit of each query: over the batch in training, running statistics in eval.

    Each query for itself: over all queries together, a constant difference between them would pass for variance.
    In eval mode a code depends on its own clip's past alone; encode for others in eval mode.
    """

    def __init__(self, queries: int, fsq_dims: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(queries * fsq_dims, affine=False, momentum=0.1)

    def forward(self, z: Float[Tensor, "B M N L"]) -> Float[Tensor, "B M N L"]:
        """Float32 on purpose: running statistics in bfloat16 stop moving."""
        with torch.autocast(z.device.type, enabled=False):
            out: Tensor = self.norm(z.float().flatten(2).flatten(0, 1)).view_as(z)
            return out


class DLDM(nn.Module):
    """Encoder, queries, FSQ and decoder in one module; see the module docstring for the time alignment."""

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.levels[-1].width
        self.encoder = CausalEncoder(config.stem, config.levels)
        self.qformer = QFormer(config)
        self.pre_quant = self._z_head(width)
        self.fsq: FSQ | VQ = FSQ(config.fsq_levels)
        if config.quantizer == "vq":
            self.fsq = VQ(config.vocabulary, config.vq_width)
        self.decoder = CodeDecoder(config)

    def _z_head(self, width: int) -> nn.Module:
        digits = self.config.code_dims
        if self.config.z_norm == "none":
            return nn.Sequential(nn.Linear(width, self.config.z_channels), nn.Linear(self.config.z_channels, digits))
        last = nn.Linear(width, digits)
        nn.init.normal_(last.weight, std=width**-0.5)
        nn.init.zeros_(last.bias)
        spread = Standardize(self.config.queries, digits) if self.config.z_norm == "batch" else nn.Identity()
        return nn.Sequential(nn.LayerNorm(width), last, spread)

    def seen(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T2 3 H W"]:
        """The frames that the model reads and reconstructs: T padded to the stride, then every gap-th."""
        return pad_to_stride(x, self.config.temporal_stride)[:, :: self.config.gap]

    def features(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B K C h w"]:
        """Causal features of a clip in [-1, 1]; T is padded to the stride by repeating the last frame.

        Raises:
            ValueError: if the frame size is not the configured one.
        """
        if x.shape[-2:] != (self.config.height, self.config.width):
            raise ValueError(
                f"the dLDM was built for {self.config.height} x {self.config.width} pixels, got {tuple(x.shape[-2:])}"
            )
        out: Tensor = self.encoder(self.seen(x))
        return out

    def quantize(self, f: Float[Tensor, "B K C h w"]) -> tuple[Float[Tensor, "B M N L"], Int[Tensor, "B M N"]]:
        """Features -> codes (straight-through gradients) and their indices."""
        z = self.pre_quant(self.qformer(f))
        codes = self.fsq(z)
        return codes, self.fsq.indices(codes if isinstance(self.fsq, FSQ) else z)

    def encode(self, x: Float[Tensor, "B T 3 H W"]) -> Encoded:
        """Clip -> anchor feature f_0, codes, indices."""
        f = self.features(x)
        codes, indices = self.quantize(f)
        return Encoded(f[:, 0], codes, indices)

    def decode(
        self,
        codes: Float[Tensor, "B M N L"],
        anchor: Float[Tensor, "B C h w"],
        first_frame: Float[Tensor, "B 3 H W"],
    ) -> Float[Tensor, "B T 3 H W"]:
        """Coarse clip of 1 + s/gap * M frames, those of `seen`."""
        out: Tensor = self.decoder(codes, anchor, first_frame)
        return out

    def checkpoint_gradients(self) -> None:
        """From now on keep only the input of each block of the trunk and compute the rest again on the way back."""
        self.encoder.checkpointing = self.decoder.up.checkpointing = True

    @torch.no_grad()
    def indices(self, x: Float[Tensor, "B T 3 H W"]) -> Int[Tensor, "B M N"]:
        """The latent action tokens of a clip, without gradients, in eval mode."""
        was_training = self.training
        self.eval()
        indices = self.encode(x).indices_BMN
        self.train(was_training)
        return indices
