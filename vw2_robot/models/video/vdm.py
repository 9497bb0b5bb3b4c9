"""The video diffusion model (VDM): it renders appearance, conditioned on latent codes and a coarse clip.

Place in the flow: beside the dLDM in phase 2. diffusers' `CosmosTransformer3DModel` or `WanTransformer3DModel` is
wrapped (`config.family`): codes enter as `encoder_hidden_states`, masks through attention processors, control through
forward hooks, adapters through peft, and some layers are computed faster (`cosmos.py`, `wan.py`). Names and layout of
the weights stay those of diffusers, so they load there, and those of stock diffusers here. Further parts are in
`code_projection.py` and `control.py`.

Noise (`noise_levels.py`): rectified flow; the network gets (1-t) x0 + t eps and predicts the velocity v = eps - x0.
Latent frame 0 is the conditioning frame: always clean, never in the loss. diffusers is imported when a model is built,
not with this module.
"""

# B batch · K latent frames · M = K-1 latent steps · N codes per step · C latent channels · h, w latent grid
# Q = K * h/2 * w/2 tokens of the transformer · S = 1 + M*N keys (null token first) · D width of the cross-attention
from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vw2_robot.random_numbers import SampleNoise

from ..precision import at_least_float32
from . import cosmos, wan
from .code_projection import CodeConnector, CodeProjection, key_steps, visible_keys
from .config import CodecConfig, Geometry, VDMConfig
from .control import FullControl, LightControl, residuals_added
from .cosmos import UNUSED, Masks, add_lora, blocks_of, build_scheduler, is_adapter, last_tokens
from .cosmos_folder import load_weights, save_scheduler, save_weights
from .cosmos_native import load_native
from .latent_warp import LatentWarp
from .noise_levels import loss_weight, sample_times, sampling_times, velocity_of_change

# Modules whose functions have the same names: how a stock transformer is built and called.
FAMILIES: dict[str, Any] = {"cosmos": cosmos, "wan": wan}


class VDM(nn.Module):
    """Transformer, code projection and control branch in one module, with the loss and the sampler.

    Names and shapes of all parameters follow from the configuration alone, adapters included. With `config.weights` the
    transformer holds no values until `load_folder` or a checkpoint fills it.

    Args:
        config: size of the transformer and how codes enter it.
        geometry: sizes that codec and dLDM define.
        codec: of the latents; `config.warp` needs it.

    Raises:
        ValueError: the latent grid is odd; patches are 2 x 2. Or a warp of other latents than the DCT codec's.
    """

    def __init__(self, config: VDMConfig, geometry: Geometry, codec: CodecConfig | None = None) -> None:
        super().__init__()
        if geometry.height % 2 or geometry.width % 2:
            raise ValueError(
                f"the latent grid must be even in both directions, found {geometry.height} x {geometry.width}"
            )
        self.config = config
        self.geometry = geometry
        self.projection: CodeProjection | CodeConnector
        if config.projection == "attention":
            self.projection = CodeProjection(
                fsq_dims=geometry.fsq_dims,
                latent_steps=geometry.latent_steps,
                queries=geometry.queries,
                width=config.projection_width or config.context_width,
                layers=config.projection_layers,
                head_dim=config.projection_head_dim,
                context_width=config.context_width,
            )
        else:
            assert config.projection_width is not None
            self.projection = CodeConnector(
                fsq_dims=geometry.fsq_dims,
                lifted=config.projection_width,
                width=config.context_width,
                tokens=config.context_tokens,
            )
        is_bf16 = config.frozen_precision == "bf16"
        self.transformer: nn.Module = self.family.build_transformer(
            self.family.stock_options(config, geometry),
            dtype=torch.bfloat16 if is_bf16 else torch.float32,
            # From a folder, or from a checkpoint of a run that began with it.
            filled=config.weights is None,
        )
        self.control: LightControl | FullControl | None = None
        if config.control == "light":
            self.control = LightControl(
                geometry.channels, width=config.width, hidden=config.control_width, blocks=config.controlled
            )
        elif config.control in ("full", "released"):
            self.control = FullControl(
                self.transformer,
                geometry.channels,
                width=config.width,
                blocks=config.controlled,
                released=config.control == "released",
            )
        if config.train == "lora":
            add_lora(self.transformer, config.lora_rank, targets=self.family.LORA_TARGETS)
        self.warp: LatentWarp | None = None
        if config.warp:
            if codec is None or codec.kind != "dct":
                raise ValueError(f"vdm.warp=true moves pixels of the DCT codec, found {codec}; set codec.kind=dct")
            self.warp = LatentWarp(config.width, codec)
        self._masks = Masks()
        self.family.install_masks(self.blocks(), self._masks)

    @property
    def family(self) -> Any:
        """The module that knows the transformer: `cosmos.py` or `wan.py`."""
        return FAMILIES[self.config.family or "cosmos"]

    def trainable_parameters(self, *, prior: bool = False) -> list[nn.Parameter]:
        """Return the parameters to be trained, in a fixed order; only these get `requires_grad`.

        Args:
            prior: for the stage before phase 2: all but the control branch, which learns there with
                `config.still_control` alone. In phase 2: everything, but of the transformer the adapters alone, or
                nothing, as `config.train` says.
        """
        chosen = []
        for name, parameter in self.named_parameters():
            part = name.split(".", 1)[0]
            if part != "transformer":
                trained = part != "control" or not prior or self.config.still_control
            elif name.startswith(f"transformer.{UNUSED}"):
                trained = False
            elif prior:
                trained = not is_adapter(name)
            else:
                trained = {"full": True, "lora": is_adapter(name), "frozen": False}[self.config.train]
            trained = trained and not name.startswith("control.unread.")
            parameter.requires_grad_(trained)
            if trained:
                chosen.append(parameter)
        return chosen

    def finish_prior(self) -> None:
        """Copy the trained prior into the control branch; call it once, between prior and phase 2."""
        if isinstance(self.control, FullControl):
            self.control.copy_blocks(self.transformer)

    def load_folder(self, path: str | Path) -> None:
        """Load the transformer of a folder in diffusers' layout as the prior, and call `finish_prior`.

        Args:
            path: the folder, or for Cosmos a native .pt file.

        Raises:
            InputError: there is no such folder, or it holds another size than the configuration describes.
        """
        if self.config.family != "wan" and Path(path).suffix == ".pt":
            load_native(self.transformer, Path(path))
        else:
            load_weights(self.transformer, path, "transformer", section="vdm")
        self.finish_prior()

    def save_folder(self, path: str | Path, *, merged: bool = True) -> None:
        """Write transformer/ and scheduler/ so that stock diffusers loads them.

        Args:
            path: the folder.
            merged: add adapters to the weights; else the weights from before phase 2 are written, and the adapters
                beside them.
        """
        options = self.family.stock_options(self.config, self.geometry)
        save_weights(self.transformer, path, "transformer", options=options, merged=merged)
        save_scheduler(path, shift=self.config.sampling_shift)

    def blocks(self) -> list[nn.Module]:
        """Return the blocks that sharded training gathers one after the other, in order.

        The control branch itself is not one of them: it calls the transformer's embeddings.
        """
        copied = list(self.control.blocks) if isinstance(self.control, FullControl) else []
        return [*blocks_of(self.transformer), *copied]

    def compile_blocks(self) -> None:
        """Compile each block in place: names of parameters stay as they are."""
        for block in self.blocks():
            block.compile(fullgraph=True)

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
        text: Float[Tensor, "S D"] | None = None,
    ) -> Float[Tensor, "B C K h w"]:
        """Return the predicted velocity eps - x0.

        Args:
            noisy: (1-t) x0 + t eps.
            time: t of each sample.
            first: clean latents of frame 0, which replace latent frame 0.
            codes: quantized codes.
            control_video: latents of the coarse clip; None leaves the control branch out.
            keep_codes: samples with False get the null token alone, or the null context of the released projection.
            text: an embedded text that every frame sees in place of the codes, as the weights were pretrained.
        """
        batch, _, num_frames, height, width = noisy.shape
        # 1. Latent frame 0 is given clean, with a channel that marks it and a noise level of nearly zero. The second
        # channel, where there is one, would mark padding.
        x = torch.cat([first[:, :, None], noisy[:, :, 1:]], dim=2)
        marks = x.new_zeros(batch, 1 + self.config.padding_channel, num_frames, height, width)
        marks[:, 0, 0] = 1.0
        times = time[:, None].repeat(1, num_frames)
        times[:, 0] = self.family.CLEAN_TIME
        # 2. Codes as context, and who may attend to which of them.
        self._set_masks(num_frames, height, width, keep_codes, x.device)
        if text is not None:
            context = text.to(x).expand(batch, -1, -1)
            self._masks.cross = None
        elif isinstance(self.projection, CodeConnector):
            context = self.projection(codes, keep_codes)
        else:
            context = self.projection(codes)
        # 3. Transformer with control. Weights kept in bfloat16 run in bfloat16; else the caller's autocast decides.
        is_bf16 = self.config.frozen_precision == "bf16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16) if is_bf16 else nullcontext():
            residuals: list[Tensor] = []
            if self.control is not None and control_video is not None:
                if isinstance(self.control, LightControl):
                    residuals = self.control(control_video)
                else:
                    embedders = self.control if self.control.released else self.transformer
                    begin = self.family.block_arguments(embedders, x, marks, times, context)
                    residuals = self.control(*begin, control_video)
            with residuals_added(self.transformer, residuals), ExitStack() as stack:
                tokens = [] if self.warp is None else stack.enter_context(last_tokens(self.transformer))
                out: Tensor = self.family.predicted(self.transformer, x, marks, times, context)
        if self.config.prediction == "velocity":
            return out
        still = first[:, :, None]
        if self.warp is not None:
            # float32 on purpose: a flow is a fraction of a pixel, sampled at positions up to hundreds.
            with torch.autocast(x.device.type, enabled=False):
                still = self.warp(at_least_float32(tokens[0]), first)
        return velocity_of_change(at_least_float32(out), noisy, time, still)

    def still_video(self, first: Float[Tensor, "B C h w"], num_frames: int) -> Float[Tensor, "B C K h w"] | None:
        """Return the control video of a clip that has none: frame 0 repeated, or None without `config.still_control`.

        Args:
            first: clean latents of frame 0.
            num_frames: K.
        """
        return first[:, :, None].expand(-1, -1, num_frames, -1, -1) if self.config.still_control else None

    def _set_masks(
        self, num_frames: int, height: int, width: int, keep_codes: Tensor | None, device: torch.device
    ) -> None:
        """Set cross- and self-attention masks of the next forward pass."""
        per_frame = (height // 2) * (width // 2)
        frame_of_query = torch.arange(num_frames, device=device).repeat_interleave(per_frame)
        self._masks.cross = None
        if not isinstance(self.projection, CodeConnector):
            keys = key_steps(num_frames - 1, self.geometry.queries, device)
            cross = visible_keys(keys, self.config.code_visibility, frame_of_query)[None, None]
            if keep_codes is not None:
                cross = cross & (keep_codes[:, None, None, None] | (keys == 0))
            self._masks.cross = cross
        self._masks.self_attention = None
        if self.config.temporal_causal_self_attention:
            # With axes for samples and heads: diffusers takes a mask of two axes for one of samples and keys as soon as
            # there are as many samples as tokens.
            self._masks.self_attention = (frame_of_query[None] <= frame_of_query[:, None])[None, None]

    def denoising_loss(
        self,
        latents: Float[Tensor, "B C K h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        control_video: Float[Tensor, "B C K h w"] | None,
        valid: Bool[Tensor, "B M"],
        noise: SampleNoise,
        drop_codes: bool = False,
        valid_steps: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Return the weighted velocity error over latent frames 1 .. K-1 whose step is valid.

        Args:
            latents: clean latents x0 of a clip.
            codes: quantized codes.
            control_video: latents of the coarse clip; None leaves the control branch out.
            valid: False on latent steps that hold padding.
            noise: of these B samples.
            drop_codes: hide the codes of every sample, to train the prior.
            valid_steps: what the sum is divided by: the valid steps of the whole batch where this is a part of it;
                None: those of `valid`.
        """
        # The order of the random numbers is part of every seed: noise level, noise, dropout of codes.
        device = latents.device
        config = self.config
        time = sample_times(
            noise,
            num_frames=self.geometry.latent_steps + 1,
            shift=config.noise_shift,
            high_noise=config.high_noise,
        ).to(latents)
        eps = noise.randn(*latents.shape[1:]).to(latents)
        dropout = 1.0 if drop_codes else config.code_dropout
        keep = (noise.rand() >= dropout).to(device)
        t = time[:, None, None, None, None]
        noisy = (1 - t) * latents + t * eps
        predicted = self.velocity(noisy, time, latents[:, :, 0], codes, control_video=control_video, keep_codes=keep)
        # float32 on purpose: a mean of squares.
        with torch.autocast(device.type, enabled=False):
            error = F.mse_loss(at_least_float32(predicted), eps - latents, reduction="none")[:, :, 1:]
            weight = loss_weight(time)[:, None] * valid
            count = valid.sum() if valid_steps is None else valid_steps
            return (weight * error.mean(dim=(1, 3, 4))).sum() / count.clamp(min=1)

    @torch.no_grad()
    def sample(
        self,
        first: Float[Tensor, "B C h w"],
        codes: Float[Tensor, "B M N L"],
        *,
        control_video: Float[Tensor, "B C K h w"] | None,
        generator: torch.Generator,
        num_steps: int = 10,
        guidance: float = 1.0,
        negative: Float[Tensor, "S D"] | None = None,
    ) -> Float[Tensor, "B C K h w"]:
        """Return latents of a clip, sampled by Euler steps over noise levels as `config.sampling_shift` says.

        Args:
            first: clean latents of frame 0.
            codes: quantized codes.
            control_video: latents of the coarse clip; None leaves the control branch out.
            generator: on the CPU.
            num_steps: of the sampler.
            guidance: weight of the codes against the null context (classifier-free guidance, Ho & Salimans 2022);
                1: the codes as they are. Others need a model trained with `config.code_dropout`, and twice the time.
            negative: an embedded negative prompt that stands for the null context, as the published code has it.
        """
        scheduler = build_scheduler()
        levels = sampling_times(num_steps, shift=self.config.sampling_shift)
        scheduler.set_timesteps(sigmas=levels.tolist(), device=first.device)
        batch, channels, height, width = first.shape
        num_frames = codes.shape[1] + 1
        x = torch.randn(batch, channels, num_frames, height, width, generator=generator).to(first.device)
        for time, t in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            times = t.expand(batch).to(x)
            predicted = self.velocity(x, times, first, codes, control_video=control_video)
            if guidance != 1.0:
                nothing = torch.zeros(batch, dtype=torch.bool, device=x.device)
                null = self.velocity(
                    x, times, first, codes, control_video=control_video, keep_codes=nothing, text=negative
                )
                predicted = null + guidance * (predicted - null)
            # float32: the scheduler rounds what it returns to the precision of the velocity, step after step.
            predicted = at_least_float32(predicted)
            x = scheduler.step(predicted, time, x, return_dict=False)[0]
        return torch.cat([first[:, :, None], x[:, :, 1:]], dim=2)
