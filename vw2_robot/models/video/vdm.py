"""The video diffusion model that paints appearance, steered by latent codes and a coarse clip.

Place in the flow: beside the dLDM in phase 2. diffusers' `CosmosTransformer3DModel` is wrapped, never subclassed or
changed: codes come in as `encoder_hidden_states`, masks through attention processors, control through forward hooks,
adapters through peft, so the inner model's weights stay loadable by stock diffusers both ways. Method specification
1.6, 1.7, 1.8, 1.12. What it is made of: `code_projection.py`, `control.py`, `cosmos.py`.

Noise (`noise_levels.py`): rectified flow; the network sees (1-t) x0 + t eps and answers the velocity v = eps - x0.
Latent frame 0 is the conditioning frame: always clean, never in the loss. diffusers is imported when a
model is built, not with this module.
"""

# B batch · K latent frames · M = K-1 latent steps · N codes per step · C latent channels · h, w latent grid
# Q = K * h/2 * w/2 tokens of the transformer · S = 1 + M*N keys (null token first) · D width of the cross-attention
from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vw2_robot.limits import Count, Rate

from .code_projection import CodeProjection, key_steps, visible_keys
from .control import FullControl, LightControl, residuals_added
from .cosmos import Masks, add_lora, blocks_of, build_scheduler, build_transformer, install_masks, is_adapter
from .cosmos_folder import load_weights, save_scheduler, save_weights
from .noise_levels import CLEAN_TIME, loss_weight, sample_times, sampling_times, velocity_of_change


@dataclass(frozen=True)
class VDMConfig:
    """Size of the transformer and how codes enter it. Defaults: the embedded tiny model (about 1 M parameters)."""

    heads: Count = 4
    head_dim: int = 32
    layers: Count = 4
    mlp_ratio: Rate = 2.0
    adaln_lora_dim: int = 32
    rope_scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    """of time, height and width; (1, 3, 3) in Cosmos-Predict2"""
    padding_channel: bool = False
    """a channel that marks padded pixels (none here), as pretrained weights have"""
    context_width: Count = 64
    """D, width of the projected codes (1024 for Cosmos-Predict2)"""
    projection_layers: int = 1
    """of causal self-attention over the codes; 0: the MLP alone (Table A.2)"""
    projection_head_dim: Count = 64
    code_visibility: Literal["causal", "current", "none"] = "causal"
    """latent frame t attends to codes of steps <= t, of step t alone, or to all (release parity)"""
    temporal_causal_self_attention: bool = True
    """strict causality over latent frames; off for pretrained weights, whose prior is bidirectional"""
    prediction: Literal["velocity", "change"] = "velocity"
    """what the network's output means. velocity: eps - x0, as in pretrained weights; change: the preconditioned
    difference of x0 from the first frame, from which the velocity follows. An untrained network then starts at a still
    image instead of at noise, and all that is left to learn is motion: the choice for models trained from nothing"""
    noise_shift: float = 1.0
    """what the noise levels of training are multiplied by. Above 1 for latents in which what moves is much larger than
    one, such as the DCT codec's: there little noise hides no motion, and the VDM has no use for the codes"""
    control: Literal["light", "full", "none"] = "light"
    """light: an MLP on the coarse clip; full: copies of the first blocks, as released"""
    control_layers: int = 0
    """blocks that the branch speaks to; 0: all (light), 3 (full)"""
    control_width: Count = 64
    """inside the light branch"""
    code_dropout: float = 0.1
    """per sample, all codes hidden (null context), so that guidance is possible"""
    train: Literal["full", "lora", "frozen"] = "full"
    """what of the transformer learns in phase 2 (Table A.3); projection and control branch always do"""
    lora_rank: int = 16
    init: Literal["prior", "random"] = "prior"
    """phase 2 begins with the video prior (its own stage, or `weights`), or with random weights (Table A.3)"""
    weights: str | None = None
    """folder in diffusers' layout whose transformer/ is the prior, instead of training one"""
    frozen_precision: Literal["float32", "bf16"] = "float32"
    """lora and frozen, with `weights`: in which the transformer's own weights are kept; bf16 halves them"""

    def __post_init__(self) -> None:
        if self.head_dim < 12:
            raise ValueError(f"vdm.head_dim must be at least 12 (rotary split into three axes), found {self.head_dim}")
        if not 0 <= self.code_dropout < 1:
            raise ValueError(f"vdm.code_dropout must lie in [0, 1), found {self.code_dropout}")
        if not self.noise_shift > 0:
            raise ValueError(f"vdm.noise_shift must be positive, found {self.noise_shift}")
        if len(self.rope_scale) != 3:
            raise ValueError(f"vdm.rope_scale needs three numbers (time, height, width), found {self.rope_scale}")
        if not 0 <= self.control_layers <= self.layers or (self.control == "full" and self.controlled > self.layers):
            raise ValueError(
                f"vdm.control_layers must lie in 0 .. vdm.layers = {self.layers}, found {self.control_layers} "
                f"({self.controlled} with vdm.control={self.control})"
            )
        if self.lora_rank < 1:
            raise ValueError(f"vdm.lora_rank must be at least 1, found {self.lora_rank}")
        if self.weights is not None and self.init == "random":
            raise ValueError(f"vdm.init=random and vdm.weights={self.weights} contradict each other; drop one")
        if self.frozen_precision == "bf16" and (self.train == "full" or self.weights is None):
            raise ValueError(
                "vdm.frozen_precision=bf16 is for weights that never learn: it needs vdm.weights and vdm.train=lora or "
                f"frozen, found weights={self.weights} and train={self.train}"
            )

    @property
    def width(self) -> int:
        """W, of the transformer's tokens."""
        return self.heads * self.head_dim

    @property
    def controlled(self) -> int:
        """How many blocks the control branch speaks to."""
        return self.control_layers or {"light": self.layers, "full": 3, "none": 0}[self.control]


class Geometry(NamedTuple):
    """What the VDM must know of its neighbors: latent channels and grid, latent steps, codes per step, digits."""

    channels: int
    latent_steps: int
    height: int
    width: int
    queries: int
    fsq_dims: int


class VDM(nn.Module):
    """Wrapper that owns the transformer, the code projection, the control branch, the loss and the sampler.

    Names and shapes of all parameters follow from the configuration alone, adapters included.
    """

    def __init__(self, config: VDMConfig, geometry: Geometry) -> None:
        super().__init__()
        if geometry.height % 2 or geometry.width % 2:
            raise ValueError(
                f"the latent grid must be even in both directions, found {geometry.height} x {geometry.width}"
            )
        self.config, self.geometry = config, geometry
        self.projection = CodeProjection(
            fsq_dims=geometry.fsq_dims,
            latent_steps=geometry.latent_steps,
            queries=geometry.queries,
            width=config.context_width,
            layers=config.projection_layers,
            head_dim=config.projection_head_dim,
        )
        self.transformer: nn.Module = build_transformer(stock_options(config, geometry))
        self.control: LightControl | FullControl | None = None
        if config.control == "light":
            self.control = LightControl(
                geometry.channels, width=config.width, hidden=config.control_width, blocks=config.controlled
            )
        elif config.control == "full":
            self.control = FullControl(
                self.transformer, geometry.channels, width=config.width, blocks=config.controlled
            )
        if config.frozen_precision == "bf16":
            nn.Module.to(self.transformer, torch.bfloat16)  # diffusers' own `to` warns without cause
        if config.train == "lora":
            add_lora(self.transformer, config.lora_rank)
        self._masks = Masks()
        install_masks(blocks_of(self.transformer), self._masks)
        if isinstance(self.control, FullControl):
            install_masks(self.control.blocks, self._masks)

    def trainable_parameters(self, *, prior: bool = False) -> list[nn.Parameter]:
        """The parameters that may move, in a fixed order; marks them, and no others, as learning.

        With `prior` (the stage before phase 2) those are transformer and projection. In phase 2 they are projection,
        control branch, and of the transformer what `config.train` says: everything, the adapters, or nothing.
        """
        chosen = []
        for name, parameter in self.named_parameters():
            part = name.split(".", 1)[0]
            if part == "transformer":
                learns = not is_adapter(name) if prior else self._transformer_learns(name)
            else:
                learns = part == "projection" or not prior
            parameter.requires_grad_(learns)
            if learns:
                chosen.append(parameter)
        return chosen

    def _transformer_learns(self, name: str) -> bool:
        return {"full": True, "lora": is_adapter(name), "frozen": False}[self.config.train]

    def finish_prior(self) -> None:
        """To be called once, between prior and phase 2: copied control blocks become those of the trained prior."""
        if isinstance(self.control, FullControl):
            self.control.copy_blocks(self.transformer)

    def load_folder(self, path: str | Path) -> None:
        """Take the transformer of a folder in diffusers' layout as the prior, and finish it.

        Raises:
            InputError: there is no such folder, or it holds another size than the configuration describes.
        """
        load_weights(self.transformer, path, "transformer", section="vdm")
        self.finish_prior()

    def save_folder(self, path: str | Path, *, merged: bool = True) -> None:
        """Write transformer/ and scheduler/ so that stock diffusers loads them; `merged` adds adapters to the weights.

        Unmerged, the transformer is written as it was before phase 2 and the adapters lie beside it.
        """
        stock = {key: stock_options(self.config, self.geometry)[key] for key in ("in_channels", "concat_padding_mask")}
        save_weights(self.transformer, path, "transformer", options=stock, merged=merged)
        save_scheduler(path)

    def checkpoint_gradients(self) -> None:
        """Keep one activation per block for the backward pass and compute the others again: less memory, more time."""
        self.transformer.enable_gradient_checkpointing()  # type: ignore[operator]
        if isinstance(self.control, FullControl):
            self.control.checkpointing = True

    def velocity(
        self,
        noisy: Float[Tensor, "B C K h w"],
        time: Float[Tensor, " B"],
        first: Float[Tensor, "B C h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        control_video: Float[Tensor, "B C K h w"] | None,
        keep_codes: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C K h w"]:
        """Predicted velocity eps - x0.

        `first` (clean) replaces latent frame 0; entries of `keep_codes` that are False see the null token alone;
        `hint=None` leaves the control branch out.
        """
        batch, _, frames, height, width = noisy.shape
        x = torch.cat([first[:, :, None], noisy[:, :, 1:]], dim=2)
        # Marks the conditioning frame; the second channel, where there is one, would mark padding.
        marks = x.new_zeros(batch, 1 + self.config.padding_channel, frames, height, width)
        marks[:, 0, 0] = 1.0
        times = time[:, None].repeat(1, frames)
        times[:, 0] = CLEAN_TIME
        context = self.projection(codes)
        self._set_masks(frames, height, width, keep_codes, x.device)
        with self._precision(x.device):
            residuals = self._residuals(torch.cat([x, marks], dim=1), times, context, control_video)
            with residuals_added(self.transformer, residuals):
                out = self.transformer(
                    hidden_states=x,
                    timestep=times[:, None, :, None, None],
                    encoder_hidden_states=context,
                    condition_mask=marks,
                    fps=None,  # rotary positions in latent frames, as the original 2B model (method 1.12, trap 3)
                    return_dict=False,
                )[0]
        if self.config.prediction == "velocity":
            prediction: Tensor = out
            return prediction
        return velocity_of_change(out.float(), noisy, time, first)

    def _precision(self, device: torch.device) -> Any:
        """Weights kept in bfloat16 run in bfloat16; otherwise the caller's autocast decides."""
        half = self.config.frozen_precision == "bf16"
        return torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext()

    def _residuals(self, x: Tensor, times: Tensor, context: Tensor, control_video: Tensor | None) -> list[Tensor]:
        if self.control is None or control_video is None:
            return []
        if isinstance(self.control, LightControl):
            return list(self.control(control_video))
        return list(self.control(self.transformer, x, times, context, control_video))

    def _set_masks(
        self, num_frames: int, height: int, width: int, keep_codes: Tensor | None, device: torch.device
    ) -> None:
        per_frame = (height // 2) * (width // 2)
        frame_of_query = torch.arange(num_frames, device=device).repeat_interleave(per_frame)
        keys = key_steps(num_frames - 1, self.geometry.queries, device)
        cross = visible_keys(keys, self.config.code_visibility, frame_of_query)[None, None]
        if keep_codes is not None:
            cross = cross & (keep_codes[:, None, None, None] | (keys == 0))
        self._masks.cross = cross
        self._masks.self_attention = None
        if self.config.temporal_causal_self_attention:
            self._masks.self_attention = frame_of_query[None] <= frame_of_query[:, None]

    def denoising_loss(
        self,
        latents: Float[Tensor, "B C K h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        control_video: Float[Tensor, "B C K h w"] | None,
        valid: Bool[Tensor, "B M"],
        generator: torch.Generator,
        drop_codes: bool = False,
    ) -> Float[Tensor, ""]:
        """Weighted velocity error over latent frames 1 .. K-1 whose step is valid.

        `generator` lives on the CPU. `drop_codes` hides the codes of every sample: what is then trained is the prior.
        """
        device = latents.device
        shift = self.config.noise_shift
        time = sample_times(latents.shape[0], generator, num_frames=self.geometry.latent_steps + 1, shift=shift).to(
            device
        )
        noise = torch.randn(latents.shape, generator=generator).to(device)
        dropout = 1.0 if drop_codes else self.config.code_dropout
        keep = (torch.rand(latents.shape[0], generator=generator) >= dropout).to(device)
        t = time[:, None, None, None, None]
        noisy = (1 - t) * latents + t * noise
        predicted = self.velocity(noisy, time, latents[:, :, 0], codes, control_video=control_video, keep_codes=keep)
        with torch.autocast(device.type, enabled=False):
            error = F.mse_loss(predicted.float(), noise - latents, reduction="none")[:, :, 1:].mean(dim=(1, 3, 4))
            weight = loss_weight(time)[:, None] * valid
            return (weight * error).sum() / valid.sum().clamp(min=1)

    @torch.no_grad()
    def sample(
        self,
        first: Float[Tensor, "B C h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        control_video: Float[Tensor, "B C K h w"] | None,
        generator: torch.Generator,
        num_steps: int = 10,
    ) -> Float[Tensor, "B C K h w"]:
        """Latents of a clip from first frame, codes and coarse clip; Euler over Karras noise levels 80 .. 0.002."""
        scheduler = build_scheduler()
        scheduler.set_timesteps(sigmas=sampling_times(num_steps).tolist(), device=first.device)
        batch, channels, height, width = first.shape
        frames = codes.shape[1] + 1
        x = torch.randn(batch, channels, frames, height, width, generator=generator).to(first.device)
        for time, t in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            predicted = self.velocity(x, t.expand(batch).to(x), first, codes, control_video=control_video)
            x = scheduler.step(predicted, time, x, return_dict=False)[0]
        return torch.cat([first[:, :, None], x[:, :, 1:]], dim=2)


def stock_options(config: VDMConfig, geometry: Geometry) -> dict[str, Any]:
    """The options of the stock transformer's constructor; `configs/model/paper.yaml` gives those of the 2B model."""
    return {
        "in_channels": geometry.channels + 1,  # + the mask that marks the conditioning frame
        "out_channels": geometry.channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.layers,
        "mlp_ratio": config.mlp_ratio,
        "text_embed_dim": config.context_width,
        "adaln_lora_dim": config.adaln_lora_dim,
        # The longest axis that rotary positions reach; no weight depends on it.
        "max_size": (max(128, geometry.latent_steps + 1), max(240, geometry.height), max(240, geometry.width)),
        "patch_size": (1, 2, 2),
        "rope_scale": config.rope_scale,
        "concat_padding_mask": config.padding_channel,
        "extra_pos_embed_type": None,
    }
