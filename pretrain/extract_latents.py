"""Stage `latents`: clips -> latent cache, with the trained dLDM.

    vw2-extract-latents data=bridge_sample data.path=DIR model=tiny run_dir=runs/first workers=4

Every window is encoded from its own first frame (method 2.5). Log and index report how often the cheaper alternative,
slicing the codes of one encoding of the whole clip, would have given the same codes. The cache is written in shards:
each rank (torchrun, also on several machines that share the folder) writes some of them, with `workers` processes. A
killed run is continued with any number of both; the bytes are the same.
"""

# n windows · T frames of a window · F frames of all windows of a batch
# M latent steps · N codes per step · H, W pixels
from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from vw2_robot.aliases import with_new_keys
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.data.clips import effective_hz, make_windows
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.latents import LatentCache, LatentWindows, finish, missing_shards, read_shards, write_shard
from vw2_robot.distributed import ranks
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.dldm.shared_windows import lay_out
from vw2_robot.pixels import to_model_range
from vw2_robot.storage.binding import check_same_config
from vw2_robot.storage.files import read_json, write_json, write_text
from vw2_robot.worker_pool import WorkerPool

from .cache_frames import open_frames
from .config import PretrainConfig
from .dldm_modules import encoder_hash
from .stages import alone, finished_stage

EPISODES_PER_SHARD = 64


def extract_latents(config: PretrainConfig) -> None:
    """Write run_dir/latents, or return at once when it is complete."""
    folder = config.stage_dir("latents")
    with ranks.locked_on_main(folder, what="encoding latents"):
        # Compared first without the frames: a finished cache is recognized without opening any data.
        options = config.stage_tree("extract_latents") | config.data.time_base
        check_plan(folder, options)
        if ranks.on_main(functools.partial(is_finished, folder)):
            return
        config.hardware.torch_device()  # raises before anything is written where the device is missing
        write_latents(config, folder, options)


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a finished latent cache.

    Raises:
        InputError: it holds a damaged one.
    """
    if not (folder / "index.json").is_file():
        return False
    LatentCache(folder)  # raises unless all of its shards are there
    return True


def write_latents(config: PretrainConfig, folder: Path, options: dict[str, Any]) -> None:
    """Write the shards that are missing, then index.json.

    Args:
        config: of the run.
        folder: of the latent cache.
        options: how it is cut, as plan.json records it.
    """
    frame_cache = open_frames(config)
    checkpoint = finished_stage(config, "dldm")
    dldm = DLDM(config.dldm)
    load_checkpoint(checkpoint, kind="dldm").load_into(dldm=dldm)
    identity = {"encoder_hash": encoder_hash(dldm), "frames_digest": frame_cache.digest}
    precision = {"precision": config.hardware.precision}  # codes depend on it, so a cache is continued in the same one
    plan = identity | options | {"episodes_per_shard": EPISODES_PER_SHARD} | precision
    episodes = range(len(frame_cache.episodes))
    shards = [episodes[first : first + EPISODES_PER_SHARD] for first in episodes[::EPISODES_PER_SHARD]]
    missing = ranks.on_main(functools.partial(begin_cache, folder, plan, len(shards)))
    # Shards are independent, so any number of ranks and processes writes the same bytes.
    mine = missing[ranks.rank() :: ranks.world_size()]
    written = write_shards(Encoder(config, dldm, frame_cache), checkpoint, {n: shards[n] for n in mine})
    done = len(shards) - len(missing)
    with (
        closing(written),
        tqdm(desc="latents", total=done + len(mine), initial=done, unit="shard", disable=None) as bar,
    ):
        for _ in written:
            bar.update()
    ranks.gather(None)  # until all of them have written their shards

    def finish_cache() -> None:
        windows = read_shards(folder, len(shards))
        facts = describe_windows(config, frame_cache, windows)
        finish(folder, shards=len(shards), facts=identity | facts)
        log_summary(folder, facts)

    ranks.on_main(finish_cache)


def begin_cache(folder: Path, plan: dict[str, Any], count: int) -> list[int]:
    """Write plan.json and return the numbers of the shards that are missing.

    Args:
        folder: of the latent cache.
        plan: what the cache is made from and how it is cut.
        count: shards of the whole cache.

    Raises:
        InputError: the cache was begun with another plan.
    """
    check_plan(folder, plan)
    # Before the first shard, so that a killed run is continued only with the plan that it was begun with.
    write_json(folder / "plan.json", plan, sealed=True)
    for leftover in folder.glob(".windows-*.tmp"):  # of a process that was killed while it wrote a shard
        leftover.unlink()
    return missing_shards(folder, count)


class Encoder:
    """A dLDM on its device that writes shards.

    Args:
        config: how windows are cut, and where the cache is.
        dldm: the trained dLDM.
        frame_cache: the frames to encode.
        device: of the dLDM; None: that of the configuration.
    """

    def __init__(
        self, config: PretrainConfig, dldm: DLDM, frame_cache: FrameCache, *, device: torch.device | None = None
    ) -> None:
        self.config = config
        self.frame_cache = frame_cache
        found = config.hardware.torch_device()  # sets the number of threads too
        self.device = device or found
        self.dldm = dldm.to(self.device, config.hardware.dtype).eval()

    def write(self, number: int, episodes: range) -> None:
        """Encode these episodes and write shard `number`."""
        windows = encode_episodes(self.config, self.dldm, self.frame_cache, episodes, self.device)
        write_shard(self.config.stage_dir("latents"), number, windows)


class LatentShard(NamedTuple):
    """One shard to write, and the episodes in it."""

    number: int
    episodes: range

    def __str__(self) -> str:
        """Return the name of the shard in messages."""
        return f"shard {self.number}"


def write_shards(encoder: Encoder, checkpoint: Path, missing: dict[int, range]) -> Generator[None]:
    """Write the missing shards, in this process or in `config.workers` others; yield after each.

    Args:
        encoder: writes them in this process.
        checkpoint: of the dLDM, which other processes load.
        missing: number of a shard -> its episodes.

    Raises:
        InputError: a process raised one, or died.
    """
    config = encoder.config
    workers = min(config.workers, len(missing))
    if workers <= 1:
        for number, episodes in missing.items():
            encoder.write(number, episodes)
            yield
        return
    # Every worker opens dLDM and frame cache itself: neither is sent between processes.
    threads = max(1, torch.get_num_threads() // workers)  # all processes together use as many as this one does
    build = functools.partial(
        open_encoder, config, checkpoint, encoder.frame_cache.path, threads=threads, device=encoder.device
    )
    pool: WorkerPool[LatentShard, None] = WorkerPool(build, name="encoding process")
    yield from pool.run(itertools.starmap(LatentShard, missing.items()), workers=workers)


@contextmanager
def open_encoder(
    config: PretrainConfig, checkpoint: Path, frame_cache: Path, *, threads: int, device: torch.device
) -> Iterator[Callable[[LatentShard], None]]:
    """Open a worker's encoder, and give the function that encodes one shard.

    Args:
        config: of the run.
        checkpoint: of the dLDM.
        frame_cache: folder of the frame cache.
        threads: of torch in this worker.
        device: that of the rank which the worker belongs to.
    """
    torch.set_num_threads(threads)
    dldm = DLDM(config.dldm)
    load_checkpoint(checkpoint, kind="dldm").load_into(dldm=dldm)
    encoder = Encoder(
        replace(config, hardware=replace(config.hardware, threads=threads)),
        dldm,
        FrameCache(frame_cache, threads=config.data.decode_threads),
        device=device,
    )
    yield lambda shard: encoder.write(*shard)


def describe_windows(config: PretrainConfig, frame_cache: FrameCache, windows: LatentWindows) -> dict[str, object]:
    """Return the facts on all windows that index.json holds.

    Args:
        config: how windows are cut, and the shape of the codes.
        frame_cache: the frames that were encoded; its episodes give the frame rates in Hz.
        windows: all n windows with their codes [n, M, N], in order of episode and start.

    Returns:
        Name -> fact: `levels` of the quantizer, `stride` and `cache_stride` in frames, `steps` (latent steps per
        window), `hz` (sorted effective rates in Hz), `windows` and `codes_used` (counts), and `slice_agreement`.
    """
    stride = config.dldm.temporal_stride
    cache_stride = config.extract_latents.cache_stride
    return {
        "levels": list(config.dldm.fsq_levels),
        "stride": stride,
        "steps": config.dldm.latent_steps,
        "cache_stride": cache_stride,
        "hz": sorted(
            {
                effective_hz(hz, temporal_stride=stride, **config.data.time_base)
                for hz in set(frame_cache.episodes.hz.tolist())
            }
        ),
        "windows": len(windows),
        "codes_used": len(np.unique(windows.codes[windows.valid])),
        "slice_agreement": slice_agreement(windows, stride=stride, cache_stride=cache_stride),
    }


def log_summary(folder: Path, facts: dict[str, object]) -> None:
    """Print one line on the finished cache, and write it to log.txt."""
    agreement = facts["slice_agreement"]
    compared = "no codes of overlapping windows to compare (windows of one step, or starts that never meet)"
    if isinstance(agreement, float):
        compared = f"{100 * agreement:.1f} % of the codes would be equal if sliced from longer windows"
    line = f"latents: {facts['windows']} windows, {facts['codes_used']} different codes; {compared}"
    print(line, flush=True)
    write_text(folder / "log.txt", line + "\n")


def check_plan(folder: Path, plan: dict[str, object]) -> None:
    """Check that the cache in a folder, if there is one, was begun with this plan.

    Raises:
        InputError: it was begun with another one.
    """
    file = folder / "plan.json"
    if file.exists():
        old = with_new_keys(read_json(file, cure="restore it, or delete it to have it made again"))
        old.setdefault("precision", "float32")  # plans of earlier releases, which always encoded in float32
        check_same_config(
            folder,
            {key: old.get(key) for key in plan},
            plan,
            holds="another latent cache",
            advice="Delete the folder or use another run_dir",
        )


def encode_episodes(
    config: PretrainConfig, dldm: DLDM, frame_cache: FrameCache, episodes: range, device: torch.device
) -> LatentWindows:
    """Return the windows of these episodes, in order, with their codes.

    Args:
        config: how windows are cut, and how many are encoded at once.
        dldm: the trained dLDM, on the device.
        frame_cache: the frames.
        episodes: indices of the episodes.
        device: where clips are encoded.
    """
    cut = []
    for index in episodes:
        episode = frame_cache.episodes[index]
        # A window that reaches past the end of its episode is padded, and its last steps are not valid.
        windows = make_windows(
            episode.length,
            num_frames=config.dldm.num_frames,
            cache_stride=config.extract_latents.cache_stride,
            hz=episode.hz,
            temporal_stride=config.dldm.temporal_stride,
            **config.data.time_base,
        )
        cut.append((np.full(len(windows.start), index), windows.start, windows.frame_ids, windows.valid))
    episode_n, start_n, frames_nT, valid_nM = (np.concatenate(parts) for parts in zip(*cut, strict=True))
    # uint16 holds every codebook of the paper, the largest with 64 000 codes.
    codes = np.zeros((*valid_nM.shape, config.dldm.queries), np.uint16)
    # In batches over all windows, whatever their episodes: short episodes would leave batches small.
    # No batch crosses a shard: kernels may round otherwise for another batch, and codes must not depend on `workers`.
    size = config.extract_latents.batch_size
    # One number for each frame of any episode.
    span = int(frame_cache.episodes.length.max())
    numbers_nT = episode_n[:, None] * span + frames_nT
    layouts = [
        lay_out(
            numbers_nT[first : first + size],
            stride=config.dldm.temporal_stride,
            cache_stride=config.extract_latents.cache_stride,
        )
        for first in range(0, len(numbers_nT), size)
    ]
    videos = video_pixels(frame_cache, [layout.frame_ids for layout in layouts], span=span, device=device)
    first = 0
    with config.hardware.autocast(device):
        for layout, pixels in zip(layouts, videos, strict=True):
            video = dldm.resized(to_model_range(pixels)[None])[0].to(config.hardware.dtype)
            found = dldm.window_indices(video, torch.from_numpy(layout.starts).to(device))
            codes[first : first + len(found)] = found.cpu().numpy()
            first += len(found)
    return LatentWindows(episode_n.astype(np.int32), start_n.astype(np.int32), codes, valid_nM)


def video_pixels(
    frame_cache: FrameCache, numbers: list[NDArray[np.int64]], *, span: int, device: torch.device
) -> Iterator[UInt8[Tensor, "F H W 3"]]:
    """Yield the pixels of videos, on the device.

    Windows overlap, also those of two batches: each frame is read and sent to the device once, as long as neighboring
    videos show it.

    Args:
        frame_cache: the frames.
        numbers: int [F] of each video: for each of its frames, `span` times its episode plus its place in there.
        span: more than any place.
        device: where the videos are put together.
    """
    held = np.zeros(0, np.int64)
    pixels = torch.zeros((0, frame_cache.height, frame_cache.width, 3), dtype=torch.uint8, device=device)
    for some in numbers:
        wanted = np.unique(some)
        there = np.isin(wanted, held)
        new = wanted[~there]
        read = torch.from_numpy(frame_cache.read_batch(new // span, new[:, None] % span)[:, 0])
        kept = torch.from_numpy(np.searchsorted(held, wanted[there])).to(device)
        pixels = torch.cat([pixels[kept], read.to(device)])
        held = np.concatenate([wanted[there], new])
        # In the order of their numbers, so that they can be looked up.
        order = np.argsort(held)
        held = held[order]
        pixels = pixels[torch.from_numpy(order).to(device)]
        yield pixels[torch.from_numpy(np.searchsorted(held, some)).to(device)]


def slice_agreement(windows: LatentWindows, *, stride: int, cache_stride: int) -> float | None:
    """Return the share of codes for which step k + j of a window equals step k of the window that starts j steps later.

    Args:
        windows: in order of episode and start.
        stride: clip frames of a latent step.
        cache_stride: frames between the starts of two windows.

    Returns:
        0 to 1; None where the starts never coincide (cache_stride is no multiple of the stride) or no window has two
        steps.
    """
    if cache_stride % stride or windows.codes.shape[1] < 2:
        return None
    j = cache_stride // stride
    overlap = windows.codes.shape[1] - j  # latent steps that both windows have
    # Windows are in order of their starts, so the next one of the same episode begins j steps later.
    follows = windows.episode[1:] == windows.episode[:-1]
    early = windows.codes[:-1][follows][:, j:]
    late = windows.codes[1:][follows][:, :overlap]
    both = windows.valid[:-1][follows][:, j:] & windows.valid[1:][follows][:, :overlap]
    return round(float((early == late)[both].mean()), 4) if both.any() else None


main = alone(extract_latents, "latents")

if __name__ == "__main__":
    entry_points.extract_latents.main()
