"""Stage `latents`: clips -> latent cache, with the trained dLDM.

    vw2-extract-latents data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Every window is encoded from its own first frame (method 2.5). The index reports how often the cheaper alternative,
slicing the codes of one encoding of the whole clip, would have given the same codes. Written in shards; a killed run
goes on.
"""

# n windows · T frames · M latent steps · N codes per step
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.cli import program
from vw2_robot.config_tree import differing_keys
from vw2_robot.data.clips import effective_hz, make_windows
from vw2_robot.data.frames import FrameCache
from vw2_robot.data.latents import LatentWindows, finish, missing_shards, read_shards, write_shard
from vw2_robot.errors import InputError
from vw2_robot.models.dldm import DLDM
from vw2_robot.pixels import to_model_range
from vw2_robot.runs import mark, read_mark

from .config import Pretrain, finished_stage, open_frames
from .train_dldm import encoder_hash

EPISODES_PER_SHARD = 256


def extract_latents(config: Pretrain) -> None:
    """Write run_dir/latents, or return at once when it is complete."""
    folder = config.stage_dir("latents")
    asked = config.stage_tree("extract_latents") | {"target_hz": config.data.target_hz}
    _check_plan(folder, asked)
    if (folder / "index.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    device = config.hardware.torch_device()
    frames = open_frames(config)
    dldm = DLDM(config.dldm)
    load_checkpoint(finished_stage(config, "dldm"), kind="dldm").load_into(dldm=dldm)
    identity = {"encoder_hash": encoder_hash(dldm), "frames_digest": frames.digest}
    _check_plan(folder, identity | asked)
    mark(folder / "plan.json", identity | asked)
    dldm = dldm.to(device).eval()
    shards = -(-len(frames.episodes) // EPISODES_PER_SHARD)
    missing = missing_shards(folder, shards)
    with tqdm(desc="latents", total=shards, initial=shards - len(missing), unit="shard", disable=None) as bar:
        for number in missing:
            first = number * EPISODES_PER_SHARD
            episodes = range(first, min(first + EPISODES_PER_SHARD, len(frames.episodes)))
            write_shard(folder, number, _encode_episodes(config, dldm, frames, episodes, device))
            bar.update()
    windows = read_shards(folder, shards)
    used = np.unique(windows.codes[windows.valid])
    finish(
        folder,
        shards=shards,
        facts=identity
        | {
            "levels": list(config.dldm.fsq_levels),
            "stride": config.dldm.stride,
            "steps": config.dldm.steps,
            "cache_stride": config.extract_latents.cache_stride,
            "hz": sorted({effective_hz(e.hz, config.data.target_hz) for e in frames.episodes}),
            "windows": len(windows),
            "codes_used": len(used),
            "slice_agreement": slice_agreement(
                windows, stride=config.dldm.stride, cache_stride=config.extract_latents.cache_stride
            ),
        },
    )
    facts = read_mark(folder / "index.json") or {}
    print(
        f"latents: {len(windows)} windows, {len(used)} different codes, "
        f"slicing would agree on {facts['slice_agreement']} of the comparable codes",
        flush=True,
    )


def _check_plan(folder: Path, plan: dict[str, object]) -> None:
    """A cache may only be continued, or taken for finished, with the plan it was begun with."""
    old = read_mark(folder / "plan.json")
    if old is not None and (names := differing_keys({key: old.get(key) for key in plan}, plan)):
        raise InputError(
            f"{folder} holds another latent cache; these keys differ: {', '.join(names)}. "
            "Delete the folder or use another run_dir"
        )


def _encode_episodes(
    config: Pretrain, dldm: DLDM, frames: FrameCache, episodes: range, device: torch.device
) -> LatentWindows:
    """Windows of these episodes in order; clips of several episodes share a batch."""
    pieces = []
    for index in episodes:
        episode = frames.episodes[index]
        windows = make_windows(
            episode.length,
            frames=config.dldm.frames,
            cache_stride=config.extract_latents.cache_stride,
            hz=episode.hz,
            stride_s=config.dldm.stride,
            target_hz=config.data.target_hz,
        )
        pieces.append((np.full(len(windows.start), index), windows.start, windows.frames, windows.valid))
    episode_n, start_n, frames_nT, valid_nM = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    codes = np.zeros((*valid_nM.shape, config.dldm.queries), np.uint16)
    size = config.extract_latents.batch
    for i in range(0, len(episode_n), size):
        pixels: NDArray[np.uint8] = frames.read_batch(episode_n[i : i + size], frames_nT[i : i + size])
        codes[i : i + size] = dldm.indices(to_model_range(torch.from_numpy(pixels).to(device))).cpu().numpy()
    return LatentWindows(episode_n.astype(np.int32), start_n.astype(np.int32), codes, valid_nM)


def slice_agreement(windows: LatentWindows, *, stride: int, cache_stride: int) -> float | None:
    """Share of codes for which step k + j of a window equals step k of the window that starts j steps later.

    None where the starts never coincide (cache_stride is no multiple of the stride) or no window has two steps.
    """
    if cache_stride % stride or windows.codes.shape[1] < 2:
        return None
    j = cache_stride // stride
    follows = windows.episode[1:] == windows.episode[:-1]
    early, late = windows.codes[:-1][follows][:, j:], windows.codes[1:][follows][:, : windows.codes.shape[1] - j]
    both = windows.valid[:-1][follows][:, j:] & windows.valid[1:][follows][:, : windows.codes.shape[1] - j]
    return round(float((early == late)[both].mean()), 4) if both.any() else None


main = program(Pretrain, config_name="pretrain")(extract_latents)

if __name__ == "__main__":
    main()
