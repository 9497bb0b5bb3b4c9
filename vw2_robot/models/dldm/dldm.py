"""The dynamics-enhanced latent dynamics model (dLDM): a clip becomes a few discrete codes per latent step, and back.

Place in the flow: clips -> dLDM -> latent codes. Causal encoder, learnable queries (q-former), FSQ, decoder. The video
diffusion model, which frees the codes of appearance, is in `vdm.py`; phases and stop-gradients are in
`pretrain/dldm_losses.py`.

Time alignment, an interface that the action head relies on: feature step 0 is frame 0 alone (the anchor); latent step k
(1 .. M) covers frames s(k-1)+1 .. sk, the transitions caused by actions a[s(k-1)] .. a[sk-1]. In tensors of M steps,
entry m is latent step m + 1. No code depends on a frame after the end of its step.
"""

# B batch · T frames · K = 1 + ceil((T-1)/s) feature steps · M = K-1 latent steps · N codes per step · L code dimensions
# C feature width · h, w feature grid · s temporal stride
from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vw2_robot.checkpoint import CURE, DLDM_PART, Checkpoint, load_checkpoint
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.distributed.batch_share import StatisticsGroups
from vw2_robot.errors import InputError
from vw2_robot.pixels import resize_video

from ..precision import at_least_float32
from .causal_video import CausalEncoder, blocks_of, compile_in_place
from .code_decoder import CodeDecoder
from .config import DLDMConfig
from .fsq import FSQ
from .pixel_differences import PixelDifferences
from .qformer import QFormer
from .shared_windows import window_features
from .vq import VQ


class Encoded(NamedTuple):
    """The encoder's output for a clip: the anchor feature f_0, the codes, and their indices."""

    anchor_BChw: Tensor
    codes_BMNL: Tensor
    indices_BMN: Tensor


def pad_to_stride(x: Float[Tensor, "B T 3 H W"], stride: int) -> Float[Tensor, "B T2 3 H W"]:
    """Repeat the last frame until T - 1 is a multiple of the stride; the last step then covers copies (mask it out)."""
    missing = -(x.shape[1] - 1) % stride
    return x if missing == 0 else torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)


class Standardize(nn.Module):
    """Zero mean and unit variance for each dimension of each query: over a group of clips, or by running statistics.

    Each query has statistics of its own: over all queries together, a constant difference between them would count as
    variance. Encode for other stages in eval mode: only there does a code depend on its own clip's past alone.

    Attributes:
        groups: the clips of a batch that are standardized together; training programs set it. Groups are equal on any
            number of ranks and micro-batches, and so are codes and running statistics.
    """

    def __init__(self, queries: int, fsq_dims: int) -> None:
        super().__init__()
        # Used in eval mode, and for its buffers.
        self.norm = nn.BatchNorm1d(queries * fsq_dims, affine=False, momentum=0.1)
        self.groups = StatisticsGroups()
        self.groups_per_batch = 1

    def forward(self, z: Float[Tensor, "B M N L"]) -> Float[Tensor, "B M N L"]:
        """Return z, standardized, in float32 or more."""
        # float32 on purpose: running statistics in bfloat16 stop moving, since their updates round to zero.
        with torch.autocast(z.device.type, enabled=False):
            z = at_least_float32(z)
            if not self.training:
                out: Tensor = self.norm(z.flatten(2).flatten(0, 1)).view_as(z)
                return out
            values = z.flatten(2)  # [B, M, N * L]
            batch = len(values)
            count = self.groups.sums(torch.full_like(values[:, 0, :1], values.shape[1]))  # latent steps of a group
            mean = self.groups.sums(values.sum(1)) / count
            centered = values - self.groups.spread(mean, batch)[:, None].to(z.dtype)
            variance = self.groups.sums(centered.square().sum(1)) / count
            self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1), batch=batch)
            scale = (self.groups.spread(variance, batch) + self.norm.eps).rsqrt().to(z.dtype)
            return (centered * scale[:, None]).view_as(z)

    @torch.no_grad()
    def follow_alone(self, values: Float[Tensor, "R D"]) -> None:
        """Replace the running statistics by those of these steps."""
        values = at_least_float32(values)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(values.mean(0))
        self.norm.running_var.copy_(values.var(0))

    @torch.no_grad()
    def _follow(self, mean: Float[Tensor, "G D"], variance: Float[Tensor, "G D"], *, batch: int) -> None:
        """Move the running statistics; a batch moves them by the same share whatever the number of its groups."""
        assert self.norm.momentum is not None
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        assert self.norm.num_batches_tracked is not None
        every = self.groups.of_all_ranks(torch.stack([mean, variance], 1), batch)
        share = 1 - (1 - self.norm.momentum) ** (1 / self.groups_per_batch)
        # One after the other, in the order of the batch.
        for group_mean, group_variance in every.to(self.norm.running_mean.dtype):
            self.norm.running_mean.lerp_(group_mean, share)
            self.norm.running_var.lerp_(group_variance, share)
        self.norm.num_batches_tracked += len(every)


class DLDM(nn.Module):
    """The dLDM: encoder, queries, quantizer and decoder; the module docstring gives the time alignment."""

    def __init__(self, config: DLDMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.levels[-1].width
        dims = config.code_dims
        self.encoder = CausalEncoder(config.stem, config.encoder_levels)
        self.qformer = QFormer(config)
        self.pre_quant: nn.Sequential
        if config.z_norm == "none":
            self.pre_quant = nn.Sequential(nn.Linear(width, config.z_channels), nn.Linear(config.z_channels, dims))
        else:
            # Differs from the release: unit variance at the start, so that no FSQ level is out of reach (method 5.1).
            last = nn.Linear(width, dims)
            nn.init.normal_(last.weight, std=width**-0.5)
            nn.init.zeros_(last.bias)
            spread = Standardize(config.queries, dims) if config.z_norm == "batch" else nn.Identity()
            self.pre_quant = nn.Sequential(nn.LayerNorm(width), last, spread)
        self.fsq: FSQ | VQ = FSQ(config.fsq_levels)
        if config.quantizer == "vq":
            self.fsq = VQ(config.vocabulary, config.vq_width)
        self.decoder = CodeDecoder(config)
        self.pixel_differences = None if config.fixed_codes is None else PixelDifferences(config)

    @classmethod
    def of_policy(cls, checkpoint: Checkpoint) -> DLDM:
        """Load the dLDM of a policy's codes from the policy's checkpoint: among its weights, or in `dldm/` beside them.

        Raises:
            InputError: the policy was trained from scratch, or its dLDM is missing, damaged or another one.
        """
        if checkpoint.config.get("dldm") is None:
            raise InputError(f"{checkpoint.path} has no dLDM, it was trained from scratch; give a pre-trained policy")
        with checkpoint.building():
            config = config_from(DLDMConfig, checkpoint.config["dldm"])
        if not any(name.startswith("dldm.") for name in checkpoint.weights):
            part = checkpoint.path / DLDM_PART
            if not part.is_dir():
                raise InputError(
                    f"{checkpoint.path} came without its dLDM: {part} is missing; {CURE}, with that folder"
                )
            checkpoint = load_checkpoint(part, kind="dldm")
            with checkpoint.building():
                if config_from(DLDMConfig, checkpoint.config) != config:
                    raise InputError(f"{part} is the dLDM of another policy; {CURE}")
        with checkpoint.building():
            dldm = cls(config)
            checkpoint.load_into(dldm=dldm)
        return dldm

    def resized(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T 3 h w"]:
        """Return clips at this model's size; all codes of clips of a larger VDM (`vdm.frame_height`) are made so."""
        return resize_video(x, self.config.height, self.config.width)

    def subsample(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T2 3 H W"]:
        """Return the frames that the model reads and reconstructs: T padded to the stride, then every gap-th.

        Raises:
            ValueError: if the frame size is not the configured one.
        """
        if x.shape[-2:] != (self.config.height, self.config.width):
            raise ValueError(
                f"the dLDM was built for {self.config.height} x {self.config.width} pixels, got {tuple(x.shape[-2:])}"
            )
        return pad_to_stride(x, self.config.temporal_stride)[:, :: self.config.gap]

    def edges(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B E 3 H W"]:
        """Return the frames at which latent steps end and begin, the first one and the last among them."""
        return pad_to_stride(x, self.config.temporal_stride)[:, :: self.config.temporal_stride]

    def features(self, x: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B K C h w"]:
        """Return causal features of a clip in [-1, 1]; T is padded to the stride by repeating the last frame."""
        out: Tensor = self.encoder(self.subsample(x))
        return out

    def quantize(self, f: Float[Tensor, "B K C h w"]) -> tuple[Float[Tensor, "B M N L"], Int[Tensor, "B M N"]]:
        """Return codes (straight-through gradients) and their indices."""
        z = self.pre_quant(self.qformer(f))
        codes = self.fsq(z)
        # FSQ reads indices off its codes; VQ needs z, since its codes of training carry noise.
        return codes, self.fsq.indices(codes if isinstance(self.fsq, FSQ) else z)

    def encode(self, x: Float[Tensor, "B T 3 H W"]) -> Encoded:
        """Return anchor feature f_0, codes and indices of a clip in [-1, 1]."""
        f = self.features(x)
        codes, indices = self.quantize(f)
        return Encoded(f[:, 0], codes, indices)

    def decode(
        self,
        codes: Float[Tensor, "B M N L"],
        anchor: Float[Tensor, "B C h w"],
        first_frame: Float[Tensor, "B 3 H W"],
    ) -> Float[Tensor, "B T 3 H W"]:
        """Return the coarse clip of 1 + s/gap * M frames, those of `subsample`.

        Args:
            codes: quantized, M at most `DLDMConfig.latent_steps`.
            anchor: f_0, the feature of frame 0.
            first_frame: pixels in [-1, 1]; not read with `output=pixels`.
        """
        out: Tensor = self.decoder(codes, anchor, first_frame)
        return out

    @torch.no_grad()
    def measure_statistics(self, clips: Iterable[Float[Tensor, "B T 3 H W"]]) -> None:
        """Set the statistics that stand before the quantizer (`z_norm=batch`) to those of these clips, in eval mode.

        Raises:
            InputError: this dLDM has no such statistics.
        """
        spread = self.pre_quant[-1]
        if not isinstance(spread, Standardize):
            raise InputError("this dLDM has no statistics to measure, it was trained without aids.standardize=batch")
        values = [self.pre_quant[:-1](self.qformer(self.features(x))).flatten(2).flatten(0, 1) for x in clips]
        spread.follow_alone(torch.cat(values))

    def share_statistics(self, groups: StatisticsGroups, groups_per_batch: int, *, micro_batches: int) -> None:
        """Set how a training batch is divided, for what couples its clips: statistics before FSQ, use of a codebook.

        Args:
            groups: of clips that are standardized together.
            groups_per_batch: how many a batch has.
            micro_batches: forward passes of each rank for one batch.
        """
        for module in self.modules():
            if isinstance(module, Standardize):
                module.groups = groups
                module.groups_per_batch = groups_per_batch
            elif isinstance(module, VQ):
                module.micro_batches = micro_batches

    def blocks(self) -> list[nn.Module]:
        """Return the blocks that sharded training gathers one after the other, in order."""
        return [*blocks_of(self), self.qformer]

    def compile_blocks(self) -> None:
        """Compile the blocks of encoder and decoder in place: names of parameters stay as they are."""
        compile_in_place(blocks_of(self))

    def checkpoint_gradients(self) -> None:
        """Keep only the input of each block of the trunk, and compute the rest again in the backward pass."""
        self.encoder.checkpointing = self.decoder.up.checkpointing = True

    @torch.no_grad()
    def indices(self, x: Float[Tensor, "B T 3 H W"]) -> Int[Tensor, "B M N"]:
        """Return the latent action tokens of a clip, without gradients, in eval mode."""
        if self.pixel_differences is not None:
            return self.pixel_differences.indices(self.edges(x))
        was_training = self.training
        self.eval()
        indices = self.encode(x).indices_BMN
        self.train(was_training)
        return indices

    @torch.no_grad()
    def window_indices(
        self, video: Float[Tensor, "F 3 H W"], starts: Int[Tensor, " B"], *, latent_steps: int | None = None
    ) -> Int[Tensor, "B M N"]:
        """Return the latent action tokens of overlapping windows; call it in eval mode.

        Args:
            video: frames in [-1, 1] that contain all windows (`shared_windows.lay_out`).
            starts: the latent step at which each window starts.
            latent_steps: M, of a window; by default those of a training clip.
        """
        steps = self.config.latent_steps if latent_steps is None else latent_steps
        if self.pixel_differences is not None:
            edges = self.edges(video[None])[0]
            return self.pixel_differences.indices(
                edges[starts[:, None] + torch.arange(steps + 1, device=starts.device)]
            )
        frames = self.subsample(video[None])[0]
        num_frames = 1 + steps * self.config.temporal_stride // self.config.gap
        return self.quantize(window_features(self.encoder, frames, starts, num_frames=num_frames))[1]


def fake_clip(config: DLDMConfig, batch: int = 2, *, seed: int = 0) -> Float[Tensor, "B T 3 H W"]:
    """Return a random clip of a configuration's shape, in [-1, 1]; for tests.

    Args:
        config: of the model.
        batch: B, clips.
        seed: of the pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, config.num_frames, 3, config.height, config.width, generator=generator) * 2 - 1
