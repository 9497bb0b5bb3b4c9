"""Is the dLDM healthy? Four numbers on held-out clips, code usage over the data, and a picture to look at.

A good reconstruction alone is no evidence: it can come with empty codes, and phase 2 can erode good ones (method 5.1).
"""

# B batch · T frames · M latent steps · N codes per step · V codebook
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.frames import FrameCache
from vw2_robot.models.dldm import DLDM, pad_to_stride
from vw2_robot.models.vdm import VDM
from vw2_robot.models.video_codec import VideoCodec
from vw2_robot.pixels import to_model_range, to_pixels
from vw2_robot.runs import generator, mark

from .config import PhasesConfig, Pretrain
from .targets import frame_error, make_hint

STREAM_HEALTH, STREAM_PICTURE = 30, 31
# Shuffle ratio below which the VDM is said to ignore the codes (method 5.1).
HEALTHY_SHUFFLE_RATIO = 1.1


@torch.no_grad()
def validate(
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    clips: tuple[Tensor, Tensor],
    *,
    phase: int,
    seed: int,
    grayscale: bool,
) -> dict[str, float]:
    """Held-out health: reconstruction over copy-first-frame, codes used, perplexity, and in phase 2 shuffle ratios.

    The shuffle ratio is L_den with the codes of another clip over L_den with the right ones, same noise; it is given
    with the hint and without any motion in it (`hintless`).
    """
    x, valid = clips
    was_training = dldm.training
    dldm.eval()
    encoded = dldm.encode(x)
    rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    still = x[:, :1].expand_as(pad_to_stride(x, dldm.config.stride))
    ratio = frame_error(rec, x, valid, with_anchor=False) / frame_error(still, x, valid, with_anchor=False)
    used, perplexity = _usage(torch.bincount(encoded.indices_BMN[valid].flatten(), minlength=dldm.fsq.vocabulary))
    health = {"dldm/ratio_to_copy": float(ratio), "dldm/codes_used": used, "dldm/perplexity": perplexity}
    if phase == 2:
        latents = codec.encode(pad_to_stride(x, dldm.config.stride))
        motion = codec.encode(make_hint(rec, grayscale=grayscale))
        no_motion = codec.encode(make_hint(still, grayscale=grayscale))
        shuffled = encoded.codes_BMNL.roll(1, dims=0)
        for name, hint in (("shuffle_ratio", motion), ("shuffle_ratio_hintless", no_motion)):
            right, wrong = (
                sum(
                    float(
                        vdm.denoising_loss(
                            latents, codes, hint=hint, valid=valid, generator=generator(seed, i, stream=STREAM_HEALTH)
                        )
                    )
                    for i in range(4)
                )
                for codes in (encoded.codes_BMNL, shuffled)
            )
            health[f"dldm/{name}"] = wrong / right
    dldm.train(was_training)
    return health


def explain_shortfall(held_out: float, own: float, *, limit: float) -> str:
    """What it means that phase 1 ends above the limit, from the same ratio on the training clips."""
    said = f"phase 1 ends with held-out reconstruction at {held_out:.2f} of copy-first-frame, above {limit}; "
    if own <= limit:
        return said + f"the training clips are at {own:.2f}, so the model fits what it saw: more different video helps"
    return said + f"the training clips are at {own:.2f} too, so motion is not learned yet: more steps help"


def _usage(histogram: Tensor) -> tuple[int, float]:
    share = histogram.double() / histogram.sum().clamp(min=1)
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    return int((histogram > 0).sum()), float(entropy.exp())


@torch.no_grad()
def code_usage(dldm: DLDM, frames: FrameCache, config: Pretrain, *, device: torch.device) -> dict[str, Any]:
    """Histogram of codes over windows of all episodes, written to codes.json: total and by slot."""
    histogram = torch.zeros(config.dldm.queries, dldm.fsq.vocabulary, dtype=torch.long)
    sampler = ClipSampler(
        frames,
        list(range(len(frames.episodes))),
        frames=config.dldm.frames,
        stride_s=config.dldm.stride,
        target_hz=config.data.target_hz,
        seed=config.seed,
    )
    for i in range(16):
        batch = sampler.batch(i, 64)
        indices = dldm.indices(to_model_range(torch.from_numpy(batch.pixels).to(device))).cpu()
        for slot in range(config.dldm.queries):
            chosen = indices[..., slot][torch.from_numpy(batch.valid)]
            histogram[slot] += torch.bincount(chosen, minlength=dldm.fsq.vocabulary)
    used, perplexity = _usage(histogram.sum(0))
    usage = {
        "histogram": histogram.sum(0).tolist(),
        "by_slot": histogram.tolist(),
        "used": used,
        "perplexity": perplexity,
        "clips": 16 * 64,
    }
    mark(config.stage_dir("dldm") / "codes.json", usage)
    return usage


def draw_reconstructions(
    folder: Path,
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    held_out: ClipSampler,
    *,
    seed: int,
    phases: PhasesConfig,
    device: torch.device,
    rows: int = 6,
) -> None:
    """reconstructions.png: first frame, target, coarse reconstruction and VDM rendering of clips that move."""
    batch = held_out.batch(1, 8 * rows)
    x = to_model_range(torch.from_numpy(batch.pixels).to(device))
    moved = (x[:, -1] - x[:, 0]).square().mean(dim=(1, 2, 3)) * torch.from_numpy(batch.valid).all(1).to(device)
    x = pad_to_stride(x[_one_per_episode(moved.cpu().numpy(), batch.episode, rows)], dldm.config.stride)
    dldm.eval()
    with torch.no_grad():
        encoded = dldm.encode(x)
        rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    latents = vdm.sample(
        codec.encode(x)[:, :, 0],
        encoded.codes_BMNL,
        hint=codec.encode(make_hint(rec, grayscale=phases.hint_grayscale)),
        generator=generator(seed, 0, stream=STREAM_PICTURE),
    )
    rendering = codec.decode(latents)
    columns = [to_pixels(clip).detach().cpu().numpy() for clip in (x[:, 0], x[:, -1], rec[:, -1], rendering[:, -1])]
    _write_sheet(folder / "reconstructions.png", columns)


def _one_per_episode(moved: NDArray[np.float32], episode: NDArray[np.int64], rows: int) -> list[int]:
    """The `rows` clips that move most, different episodes first."""
    order = np.argsort(-moved, kind="stable").tolist()
    best = {int(episode[i]): i for i in reversed(order)}  # the last one written is the one that moves most
    first = [i for i in order if best[int(episode[i])] == i]
    return (first + [i for i in order if i not in first])[:rows]


def _write_sheet(path: Path, columns: list[NDArray[np.uint8]], *, scale: int = 2, gap: int = 4) -> None:
    """One picture: columns side by side, rows below one another, enlarged without smoothing."""
    count, height, width, _ = columns[0].shape
    sheet = np.full(
        (count * (height * scale + gap) - gap, len(columns) * (width * scale + gap) - gap, 3), 255, dtype=np.uint8
    )
    for c, column in enumerate(columns):
        for r, picture in enumerate(column):
            top, left = r * (height * scale + gap), c * (width * scale + gap)
            sheet[top : top + height * scale, left : left + width * scale] = picture.repeat(scale, 0).repeat(scale, 1)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(sheet).save(temporary, format="PNG")
    temporary.replace(path)
