"""Is the dLDM healthy? Four numbers on held-out clips, code usage over the data, and an image to look at.

A good reconstruction alone is no evidence: it can come with empty codes, and phase 2 can erode good ones (method 5.1).
"""

# B batch · T frames · M latent steps · N codes per step · V codebook
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.models.dldm.dldm import DLDM, pad_to_stride
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.pixels import to_model_range, to_pixels
from vw2_robot.runs import generator, mark
from vw2_robot.storage.files import atomic_write

from .config import PretrainConfig, TrainDLDMConfig
from .targets import frame_error, make_control_video

STREAM_HEALTH, STREAM_IMAGE = 30, 31
USAGE_BATCH = 64


@torch.no_grad()
def validate(
    dldm: DLDM,
    vdm: VDM | None,
    codec: VideoCodec | None,
    clips: tuple[Tensor, Tensor],
    *,
    phase: int,
    seed: int,
    grayscale: bool,
) -> dict[str, float]:
    """Held-out health: reconstruction over copy-first-frame, codes used, perplexity, and in phase 2 shuffle ratios.

    The shuffle ratio is L_den with the codes of another clip over L_den with the right ones, same noise; it is given
    with the hint and without any motion in it (`hintless`). Without a VDM there is none.
    """
    x, valid = clips
    was_training = dldm.training
    dldm.eval()
    encoded = dldm.encode(x)
    rec, seen = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0]), dldm.seen(x)
    still = x[:, :1].expand_as(seen)
    ratio = frame_error(rec, seen, valid, with_anchor=False) / frame_error(still, seen, valid, with_anchor=False)
    used, perplexity = _usage(torch.bincount(encoded.indices_BMN[valid].flatten(), minlength=dldm.fsq.vocabulary))
    health = {"dldm/ratio_to_copy": float(ratio), "dldm/codes_used": used, "dldm/perplexity": perplexity}
    if phase == 2 and vdm is not None and codec is not None:
        latents = codec.encode(seen)
        hints = {
            "shuffle_ratio": codec.encode(make_control_video(rec, grayscale=grayscale)),
            "shuffle_ratio_hintless": codec.encode(make_control_video(still, grayscale=grayscale)),
        }
        for name, hint in hints.items():
            health[f"dldm/{name}"] = _shuffle_ratio(vdm, latents, encoded.codes_BMNL, hint, valid, seed=seed)
    dldm.train(was_training)
    return health


def _shuffle_ratio(
    vdm: VDM, latents: Tensor, codes: Tensor, control_video: Tensor, valid: Tensor, *, seed: int
) -> float:
    """L_den with the codes of the neighbor in the batch over L_den with the right ones, over four noise draws."""
    right, wrong = (
        sum(
            float(
                vdm.denoising_loss(
                    latents,
                    given,
                    control_video=control_video,
                    valid=valid,
                    generator=generator(seed, i, stream=STREAM_HEALTH),
                )
            )
            for i in range(4)
        )
        for given in (codes, codes.roll(1, dims=0))
    )
    return wrong / right


class CodeWatch(nn.Module):
    """Counts the codes of training batches from one validation to the next, and says when something stays wrong.

    All its state is saved with the run, so that a resumed run logs what it would have logged.
    """

    counts: Tensor
    streaks: Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(vocabulary, dtype=torch.long))
        self.register_buffer("streaks", torch.zeros(2, dtype=torch.long))

    def count(self, indices: Int[Tensor, "B M N"], valid: Bool[Tensor, "B M"]) -> None:
        """Add the codes of the real steps of one batch."""
        self.counts += torch.bincount(indices[valid].flatten(), minlength=len(self.counts))

    def read(self) -> dict[str, float]:
        """Different codes, dead codes, perplexity and entropy since the last call of `look`."""
        used, perplexity = _usage(self.counts)
        return {
            "dldm/train_codes_used": used,
            "dldm/dead_codes": len(self.counts) - used,
            "dldm/train_perplexity": perplexity,
            "dldm/entropy_bits": math.log2(perplexity),
        }

    def look(self, health: Mapping[str, float], phases: TrainDLDMConfig) -> list[str]:
        """Alarms that are due after a validation; then count from zero.

        An alarm is given once, at the `alarm_after`-th bad validation in a row, and again only after a good one.
        """
        perplexity, shuffle = _usage(self.counts)[1], health.get("dldm/shuffle_ratio", math.inf)
        # A stretch of n codes cannot show more than n different ones; a single code has perplexity 1.
        floor = 1 + phases.perplexity_alarm * (min(len(self.counts), int(self.counts.sum())) - 1)
        bad = torch.tensor([perplexity < floor, not shuffle >= phases.shuffle_alarm], device=self.streaks.device)
        self.streaks.copy_((self.streaks + 1) * bad)
        self.counts.zero_()
        collapsed, ignored = (int(streak) == phases.alarm_after for streak in self.streaks)
        alarms = []
        if collapsed:
            alarms.append(
                f"ALARM codes collapse: perplexity {perplexity:.2f} in training, below {floor:.2f} at "
                f"{phases.alarm_after} validations in a row; dldm.z_norm=batch and a lower learning rate help"
            )
        if ignored:
            alarms.append(
                f"ALARM codes ignored: the VDM loses only {shuffle:.3f} x with the codes of another clip (limit "
                f"{phases.shuffle_alarm}) at {phases.alarm_after} validations in a row; raise "
                f"train_dldm.control_dropout, "
                "or vdm.noise_shift where the VDM learns from nothing"
            )
        return alarms


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
def code_usage(dldm: DLDM, frame_cache: FrameCache, config: PretrainConfig, *, device: torch.device) -> dict[str, Any]:
    """Histogram of codes over windows of all episodes, written to codes.json: total and by slot."""
    histogram = torch.zeros(config.dldm.queries, dldm.fsq.vocabulary, dtype=torch.long)
    sampler = ClipSampler(
        frame_cache,
        list(range(len(frame_cache.episodes))),
        num_frames=config.dldm.num_frames,
        temporal_stride=config.dldm.temporal_stride,
        **config.data.time_base,
        seed=config.seed,
    )
    clips = config.train_dldm.usage_clips
    for i in range(math.ceil(clips / USAGE_BATCH)):
        batch = sampler.batch(i, min(USAGE_BATCH, clips - i * USAGE_BATCH))
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
        "clips": clips,
    }
    mark(config.stage_dir("dldm") / "codes.json", usage)
    return usage


def draw_reconstructions(
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
    """reconstructions.png: first frame, target, coarse reconstruction and any VDM's rendering of clips that move."""
    batch = held_out.batch(1, 8 * rows)
    x = to_model_range(torch.from_numpy(batch.pixels).to(device))
    moved = (x[:, -1] - x[:, 0]).square().mean(dim=(1, 2, 3)) * torch.from_numpy(batch.valid).all(1).to(device)
    x = pad_to_stride(x[_one_per_episode(moved.cpu().numpy(), batch.episode, rows)], dldm.config.temporal_stride)
    dldm.eval()
    with torch.no_grad():
        encoded = dldm.encode(x)
        rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    clips = [x[:, 0], x[:, -1], rec[:, -1]]
    if vdm is not None and codec is not None:
        hint = codec.encode(make_control_video(rec, grayscale=phases.control_grayscale))
        noise = generator(seed, 0, stream=STREAM_IMAGE)
        latents = vdm.sample(codec.encode(x)[:, :, 0], encoded.codes_BMNL, control_video=hint, generator=noise)
        clips.append(codec.decode(latents)[:, -1])
    columns = [to_pixels(clip).detach().cpu().numpy() for clip in clips]
    _write_sheet(folder / "reconstructions.png", columns)


def _one_per_episode(moved: NDArray[np.float32], episode: NDArray[np.int64], rows: int) -> list[int]:
    """The `rows` clips that move most, different episodes first."""
    order = np.argsort(-moved, kind="stable").tolist()
    best = {int(episode[i]): i for i in reversed(order)}  # the last one written is the one that moves most
    first = [i for i in order if best[int(episode[i])] == i]
    return (first + [i for i in order if i not in first])[:rows]


def _write_sheet(path: Path, columns: list[NDArray[np.uint8]], *, scale: int = 2, gap: int = 4) -> None:
    """One image: columns side by side, rows below one another, enlarged without smoothing."""
    count, height, width, _ = columns[0].shape
    sheet = np.full(
        (count * (height * scale + gap) - gap, len(columns) * (width * scale + gap) - gap, 3), 255, dtype=np.uint8
    )
    for c, column in enumerate(columns):
        for r, image in enumerate(column):
            top, left = r * (height * scale + gap), c * (width * scale + gap)
            sheet[top : top + height * scale, left : left + width * scale] = image.repeat(scale, 0).repeat(scale, 1)
    with atomic_write(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
