"""Validation of the dLDM: reconstruction, codes, and what the video model makes of them, on held-out clips.

A good reconstruction alone is no evidence: it can come with empty codes, and phase 2 can erode good ones (method 5.1).
"""

# B batch · T frames · M latent steps · N codes per step · h, w feature grid
from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vw2_robot.distributed.ranks import gather, global_sum
from vw2_robot.models.dldm.dldm import DLDM, pad_to_stride
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.random_numbers import SampleNoise

from ..targets import frame_error, make_control_video
from .code_usage import used_and_perplexity
from .explained_change import Chunks, explained_change

STREAM_VALIDATION = 30
Reads = Literal["nothing", "codes", "codes and control"]


@torch.no_grad()
def validate(
    dldm: DLDM,
    vdm: VDM | None,
    codec: VideoCodec | None,
    clips: Chunks,
    *,
    reads: Reads,
    seed: int,
    grayscale: bool,
) -> dict[str, float]:
    """Return reconstruction over copy-first-frame, codes used, perplexity, and what the VDM reads in the codes.

    That is the explained change, and two shuffle ratios: L_den with the codes of another clip over L_den with the right
    ones, with the control video (`shuffle_ratio`) and with one that does not move (`shuffle_ratio_no_control`). All
    ranks call it, and get the same values; these do not depend on the size of the chunks.

    Args:
        dldm: the model; it is put back into the mode (training or evaluation) that it was in.
        vdm: the video model; None where there is none.
        codec: of the VDM.
        clips: gives the clips, from the first on each time that it is called.
        reads: what the VDM has been trained to read, for which it is validated too.
        seed: of the noise; the same seed gives the same noise for every call and every set of codes.
        grayscale: whether the control video is gray.
    """
    was_training = dldm.training
    # Running statistics before FSQ are used but do not move: a validation must not change training.
    dldm.eval()
    errors = torch.zeros(2, dtype=torch.float64)
    histogram = torch.zeros(dldm.fsq.vocabulary, dtype=torch.long)
    codes_of: dict[int, Tensor] = {}
    for rows, x, valid in clips():
        x = dldm.resized(x)
        encoded = dldm.encode(x)
        rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
        target = dldm.subsample(x)
        still = x[:, :1].expand_as(target)
        for number, video in enumerate((rec, still)):
            # A sum, without frame 0, which the decoder is given and a copy reproduces exactly.
            errors[number] += frame_error(video, target, valid, with_anchor=False, frames=1.0).cpu()
        histogram += torch.bincount(encoded.indices_BMN[valid].flatten(), minlength=len(histogram)).cpu()
        codes_of |= {int(row): codes.cpu() for row, codes in zip(rows, encoded.codes_BMNL, strict=True)}
    errors = global_sum(errors)
    used, perplexity = used_and_perplexity(global_sum(histogram))
    found = {
        "dldm/ratio_to_copy": float(errors[0] / errors[1]),
        "dldm/codes_used": used,
        "dldm/perplexity": perplexity,
    }
    if reads != "nothing" and vdm is not None and codec is not None:
        all_codes = {row: codes for part in gather(codes_of) for row, codes in part.items()}
        explained = explained_change(vdm, codec, clips, all_codes, seed=seed, dldm=dldm)
        found |= {f"dldm/{name}": value for name, value in explained.items()}
        found |= shuffle_ratios(
            dldm,
            vdm,
            codec,
            clips,
            all_codes,
            seed=seed,
            grayscale=grayscale,
            with_control=reads == "codes and control",
        )
    dldm.train(was_training)
    return found


@torch.no_grad()
def shuffle_ratios(
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    clips: Chunks,
    codes: dict[int, Tensor],
    *,
    seed: int,
    grayscale: bool,
    with_control: bool,
) -> dict[str, float]:
    """Return L_den with the codes of the neighbor in the batch over L_den with the right ones, under equal noise.

    1 where the VDM ignores the codes; the more above 1, the more it needs them.

    Args:
        dldm: in eval mode; makes the control video.
        vdm: the video model whose denoising loss L_den is compared.
        codec: of the VDM.
        clips: see `validate`.
        codes: of all clips by position, quantized [M, N, L].
        seed: of the noise, which is the same for all losses.
        grayscale: whether the control video is gray.
        with_control: also with the control video, for a VDM that has been trained with one.

    Returns:
        `dldm/shuffle_ratio_no_control`, and `dldm/shuffle_ratio` with the control video.
    """
    losses = torch.zeros(2, 2, dtype=torch.float64)  # without and with control video; right and wrong codes
    for rows, x, valid in clips():
        latents = codec.encode(pad_to_stride(x, dldm.config.temporal_stride))
        right = torch.stack([codes[int(row)] for row in rows]).to(latents)
        # Codes of another clip, not random ones: they have the right distribution and the wrong motion.
        others = torch.stack([codes[(int(row) - 1) % len(codes)] for row in rows]).to(latents)
        controls = [vdm.still_video(latents[:, :, 0], latents.shape[2])]
        if with_control:
            small = dldm.resized(x)
            encoded = dldm.encode(small)
            rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, small[:, 0])
            controls.append(codec.encode(make_control_video(rec, size=x.shape[-2:], grayscale=grayscale)))
        for i, control in enumerate(controls):
            for k, given in enumerate((right, others)):
                # The noise depends on the clip alone, so all sums see the same.
                noise = SampleNoise(seed, 0, stream=STREAM_VALIDATION, samples=rows.tolist(), device=latents.device)
                losses[i, k] += vdm.denoising_loss(
                    latents, given, control_video=control, valid=valid, noise=noise, valid_steps=latents.new_ones(())
                ).cpu()
    ratios = [float(wrong / right) for right, wrong in global_sum(losses)[: 1 + with_control]]
    return dict(zip(("dldm/shuffle_ratio_no_control", "dldm/shuffle_ratio"), ratios, strict=False))


def explain_shortfall(held_out: float, training: float, *, limit: float) -> str:
    """Return what it means that phase 1 ends above the limit.

    Args:
        held_out: reconstruction over copy-first-frame on held-out clips.
        training: the same on training clips, without augmentation.
        limit: `train_dldm.advance_ratio`.
    """
    message = f"phase 1 ends with held-out reconstruction at {held_out:.2f} of copy-first-frame, above {limit}; "
    if training <= limit:
        return message + (
            f"the training clips are at {training:.2f}, so the model fits what it saw: more different video helps"
        )
    return message + f"the training clips are at {training:.2f} too, so motion is not learned yet: more steps help"
