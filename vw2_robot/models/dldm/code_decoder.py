"""The decoder of the dLDM: codes and the feature of the first frame become a coarse clip.

Place in the flow: codes -> decoder -> reconstruction (`dldm.py`), which is also the control video of the VDM. Frame 0
never sees a code, and no frame a code of a later step.
"""

# B batch · T frames · K = 1 + ceil((T-1)/s) feature steps · M = K-1 latent steps · N codes per step · L code dimensions
# C feature width · h, w feature grid · s temporal stride
from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..dense import Dense
from .causal_video import CausalConv3d, CausalDecoder, FactorizedConv, FrameAttention, ResidualBlock
from .code_attention import Codes, attend, code_attention, visible_codes
from .config import DLDMConfig
from .frame_warp import FrameWarp
from .qformer import CrossAttention


class TokenConvolution(FactorizedConv):
    """A causal convolution along the flat row of codes: each code with its two predecessors, the first one repeated.

    The row is a clip of one pixel, as released: of the spatial kernel only the center is used.
    """

    def forward(self, z: Float[Tensor, "B M N Z"]) -> Float[Tensor, "B M N C"]:
        """Return the mixed codes; the flat row is step-major, slot-minor."""
        row: Tensor = super().forward(rearrange(z, "b m n z -> b (m n) z 1 1"))  # type: ignore[no-untyped-call]
        return rearrange(row, "b (m n) c 1 1 -> b m n c", n=z.shape[2])


class CodeDecoder(nn.Module):
    """The module that turns codes and the anchor feature f_0 into a coarse clip. Step 0 never attends to codes."""

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.levels[-1].width
        mix = nn.Linear if config.post_quant == "linear" else TokenConvolution
        self.post_quant = nn.Sequential(nn.Linear(config.code_dims, config.z_channels), mix(config.z_channels, width))
        if not config.released_decoder:
            self.slot = nn.Parameter(torch.randn(config.queries, width) * 0.02)
            self.step = nn.Parameter(torch.randn(config.latent_steps, width) * 0.02)
            self.position = nn.Parameter(torch.randn(config.grid[0] * config.grid[1], width) * 0.02)
        self.block_in = ResidualBlock(width, width)
        if config.released_decoder:
            self.attention = code_attention(config, width, context=width)
        else:
            self.norm = nn.LayerNorm(width)
            self.cross = CrossAttention(width, inner=width, heads=config.qformer.heads)
            self.mlp = nn.Sequential(nn.LayerNorm(width), Dense(width, 2 * width), nn.GELU(), Dense(2 * width, width))
        self.space = FrameAttention(width, axis="space")
        self.time = FrameAttention(width, axis="time")
        self.block_out = ResidualBlock(width, width)
        self.up = CausalDecoder(config)
        self.warp: FrameWarp | None = None
        if config.output == "warp":
            self.warp = FrameWarp(config.levels[0].width, config.stem.temporal_patch_size)
            assert isinstance(self.up.head, CausalConv3d)
            nn.init.zeros_(self.up.head.weight)  # a still image to begin with, so that motion is learned first

    def forward(
        self,
        codes: Float[Tensor, "B M N L"],
        anchor: Float[Tensor, "B C h w"],
        first_frame: Float[Tensor, "B 3 H W"],
    ) -> Float[Tensor, "B T 3 H W"]:
        """Decode a clip of T = 1 + s/gap * M frames; with M = 0 only the anchor.

        Args:
            codes: quantized, M at most `DLDMConfig.latent_steps`.
            anchor: f_0, the feature of frame 0.
            first_frame: pixels in [-1, 1]; not read with `output=pixels`.

        Returns:
            Pixels, trained toward [-1, 1] and not clamped.

        Raises:
            ValueError: if there are more latent steps than the configured clip has.
        """
        _, latent_steps, queries, _ = codes.shape
        if latent_steps > self.config.latent_steps:
            raise ValueError(
                f"the decoder was built for at most {self.config.latent_steps} latent steps, got {latent_steps}"
            )
        # 1. Every step starts as a copy of the anchor; causal layers would give every copy the same.
        anchor = anchor.contiguous(memory_format=torch.channels_last)  # as one dense tensor, not a frame of a clip
        h = self.block_in(anchor[:, None]).expand(-1, latent_steps + 1, -1, -1, -1)
        seen: Codes | None = None
        if latent_steps:
            # 2. Codes become keys and values, with their step and slot where the decoder has embeddings.
            z = self.post_quant(codes)
            if not self.config.released_decoder:
                z = z + self.step[:latent_steps, None] + self.slot
            mask = visible_codes(latent_steps, queries, visibility=self.config.code_visibility, device=z.device)
            seen = Codes(rearrange(z, "b m n c -> b (m n) c"), mask)
            # 3. The places of steps 1 .. M read the codes that the mask shows them.
            h = self.attention(h, seen) if self.config.released_decoder else self._read(h, seen)
        # 4. Mix in space, then along the past, and up-sample to pixels; blocks may attend to the codes again.
        h = self.block_out(self.time(self.space(h)))
        features = self.up.features(h, seen)
        x: Tensor = self.up.pixels(features)
        if self.warp is not None:
            return x + self.warp(features, first_frame)
        return x + first_frame[:, None] if self.config.output == "change" else x

    def _read(self, h: Float[Tensor, "B K C h w"], codes: Codes) -> Float[Tensor, "B K C h w"]:
        """Return the features after attention and an MLP; all steps in one call, frame 0 as it is."""
        rows = rearrange(h, "b k c h w -> b k h w c")  # as it lies in memory
        tokens = rows[:, 1:].flatten(2, 3) + (self.step[: len(codes.seen), None] + self.position)
        tokens = tokens + attend(self.cross, self.norm(tokens), codes)
        tokens = tokens + self.mlp(tokens)
        moved = rearrange(tokens, "b m (h w) c -> b m h w c", h=h.shape[-2])
        rows = torch.cat([rows[:, :1], moved.to(h.dtype)], dim=1)  # under autocast the sum above is float32
        return rearrange(rows, "b k h w c -> b k c h w")
