"""Program `vw2-imagine`: first image and instruction, or codes, -> a video of what follows.

    vw2-imagine policy=runs/first image=table.png prompt="open the drawer" segments=3 out=runs/first/imagined.mp4
    vw2-imagine policy=runs/first frame_cache=runs/first/frames episode=4 codes=encoded out=runs/first/encoded.mp4
    vw2-imagine dldm=runs/released image=boat.jpg codes=VideoCraft-dLDM-codes.pt video=paper_boat_21 out=runs/boat.mp4

Decoding alone takes seconds on a CPU; `vdm=DIR` (the dLDM stage) renders the video too. An image from a frame cache
has a true continuation: PSNR and SSIM against it are in the json beside the video, next to those of copying the
first frame. `codes=encoded` decodes the codes of that continuation instead of predicted ones: the best that the decoder
could show. A fine-tuned policy predicts them as it acts (`acting`): what is drawn is what it means to do.
"""

# T frames · M latent steps of a segment · N codes per step
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vw2_robot.agent import policy_folder
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.clips import TimeBase, frame_offsets, time_base_of
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.images import resize_frame
from vw2_robot.errors import InputError
from vw2_robot.image_metrics import WINDOW, psnr, ssim
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.acting import acting_of
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import Acting
from vw2_robot.pixels import resize_video, to_model_range, to_pixels
from vw2_robot.random_numbers import generator
from vw2_robot.storage.arrays import read_array
from vw2_robot.storage.files import write_json
from vw2_robot.storage.mp4 import Mp4Writer

from .config import ENCODED, PREDICTED, ImagineConfig, rendered_size
from .dldm_modules import dldm_folder, encoder_hash
from .imagination import Imagined, PlanSegment, Renderer, imagine_segments, policy_plan
from .importing.released_codes import read_released_codes
from .train_vdm import vdm_of_dldm

STREAM_CODES, STREAM_RENDER = 60, 61
DEFAULT_FPS = 10.0
PUBLISHED = ".pt"


class Beginning(NamedTuple):
    """What a video begins with.

    Attributes:
        first: uint8 [H, W, 3].
        prompt: the instruction; may be empty where no codes are predicted.
        true: `first` and the clip frames that followed it, uint8 [1 + L, H, W, 3]; None for an image file.
    """

    first: NDArray[np.uint8]
    prompt: str
    true: NDArray[np.uint8] | None


def imagine(config: ImagineConfig) -> None:
    """Write the video and its json, and print how it compares with the true continuation, if there is one.

    Raises:
        InputError: `out` is no name for a video, or what the configuration names cannot be read or does not fit.
    """
    if Path(config.out).is_dir() or Path(config.out).suffix == ".json":
        raise InputError(f"out={config.out}: give a name for the video, such as imagined.mp4; its json lies beside it")
    device = config.hardware.torch_device()
    policy: LatentPolicy | None = None
    acting: Acting = "argmax"
    if config.policy is None:
        assert config.dldm is not None
        checkpoint = load_checkpoint(dldm_folder(config.dldm), kind="dldm")
        with checkpoint.building():
            dldm = DLDM(config_from(DLDMConfig, checkpoint.config))
            checkpoint.load_into(dldm=dldm)
    else:
        checkpoint = load_checkpoint(policy_folder(config.policy), kind="policy")
        dldm = DLDM.of_policy(checkpoint)
        with checkpoint.building():
            # Before fine-tuning a policy has no mode yet.
            acting = acting if checkpoint.config.get("head") is None else acting_of(checkpoint.config)
    dldm = dldm.to(device).eval()
    if not config.segments:
        is_published = Path(config.codes).suffix == PUBLISHED
        count = len(read_codes(config, dldm)) // dldm.config.latent_steps if is_published else 1
        config = replace(config, segments=count)
    if acting == "none" and config.codes == PREDICTED:
        raise InputError(
            f"{checkpoint.path} acts without codes (acting=none), so it predicts none that could be drawn; give "
            "codes=encoded, or the policy that it was fine-tuned from"
        )
    # Opened before anything is decoded: a wrong folder ends the program at once.
    renderer = (
        None
        if config.vdm is None
        else open_renderer(
            config.vdm,
            dldm,
            device,
            sample_steps=config.sample_steps,
            guidance=config.guidance,
            negative_prompt=config.negative_prompt,
            grayscale_control=config.grayscale_control,
        )
    )
    size = (dldm.config.height, dldm.config.width)
    if renderer is not None:
        size = rendered_size(dldm.config, renderer.vdm.config)
    begin = open_beginning(config, dldm, time_base_of(checkpoint.facts), size)
    if config.policy is not None:
        policy = LatentPolicy.from_checkpoint(checkpoint).to(device).eval()
    imagined = imagine_segments(
        dldm,
        to_model_range(torch.from_numpy(begin.first[None]).to(device)),
        plan_segments(config, policy, dldm, begin, acting, checkpoint.facts, device),
        segments=config.segments,
        anchor=config.anchor,
        renderer=renderer,
        generator=generator(config.seed, 0, stream=STREAM_RENDER),
    )
    imagined = imagined._replace(coarse=resize_video(imagined.coarse[None], *size)[0])
    # Data sets of several rates: the video is shown at the lowest one.
    rates = checkpoint.facts.get("latent_hz") or [DEFAULT_FPS]
    # The decoder makes every gap-th frame, so that is what its video is compared with and how fast it is shown.
    decoded = begin._replace(true=None if begin.true is None else begin.true[:: dldm.config.gap])
    write_results(config, decoded, imagined, fps=config.fps or float(rates[0]) / dldm.config.gap)


def open_beginning(config: ImagineConfig, dldm: DLDM, time_base: TimeBase, size: tuple[int, int]) -> Beginning:
    """Return the first image, from a file or from a frame cache with its continuation.

    Args:
        config: names one of them.
        dldm: for the length of a segment.
        time_base: in which the codes were learned.
        size: height and width of the images.

    Raises:
        InputError: the file is no image, or there is no such episode or frame.
    """
    height, width = size
    if config.image is not None:
        image = read_photograph(config.image)
        return Beginning(np.array(resize_frame(image, height=height, width=width)), config.prompt or "", None)
    assert config.frame_cache is not None
    cache = FrameCache(Path(config.frame_cache))
    if not 0 <= config.episode < len(cache.episodes):
        raise InputError(f"episode={config.episode}, but {config.frame_cache} holds {len(cache.episodes)} episodes")
    episode = cache.episodes[config.episode]
    if not 0 <= config.start < episode.length:
        raise InputError(f"start={config.start}, but episode {config.episode} has {episode.length} frames")
    stride = dldm.config.temporal_stride
    count = 1 + config.segments * dldm.config.latent_steps * stride
    # In the time base of the codes: one frame of the video need not be one frame of the episode.
    wanted = config.start + frame_offsets(count, hz=episode.hz, temporal_stride=stride, **time_base)
    pixels = cache.read(config.episode, wanted[wanted < episode.length])
    # The frame cache may have been made for a dLDM of another size.
    true = np.stack([resize_frame(frame, height=height, width=width) for frame in pixels])
    return Beginning(true[0], config.prompt or episode.instruction, true)


def read_photograph(file: str) -> NDArray[np.uint8]:
    """Return an image file as uint8 [H, W, 3]: upright, and of 16 bits the upper eight.

    Raises:
        InputError: it is no image, too large, or holds numbers outside 0 to 65535.
    """
    try:
        with Image.open(file) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode[0] in "IF":  # one channel of 16 or 32 bits, which `convert` would clip at 255
                values = np.asarray(image)
                if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                    raise ValueError(f"its numbers reach from {values.min()} to {values.max()}, expected 0 to 65535")
                image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    # Pillow reports a broken PNG as a SyntaxError, and its warning of a huge image may have been made an error.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"image={file} cannot be read as an image ({error})") from error


def plan_segments(
    config: ImagineConfig,
    policy: LatentPolicy | None,
    dldm: DLDM,
    begin: Beginning,
    acting: Acting,
    facts: Mapping[str, Any],
    device: torch.device,
) -> PlanSegment:
    """Return the function that gives the codes of a segment: predicted, encoded, or of a file.

    Args:
        config: `codes` says which; also number of segments, plan, sampling and seed.
        policy: on the device; needed for predicted codes alone.
        dldm: on the device; its size decides the M latent steps and N codes per step of a segment.
        begin: its instruction for predicted codes, its true continuation for encoded ones.
        acting: how the policy acts, for predicted codes.
        facts: of the policy's checkpoint: which frames a plan is conditioned on.
        device: where encoded codes and those of a file are put.

    Returns:
        (number of the segment from 0, its first frame [1, 3, H, W]) -> codes [1, M, N].

    Raises:
        InputError: there are too few codes for all segments, or the file does not hold codes.
    """
    latent_steps = dldm.config.latent_steps
    if config.codes == PREDICTED:
        assert policy is not None
        return policy_plan(
            policy,
            begin.prompt,
            facts=facts,
            acting=acting,
            plan=config.plan,
            latent_steps=latent_steps,
            segments=config.segments,
            sampling=config.sampling,
            generator=generator(config.seed, 0, stream=STREAM_CODES),
        )
    given = encode_true(dldm, begin, device) if config.codes == ENCODED else read_codes(config, dldm).to(device)
    if len(given) < latent_steps * config.segments:
        raise InputError(
            f"codes={config.codes} gives {len(given)} latent steps, {config.segments} segments need "
            f"{latent_steps * config.segments}; lower segments, or begin earlier in a longer episode"
        )
    return lambda number, _: given[None, number * latent_steps : (number + 1) * latent_steps]


def encode_true(dldm: DLDM, begin: Beginning, device: torch.device) -> Tensor:
    """Return [latent steps, N]: codes of each segment of the true continuation, encoded from its own first frame.

    Args:
        dldm: on the device; encodes clips of 1 + M * temporal_stride frames.
        begin: with a true continuation, uint8 [1 + L, H, W, 3]; frames after the last whole segment are left out.
        device: where the clips are encoded.

    Returns:
        int64 codes on the device, M latent steps for each whole segment; [0, N] where there is none.
    """
    assert begin.true is not None
    span = dldm.config.latent_steps * dldm.config.temporal_stride
    # Neighboring clips share a frame, as decoded segments do.
    clips = [begin.true[i : i + span + 1] for i in range(0, len(begin.true) - span, span)]
    if not clips:
        return torch.zeros(0, dldm.config.queries, dtype=torch.int64, device=device)
    pixels = to_model_range(torch.from_numpy(np.stack(clips)).to(device))
    return dldm.indices(dldm.resized(pixels)).flatten(0, 1)


def read_codes(config: ImagineConfig, dldm: DLDM) -> Tensor:
    """Return the codes [latent steps, N] of a .npy file, or of one video of a .pt file.

    Raises:
        InputError: the file does not hold codes of this dLDM, or not of that video.
    """
    file = Path(config.codes)
    if file.suffix == PUBLISHED:
        videos = read_released_codes(file, dldm.config)
        name = config.video or (Path(config.image).stem if config.image is not None else "")
        if name not in videos:
            near = get_close_matches(name, videos, cutoff=0.0)
            raise InputError(f"{file} has no codes of video={name!r}; of its {len(videos)} nearest: {', '.join(near)}")
        return torch.from_numpy(videos[name]).flatten(0, 1)
    codes = read_array(file, cure="give predicted, encoded, a .npy file, or a .pt file of published codes")
    vocabulary = dldm.config.vocabulary
    queries = dldm.config.queries
    if codes.dtype.kind not in "iu" or codes.ndim != 2 or codes.shape[1] != queries:
        raise InputError(
            f"{file}: expected integers [latent steps, {queries}], found {codes.dtype} {list(codes.shape)}"
        )
    if codes.size and not 0 <= codes.min() <= codes.max() < vocabulary:
        raise InputError(f"{file}: codes lie in 0 .. {vocabulary - 1}, found {codes.min()} .. {codes.max()}")
    return torch.from_numpy(codes.astype(np.int64))


def read_prompt(file: Path, *, width: int) -> Tensor:
    """Return an embedded text, float32 [tokens, width].

    Raises:
        InputError: the file holds something else.
    """
    embedded = read_array(file, cure="give a .npy file with the embedding of a text")
    if embedded.dtype.kind != "f" or embedded.ndim != 2 or embedded.shape[1] != width or not len(embedded):
        raise InputError(f"{file}: expected floats [tokens, {width}], found {embedded.dtype} {list(embedded.shape)}")
    return torch.from_numpy(embedded.astype(np.float32))


def open_renderer(
    folder: str,
    dldm: DLDM,
    device: torch.device,
    *,
    sample_steps: int,
    guidance: float = 1.0,
    negative_prompt: str | None = None,
    grayscale_control: bool | None = None,
) -> Renderer:
    """Return the VDM of the dLDM stage in `folder`, or in a run folder of pretrain-on-openx.

    Args:
        folder: folder of the dLDM stage, or the run folder that has it as `dldm`.
        dldm: that of the policy; the stage must have the same encoder.
        device: where VDM and codec are put.
        sample_steps: of the VDM.
        guidance: weight of the codes against null codes.
        negative_prompt: file of an embedded text that guidance has in place of null codes; None: null codes.
        grayscale_control: whether the control video is gray; None: as the VDM was trained.

    Returns:
        VDM and codec in eval mode, and how they render.

    Raises:
        InputError: it belongs to another dLDM than the policy, or the stage was trained without a VDM, or without null
            codes where guidance needs them.
    """
    checkpoint = load_checkpoint(dldm_folder(folder), kind="dldm")
    found = str(checkpoint.facts.get("encoder_hash"))
    wanted = encoder_hash(dldm)
    if found != wanted:
        raise InputError(
            f"{checkpoint.path} belongs to encoder {found[:8]}, the policy predicts codes of {wanted[:8]}; give the "
            "dLDM stage that the policy was trained on"
        )
    video = vdm_of_dldm(checkpoint, dldm.config)
    if video is None:
        raise InputError(f"{checkpoint.path} was trained without a VDM, so nothing can be rendered; leave out vdm")
    vdm, codec = video
    # The released projection has an embedding in place of codes, whatever it was trained with.
    has_null = vdm.config.code_dropout or vdm.config.projection == "convolution" or negative_prompt is not None
    if guidance != 1 and not has_null:
        raise InputError(
            f"guidance={guidance}: the VDM of {checkpoint.path} was trained without null codes "
            "(aids.code_dropout=0); use guidance=1, or give an embedded negative_prompt"
        )
    negative = None
    if negative_prompt is not None:
        negative = read_prompt(Path(negative_prompt), width=vdm.config.context_width).to(device)
    grayscale = grayscale_control
    if grayscale is None:
        grayscale = bool(checkpoint.facts.get("control_grayscale", True))  # earlier releases store none, and had it on
    return Renderer(
        vdm.to(device),
        codec.to(device),
        grayscale_control=grayscale,
        sample_steps=sample_steps,
        guidance=guidance,
        negative=negative,
    )


def write_results(config: ImagineConfig, begin: Beginning, imagined: Imagined, *, fps: float) -> None:
    """Write the video and its json: the coarse video left, rendered and true ones beside it where they exist.

    Args:
        config: of the program.
        begin: the true frames, if there are any, at the rate of the video.
        imagined: what was decoded and rendered.
        fps: frames per second.
    """
    pixels = {"coarse": to_pixels(imagined.coarse).cpu().numpy()}
    if imagined.rendered is not None:
        pixels["rendered"] = to_pixels(imagined.rendered).cpu().numpy()
    columns = list(pixels.values())
    facts: dict[str, Any] = {
        "prompt": begin.prompt,
        "segments": config.segments,
        "plan": config.plan,
        "anchor": config.anchor,
        "fps": fps,
        "columns": list(pixels),
        "codes": imagined.codes.cpu().tolist(),
    }
    if begin.true is not None and len(begin.true) > 1:
        facts["compared_frames"] = len(begin.true) - 1  # without the first one, which is given
        for name, video in (*pixels.items(), ("copy_first_frame", np.broadcast_to(begin.true[:1], begin.true.shape))):
            facts[name] = compare(video[: len(begin.true)], begin.true)
            print(f"{name}: " + ", ".join(f"{key} {value['mean']:.3f}" for key, value in facts[name].items()))
        # An episode that ends before the video does is shown with its last frame held.
        held = np.concatenate([begin.true, begin.true[-1:].repeat(len(columns[0]) - len(begin.true), axis=0)])
        columns.append(held)
        facts["columns"] = [*pixels, "true"]
    out = Path(config.out)
    write_video(out, np.concatenate(columns, axis=2), fps=fps, enlarge=config.enlarge)
    write_json(out.with_suffix(".json"), facts, sealed=True)
    print(f"video: {out} ({len(columns[0])} frames; {', '.join(facts['columns'])})")


def compare(video: NDArray[np.uint8], true: NDArray[np.uint8]) -> dict[str, dict[str, Any]]:
    """Return PSNR in dB and SSIM of each frame after the first, and their means; SSIM where images are large enough.

    Args:
        video: uint8 [T, H, W, 3].
        true: what it is compared with, of the same shape.
    """
    found = {"psnr_db": psnr(video[1:], true[1:])}
    if min(true.shape[1:3]) >= WINDOW:
        found["ssim"] = ssim(video[1:], true[1:])
    return {
        name: {"mean": round(float(values.mean()), 4), "per_frame": [round(float(v), 4) for v in values]}
        for name, values in found.items()
    }


def write_video(path: Path, frames: NDArray[np.uint8], *, fps: float, enlarge: int = 1) -> None:
    """Write frames as a video; the same frames give the same bytes.

    Args:
        path: of the video; its folder is made.
        frames: uint8 [T, H, W, 3].
        fps: frames per second.
        enlarge: side of the square that every pixel becomes.

    Raises:
        MissingExtraError: imageio-ffmpeg is not installed.
        OSError, InputError: ffmpeg did not write the file.
    """
    large = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    # H.264 with subsampled colors needs even sides: an odd one loses its last row or column.
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(path, fps=fps, encoding=["-crf", "20", "-preset", "medium", "-movflags", "+faststart"]) as video:
        for frame in large:
            video.add(frame)


if __name__ == "__main__":
    entry_points.imagine.main()
