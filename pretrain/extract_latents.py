"""Stage `latents`: clips -> latent cache, with the trained dLDM.

    vw2-extract-latents data=bridge_sample data.path=DIR model=tiny run_dir=runs/first workers=4

Every window is encoded from its own first frame (method 2.5). Log and index report how often the cheaper alternative,
slicing the codes of one encoding of the whole clip, would have given the same codes. Written in shards, by several
processes if asked; a killed run goes on, with any number of them.
"""

# n windows · T frames · M latent steps · N codes per step
from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.command_line.config_tree import differing_keys
from vw2_robot.command_line.program import program
from vw2_robot.data.clips import effective_hz, make_windows
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.latents import LatentCache, LatentWindows, finish, missing_shards, read_shards, write_shard
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range
from vw2_robot.runs import mark, read_mark
from vw2_robot.storage.files import write_text
from vw2_robot.storage.locks import lock_folder
from vw2_robot.worker_pool import WorkerPool

from .cache_frames import open_frames
from .config import PretrainConfig, alone, finished_stage
from .train_dldm import encoder_hash

EPISODES_PER_SHARD = 64


def extract_latents(config: PretrainConfig) -> None:
    """Write run_dir/latents, or return at once when it is complete."""
    folder = config.stage_dir("latents")
    with lock_folder(folder, what="encoding latents"):
        _extract(config, folder)


def _extract(config: PretrainConfig, folder: Path) -> None:
    asked = config.stage_tree("extract_latents") | config.data.time_base
    _check_plan(folder, asked)
    if (folder / "index.json").is_file():
        LatentCache(folder)  # complete, if all of it is there
        return
    config.hardware.torch_device()  # whether it is there is known before anything is written
    frames = open_frames(config)
    dldm, checkpoint = _teacher(config)
    identity = {"encoder_hash": encoder_hash(dldm), "frames_digest": frames.digest}
    plan = identity | asked | {"episodes_per_shard": EPISODES_PER_SHARD}
    _check_plan(folder, plan)
    mark(folder / "plan.json", plan)
    _drop_unfinished(folder)
    shards = [
        range(first, min(first + EPISODES_PER_SHARD, len(frames.episodes)))
        for first in range(0, len(frames.episodes), EPISODES_PER_SHARD)
    ]
    missing = missing_shards(folder, len(shards))
    written = _write_shards(Encoder(config, dldm, frames), checkpoint, {n: shards[n] for n in missing})
    with (
        closing(written),
        tqdm(desc="latents", total=len(shards), initial=len(shards) - len(missing), unit="shard", disable=None) as bar,
    ):
        for _ in written:
            bar.update()
    windows = read_shards(folder, len(shards))
    finish(folder, shards=len(shards), facts=identity | _facts(config, frames, windows))
    _say(folder, read_mark(folder / "index.json") or {})


def _teacher(config: PretrainConfig) -> tuple[DLDM, Path]:
    """The trained dLDM and its checkpoint."""
    path = finished_stage(config, "dldm")
    dldm = DLDM(config.dldm)
    load_checkpoint(path, kind="dldm").load_into(dldm=dldm)
    return dldm, path


class Encoder:
    """What a process needs to write shards."""

    def __init__(self, config: PretrainConfig, dldm: DLDM, frame_cache: FrameCache) -> None:
        self.config, self.frame_cache = config, frame_cache
        self.device = config.hardware.torch_device()
        self.dldm = dldm.to(self.device).eval()

    def write(self, number: int, episodes: range) -> None:
        """Encode these episodes and write shard `number`."""
        windows = _encode_episodes(self.config, self.dldm, self.frame_cache, episodes, self.device)
        write_shard(self.config.stage_dir("latents"), number, windows)


class LatentShard(NamedTuple):
    """One shard to write, and the episodes in it."""

    number: int
    episodes: range

    def __str__(self) -> str:
        """The shard, for messages."""
        return f"shard {self.number}"


def _write_shards(encoder: Encoder, checkpoint: Path, missing: dict[int, range]) -> Generator[None]:
    """Write the missing shards, here or in `config.workers` processes; yields after each.

    Raises:
        InputError: a process met one, or died.
    """
    config = encoder.config
    workers = min(config.workers, len(missing))
    if workers <= 1:
        for number, episodes in missing.items():
            encoder.write(number, episodes)
            yield
        return
    threads = max(1, torch.get_num_threads() // workers)
    build = functools.partial(_open_encoder, config, checkpoint, encoder.frame_cache.path, threads)
    pool: WorkerPool[LatentShard, None] = WorkerPool(build, name="encoding process")
    yield from pool.run(itertools.starmap(LatentShard, missing.items()), workers=workers)


def _drop_unfinished(folder: Path) -> None:
    """Remove what a process that was ended left of a shard."""
    for leftover in folder.glob(".windows-*.tmp"):
        leftover.unlink()


@contextmanager
def _open_encoder(
    config: PretrainConfig, checkpoint: Path, frame_cache: Path, threads: int
) -> Iterator[Callable[[LatentShard], None]]:
    torch.set_num_threads(threads)
    dldm = DLDM(config.dldm)
    load_checkpoint(checkpoint, kind="dldm").load_into(dldm=dldm)
    encoder = Encoder(
        replace(config, hardware=replace(config.hardware, threads=threads)), dldm, FrameCache(frame_cache)
    )
    yield lambda shard: encoder.write(*shard)


def _facts(config: PretrainConfig, frame_cache: FrameCache, windows: LatentWindows) -> dict[str, object]:
    """What index.json says of the windows."""
    stride, cache_stride = config.dldm.temporal_stride, config.extract_latents.cache_stride
    return {
        "levels": list(config.dldm.fsq_levels),
        "stride": stride,
        "steps": config.dldm.latent_steps,
        "cache_stride": cache_stride,
        "hz": sorted(
            {effective_hz(e.hz, temporal_stride=stride, **config.data.time_base) for e in frame_cache.episodes}
        ),
        "windows": len(windows),
        "codes_used": len(np.unique(windows.codes[windows.valid])),
        "slice_agreement": slice_agreement(windows, stride=stride, cache_stride=cache_stride),
    }


def _say(folder: Path, facts: dict[str, object]) -> None:
    agreement = facts["slice_agreement"]
    compared = "no code could be compared with slicing (windows of one step, or starts that never meet)"
    if isinstance(agreement, float):
        compared = f"slicing instead of encoding every window would give {100 * agreement:.1f} % of the codes alike"
    line = f"latents: {facts['windows']} windows, {facts['codes_used']} different codes; {compared}"
    print(line, flush=True)
    write_text(folder / "log.txt", line + "\n")


def _check_plan(folder: Path, plan: dict[str, object]) -> None:
    """A cache may only be continued, or taken for finished, with the plan it was begun with."""
    old = read_mark(folder / "plan.json")
    if old is not None and (names := differing_keys({key: old.get(key) for key in plan}, plan)):
        raise InputError(
            f"{folder} holds another latent cache; these keys differ: {', '.join(names)}. "
            "Delete the folder or use another run_dir"
        )


def _encode_episodes(
    config: PretrainConfig, dldm: DLDM, frame_cache: FrameCache, episodes: range, device: torch.device
) -> LatentWindows:
    """Windows of these episodes in order; clips of several episodes share a batch."""
    pieces = []
    for index in episodes:
        episode = frame_cache.episodes[index]
        windows = make_windows(
            episode.length,
            num_frames=config.dldm.num_frames,
            cache_stride=config.extract_latents.cache_stride,
            hz=episode.hz,
            temporal_stride=config.dldm.temporal_stride,
            **config.data.time_base,
        )
        pieces.append((np.full(len(windows.start), index), windows.start, windows.frame_ids, windows.valid))
    episode_n, start_n, frames_nT, valid_nM = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    codes = np.zeros((*valid_nM.shape, config.dldm.queries), np.uint16)
    size = config.extract_latents.batch_size
    for i in range(0, len(episode_n), size):
        pixels: NDArray[np.uint8] = frame_cache.read_batch(episode_n[i : i + size], frames_nT[i : i + size])
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


main = program(PretrainConfig, config_name="pretrain", one_process=True)(alone(extract_latents))

if __name__ == "__main__":
    main()
