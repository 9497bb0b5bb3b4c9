"""The video diffusion model that paints appearance, steered by latent codes and a coarse clip.

Place in the flow: beside the dLDM in phase 2. diffusers' `CosmosTransformer3DModel` is wrapped, never subclassed or
changed: codes come in as `encoder_hidden_states`, masks through attention processors, control through forward hooks, so
the inner model's state dict stays loadable by stock diffusers both ways. Method specification 1.6, 1.7, 1.8, 1.12.

Noise: rectified flow with t = sigma / (1 + sigma); the network sees (1-t) x0 + t eps and answers the velocity
v = eps - x0. Latent frame 0 is the conditioning frame: always clean, never in the loss. diffusers is imported when a
model is built, not with this module.
"""

# B batch · K latent frames · M = K-1 latent steps · N codes per step · C latent channels · h, w latent grid
# Q = K * h/2 * w/2 tokens of the transformer · S = 1 + M*N keys (null token first) · D width of the cross-attention
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vw2_robot.errors import require

# Timestep that marks the clean conditioning frame: sigma = 1e-4 (method 1.12).
CLEAN_TIME = 1e-4 / (1 + 1e-4)
# `prediction="change"`: size of what moves, in units of the codec's latents (EDM preconditioning, Karras et al. 2022).
CHANGE_STD = 0.5
# With this probability the noise level comes from a log-uniform tail over (200, 1e5) instead of the log-normal.
TAIL_PROBABILITY, TAIL_LOW, TAIL_HIGH = 0.05, 200.0, 1e5


@dataclass(frozen=True)
class VDMConfig:
    """Size of the transformer and how codes enter it. Defaults: the embedded tiny model (about 1 M parameters)."""

    heads: int = 4
    head_dim: int = 32
    layers: int = 4
    mlp_ratio: float = 2.0
    adaln_lora_dim: int = 32
    context_width: int = 64
    """D, width of the projected codes (1024 for Cosmos-Predict2)"""
    projection_layers: int = 1
    code_visibility: Literal["causal", "current", "none"] = "causal"
    """latent frame t attends to codes of steps <= t, of step t alone, or to all (release parity)"""
    temporal_causal_self_attention: bool = True
    """strict causality over latent frames; off for pretrained weights, whose prior is bidirectional"""
    prediction: Literal["velocity", "change"] = "velocity"
    """what the network's output means. velocity: eps - x0, as in pretrained weights; change: the preconditioned
    difference of x0 from the first frame, from which the velocity follows. An untrained network then starts at a still
    picture instead of at noise, and all that is left to learn is motion: the choice for models trained from nothing"""
    control: Literal["light", "none"] = "light"
    control_width: int = 64
    code_dropout: float = 0.1
    """per sample, all codes hidden (null context), so that guidance is possible"""

    def __post_init__(self) -> None:
        if self.head_dim < 12:
            raise ValueError(f"vdm.head_dim must be at least 12 (rotary split into three axes), found {self.head_dim}")
        if not 0 <= self.code_dropout < 1:
            raise ValueError(f"vdm.code_dropout must lie in [0, 1), found {self.code_dropout}")


class Geometry(NamedTuple):
    """What the VDM must know of its neighbours: latent channels and grid, latent steps, codes per step, digits."""

    channels: int
    steps: int
    height: int
    width: int
    queries: int
    digits: int


class _Masks:
    """The attention masks of one forward pass, shared by all processors of a model; None means full attention."""

    cross: Tensor | None = None
    self_attention: Tensor | None = None


class CodeProjection(nn.Module):
    """Codes -> context tokens: MLP, step and slot embedding, block-causal self-attention; a null token in front."""

    def __init__(self, geometry: Geometry, width: int, layers: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(geometry.digits, width), nn.GELU(), nn.Linear(width, width))
        self.step = nn.Parameter(torch.randn(geometry.steps, width) * 0.02)
        self.slot = nn.Parameter(torch.randn(geometry.queries, width) * 0.02)
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(1, width // 64), 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, codes: Float[Tensor, "B M N L"]) -> Float[Tensor, "B S D"]:
        """A token sees the tokens of steps <= its own; the null token sees itself."""
        batch, steps, queries, _ = codes.shape
        tokens = self.mlp(codes) + self.step[:steps, None] + self.slot
        tokens = rearrange(tokens, "b m n d -> b (m n) d")
        tokens = torch.cat([self.null.expand(batch, 1, -1), tokens], dim=1)
        hidden = ~_step_mask(_key_steps(steps, queries, tokens.device), "causal")
        for layer in self.layers:
            tokens = layer(tokens, src_mask=hidden)
        out: Tensor = self.norm(tokens)
        return out


def _key_steps(steps: int, queries: int, device: torch.device) -> Tensor:
    """Latent step of every context token: 0 for the null token, then k for each of the N codes of step k."""
    return torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1, steps + 1).repeat_interleave(queries)]).to(
        device
    )


def _step_mask(key_steps: Tensor, visibility: str, frames: Tensor | None = None) -> Bool[Tensor, "Q S"]:
    """True where a query of latent frame `frames[q]` may see a key of step `key_steps[s]`."""
    frames = key_steps if frames is None else frames
    if visibility == "none":
        return torch.ones(len(frames), len(key_steps), dtype=torch.bool, device=key_steps.device)
    if visibility == "causal":
        return key_steps[None] <= frames[:, None]
    return (key_steps[None] == frames[:, None]) | (key_steps[None] == 0)


class ControlBranch(nn.Module):
    """The light control branch: coarse-clip latents -> one residual per transformer block, zero at the start."""

    def __init__(self, channels: int, width: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(channels, hidden, (1, 2, 2), stride=(1, 2, 2))
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.out = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))
        for layer in self.out:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hint: Float[Tensor, "B C K h w"]) -> list[Float[Tensor, "B Q W"]]:
        """Residual i is added to the output of transformer block i."""
        tokens = self.mlp(rearrange(self.embed(hint), "b c k h w -> b (k h w) c"))
        return [layer(tokens) for layer in self.out]


class VDM(nn.Module):
    """Wrapper that owns the transformer, the code projection, the control branch, the loss and the sampler."""

    def __init__(self, config: VDMConfig, geometry: Geometry) -> None:
        super().__init__()
        if geometry.height % 2 or geometry.width % 2:
            raise ValueError(
                f"the latent grid must be even in both directions, found {geometry.height} x {geometry.width}"
            )
        self.config, self.geometry = config, geometry
        self.projection = CodeProjection(geometry, config.context_width, config.projection_layers)
        self.transformer: nn.Module = _build_transformer(config, geometry)
        self.control: ControlBranch | None = None
        if config.control == "light":
            width = config.heads * config.head_dim
            self.control = ControlBranch(geometry.channels, width, config.control_width, config.layers)
        self._masks = _Masks()
        _install_masks(self.transformer, self._masks)

    def velocity(
        self,
        noisy: Float[Tensor, "B C K h w"],
        time: Float[Tensor, " B"],
        first: Float[Tensor, "B C h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        hint: Float[Tensor, "B C K h w"] | None,
        keep_codes: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C K h w"]:
        """Predicted velocity eps - x0.

        `first` (clean) replaces latent frame 0; entries of `keep_codes` that are False see the null token alone;
        `hint=None` leaves the control branch out.
        """
        batch, _, frames, height, width = noisy.shape
        x = torch.cat([first[:, :, None], noisy[:, :, 1:]], dim=2)
        is_first = torch.zeros(batch, 1, frames, height, width, device=x.device, dtype=x.dtype)
        is_first[:, :, 0] = 1.0
        times = time[:, None].repeat(1, frames)
        times[:, 0] = CLEAN_TIME
        context = self.projection(codes)
        self._set_masks(frames, height, width, keep_codes, x.device)
        handles = []
        if self.control is not None and hint is not None:
            for block, residual in zip(_blocks(self.transformer), self.control(hint), strict=True):
                handles.append(block.register_forward_hook(_adder(residual)))
        try:
            out = self.transformer(
                hidden_states=x,
                timestep=times[:, None, :, None, None],
                encoder_hidden_states=context,
                condition_mask=is_first,
                fps=None,  # temporal rotary positions in latent frames, as the original 2B model (method 1.12, trap 3)
                return_dict=False,
            )[0]
        finally:
            for handle in handles:
                handle.remove()
        if self.config.prediction == "velocity":
            prediction: Tensor = out
            return prediction
        t = time.clamp(1e-3, 1 - 1e-6)[:, None, None, None, None]
        sigma = t / (1 - t)
        still = first[:, :, None]
        known = CHANGE_STD**2 / (sigma**2 + CHANGE_STD**2)  # how far the noisy clip itself can be believed
        change = known * (noisy / (1 - t) - still) + sigma * known.sqrt() * out.float()
        return (noisy - (still + change)) / t

    def _set_masks(self, frames: int, height: int, width: int, keep_codes: Tensor | None, device: torch.device) -> None:
        per_frame = (height // 2) * (width // 2)
        frame_of_query = torch.arange(frames, device=device).repeat_interleave(per_frame)
        keys = _key_steps(frames - 1, self.geometry.queries, device)
        cross = _step_mask(keys, self.config.code_visibility, frame_of_query)[None, None]
        if keep_codes is not None:
            cross = cross & (keep_codes[:, None, None, None] | (keys == 0))
        self._masks.cross = cross
        self._masks.self_attention = None
        if self.config.temporal_causal_self_attention:
            self._masks.self_attention = frame_of_query[None] <= frame_of_query[:, None]

    def draw_times(self, batch: int, generator: torch.Generator) -> Float[Tensor, " B"]:
        """Training noise levels t in (0, 1): ln sigma ~ N(0, 1), sigma times sqrt(K), with a log-uniform tail."""
        frames = self.geometry.steps + 1
        sigma = torch.randn(batch, generator=generator).exp() * math.sqrt(frames)
        low, high = math.log(TAIL_LOW), math.log(TAIL_HIGH)
        tail = (low + (high - low) * torch.rand(batch, generator=generator)).exp()
        sigma = torch.where(torch.rand(batch, generator=generator) < TAIL_PROBABILITY, tail, sigma)
        return sigma / (1 + sigma)

    def denoising_loss(
        self,
        latents: Float[Tensor, "B C K h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        hint: Float[Tensor, "B C K h w"] | None,
        valid: Bool[Tensor, "B M"],
        generator: torch.Generator,
        drop_codes: bool = False,
    ) -> Float[Tensor, ""]:
        """Weighted velocity error over latent frames 1 .. K-1 whose step is valid.

        w(sigma) ||x0 - x0_hat||^2 with w = (1 + sigma^2)/sigma^2 equals (1 + sigma^2)/(1 + sigma)^2 ||v - v_hat||^2;
        the second form is used: bounded weight, no cancellation at small sigma. `generator` lives on the CPU.
        `drop_codes` hides the codes of every sample: what is then trained is the prior.
        """
        device = latents.device
        time = self.draw_times(latents.shape[0], generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        dropout = 1.0 if drop_codes else self.config.code_dropout
        keep = (torch.rand(latents.shape[0], generator=generator) >= dropout).to(device)
        t = time[:, None, None, None, None]
        noisy = (1 - t) * latents + t * noise
        predicted = self.velocity(noisy, time, latents[:, :, 0], codes, hint=hint, keep_codes=keep)
        with torch.autocast(device.type, enabled=False):
            error = F.mse_loss(predicted.float(), noise - latents, reduction="none")[:, :, 1:].mean(dim=(1, 3, 4))
            # sigma = t/(1-t), so (1+sigma^2)/(1+sigma)^2 = t^2 + (1-t)^2
            weight = (time.square() + (1 - time).square())[:, None] * valid
            return (weight * error).sum() / valid.sum().clamp(min=1)

    @torch.no_grad()
    def sample(
        self,
        first: Float[Tensor, "B C h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        hint: Float[Tensor, "B C K h w"] | None,
        generator: torch.Generator,
        num_steps: int = 10,
    ) -> Float[Tensor, "B C K h w"]:
        """Latents of a clip from first frame, codes and coarse clip; Euler over Karras noise levels 80 .. 0.002."""
        scheduler = require("diffusers", extra="all").FlowMatchEulerDiscreteScheduler()
        ramp = torch.linspace(0, 1, num_steps)
        sigma = (80.0 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
        scheduler.set_timesteps(sigmas=(sigma / (1 + sigma)).tolist(), device=first.device)
        batch, channels, height, width = first.shape
        frames = codes.shape[1] + 1
        x = torch.randn(batch, channels, frames, height, width, generator=generator).to(first.device)
        for time, t in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            predicted = self.velocity(x, t.expand(batch).to(x), first, codes, hint=hint)
            x = scheduler.step(predicted, time, x, return_dict=False)[0]
        return torch.cat([first[:, :, None], x[:, :, 1:]], dim=2)


def _build_transformer(config: VDMConfig, geometry: Geometry) -> nn.Module:
    diffusers = require("diffusers", extra="all")
    largest = max(geometry.steps + 1, geometry.height, geometry.width, 32)
    model: nn.Module = diffusers.CosmosTransformer3DModel(
        in_channels=geometry.channels + 1,  # + the mask that marks the conditioning frame
        out_channels=geometry.channels,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        num_layers=config.layers,
        mlp_ratio=config.mlp_ratio,
        text_embed_dim=config.context_width,
        adaln_lora_dim=config.adaln_lora_dim,
        max_size=(largest, largest, largest),
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 1.0, 1.0),
        concat_padding_mask=False,  # True would need torchvision
        extra_pos_embed_type=None,
    )
    return model


def _blocks(transformer: nn.Module) -> list[nn.Module]:
    blocks = transformer.transformer_blocks
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _install_masks(transformer: nn.Module, masks: _Masks) -> None:
    """Give every attention layer a processor that reads its mask from `masks` instead of from its arguments."""
    from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0

    class MaskedProcessor(CosmosAttnProcessor2_0):
        def __init__(self, kind: Literal["cross", "self_attention"]) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.kind, self.masks = kind, masks  # an attribute, so that a deep copy of the model has its own

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,  # diffusers' own is [B, S] only; ours comes from `masks`
            image_rotary_emb: Any = None,
        ) -> Tensor:
            mask = getattr(self.masks, self.kind)
            out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)
            return out

    for block in _blocks(transformer):
        block.attn1.set_processor(MaskedProcessor("self_attention"))  # type: ignore[union-attr,operator]
        block.attn2.set_processor(MaskedProcessor("cross"))  # type: ignore[union-attr,operator]


def _adder(residual: Tensor) -> Any:
    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + residual.to(output.dtype)

    return add
