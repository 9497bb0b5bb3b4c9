"""Program `vw2-compare-codes`: one code book for hands and robots? Their codes compared, for one dLDM or several.

    vw2-compare-codes dldms='{robot: DIR, hand: DIR, joint: DIR}' videos='{hand: runs/craft_hand/validation,
    robot: runs/craft_robot/validation}' out=runs/code_comparison

Motion is that of the tool in the image, from the track that the simulator's recordings keep for this purpose; no dLDM
sees it. For each dLDM `code_comparison.json` has, for every data set and pair of them: used codes and perplexity,
overlap of the histograms, whether a probe can tell the data sets apart, R2 of a probe fitted on one and tested on the
other, directions of nearest neighbors, and a map (Figure A.6 of the paper); `neighbors_NAME.png` shows steps with the
steps of the nearest codes (Figure A.1). `vw2-report` shows all of it.
"""

# T frames · M latent steps · N codes per step · R rows (valid steps)
from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.command_line import entry_points
from vw2_robot.data.clips import TimeBase, frame_offsets
from vw2_robot.data.sources.craft_bench import CraftVideo, read_craft_videos, read_frames
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range
from vw2_robot.storage.files import write_json

from ..probing.action_probe import split_sets
from ..probing.domains import probe_domains
from ..probing.features import Quantizer, StepRows, one_hot_fsq, shrink
from ..probing.latent_figures import GAP, write_grid
from ..probing.latent_map import code_use, latent_map, nearest_steps
from ..probing.probe_latents import open_dldm, trained_time_base
from ..probing.probes import Split, fit_linear, score_r2
from .config import CompareCodesConfig

FORMAT_VERSION = 1
COMPARISON = "code_comparison.json"
AXES = ("right", "down")
"""of the image, in which the tool's motion is measured; its width and height are 1"""
STRIPS = 6
STREAM_TRANSFER = 30
BATCH = 16


class EncodedSet(NamedTuple):
    """The steps of one data set with their codes, and the frames that show them.

    Attributes:
        rows: of all valid steps.
        frames: first, middle and last frame of each step, uint8 [R, 3, H, W, 3].
    """

    rows: StepRows
    frames: NDArray[np.uint8]


def compare_codes(config: CompareCodesConfig) -> dict[str, Any]:
    """Write the comparison to `out`, and return the content of code_comparison.json.

    Raises:
        InputError: a dLDM or videos cannot be read, or videos have no track of the tool.
    """
    device = config.hardware.torch_device()
    sets = {name: tracked_videos(folder, config.episodes) for name, folder in config.videos.items()}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, folder in config.dldms.items():
        checkpoint, dldm = open_dldm(folder, device)
        time_base = trained_time_base(checkpoint)
        encoded = [encode_set(dldm, label, videos, time_base, device=device) for label, videos in sets.items()]
        rows = [one.rows for one in encoded]
        splits = split_sets(rows, shares=(config.validation_share, config.test_share), seed=config.seed)
        quantizer = copy.deepcopy(dldm.fsq).cpu()
        strips = nearest_steps(rows, splits, quantizer, queries=STRIPS, neighbors=3, seed=config.seed)
        write_grid(
            out / f"neighbors_{name}.png",
            [[frame for number, row in strip for frame in encoded[number].frames[row]] for strip in strips],
            every=3,
            break_px=3 * GAP,
        )
        found[name] = {
            "dldm": folder,
            "codes": code_use(rows, quantizer),
            "domains": probe_domains(rows, splits, quantizer, seed=config.seed),
            "transfer": transfer(rows, splits, quantizer, seed=config.seed),
            "map": latent_map(rows, splits, quantizer, seed=config.seed),
        }
    report = {
        "format_version": FORMAT_VERSION,
        "sets": {name: {"videos": len(videos), "path": config.videos[name]} for name, videos in sets.items()},
        "axes": list(AXES),
        "dldms": found,
    }
    write_json(out / COMPARISON, report)
    return report


def tracked_videos(folder: str, episodes: int) -> list[CraftVideo]:
    """Return the first videos of a folder.

    Raises:
        InputError: fewer than three, or one has no track of the tool.
    """
    videos = read_craft_videos(folder)[:episodes]
    if len(videos) < 3 or any(video.track is None or video.hz is None for video in videos):
        raise InputError(
            f"{folder} has {len(videos)} videos; a comparison needs at least 3, all with hz and track in their "
            "captions, as vw2-record env=craft writes them"
        )
    return videos


def encode_set(
    dldm: DLDM, name: str, videos: Sequence[CraftVideo], time_base: TimeBase, *, device: torch.device
) -> EncodedSet:
    """Return the steps of all videos: each is cut into clips one after the other, which share a frame.

    Args:
        dldm: in evaluation mode, on the device.
        name: of the data set.
        videos: with hz and track.
        time_base: in which the dLDM was trained.
        device: of the dLDM.
    """
    shape = dldm.config
    stride = shape.temporal_stride
    parts: list[dict[str, NDArray[Any]]] = []
    frames: list[NDArray[np.uint8]] = []
    clips = 0
    for number, video in enumerate(videos):
        assert video.track is not None
        assert video.hz is not None
        offsets = frame_offsets(shape.num_frames, hz=video.hz, temporal_stride=stride, **time_base)
        whole = read_frames(video, range(len(video.track)), height=shape.height, width=shape.width)
        starts = range(0, max(1, len(whole) - int(offsets[-1])), int(offsets[-1]))
        ids = np.stack([np.minimum(start + offsets, len(whole) - 1) for start in starts])
        pixels = torch.from_numpy(whole)[torch.from_numpy(ids)]
        with torch.no_grad():
            indices = torch.cat([dldm.indices(to_model_range(part.to(device))) for part in pixels.split(BATCH)])
        edges = ids[:, ::stride]
        # A step of repeated last frames moves nothing and is no step.
        clip, step = np.nonzero(edges[:, 1:] > edges[:, :-1])
        begin, end = edges[clip, step], edges[clip, step + 1]
        small = shrink(whole).reshape(len(whole), -1)
        moved = video.track[end] - video.track[begin]
        parts.append(
            {
                "clip": clips + clip,
                "step": step,
                "episode": np.full(len(clip), number),
                "indices": indices.cpu().numpy()[clip, step],
                "difference": small[end] - small[begin],
                "commanded": np.concatenate([moved, np.zeros((len(moved), 1))], axis=1),
            }
        )
        frames.append(whole[np.stack([begin, (begin + end) // 2, end], axis=1)])
        clips += len(starts)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    # The third coordinate is 0: an image has two.
    rows = StepRows(
        name=name, group=joined["episode"], moved=None, units="image", action_names=(*AXES, "none"), **joined
    )
    return EncodedSet(rows, np.concatenate(frames))


def transfer(sets: Sequence[StepRows], splits: Sequence[Split], quantizer: Quantizer, *, seed: int) -> dict[str, Any]:
    """Return R2 of a linear probe from codes to the tool's motion: fitted on each data set, tested on each.

    Args:
        sets: the steps of each data set.
        splits: of their rows.
        quantizer: on the CPU.
        seed: of intervals.
    """
    found: dict[str, Any] = {}
    for known, known_split in zip(sets, splits, strict=True):
        probe = fit_linear(one_hot_fsq(known.indices, quantizer), known.motion[:, :2], known_split)
        found[known.name] = {}
        for other, split in zip(sets, splits, strict=True):
            predicted = probe.predict(one_hot_fsq(other.indices[split.test], quantizer))
            found[known.name][other.name] = score_r2(
                other.motion[split.test, :2],
                predicted,
                other.group[split.test],
                AXES,
                rng=np.random.default_rng([seed, STREAM_TRANSFER]),
                means={"both": AXES},
            )
    return found


def main(config: CompareCodesConfig) -> None:
    """Compare, and print the main numbers."""
    report = compare_codes(config)
    for name, found in report["dldms"].items():
        print(f"{name}: {found['codes']['used']} codes used, perplexity {found['codes']['perplexity']:.1f}")
        for known, row in found["transfer"].items():
            cells = ", ".join(f"{other} {entry['both']['r2']:.2f}" for other, entry in row.items())
            print(f"  R2 of a probe fitted on {known}: {cells}")
        for known, row in found["domains"]["overlap"]["codes_one_hot"].items():
            print(f"  overlap with {known}: " + ", ".join(f"{other} {share:.2f}" for other, share in row.items()))
    print(f"comparison: {Path(config.out) / COMPARISON}")


if __name__ == "__main__":
    entry_points.compare_codes.main()
