"""The two losses of the dLDM, and the stop-gradients that keep appearance out of its codes.

Phase 1: L2(dec(z_q, f_0), x), gradients everywhere in the autoencoder.
Phase 2: L_rec(dec(sg(z_q), sg(f_0)), x) + w_d * L_den(VDM(x | proj(z_q), sg(rec), frame 0)).
Method specification 1.9; its table of gradients is a test, row by row. Both may carry our penalty on correlated digits.
"""

# B batch · T frames · M latent steps · N codes per step · s temporal stride
from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vw2_robot.models.dldm.dldm import DLDM, pad_to_stride
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec

from .config import TrainDLDMConfig
from .dldm_diagnostics import CodeWatch
from .encoder_augmentation import disturb
from .targets import correlation, frame_error, jitter_color, make_control_video


def phase_one_loss(
    dldm: DLDM,
    x: Float[Tensor, "B T 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    norm: Literal["l2", "l1"] = "l2",
    anchor_grad: bool = True,
    watched: Float[Tensor, "B T 3 H W"] | None = None,
    decorrelation: float = 0.0,
    watch: CodeWatch | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction with gradients everywhere in the autoencoder; `anchor_grad=False` keeps them off f_0 (LAPA).

    `watched` is what the encoder sees instead of `x`: the same clip, disturbed.
    """
    encoded = dldm.encode(x if watched is None else watched)
    anchor = encoded.anchor_BChw if anchor_grad else encoded.anchor_BChw.detach()
    rec = dldm.decode(encoded.codes_BMNL, anchor, x[:, 0])
    rec_loss = frame_error(rec, dldm.seen(x), valid, norm=norm)
    alike = correlation(encoded.codes_BMNL, valid)
    if watch is not None:
        watch.count(encoded.indices_BMN, valid)
    values = {f"dldm/reconstruction_{norm}": rec_loss.detach(), "dldm/correlation": alike.detach()}
    return rec_loss + decorrelation * alike, values


def phase_two_loss(
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    x: Float[Tensor, "B T 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    phases: TrainDLDMConfig,
    noise: torch.Generator,
    watch: CodeWatch | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction for the decoder alone, denoising for everything else; the stop-gradients stand here."""
    f = dldm.features(disturb(x, strength=phases.encoder_augmentation, noise=noise))
    codes, indices = dldm.quantize(f)
    if watch is not None:
        watch.count(indices, valid)
    # Differs from the release: f_0 is detached unless anchor_grad, so L_rec trains the decoder and nothing else.
    shown = codes.detach() if phases.stop_gradient else codes
    anchor = f[:, 0].detach() if phases.stop_gradient and not phases.anchor_grad else f[:, 0]
    rec = dldm.decode(shown, anchor, x[:, 0])
    rec_loss = frame_error(rec, x, valid, norm=phases.reconstruction_loss)

    hint = make_control_video(rec.detach(), grayscale=phases.control_grayscale)
    dropped = torch.rand(len(x), generator=noise).to(x.device) < phases.control_dropout
    hint = torch.where(dropped[:, None, None, None, None], hint[:, :1].expand_as(hint), hint)
    # The encoder saw the true colors, the VDM must take its own from the conditioning frame.
    target = jitter_color(
        pad_to_stride(x, dldm.config.temporal_stride), strength=phases.target_color_jitter, noise=noise
    )
    den_loss = vdm.denoising_loss(
        codec.encode(target), codes, control_video=codec.encode(hint), valid=valid, generator=noise
    )
    alike = correlation(codes, valid)
    loss = phases.reconstruction_weight * rec_loss + phases.denoise_weight * den_loss + phases.decorrelation * alike
    values = {f"dldm/reconstruction_{phases.reconstruction_loss}": rec_loss, "dldm/denoising_loss": den_loss}
    return loss, {name: value.detach() for name, value in {**values, "dldm/correlation": alike}.items()}
