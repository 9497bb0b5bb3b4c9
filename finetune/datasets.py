"""The data of fine-tuning: labeled windows, held-out windows, and video whose actions stay unread."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vw2_robot.data.clips import time_base_of
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.distributed.ranks import main_first
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.runs import Run
from vw2_robot.storage.locks import lock_folder

from .config import FinetuneConfig
from .labeled_windows import LabeledSplit, LabeledWindows, VideoWindows, cache_trajectories, split_trajectories
from .pretrained_init import PolicyInit

MEASURED_WINDOWS, MEASURED_BATCH = 2048, 128


@dataclass(frozen=True)
class FinetuneDatasets:
    """All windows of a run, and the rate of their actions.

    Attributes:
        split: which trajectories are on which side.
        train: labeled windows to train on.
        held_out: labeled windows to validate on.
        unlabeled: windows for the code loss alone; None where there are none.
        hz: control rate.
    """

    split: LabeledSplit
    train: LabeledWindows
    held_out: LabeledWindows
    unlabeled: VideoWindows | None
    hz: float


@dataclass(frozen=True)
class CachedDataset:
    """A data set with its images in the dLDM's size and in the policy's; one cache where these are equal."""

    dataset: CalvinDataset
    frame_cache: FrameCache
    policy_frame_cache: FrameCache


def open_datasets(config: FinetuneConfig, init: PolicyInit, run: Run, device: torch.device) -> FinetuneDatasets:
    """Open the data, cut the windows and encode their codes.

    Args:
        config: of the run.
        init: the policy, whose dLDM and image sizes decide what a window is.
        run: its folder keeps the frame caches, unless `data.frame_cache` names another.
        device: where the dLDM encodes.

    Raises:
        InputError: there are fewer actions per policy call than `n_action_steps`, or no more of them than are executed
            while chunks shall be averaged, a loss of a gripper is wanted where
            there is none, or the data do not fit.
    """
    chunk_size = config.latent_steps * init.stride
    if config.n_action_steps is not None and config.n_action_steps > chunk_size:
        raise InputError(
            f"n_action_steps={config.n_action_steps}, but {config.latent_steps} latent steps give only "
            f"{chunk_size} actions; raise latent_steps or lower n_action_steps"
        )
    if config.temporal_ensemble is not None and (config.n_action_steps or chunk_size) == chunk_size:
        raise InputError(
            f"temporal_ensemble={config.temporal_ensemble} averages chunks that overlap, and all {chunk_size} actions "
            f"of a chunk are executed: set n_action_steps below {chunk_size}"
        )
    has_gripper = init.robot.action.gripper_index is not None
    if not has_gripper and (config.gripper_loss, config.gripper_weight) != ("l2", 1.0):
        raise InputError(
            f"gripper_loss={config.gripper_loss}, gripper_weight={config.gripper_weight}: the actions of "
            f"{config.data.path} ({', '.join(init.robot.action.names)}) have no gripper with two commands"
        )
    folder = run.path / "frames" if config.data.frame_cache is None else Path(config.data.frame_cache)
    training = cache_images(CalvinDataset(config.data.path, config.data.split), init, folder)
    split = split_trajectories(
        training.dataset,
        training.frame_cache,
        label_fraction=config.label_fraction,
        label_seed=config.label_seed,
        validation_fraction=None if config.data.validation_split else config.data.validation_fraction,
    )
    train = cut_labeled(config, init, training, split.train, statistics=None)
    if config.data.validation_split is None:
        validation = training
        validation_ids = split.validation
    else:
        validation = cache_images(CalvinDataset(config.data.path, config.data.validation_split), init, folder)
        validation_ids = tuple(range(len(validation.dataset)))
    # Normalized with the statistics of the training labels: held-out actions must not decide the units.
    held_out = cut_labeled(config, init, validation, validation_ids, statistics=train.statistics)
    run.log_message(
        f"{len(split.train)} labeled trajectories of {split.labels.total} ({len(train)} windows), "
        f"{len(validation_ids)} held out; actions of the others stay unread"
    )
    log_rates(init, run)
    unlabeled = cut_unlabeled(config, init, run, folder, training, split.unlabeled)
    # Encoded once and from images without random shift: the dLDM is frozen, so a window's codes never change.
    if init.dldm is not None:
        init.dldm.to(device, config.hardware.dtype).eval()
        if config.aids.standardize == "labeled":
            measure_statistics(init.dldm, train, device)
        # Unlabeled windows always need theirs, as targets.
        labeled = [train, held_out] if config.needs_codes else []
        for windows in (*labeled, *([unlabeled] if unlabeled is not None else [])):
            windows.encode_codes(init.dldm, device, keep=folder)
            if init.facts.get("codes") == "shuffled":
                windows.shuffle_codes(seed=config.seed)
    return FinetuneDatasets(split, train, held_out, unlabeled, training.frame_cache.episodes[0].hz)


def measure_statistics(dldm: DLDM, windows: VideoWindows, device: torch.device) -> None:
    """Measure the dLDM's statistics on some of the windows, evenly spread; the result does not depend on the seed.

    Args:
        dldm: on the device; its statistics are replaced.
        windows: of the labeled trajectories; no action is read.
        device: where clips are encoded.
    """
    rows = np.linspace(0, len(windows) - 1, min(len(windows), MEASURED_WINDOWS)).astype(np.int64)
    whole = rows[windows.valid[rows].all(1)]
    clips = (windows.clips(part, device) for part in np.array_split(whole, -(-len(whole) // MEASURED_BATCH)))
    dldm.measure_statistics(x.to(next(dldm.parameters()).dtype) for x in clips)


def log_rates(init: PolicyInit, run: Run) -> None:
    """Log how long a latent step lasts, where that is not one action per clip frame or not as in pre-training."""
    if init.dldm is None:
        return
    hz = init.robot.hz
    # A checkpoint without the fact is taken to have been trained at this rate, so nothing is logged.
    pretrained_hz = init.facts.get("latent_hz") or [hz]
    # `time_base_of({})` is that of consecutive frames.
    if init.time_base != time_base_of({}):
        run.log_message(f"a latent step lasts {init.stride / hz:.3g} s, as in pre-training: {init.stride} actions")
    elif hz not in pretrained_hz:
        run.log_message(
            f"the codes were learned on consecutive frames at {' and '.join(f'{hz:g}' for hz in pretrained_hz)} Hz, "
            f"here they are of consecutive frames at {hz:g} Hz; data.target_hz or data.gap_seconds in "
            "pre-training makes a code the same span of time everywhere"
        )


def cache_images(dataset: CalvinDataset, init: PolicyInit, folder: Path) -> CachedDataset:
    """Cache the images of a data set in both sizes, each resized from the original, as the agent resizes its own.

    Args:
        dataset: where the images are.
        init: the policy, and the dLDM if there is one; they decide the sizes.
        folder: of frame caches, one for each size.

    Returns:
        The data set with its caches, which are one where both sizes are equal.
    """
    px = init.policy.config.image_px
    frame_cache = cache_size(dataset, folder, init.frame_size)
    if init.frame_size == (px, px):
        return CachedDataset(dataset, frame_cache, frame_cache)
    return CachedDataset(dataset, frame_cache, cache_size(dataset, folder, (px, px)))


def cache_size(dataset: CalvinDataset, folder: Path, size: tuple[int, int]) -> FrameCache:
    """Return the images of a data set in one (height, width); wait where another run is making them now.

    Args:
        dataset: where the images are.
        folder: of frame caches; the cache is a folder inside, named by data set, split and size.
        size: (height, width) of the cached images, pixels.
    """
    height, width = size
    # Data sets of the same folder name may share `folder`, so the cache's name has a digest of the whole path.
    digest = hashlib.sha256(str(dataset.path.resolve()).encode()).hexdigest()[:8]
    out = folder / f"{dataset.path.name}_{digest}_{dataset.split}_{height}x{width}"
    # Of several ranks rank 0 makes it; the others then find it complete.
    with main_first(), lock_folder(out, what="making a frame cache", beside=True, wait=True):
        return cache_trajectories(dataset, out, height=height, width=width)


def cut_labeled(
    config: FinetuneConfig,
    init: PolicyInit,
    cached: CachedDataset,
    trajectories: tuple[int, ...],
    *,
    statistics: ActionStatistics | None,
) -> LabeledWindows:
    """Return the windows of the given trajectories with their actions.

    Args:
        config: length of a window, normalization, and whether poses are read.
        init: for the time base of the codes.
        cached: the data set and its images.
        trajectories: positions in the data set.
        statistics: None computes those of these actions.
    """
    return LabeledWindows(
        cached.dataset,
        cached.frame_cache,
        trajectories,
        latent_steps=config.latent_steps,
        stride=init.clip_stride,
        **init.time_base,
        policy_frame_cache=cached.policy_frame_cache,
        statistics=statistics,
        normalization=config.normalization,
        with_poses=config.aids.pose_weight > 0,
    )


def cut_unlabeled(
    config: FinetuneConfig,
    init: PolicyInit,
    run: Run,
    folder: Path,
    training: CachedDataset,
    unlabeled: tuple[int, ...],
) -> VideoWindows | None:
    """Return windows for the code loss alone, one every latent step; None if it is off or there is no such video.

    Args:
        config: `unlabeled` says whether, and from which data set.
        init: for the time base of the codes.
        run: for the log.
        folder: of frame caches.
        training: the labeled data set.
        unlabeled: its trajectories without labels, which are used unless another data set is named.
    """
    settings = config.unlabeled
    if settings.weight == 0:
        return None
    cached = training
    trajectories = unlabeled
    if settings.path is not None:
        dataset = CalvinDataset(settings.path, config.data.split)
        cached = cache_images(dataset, init, folder)
        # All of them: another data set is not split, so nothing in it is held out.
        trajectories = tuple(range(len(dataset)))
    if not trajectories:
        run.log_message("unlabeled.weight is set, but every trajectory is labeled; give unlabeled.path for more video")
        return None
    # Every start costs an encoding of a clip. Labeled windows take each one, since each has actions of its own.
    windows = VideoWindows(
        cached.dataset,
        cached.frame_cache,
        trajectories,
        latent_steps=config.latent_steps,
        stride=init.clip_stride,
        **init.time_base,
        start_every=init.stride,
        policy_frame_cache=cached.policy_frame_cache,
    )
    run.log_message(f"{len(trajectories)} trajectories without labels ({len(windows)} windows) keep the code loss")
    return windows
