"""Validation of the dLDM: reconstruction, codes and shuffle ratios on held-out clips, and an image to look at.

A good reconstruction alone is no evidence: it can come with empty codes, and phase 2 can erode good ones (method 5.1).
"""

# B batch · T frames · M latent steps · N codes per step · h, w feature grid
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vw2_robot.data.clips import ClipBatch, ClipSampler
from vw2_robot.distributed.ranks import gather, global_sum, is_main
from vw2_robot.models.dldm.dldm import DLDM, pad_to_stride
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.pixels import to_model_range, to_pixels
from vw2_robot.random_numbers import SampleNoise, generator
from vw2_robot.storage.files import atomic_write

from .code_usage import used_and_perplexity
from .config import TrainDLDMConfig
from .targets import frame_error, make_control_video

STREAM_VALIDATION, STREAM_IMAGE = 30, 31
SHUFFLE_SAMPLES = 4
"""samples of noise over which a shuffle ratio is averaged"""


Chunks = Callable[[], Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]]
"""this rank's clips, a few at a time: positions [b], pixels [b, T, 3, H, W] in [-1, 1], valid steps [b, M]"""


@torch.no_grad()
def validate(
    dldm: DLDM,
    vdm: VDM | None,
    codec: VideoCodec | None,
    clips: Chunks,
    *,
    phase: int,
    seed: int,
    grayscale: bool,
) -> dict[str, float]:
    """Return reconstruction over copy-first-frame, codes used, perplexity, and in phase 2 two shuffle ratios.

    The shuffle ratio is L_den with the codes of another clip over L_den with the right ones. It is given with the
    control video (`shuffle_ratio`) and with one that does not move (`shuffle_ratio_no_control`). All ranks call it, and
    get the same values; these do not depend on the size of the chunks.

    Args:
        dldm: the model; it is put back into the mode (training or evaluation) that it was in.
        vdm: None has no shuffle ratios.
        codec: of the VDM.
        clips: gives the clips, from the first on each time that it is called.
        phase: 1 or 2.
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
    if phase == 2 and vdm is not None and codec is not None:
        all_codes = {row: codes for part in gather(codes_of) for row, codes in part.items()}
        found |= shuffle_ratios(dldm, vdm, codec, clips, all_codes, seed=seed, grayscale=grayscale)
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

    Returns:
        `dldm/shuffle_ratio` and `dldm/shuffle_ratio_no_control`.
    """
    losses = torch.zeros(2, 2, dtype=torch.float64)  # with and without control video; right and wrong codes
    for rows, x, valid in clips():
        target = dldm.subsample(x)
        latents = codec.encode(target)
        encoded = dldm.encode(x)
        rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
        # Codes of another clip, not random ones: they have the right distribution and the wrong motion.
        others = torch.stack([codes[(int(row) - 1) % len(codes)] for row in rows]).to(encoded.codes_BMNL)
        for i, control in enumerate((rec, x[:, :1].expand_as(target))):
            control_latents = codec.encode(make_control_video(control, grayscale=grayscale))
            for k, given in enumerate((encoded.codes_BMNL, others)):
                for sample in range(SHUFFLE_SAMPLES):
                    # The noise depends on clip and number of the sample alone, so all sums see the same.
                    noise = SampleNoise(
                        seed, sample, stream=STREAM_VALIDATION, samples=rows.tolist(), device=latents.device
                    )
                    losses[i, k] += vdm.denoising_loss(
                        latents,
                        given,
                        control_video=control_latents,
                        valid=valid,
                        noise=noise,
                        valid_steps=latents.new_ones(()),
                    ).cpu()
    with_control, without_control = global_sum(losses)
    return {
        "dldm/shuffle_ratio": float(with_control[1] / with_control[0]),
        "dldm/shuffle_ratio_no_control": float(without_control[1] / without_control[0]),
    }


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


def write_reconstructions(
    folder: Path,
    dldm: DLDM,
    vdm: VDM | None,
    codec: VideoCodec | None,
    held_out: ClipSampler,
    *,
    seed: int,
    phases: TrainDLDMConfig,
    device: torch.device,
    rows: int = 6,
) -> None:
    """Write reconstructions.png: first frame, target, coarse reconstruction and any VDM's rendering of moving clips.

    All ranks call it, and rank 0 writes.

    Args:
        folder: where it goes.
        dldm: the model; left in evaluation mode.
        vdm: None leaves out the last column.
        codec: of the VDM.
        held_out: where the clips come from.
        seed: of the VDM's noise.
        phases: for `control_grayscale`.
        device: of the models.
        rows: clips, chosen from eight times as many.
    """
    # Batch 1, since batch 0 is the one that every validation uses.
    count = 8 * rows
    # One by one: together, clips of the paper's size take 5 GB as numbers.
    moved, episode = zip(*(motion(held_out.batch(1, count, np.array([row]))) for row in range(count)), strict=True)
    batch = held_out.batch(1, count, np.array(one_per_episode(np.array(moved), np.array(episode), rows)))
    x = to_model_range(torch.from_numpy(batch.pixels).to(device)).to(next(dldm.parameters()).dtype)
    x = pad_to_stride(x, dldm.config.temporal_stride)
    dldm.eval()
    with torch.no_grad():
        encoded = dldm.encode(x)
        rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    columns = [x[:, 0], x[:, -1], rec[:, -1]]
    if vdm is not None and codec is not None:
        control = codec.encode(make_control_video(rec, grayscale=phases.control_grayscale))
        noise = generator(seed, 0, stream=STREAM_IMAGE)
        # The codec is causal: latent frame 0 is that of frame 0 alone, and shows nothing of what is to be rendered.
        latents = vdm.sample(codec.encode(x)[:, :, 0], encoded.codes_BMNL, control_video=control, generator=noise)
        columns.append(codec.decode(latents)[:, -1])
    if not is_main():
        return
    sheet = contact_sheet([to_pixels(images).detach().cpu().numpy() for images in columns])
    with atomic_write(folder / "reconstructions.png") as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def motion(clip: ClipBatch) -> tuple[float, int]:
    """Return how much one clip moves (mean square of the change in pixel values), and its episode.

    A clip with padding counts as not moving, since its end would show a still image.
    """
    change = clip.pixels[0, -1].astype(np.float32) - clip.pixels[0, 0]
    return float(np.square(change).mean()) * bool(clip.valid.all()), int(clip.episode[0])


def one_per_episode(moved: NDArray[np.float64], episode: NDArray[np.int64], rows: int) -> list[int]:
    """Return the `rows` clips that move most, each from another episode as long as there are enough.

    Args:
        moved: how much each clip moves.
        episode: the episode that each clip is from.
        rows: how many clips are wanted.
    """
    order = np.argsort(-moved, kind="stable").tolist()
    # Written in reverse order, so that what stays for an episode is its clip that moves most.
    best = {int(episode[i]): i for i in reversed(order)}
    first = [i for i in order if best[int(episode[i])] == i]
    return (first + [i for i in order if i not in first])[:rows]


def contact_sheet(columns: list[NDArray[np.uint8]], *, scale: int = 2, gap: int = 4) -> NDArray[np.uint8]:
    """Return one image [H, W, 3]: columns [rows, h, w, 3] side by side, rows below one another.

    Args:
        columns: uint8 images, as many and of the same size in each column.
        scale: how many pixels each pixel is enlarged to, without smoothing.
        gap: white pixels between images.
    """
    count, height, width, _ = columns[0].shape
    sheet = np.full(
        (count * (height * scale + gap) - gap, len(columns) * (width * scale + gap) - gap, 3), 255, dtype=np.uint8
    )
    for c, column in enumerate(columns):
        for r, image in enumerate(column):
            top = r * (height * scale + gap)
            left = c * (width * scale + gap)
            sheet[top : top + height * scale, left : left + width * scale] = image.repeat(scale, 0).repeat(scale, 1)
    return sheet
