"""Program `vw2-imagine-craft`: first frame and instruction of each test video -> the imagined video, for each method.

    vw2-imagine-craft policy=runs/c dldm=runs/c prior=runs/c/vdm videos=runs/craft/validation out=runs/imagined

The policy plans codes, and segments are imagined one after another, each from the last frame of the one before:

    vw2         rendered by the dLDM stage's VDM
    videoworld  the pixels of the dLDM's decoder
    vdm         the VDM stage alone: null codes, no control, only the frame that the segment begins with

`out/METHOD/` holds one mp4 a test video and `imagined.jsonl`, a line a video: file, name of the true video, task,
instruction, the frame of the true video that each of its frames stands for. It is resumed: videos that are there stay.
"""

# T frames · M latent steps of a segment
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.agent import policy_folder
from vw2_robot.checkpoint import load_checkpoint, resolve
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_from, config_tree
from vw2_robot.data.clips import frame_offsets, time_base_of
from vw2_robot.data.sources.craft_bench import CraftVideo, read_craft_videos, read_frames
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.acting import acting_of
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import Acting, Sampling
from vw2_robot.models.video.config import CodecConfig, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec, build_codec
from vw2_robot.pixels import to_model_range, to_pixels
from vw2_robot.random_numbers import generator
from vw2_robot.storage.binding import bind_folder
from vw2_robot.storage.files import write_text
from vw2_robot.storage.locks import lock_folder

from ..config import make_geometry, rendered_size
from ..imagination import Renderer, imagine_segments, policy_plan
from ..imagine import open_renderer, write_video
from .config import ImagineCraftConfig, Method

STREAM_CODES, STREAM_RENDER = 94, 95
LINES = "imagined.jsonl"
FREE = ("out", "hardware")
"""keys that do not change what is imagined"""


class Models(NamedTuple):
    """What the methods need, in evaluation mode on the device."""

    policy: LatentPolicy
    acting: Acting
    dldm: DLDM
    facts: Mapping[str, Any]
    renderer: Renderer | None
    prior: tuple[VDM, VideoCodec] | None


def imagine_craft(config: ImagineCraftConfig) -> None:
    """Imagine the videos that are missing.

    Raises:
        InputError: models or videos cannot be read or do not fit, or `out` holds those of another configuration.
    """
    videos = read_craft_videos(config.videos)[: config.episodes]
    out = Path(config.out)
    tree = config_tree(config)
    with lock_folder(out, what="imagining"):
        begun = out.exists() and any(path.is_dir() for path in out.iterdir())
        bind_folder(
            out,
            {key: tree[key] for key in tree if key not in FREE},
            file=out / "config.json",
            holds="videos of another configuration",
            advice="Use another out=, or delete this one",
            begun=begun,
        )
        device = config.hardware.torch_device()
        models = open_models(config, device)
        for method in config.methods:
            folder = out / method
            folder.mkdir(exist_ok=True)
            lines = []
            for number, video in enumerate(videos):
                lines.append(imagine_one(config, models, method, video, number, folder, device))
                print(f"{method}: {number + 1} of {len(videos)}, {video.instruction}", flush=True)
            write_text(folder / LINES, "\n".join(map(json.dumps, lines)) + "\n")


def open_models(config: ImagineCraftConfig, device: torch.device) -> Models:
    """Return the models of the methods.

    Raises:
        InputError: one cannot be read, or does not belong to the others.
    """
    checkpoint = load_checkpoint(policy_folder(config.policy), kind="policy")
    dldm = DLDM.of_policy(checkpoint).to(device).eval()
    acting: Acting = "argmax" if checkpoint.config.get("head") is None else acting_of(checkpoint.config)
    if acting == "none":
        raise InputError(f"{checkpoint.path} acts without codes (acting=none), so it plans none; give another policy")
    renderer = None
    if "vw2" in config.methods:
        assert config.dldm is not None
        renderer = open_renderer(config.dldm, dldm, device, sample_steps=config.sample_steps, guidance=config.guidance)
    prior = None
    if "vdm" in config.methods:
        assert config.prior is not None
        vdm, codec = open_prior(config.prior, dldm)
        prior = vdm.to(device), codec.to(device)
    policy = LatentPolicy.from_checkpoint(checkpoint).to(device).eval()
    return Models(policy, acting, dldm, checkpoint.facts, renderer, prior)


def open_prior(folder: str, dldm: DLDM) -> tuple[VDM, VideoCodec]:
    """Return the VDM and codec of a VDM stage, in evaluation mode.

    Raises:
        InputError: it is none, or has segments of another length than the dLDM.
    """
    checkpoint = load_checkpoint(resolve(folder), kind="vdm")
    with checkpoint.building():
        described = dict(checkpoint.config)
        codec_config = config_from(CodecConfig, described.pop("codec"))
        codec = build_codec(codec_config)
        vdm_config = config_from(VDMConfig, described)
        vdm = VDM(vdm_config, make_geometry(dldm.config, vdm_config, codec_config), codec_config)
        checkpoint.load_into(vdm=vdm, codec=codec)
    return vdm.eval(), codec.eval()


def imagine_one(
    config: ImagineCraftConfig,
    models: Models,
    method: Method,
    video: CraftVideo,
    number: int,
    folder: Path,
    device: torch.device,
) -> dict[str, object]:
    """Imagine one video unless it is there, and return its line.

    Args:
        config: of the program.
        models: of the methods.
        method: one of them.
        video: gives first frame and instruction.
        number: of the video, for its random numbers.
        folder: of the method.
        device: of the models.
    """
    if video.hz is None:
        raise InputError(f"{video.path} has no known frame rate; add hz to its caption")
    dldm = models.dldm
    span = dldm.config.latent_steps * dldm.config.temporal_stride
    seconds = config.seconds or (video.key_frames[-1] + TAIL_SECONDS * video.hz) / video.hz
    # In the time base of the codes one frame of a clip need not be one of the video.
    per_segment = frame_offsets(
        1 + span, hz=video.hz, temporal_stride=dldm.config.temporal_stride, **time_base_of(models.facts)
    )
    segments = max(1, math.ceil(seconds * video.hz / int(per_segment[-1])))
    shown = np.concatenate([per_segment[:1], *(per_segment[1:] + s * int(per_segment[-1]) for s in range(segments))])
    file = folder / f"imagined_{Path(video.name).stem}.mp4"
    line = {
        "file": file.name,
        "video": video.name,
        "task": video.task,
        "instruction": video.instruction,
        "frames": shown[:: dldm.config.gap].tolist(),
    }
    if not file.is_file():
        frames = imagined_frames(config, models, method, video, segments, number, device)
        write_video(file, frames, fps=video.hz / max(1, int(shown[1])), enlarge=1)
    return line


TAIL_SECONDS = 3.0
"""of an imagined video after the last key step of the true one"""


def imagined_frames(
    config: ImagineCraftConfig,
    models: Models,
    method: Method,
    video: CraftVideo,
    segments: int,
    number: int,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Return the video that a method imagines, uint8 [T, H, W, 3], beginning with the true first frame.

    Args:
        config: of the program.
        models: of the methods.
        method: one of them.
        video: gives first frame and instruction.
        segments: clips of the dLDM that are joined.
        number: of the video, for its random numbers.
        device: of the models.
    """
    dldm = models.dldm
    vdm = models.renderer.vdm if models.renderer is not None and method == "vw2" else None
    if method == "vdm":
        assert models.prior is not None
        vdm = models.prior[0]
    height, width = (dldm.config.height, dldm.config.width) if vdm is None else rendered_size(dldm.config, vdm.config)
    first = to_model_range(torch.from_numpy(read_frames(video, [0], height=height, width=width)).to(device))
    noise = generator(config.seed, number, stream=STREAM_RENDER)
    if method == "vdm":
        assert models.prior is not None
        frames = prior_segments(*models.prior, first, dldm, segments, config.sample_steps, noise)
    else:
        codes = policy_plan(
            models.policy,
            video.instruction,
            facts=models.facts,
            acting=models.acting,
            plan=config.plan,
            latent_steps=dldm.config.latent_steps,
            segments=segments,
            sampling=Sampling(),
            generator=generator(config.seed, number, stream=STREAM_CODES),
        )
        imagined = imagine_segments(
            dldm,
            first,
            codes,
            segments=segments,
            renderer=models.renderer if method == "vw2" else None,
            generator=noise,
        )
        frames = imagined.coarse if imagined.rendered is None else imagined.rendered
    return to_pixels(frames).cpu().numpy()


@torch.no_grad()
def prior_segments(
    vdm: VDM, codec: VideoCodec, first: Tensor, dldm: DLDM, segments: int, sample_steps: int, noise: torch.Generator
) -> Tensor:
    """Return the video [T, 3, H, W] that the VDM alone makes of a first frame.

    Args:
        vdm: of the VDM stage.
        codec: of it.
        first: pixels [1, 3, H, W] in [-1, 1].
        dldm: gives the shape of the codes, which are all hidden.
        segments: how many are joined.
        sample_steps: of the sampler.
        noise: generator of the noise.
    """
    codes = torch.zeros(1, dldm.config.latent_steps, dldm.config.queries, len(dldm.fsq.levels), device=first.device)
    parts = [first]
    for _ in range(segments):
        anchor = codec.encode(parts[-1][-1:, None])[:, :, 0]
        still = vdm.still_video(anchor, dldm.config.latent_steps + 1)
        # guidance 0: the null context alone, which is all that the prior was trained with
        latents = vdm.sample(anchor, codes, control_video=still, generator=noise, num_steps=sample_steps, guidance=0.0)
        parts.append(codec.decode(latents).clamp(-1, 1)[0, 1:])
    return torch.cat(parts)


def main(config: ImagineCraftConfig) -> None:
    """Imagine all videos."""
    imagine_craft(config)
    print(f"imagined: {config.out}")


if __name__ == "__main__":
    entry_points.imagine_craft.main()
