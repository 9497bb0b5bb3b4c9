"""reconstructions.png: first frame, target, coarse reconstruction and any VDM's rendering of moving held-out clips.

reconstructions.json beside it has the errors of each column, relative to the first frame held still.
"""

# B batch · T frames
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vw2_robot.data.clips import ClipBatch, ClipSampler
from vw2_robot.distributed.ranks import is_main
from vw2_robot.models.dldm.dldm import DLDM, pad_to_stride
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.pixels import resize_video, to_model_range, to_pixels
from vw2_robot.random_numbers import generator
from vw2_robot.storage.files import atomic_write, write_json

from ..config import TrainDLDMConfig
from ..targets import make_control_video

STREAM_IMAGE = 31


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
    """Write reconstructions.png and reconstructions.json: first frame, target, coarse reconstruction, VDM's rendering.

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
        small = dldm.resized(x)
        encoded = dldm.encode(small)
        rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, small[:, 0])
    columns = {
        "first frame": x[:, 0],
        "target": x[:, -1],
        "coarse reconstruction": resize_video(rec, *x.shape[-2:])[:, -1],
    }
    if vdm is not None and codec is not None:
        control = codec.encode(make_control_video(rec, size=x.shape[-2:], grayscale=phases.control_grayscale))
        noise = generator(seed, 0, stream=STREAM_IMAGE)
        # The codec is causal: latent frame 0 is that of frame 0 alone, and shows nothing of what is to be rendered.
        latents = vdm.sample(codec.encode(x)[:, :, 0], encoded.codes_BMNL, control_video=control, generator=noise)
        columns["VDM rendering"] = codec.decode(latents)[:, -1]
    if not is_main():
        return
    # Of more than 1 a column is farther from the target than a still image: nobody should have to guess from pixels.
    errors = {name: (images - x[:, -1]).square().mean().item() for name, images in columns.items()}
    still = max(errors["first frame"], 1e-12)
    relative = {name: error / still for name, error in errors.items()}
    write_json(folder / "reconstructions.json", {"error_to_still": relative}, sealed=True)
    sheet = contact_sheet([to_pixels(images).detach().cpu().numpy() for images in columns.values()])
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
