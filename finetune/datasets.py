"""What fine-tuning learns from: the labeled windows, the held-out ones, and video whose actions stay unread."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from vw2_robot.data.clips import time_base_of
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.sources.calvin import CALVIN_HZ, CalvinDataset
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.runs import Run
from vw2_robot.storage.locks import lock_folder

from .config import FinetuneConfig
from .labeled_windows import LabeledSplit, LabeledWindows, VideoWindows, cache_calvin, split_trajectories
from .pretrained_init import StartingPoint


@dataclass(frozen=True)
class FinetuneDatasets:
    """Windows to learn from, windows held out, windows without actions (None where there are none), control rate."""

    split: LabeledSplit
    train: LabeledWindows
    held_out: LabeledWindows
    unlabeled: VideoWindows | None
    hz: float


@dataclass(frozen=True)
class Images:
    """A data set with its images in the dLDM's size and in the policy's; one cache where these are equal."""

    dataset: CalvinDataset
    frame_cache: FrameCache
    policy: FrameCache


def open_material(config: FinetuneConfig, start: StartingPoint, run: Run, device: torch.device) -> FinetuneDatasets:
    """Open the data, make the windows and their teacher codes.

    Raises:
        InputError: the policy cannot act as often as it shall look, or the data do not fit.
    """
    _check_chunk_size(config, start)
    folder = run.path / "frames" if config.data.frame_cache is None else Path(config.data.frame_cache)
    seen = _images(CalvinDataset(config.data.path, config.data.split), start, folder)
    split = _split(config, seen)
    train = _labeled(config, start, seen, split.train, statistics=None)
    other, held = seen, split.validation
    if config.data.validation_split is not None:
        other = _images(CalvinDataset(config.data.path, config.data.validation_split), start, folder)
        held = tuple(range(len(other.dataset)))
    held_out = _labeled(config, start, other, held, statistics=train.statistics)
    run.log_message(
        f"{len(split.train)} labeled trajectories of {split.labels.total} ({len(train)} windows), "
        f"{len(held)} held out; actions of the others stay unread"
    )
    _say_rates(start, run)
    unlabeled = _unlabeled(config, start, run, folder, seen, split.unlabeled)
    if start.dldm is not None:
        start.dldm.to(device).eval()
        labeled = [train, held_out] if config.code_source != "none" else []
        for windows in (*labeled, *([unlabeled] if unlabeled is not None else [])):
            windows.teach(start.dldm, device)
    return FinetuneDatasets(split, train, held_out, unlabeled, seen.frame_cache.episodes[0].hz)


def _say_rates(start: StartingPoint, run: Run) -> None:
    """What a latent step lasts, where it is not one clip frame for each action or not what it was in pre-training."""
    if start.dldm is None:
        return
    learned = start.facts.get("latent_hz") or [CALVIN_HZ]
    if start.time_base != time_base_of({}):
        run.log_message(
            f"a latent step lasts {start.stride / CALVIN_HZ:.3g} s, as in pre-training: {start.stride} actions"
        )
    elif CALVIN_HZ not in learned:
        run.log_message(
            f"the codes were learned on consecutive frames at {' and '.join(f'{hz:g}' for hz in learned)} Hz, here "
            f"they are of consecutive frames at {CALVIN_HZ:g} Hz; data.target_hz or data.gap_seconds in "
            f"pre-training makes a "
            "code the same span of time everywhere"
        )


def _split(config: FinetuneConfig, seen: Images) -> LabeledSplit:
    return split_trajectories(
        seen.dataset,
        seen.frame_cache,
        label_fraction=config.label_fraction,
        label_seed=config.label_seed,
        validation_fraction=None if config.data.validation_split else config.data.validation_fraction,
    )


def _check_chunk_size(config: FinetuneConfig, start: StartingPoint) -> None:
    chunk_size = config.latent_steps * start.stride
    if config.n_action_steps > chunk_size:
        raise InputError(
            f"n_action_steps={config.n_action_steps}, but {config.latent_steps} latent steps give only "
            f"{chunk_size} actions; raise latent_steps or replan more often"
        )


def _images(dataset: CalvinDataset, start: StartingPoint, folder: Path) -> Images:
    """Cache the images straight from the data set in each size, as the agent resizes what it is shown."""
    px = start.policy.config.image_px
    frames = _cached(dataset, folder, start.frame_size)
    return Images(dataset, frames, frames if start.frame_size == (px, px) else _cached(dataset, folder, (px, px)))


def _cached(dataset: CalvinDataset, folder: Path, size: tuple[int, int]) -> FrameCache:
    """The images of a data set in one size; where another run is making them now, wait until it is done."""
    height, width = size
    which = hashlib.sha256(str(dataset.path.resolve()).encode()).hexdigest()[:8]  # folders may have equal names
    out = folder / f"{dataset.path.name}_{which}_{dataset.split}_{height}x{width}"
    with lock_folder(out, what="making a frame cache", beside=True, wait=True):
        return cache_calvin(dataset, out, height=height, width=width)


def _labeled(
    config: FinetuneConfig,
    start: StartingPoint,
    seen: Images,
    trajectories: tuple[int, ...],
    *,
    statistics: ActionStatistics | None,
) -> LabeledWindows:
    return LabeledWindows(
        seen.dataset,
        seen.frame_cache,
        trajectories,
        steps=config.latent_steps,
        stride=start.clip_stride,
        **start.time_base,
        policy_frames=seen.policy,
        statistics=statistics,
        normalization=config.normalization,
        with_poses=config.pose_weight > 0,
    )


def _unlabeled(
    config: FinetuneConfig, start: StartingPoint, run: Run, folder: Path, seen: Images, rest: tuple[int, ...]
) -> VideoWindows | None:
    """Windows for the code loss alone, one every latent step; None where it is off or there is no such video."""
    settings = config.unlabeled
    if settings.weight == 0:
        return None
    if settings.path is not None:
        dataset = CalvinDataset(settings.path, config.data.split)
        seen = _images(dataset, start, folder)
        rest = tuple(range(len(dataset)))
    if not rest:
        run.log_message("unlabeled.weight is set, but every trajectory is labeled; give unlabeled.path for more video")
        return None
    windows = VideoWindows(
        seen.dataset,
        seen.frame_cache,
        rest,
        steps=config.latent_steps,
        stride=start.clip_stride,
        **start.time_base,
        start_every=start.stride,
        policy_frames=seen.policy,
    )
    run.log_message(f"{len(rest)} trajectories without labels ({len(windows)} windows) keep the code loss")
    return windows
