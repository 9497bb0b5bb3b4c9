"""The losses of the dLDM, and the stop-gradients that keep appearance out of its codes.

Phase 1: L2(dec(z_q, f_0), x), with gradients everywhere in the autoencoder. Reader (ours, optional): L_den for the
video model alone. Phase 2: L_rec(dec(sg(z_q), sg(f_0)), x) +
w_d * L_den(VDM(x | proj(z_q), sg(rec), frame 0)). The table of gradients in docs/concepts.md is a test, row by row.
Both phases may add a penalty on correlated FSQ dimensions, which is not in the paper.
"""

# B batch · T frames · M latent steps · N codes per step · s temporal stride
from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vw2_robot.distributed.batch_share import PartOfBatch, StatisticsGroups
from vw2_robot.models.dldm.dldm import DLDM, pad_to_stride
from vw2_robot.models.perceptual import PerceptualDistance
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.pixels import jitter_color
from vw2_robot.random_numbers import SampleNoise

from .config import TrainDLDMConfig
from .encoder_augmentation import drift
from .targets import correlation, frame_error, make_control_video, perceptual_error


class DLDMLoss(NamedTuple):
    """The loss of one batch, its parts for the log (without gradient), and the codes [B, M, N] of the batch."""

    loss: Tensor
    metrics: dict[str, Tensor]
    indices_BMN: Tensor


def phase_one_loss(
    dldm: DLDM,
    x: Float[Tensor, "B T 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    norm: Literal["l2", "l1"] = "l2",
    anchor_grad: bool = True,
    encoder_input: Float[Tensor, "B T 3 H W"] | None = None,
    decorrelation: float = 0.0,
    perceptual: PerceptualDistance | None = None,
    perceptual_weight: float = 0.0,
    part: PartOfBatch | None = None,
    groups: StatisticsGroups | None = None,
) -> DLDMLoss:
    """Return the reconstruction loss, with gradients everywhere in the autoencoder.

    Args:
        dldm: the model that is trained.
        x: pixels in [-1, 1], which are reconstructed.
        valid: the latent steps that are no padding.
        norm: of the reconstruction error.
        anchor_grad: False keeps gradients off the anchor f_0 (LAPA).
        encoder_input: what the encoder sees instead of `x`: the same clip, augmented.
        decorrelation: weight of the correlation between FSQ dimensions.
        perceptual: a distance that is added to the error, or None.
        perceptual_weight: its weight.
        part: of which batch these clips are a part; the losses of its parts add up. None: they are a batch.
        groups: of clips over which the correlation is taken.
    """
    x = dldm.resized(x)
    encoded = dldm.encode(x if encoder_input is None else dldm.resized(encoder_input))
    anchor = encoded.anchor_BChw if anchor_grad else encoded.anchor_BChw.detach()
    rec = dldm.decode(encoded.codes_BMNL, anchor, x[:, 0])
    frames = None if part is None else part.frames(dldm.config.temporal_stride // dldm.config.gap)
    target = dldm.subsample(x)
    rec_loss = frame_error(rec, target, valid, norm=norm, frames=frames)
    metrics = {f"dldm/reconstruction_{norm}": rec_loss.detach()}
    if perceptual is not None:
        distance = perceptual_error(perceptual, rec, target, valid, frames=frames)
        rec_loss = rec_loss + perceptual_weight * distance
        metrics["dldm/perceptual"] = distance.detach()
    code_correlation = correlation(encoded.codes_BMNL, valid, groups) * (1.0 if part is None else part.share)
    metrics["dldm/correlation"] = code_correlation.detach()
    return DLDMLoss(rec_loss + decorrelation * code_correlation, metrics, encoded.indices_BMN)


def reader_loss(
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    x: Float[Tensor, "B T 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    phases: TrainDLDMConfig,
    noise: SampleNoise,
    part: PartOfBatch | None = None,
) -> DLDMLoss:
    """Return the denoising loss without control video, for the video model alone: the codes are given.

    Args:
        dldm: in eval mode; not trained.
        vdm: trained.
        codec: pixels <-> latents of the VDM.
        x: pixels in [-1, 1].
        valid: the latent steps that are no padding.
        phases: for the color jitter.
        noise: of color jitter and diffusion, sampled in this order.
        part: of which batch these clips are a part; the losses of its parts add up. None: they are a batch.
    """
    with torch.no_grad():
        codes, indices = dldm.quantize(dldm.features(dldm.resized(x)))
        target = pad_to_stride(x, dldm.config.temporal_stride)
        latents = codec.encode(jitter_color(target, strength=phases.target_color_jitter, noise=noise))
    loss = vdm.denoising_loss(
        latents,
        codes,
        control_video=vdm.still_video(latents[:, :, 0], latents.shape[2]),
        valid=valid,
        noise=noise,
        valid_steps=None if part is None else part.valid_steps,
    )
    return DLDMLoss(loss, {"dldm/denoising_loss": loss.detach()}, indices)


def phase_two_loss(
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    x: Float[Tensor, "B T 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    phases: TrainDLDMConfig,
    noise: SampleNoise,
    perceptual: PerceptualDistance | None = None,
    part: PartOfBatch | None = None,
    groups: StatisticsGroups | None = None,
) -> DLDMLoss:
    """Return reconstruction for the decoder alone plus denoising for everything else; the stop-gradients stand here.

    Args:
        dldm: trained by both terms, as the stop-gradients let it.
        vdm: trained by the denoising loss.
        codec: pixels <-> latents of the VDM.
        x: pixels in [-1, 1].
        valid: the latent steps that are no padding.
        phases: weights and switches.
        noise: of augmentation, control dropout, color jitter and diffusion, sampled in this order.
        perceptual: a distance that is added to the reconstruction error, or None.
        part: of which batch these clips are a part; the losses of its parts add up. None: they are a batch.
        groups: of clips over which the correlation is taken.
    """
    small = dldm.resized(x)
    f = dldm.features(drift(small, strength=phases.encoder_augmentation, noise=noise))
    codes, indices = dldm.quantize(f)
    # Differs from the release: f_0 is detached unless anchor_grad, so L_rec trains the decoder and nothing else.
    codes_for_decoder = codes.detach() if phases.stop_gradient else codes
    anchor = f[:, 0].detach() if phases.stop_gradient and not phases.anchor_grad else f[:, 0]
    rec = dldm.decode(codes_for_decoder, anchor, small[:, 0])
    frames = None if part is None else part.frames(dldm.config.temporal_stride)
    rec_loss = frame_error(rec, small, valid, norm=phases.reconstruction_loss, frames=frames)
    metrics = {f"dldm/reconstruction_{phases.reconstruction_loss}": rec_loss.detach()}
    if perceptual is not None:
        distance = perceptual_error(perceptual, rec, small, valid, frames=frames)
        rec_loss = rec_loss + phases.perceptual_weight * distance
        metrics["dldm/perceptual"] = distance.detach()

    # The control video carries no gradient: the denoising loss reaches the encoder through the codes alone.
    control = make_control_video(rec.detach(), size=x.shape[-2:], grayscale=phases.control_grayscale)
    dropped = noise.rand().to(x.device) < phases.control_dropout
    # The encoder saw the true colors, so the target gets others: the VDM must take them from the conditioning frame.
    target = jitter_color(
        pad_to_stride(x, dldm.config.temporal_stride), strength=phases.target_color_jitter, noise=noise
    )
    latents = codec.encode(target)
    control_latents = codec.encode(control)
    still = vdm.still_video(latents[:, :, 0], latents.shape[2])
    if still is not None:
        # Dropped per sample, so that the VDM needs the codes for the motion.
        control_latents = torch.where(dropped[:, None, None, None, None], still, control_latents)
    den_loss = vdm.denoising_loss(
        latents,
        codes,
        control_video=control_latents,
        valid=valid,
        noise=noise,
        valid_steps=None if part is None else part.valid_steps,
    )
    # Not in the paper. Of the codes with their gradient: the penalty reaches the queries, which L_rec does not.
    code_correlation = correlation(codes, valid, groups) * (1.0 if part is None else part.share)
    loss = (
        phases.reconstruction_weight * rec_loss
        + phases.denoise_weight * den_loss
        + phases.decorrelation * code_correlation
    )
    metrics |= {"dldm/denoising_loss": den_loss.detach(), "dldm/correlation": code_correlation.detach()}
    return DLDMLoss(loss, metrics, indices)
