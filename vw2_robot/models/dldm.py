"""The dynamics-enhanced latent dynamics model: a clip becomes a few discrete codes per latent step, and back.

Place in the flow: clips -> dLDM -> latent codes. Causal encoder, learnable queries (q-former), FSQ, decoder; method
specification sections 1.1 to 1.5. The video diffusion model that takes appearance off the codes is in `vdm.py`; phases
and stop-gradients are in `pretrain/train_dldm.py`.

Time alignment, an interface that the action head relies on: feature step 0 is frame 0 alone (the anchor); latent step k
(1 .. M) covers frames s(k-1)+1 .. sk, the transitions caused by actions a[s(k-1)] .. a[sk-1]. In tensors of M steps,
entry m is latent step m + 1. No code depends on a frame after the end of its step.
"""

# B batch · T frames · K = 1 + ceil((T-1)/s) feature steps · M = K-1 latent steps · N codes per step · L digits per code
# C feature width · h, w feature grid · s temporal stride
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .causal_video import CausalDecoder, CausalEncoder, FrameAttention, LevelConfig, ResidualBlock, StemConfig
from .frame_warp import FrameWarp
from .fsq import FSQ
from .vq import VQ


@dataclass(frozen=True)
class QFormerConfig:
    """The learnable queries and what they may look at (method 1.3; the paper's three sources disagree)."""

    context: Literal["adjacent", "all", "current"] = "adjacent"
    """step k sees (f_{k-1}, f_k), all of f_0 .. f_k, or f_k alone"""
    depth: int = 2
    heads: int = 4
    role_embedding: bool = True
    """tell previous from current frame; our addition, off in the release"""
    value_pos: bool = True
    """position code on the values too, not on the keys only; off in the release"""
    difference_values: bool = True
    """adjacent only: values of the previous frame enter with a learned gain that starts at -1, those of the current one
    at +1, so that even uniform attention reads the change instead of the mean; our addition, off in the release"""


@dataclass(frozen=True)
class DLDMConfig:
    """Size and switches of the autoencoder. Defaults: the paper's size with our health switches on (method 5.1)."""

    frames: int = 93
    """T, frames of a training clip"""
    height: int = 240
    width: int = 416
    stem: StemConfig = field(default_factory=StemConfig)
    levels: tuple[LevelConfig, ...] = (
        LevelConfig(width=256, down_s=True),
        LevelConfig(width=512, down_s=True),
        LevelConfig(width=512, attention=True),
    )
    queries: int = 4
    """N, codes per latent step"""
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    quantiser: Literal["fsq", "vq"] = "fsq"
    """vq: a learned codebook, as the predecessor LAPA has it"""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    """values of each digit of a code, their product is V; with `vq` one number, V"""
    vq_width: int = 32
    """vq: numbers of an entry of the codebook"""
    z_channels: int = 256
    z_norm: Literal["batch", "layer", "none"] = "batch"
    """what keeps the numbers before FSQ spread over its levels. layer: LayerNorm, then a linear of unit output
    variance; batch: the same, then each number standardised over the batch in training and by running statistics after
    (small runs fall to one code without it); none: the release"""
    code_visibility: Literal["causal", "current"] = "causal"
    """decoder step k attends to the codes of steps <= k, or of step k alone"""
    output: Literal["pixels", "change", "warp"] = "pixels"
    """what the decoder predicts: the pixels themselves (paper); their change from the first frame; or a flow field that
    moves the pixels of the first frame, plus a change (`frame_warp.py`)"""
    post_quant: Literal["linear", "conv"] = "linear"
    """how the decoder takes codes in: each by itself, or with its two predecessors in the flat row (release)"""
    gap: int = 1
    """the model reads and reconstructs every gap-th frame; frames = 1 + gap makes it LAPA's pair of frames"""

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"dldm.frames must be at least 2 (an anchor and one more), found {self.frames}")
        if self.gap < 1:
            raise ValueError(f"dldm.gap must be at least 1 (every frame), found {self.gap}")
        if self.quantiser == "vq" and len(self.fsq_levels) != 1:
            raise ValueError(
                f"dldm.quantiser=vq: dldm.fsq_levels must be one number, the codebook's size; found {self.fsq_levels}"
            )
        if self.post_quant == "conv" and self.code_visibility == "current":
            raise ValueError(
                "dldm.post_quant=conv mixes codes of neighbouring steps, so code_visibility must be causal"
            )
        if not self.levels:
            raise ValueError("dldm.levels is empty; give at least one resolution")
        shrink = self.stem.patch_s * 2 ** sum(level.down_s for level in self.levels)
        for name, size in (("height", self.height), ("width", self.width)):
            if size % shrink:
                raise ValueError(f"dldm.{name} must be a multiple of {shrink} (stem and down-sampling), found {size}")
        if self.levels[-1].width % (2 * self.qformer.heads):
            raise ValueError(
                f"the last level's width {self.levels[-1].width} must be a multiple of 2 x {self.qformer.heads} heads"
            )

    @property
    def stride(self) -> int:
        """s, frames per latent step."""
        return int(self.gap * self.stem.patch_t * 2 ** sum(level.down_t for level in self.levels))

    @property
    def steps(self) -> int:
        """M, latent steps of a training clip."""
        return math.ceil((self.frames - 1) / self.stride)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature grid."""
        shrink = self.stem.patch_s * 2 ** sum(level.down_s for level in self.levels)
        return self.height // shrink, self.width // shrink

    @property
    def vocabulary(self) -> int:
        """V, number of different codes."""
        return math.prod(self.fsq_levels)

    @property
    def digits(self) -> int:
        """L, numbers of one code."""
        return len(self.fsq_levels) if self.quantiser == "fsq" else self.vq_width

    def fake_clip(self, batch: int = 2, *, seed: int = 0) -> Float[Tensor, "B T 3 H W"]:
        """A random clip of this configuration's shape, in [-1, 1]; for tests."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch, self.frames, 3, self.height, self.width, generator=generator) * 2 - 1


class Encoded(NamedTuple):
    """What the encoder says of a clip: the anchor feature f_0, the codes, and their indices."""

    anchor_BChw: Tensor
    codes_BMNL: Tensor
    indices_BMN: Tensor


def pad_to_stride(x: Float[Tensor, "B T 3 H W"], stride: int) -> Float[Tensor, "B T2 3 H W"]:
    """Repeat the last frame until T - 1 is a multiple of the stride; the last step then covers copies (mask it out)."""
    missing = -(x.shape[1] - 1) % stride
    return x if missing == 0 else torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)


def visible_codes(steps: int, queries: int, *, visibility: str, device: torch.device) -> Bool[Tensor, "M MN"]:
    """True where the code (step j, slot n) may be seen from step m: j <= m, or j == m for `current`."""
    step = torch.arange(steps, device=device)
    mask = step[:, None] >= step[None, :] if visibility == "causal" else step[:, None] == step[None, :]
    return mask.repeat_interleave(queries, dim=1)


class CrossAttention(nn.Module):
    """Multi-head attention of one token set on another; the inner width may differ from the token width."""

    def __init__(self, width: int, *, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(
        self,
        queries: Float[Tensor, "B Q C"],
        keys: Float[Tensor, "B S C"],
        values: Float[Tensor, "B S C"],
        mask: Bool[Tensor, "*#B #Q S"] | None = None,
    ) -> Float[Tensor, "B Q C"]:
        """`mask` is True where attention is allowed."""
        q, k, v = (
            rearrange(layer(x), "b n (a d) -> b a n d", a=self.heads)
            for layer, x in ((self.q, queries), (self.k, keys), (self.v, values))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(rearrange(mixed, "b a n d -> b n (a d)"))
        return out


class QFormer(nn.Module):
    """N learnable queries read the change out of each step's features. The same queries serve every step."""

    frequencies: Tensor

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        self.config = config.qformer
        width, heads = config.levels[-1].width, config.qformer.heads
        self.queries = nn.Parameter(torch.randn(config.queries, width) * width**-0.5)
        # Random Fourier features of (row, column) in [0, 1]; saved, because the weights are trained around them.
        self.register_buffer("frequencies", torch.randn(2, width // 2))
        self.role = nn.Parameter(torch.zeros(2, width)) if config.qformer.role_embedding else None
        if self.role is not None:
            nn.init.normal_(self.role, std=0.02)
        self.gain: nn.Parameter | None = None
        if config.qformer.difference_values and config.qformer.context == "adjacent":
            self.gain = nn.Parameter(torch.tensor([-1.0, 1.0])[:, None].repeat(1, width))
        depth = config.qformer.depth
        self.cross = nn.ModuleList(CrossAttention(width, inner=width // 2, heads=heads) for _ in range(depth + 1))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.norm_cross = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth + 1))
        self.norm_mlp = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def position(self, height: int, width: int) -> Float[Tensor, "hw C"]:
        """The 2-D position code of a grid of that size."""
        device = self.frequencies.device
        rows = torch.linspace(0, 1, height, device=device)
        columns = torch.linspace(0, 1, width, device=device)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        angle = 2 * math.pi * grid @ self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def _context(self, f: Float[Tensor, "B K C h w"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [B M, S, C] that each step's queries look at, and a mask where S holds more than that."""
        batch, steps = f.shape[0], f.shape[1] - 1
        tokens = rearrange(f, "b k c h w -> b k (h w) c")
        position = self.position(*f.shape[-2:]).to(f.dtype)
        current, previous = tokens[:, 1:], tokens[:, :-1]
        zero = position.new_zeros(position.shape[-1])
        role_previous, role_current = (zero, zero) if self.role is None else (self.role[0], self.role[1])
        mask: Tensor | None = None
        if self.config.context == "current":
            values, keys = current, current + position + role_current
        elif self.config.context == "adjacent":
            values = torch.cat([previous, current], dim=2)
            keys = values + torch.cat([position + role_previous, position + role_current])
        else:  # all of f_0 .. f_k: every step sees the whole clip through a mask
            everything = rearrange(tokens, "b k s c -> b 1 (k s) c")
            values = everything.expand(-1, steps, -1, -1)
            frame = torch.arange(steps + 1, device=f.device)
            here = frame[None, :] == frame[1:, None]
            role = torch.where(here[..., None], role_current, role_previous)  # [M, K, C]
            keys = values + rearrange(role[:, :, None] + position, "m k s c -> m (k s) c")
            seen = (frame[None, :] <= frame[1:, None]).repeat_interleave(position.shape[0], dim=1)
            mask = repeat(seen, "m s -> (b m) 1 1 s", b=batch)
        if self.config.value_pos:
            values = keys
        if self.gain is not None:
            values = values * self.gain.repeat_interleave(position.shape[0], dim=0)
        return keys.flatten(0, 1), values.flatten(0, 1), mask

    def forward(self, f: Float[Tensor, "B K C h w"]) -> Float[Tensor, "B M N C"]:
        """Read every step k = 1 .. K-1. All steps at once: M is folded into the batch."""
        batch, steps = f.shape[0], f.shape[1] - 1
        keys, values, mask = self._context(f)
        q = self.queries.to(f.dtype).expand(batch * steps, -1, -1)
        for i, cross in enumerate(self.cross):
            mixed = cross(q, keys, values, mask)
            q = self.norm_cross[i](mixed if i == len(self.mlp) else q + mixed)
            if i < len(self.mlp):
                q = self.norm_mlp[i](q + self.mlp[i](q))
        return q.unflatten(0, (batch, steps))


class TokenConvolution(nn.Module):
    """A causal convolution along the flat row of codes: each with its two predecessors, the first one repeated."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, 3)

    def forward(self, z: Float[Tensor, "B M N Z"]) -> Float[Tensor, "B M N C"]:
        """Rows are step-major, slot-minor."""
        flat = F.pad(rearrange(z, "b m n z -> b z (m n)"), (2, 0), mode="replicate")
        return rearrange(self.conv(flat), "b c (m n) -> b m n c", n=z.shape[2])


class CodeDecoder(nn.Module):
    """Codes and the anchor feature -> coarse clip. The middle attends to codes; step 0 never does."""

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.levels[-1].width
        mix = nn.Linear if config.post_quant == "linear" else TokenConvolution
        self.post_quant = nn.Sequential(nn.Linear(config.digits, config.z_channels), mix(config.z_channels, width))
        self.slot = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.step = nn.Parameter(torch.randn(config.steps, width) * 0.02)
        self.position = nn.Parameter(torch.randn(config.grid[0] * config.grid[1], width) * 0.02)
        self.block_in = ResidualBlock(width, width)
        self.norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, inner=width, heads=config.qformer.heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.space, self.time = FrameAttention(width, axis="space"), FrameAttention(width, axis="time")
        self.block_out = ResidualBlock(width, width)
        self.up = CausalDecoder(config.stem, config.levels)
        self.warp: FrameWarp | None = None
        if config.output == "warp":
            self.warp = FrameWarp(config.levels[0].width, config.stem.patch_t)
            nn.init.zeros_(self.up.head.weight)  # a still picture to begin with, so that motion is learned first

    def forward(
        self,
        codes: Float[Tensor, "B M N L"],
        anchor: Float[Tensor, "B C h w"],
        first_frame: Float[Tensor, "B 3 H W"],
    ) -> Float[Tensor, "B T 3 H W"]:
        """T = 1 + s/gap * M. With M = 0 only the anchor is decoded. `first_frame` is not read with `output=pixels`.

        Raises:
            ValueError: if there are more steps than the configured clip has.
        """
        _, steps, queries, _ = codes.shape
        if steps > self.config.steps:
            raise ValueError(f"the decoder was built for at most {self.config.steps} latent steps, got {steps}")
        h = self.block_in(repeat(anchor, "b c h w -> b k c h w", k=steps + 1))
        if steps:
            z = self.post_quant(codes) + self.step[:steps, None] + self.slot
            z = rearrange(z, "b m n c -> b (m n) c")
            grid_h, grid_w = h.shape[-2:]
            place = repeat(self.step[:steps], "m c -> (m s) c", s=grid_h * grid_w) + self.position.repeat(steps, 1)
            tokens = rearrange(h[:, 1:], "b m c h w -> b (m h w) c") + place
            seen = visible_codes(steps, queries, visibility=self.config.code_visibility, device=z.device)
            mask = seen.repeat_interleave(grid_h * grid_w, dim=0)
            tokens = tokens + self.cross(self.norm(tokens), z, z, mask)
            tokens = tokens + self.mlp(tokens)
            moved = rearrange(tokens, "b (m h w) c -> b m c h w", m=steps, h=grid_h)
            h = torch.cat([h[:, :1], moved], dim=1)
        h = self.block_out(self.time(self.space(h)))
        features = self.up.features(h)
        x: Tensor = self.up.pixels(features)
        if self.warp is not None:
            return x + self.warp(features, first_frame)
        return x + first_frame[:, None] if self.config.output == "change" else x


class Standardise(nn.Module):
    """Zero mean and unit variance for each digit of each query: over the batch in training, running statistics in eval.

    Each query for itself: over all queries together, a constant difference between them would pass for variance.
    In eval mode a code depends on its own clip's past alone; encode for others in eval mode.
    """

    def __init__(self, queries: int, digits: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(queries * digits, affine=False, momentum=0.1)

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
        self.z_head = self._z_head(width)
        self.fsq: FSQ | VQ = FSQ(config.fsq_levels)
        if config.quantiser == "vq":
            self.fsq = VQ(config.vocabulary, config.vq_width)
        self.decoder = CodeDecoder(config)

    def _z_head(self, width: int) -> nn.Module:
        digits = self.config.digits
        if self.config.z_norm == "none":
            return nn.Sequential(nn.Linear(width, self.config.z_channels), nn.Linear(self.config.z_channels, digits))
        last = nn.Linear(width, digits)
        nn.init.normal_(last.weight, std=width**-0.5)
        nn.init.zeros_(last.bias)
        spread = Standardise(self.config.queries, digits) if self.config.z_norm == "batch" else nn.Identity()
        return nn.Sequential(nn.LayerNorm(width), last, spread)

    def seen(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T2 3 H W"]:
        """The frames that the model reads and reconstructs: T padded to the stride, then every gap-th."""
        return pad_to_stride(x, self.config.stride)[:, :: self.config.gap]

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

    def quantise(self, f: Float[Tensor, "B K C h w"]) -> tuple[Float[Tensor, "B M N L"], Int[Tensor, "B M N"]]:
        """Features -> codes (straight-through gradients) and their indices."""
        z = self.z_head(self.qformer(f))
        codes = self.fsq(z)
        return codes, self.fsq.indices(codes if isinstance(self.fsq, FSQ) else z)

    def encode(self, x: Float[Tensor, "B T 3 H W"]) -> Encoded:
        """Clip -> anchor feature f_0, codes, indices."""
        f = self.features(x)
        codes, indices = self.quantise(f)
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
