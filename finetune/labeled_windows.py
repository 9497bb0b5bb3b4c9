"""Labeled trajectories as training windows: image, instruction, codes of the dLDM, and where labeled, actions.

Actions are read of the trajectories that `label_fraction` selects and of the held-out ones; for all others that array
is never opened. Images come from a frame cache, which holds video alone.
"""

# n windows · H latent steps · s clip frames per step · A action dims · L trajectory length
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from vw2_robot.checkpoint import weights_digest
from vw2_robot.data.clips import frame_offsets
from vw2_robot.data.frame_cache import FrameCache, cache_frames, split_episodes
from vw2_robot.data.images import resize_frame
from vw2_robot.data.labels import Labels, choose_labels, label_stratum
from vw2_robot.data.latents import shuffled
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.data.statistics import ActionStatistics, NormalizationMode, check_range
from vw2_robot.distributed.ranks import gather, is_main, rank, world_size
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.dldm.shared_windows import lay_out
from vw2_robot.pixels import to_model_range
from vw2_robot.storage.arrays import read_array
from vw2_robot.storage.files import atomic_write


@dataclass(frozen=True)
class LabeledSplit:
    """Which trajectories train with their actions, which are held out for validation, which are video only.

    Trajectories that overlap a held-out one are in none of the three, so no held-out frame is trained on.

    Attributes:
        labels: the selection as it is written to labels.json.
        train: positions in the data set, as in the other two.
        validation: the held-out ones.
        unlabeled: the ones that are neither labeled nor held out.
    """

    labels: Labels
    train: tuple[int, ...]
    validation: tuple[int, ...]
    unlabeled: tuple[int, ...]


def cache_trajectories(dataset: CalvinDataset, out: Path, *, height: int, width: int) -> FrameCache:
    """Return the static-camera images of all trajectories, resized; episode i of the cache is trajectory i.

    Args:
        dataset: where the images are.
        out: folder of the cache; a finished one is opened.
        height: in pixels.
        width: in pixels.

    Raises:
        InputError: the folder holds a cache of other trajectories.
    """
    with tqdm(desc="frames", total=len(dataset), unit="trajectory", disable=None, dynamic_ncols=True) as bar:
        # None may be skipped (`max_skipped`): episode i of the cache must stay trajectory i.
        cache_frames(
            dataset.episodes(),
            out,
            height=height,
            width=width,
            max_skipped=0,
            decode="full",  # raw images: there is nothing to scale
            description={"calvin": str(dataset.path.resolve()), "split": dataset.split},
            progress=lambda stored, _: bar.update(stored - bar.n) and None,
        )
    cache = FrameCache(out)
    # A finished cache is opened whatever the data set holds now; its names are compared.
    names = [t.trajectory_id for t in dataset.trajectories]
    if cache.episodes.texts("episode_id") != names:
        raise InputError(f"{out} was made from other trajectories than {dataset.path} holds now; delete {out}")
    return cache


def split_trajectories(
    dataset: CalvinDataset,
    frame_cache: FrameCache,
    *,
    label_fraction: float,
    label_seed: int,
    validation_fraction: float | None,
) -> LabeledSplit:
    """Hold out whole trajectories, then choose the labeled ones among the rest, stratified by task.

    Held-out trajectories depend on `label_seed` and on the pixels only. A trajectory that shares a frame with a
    held-out one (CALVIN's published windows overlap) is left out of training: no frame ever lies on both sides.

    Args:
        dataset: the trajectories; no action is read.
        frame_cache: their images.
        label_fraction: share of the trajectories left for training that are labeled.
        label_seed: decides which are held out and which are labeled.
        validation_fraction: share that is held out; None where another split of the data set is held out.

    Raises:
        InputError: nothing is left on one of the sides.
    """
    share = 0.0 if validation_fraction is None else validation_fraction
    sides = split_episodes(frame_cache, validation_fraction=share, seed=label_seed)
    train, validation = (side.tolist() for side in sides)
    if not validation and validation_fraction is not None:
        raise InputError(
            f"{dataset.path}: none of {len(dataset)} trajectories is held out at validation_fraction="
            f"{validation_fraction}; use a positive share and a data set of at least two different trajectories"
        )
    # `end` is the last frame, not the one after it.
    spans = [range(trajectory.start, trajectory.end + 1) for trajectory in dataset.trajectories]
    held_out_frames = {frame for i in validation for frame in spans[i]}
    overlapping = {i for i in train if held_out_frames & set(spans[i])}
    if overlapping == set(train):
        raise InputError(
            f"{dataset.path}: every training trajectory overlaps a held-out one; lower validation_fraction"
        )
    # Labels are chosen after the held-out ones, so every label fraction is validated on the same trajectories.
    pool = [i for i in train if i not in overlapping]
    chosen = [dataset.trajectories[i] for i in pool]
    # Stratified by task and scene, and nested: a larger fraction contains a smaller one.
    labels = choose_labels(
        [label_stratum(task=t.task, scene=t.scene, instruction=t.instruction) for t in chosen],
        [t.trajectory_id for t in chosen],
        fraction=label_fraction,
        seed=label_seed,
    )
    wanted = set(labels.episode_ids)
    selected = tuple(i for i in pool if dataset.trajectories[i].trajectory_id in wanted)
    unlabeled = tuple(i for i in pool if dataset.trajectories[i].trajectory_id not in wanted)
    return LabeledSplit(labels, selected, tuple(validation), unlabeled)


def window_offsets(
    latent_steps: int, *, stride: int, hz: float, target_hz: float | None = None, gap_seconds: float | None = None
) -> NDArray[np.int64]:
    """Return the positions [1 + s*H] of a window's clip frames after its start, in the time base of the codes.

    Each latent step spans the same number of time steps, each with an action: `window_offsets(...)[s]`.

    Args:
        latent_steps: H.
        stride: s, clip frames of a latent step.
        hz: rate of the labeled data.
        target_hz: see `vw2_robot.data.clips`.
        gap_seconds: see there.

    Raises:
        InputError: H latent steps last no whole number of time steps each.
    """
    offsets = frame_offsets(
        1 + latent_steps * stride, hz=hz, temporal_stride=stride, target_hz=target_hz, gap_seconds=gap_seconds
    )
    # Offsets are rounded to whole frames, so at some rates one latent step spans an action more than the next.
    # The head gives a fixed number of actions per latent step and cannot follow that.
    if (np.diff(offsets[::stride]) != offsets[stride]).any():
        raise InputError(
            f"latent_steps={latent_steps}: the latent steps of codes with target_hz {target_hz} and gap_seconds "
            f"{gap_seconds} end at time steps {offsets[stride::stride].tolist()} of data at {hz:g} Hz, not all after "
            f"the same number of actions; set latent_steps=1, or pre-train with a whole number of actions per latent "
            f"step (such as data.gap_seconds={offsets[stride] / hz:.4g})"
        )
    return offsets


class VideoWindows:
    """Windows of H latent steps of the given trajectories, without their actions.

    Args:
        dataset: where instructions come from; no action is read.
        frame_cache: its images in the size of the dLDM.
        trajectories: positions in the data set.
        latent_steps: H.
        stride: s, clip frames of a latent step.
        target_hz: see `vw2_robot.data.clips`.
        gap_seconds: see there.
        start_every: frames between two starts. The last time step has no next frame, so it starts no window.
        policy_frame_cache: its images in the size of the policy, where that is another; else `frame_cache`.

    Raises:
        InputError: no trajectory has two time steps.

    Attributes:
        episode: int [n], start: int [n]: trajectory and first frame of each window.
        ahead: int [1 + s*H], the frames that codes are made of, relative to the start.
        codes: int64 [n, H, N], the dLDM's codes of the frames that follow; N is 0 before `encode_codes`.
        valid: bool [n, H], False for latent steps that reach past the end of the trajectory.
    """

    def __init__(
        self,
        dataset: CalvinDataset,
        frame_cache: FrameCache,
        trajectories: Sequence[int],
        *,
        latent_steps: int,
        stride: int,
        target_hz: float | None = None,
        gap_seconds: float | None = None,
        start_every: int = 1,
        policy_frame_cache: FrameCache | None = None,
    ) -> None:
        self.frame_cache = frame_cache
        self.policy_frame_cache = policy_frame_cache or frame_cache
        self._stride = stride
        self._start_every = start_every
        self._instructions = {i: dataset.trajectories[i].instruction for i in trajectories}
        # The last time step of a trajectory has no next frame to be encoded, so it starts no window.
        starts = [np.arange(0, frame_cache.episodes[i].length - 1, start_every) for i in trajectories]
        self.episode = np.concatenate([np.full(len(s), i) for i, s in zip(trajectories, starts, strict=True)])
        self.start = np.concatenate(starts)
        if not len(self.start):
            raise InputError(f"{dataset.path}: none of the {len(starts)} chosen trajectories has two time steps")
        self._lengths = frame_cache.episodes.length[self.episode]
        # All trajectories of a data set have one rate.
        hz = frame_cache.episodes[trajectories[0]].hz
        self.ahead = window_offsets(latent_steps, stride=stride, hz=hz, target_hz=target_hz, gap_seconds=gap_seconds)
        # Latent step k ends with frame s*k of the window, so it exists if that frame does.
        self.valid = self.start[:, None] + self.ahead[stride::stride] < self._lengths[:, None]
        self.codes = np.zeros((len(self.start), latent_steps, 0), np.int64)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def has_codes(self) -> bool:
        """Whether `codes` are filled."""
        return self.codes.shape[-1] > 0

    def encode_codes(
        self, dldm: DLDM, device: torch.device, *, batch_size: int = 128, keep: Path | None = None
    ) -> None:
        """Fill `codes` with the dLDM's codes of the frames that follow each start; ranks share the work.

        Args:
            dldm: the trained model, on the device, in eval mode.
            device: where clips are encoded.
            batch_size: windows that are encoded at once.
            keep: folder in which codes are kept, and found by the next run with the same dLDM, frames and windows.
        """
        file = None if keep is None else keep / f"codes_{self._codes_digest(dldm)}.npy"
        # Rank 0 decides for all: another run may write the file at this moment.
        if file is not None and gather(file.exists())[0]:
            self.codes = read_array(file, cure=f"delete {file} to have the codes computed again")
            return
        found = {}
        mine = range(rank() * batch_size, len(self), world_size() * batch_size)
        for i in tqdm(mine, desc="codes", unit="batch", disable=None, dynamic_ncols=True):
            found[i] = self._encode_batch(dldm, device, slice(i, i + batch_size)).cpu().numpy()
        batches = {i: codes for part in gather(found) for i, codes in part.items()}
        self.codes = np.concatenate([batches[i] for i in sorted(batches)])
        if file is not None and is_main():
            with atomic_write(file) as temporary, temporary.open("wb") as out:
                np.save(out, self.codes)

    def shuffle_codes(self, *, seed: int) -> None:
        """Give each window the codes of another one, as in a pre-training with `train_policy.codes=shuffled`."""
        given = shuffled(len(self), seed=seed)
        self.codes, self.valid = self.codes[given], self.valid[given]

    def clips(self, rows: NDArray[np.int64], device: torch.device) -> Float[Tensor, "B T 3 H W"]:
        """Return the frames that the codes of some windows are made of, in [-1, 1]."""
        pixels = self.frame_cache.read_batch(self.episode[rows], self._times(rows))
        return to_model_range(torch.from_numpy(pixels).to(device))

    def _times(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        # Past its end a trajectory stands still; codes of such steps are not valid.
        times: NDArray[np.int64] = np.minimum(self.start[rows, None] + self.ahead, self._lengths[rows, None] - 1)
        return times

    def _encode_batch(self, dldm: DLDM, device: torch.device, rows: slice) -> Tensor:
        times = self._times(rows)
        span = int(self._lengths.max())
        # Windows overlap: each frame is read once, and encoded once as far as that does not depend on the window.
        layout = lay_out(self.episode[rows, None] * span + times, stride=self._stride, cache_stride=self._start_every)
        numbers, places = np.unique(layout.frame_ids, return_inverse=True)
        pixels = self.frame_cache.read_batch(numbers // span, numbers[:, None] % span)[:, 0]
        video = to_model_range(torch.from_numpy(pixels).to(device)).to(next(dldm.parameters()).dtype)
        return dldm.window_indices(
            video[torch.from_numpy(places).to(device)],
            torch.from_numpy(layout.starts).to(device),
            latent_steps=self.valid.shape[1],
        )

    def _codes_digest(self, dldm: DLDM) -> str:
        """Return a digest of all that the codes depend on."""
        windows = np.concatenate([self.episode, self.start, self.ahead]).tobytes()
        frames = (self.frame_cache.path / "index.json").read_bytes()
        return hashlib.sha256(weights_digest(dldm).encode() + frames + windows).hexdigest()[:16]

    def images(self, rows: NDArray[np.int64], *, image_px: int, device: torch.device) -> Tensor:
        """Return float [B, 3, px, px] in [-1, 1]: the image at each start.

        Args:
            rows: int64 [B], numbers of the windows.
            image_px: height and width of the images in pixels.
            device: where the images are put.
        """
        pixels = self.policy_frame_cache.read_batch(self.episode[rows], self.start[rows][:, None])[:, 0]
        resized = np.stack([resize_frame(frame, height=image_px, width=image_px) for frame in pixels])
        return to_model_range(torch.from_numpy(resized).to(device))

    def instructions(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the instruction of each row."""
        return [self._instructions[int(i)] for i in self.episode[rows]]


class LabeledWindows(VideoWindows):
    """Every start frame of the given trajectories as one window, with the actions that follow.

    Args:
        dataset: where instructions and actions come from.
        frame_cache: see `VideoWindows`, as for the arguments after it.
        trajectories: positions in the data set.
        latent_steps: H.
        stride: s, clip frames of a latent step.
        target_hz: see `vw2_robot.data.clips`.
        gap_seconds: see there.
        policy_frame_cache: see `VideoWindows`.
        statistics: in which actions are normalized; None computes those of these actions.
        normalization: how, where statistics are computed.
        with_poses: also read robot_obs and fill `poses`.

    Raises:
        InputError: no trajectory has two time steps, actions lie beyond [-1, 1], or poses are wanted and not recorded.

    Attributes:
        statistics: of these trajectories' actions, or those given.
        actions: float32 [n, R, A], normalized, one for each of the R = ahead[-1] time steps of a window; rows past the
            end of the trajectory are 0 and False in `action_mask`.
        action_mask: bool [n, R].
        poses: float32 [n, P], the end effector at each start, see `end_effector_poses`; P is 0 unless `with_poses`.
    """

    def __init__(
        self,
        dataset: CalvinDataset,
        frame_cache: FrameCache,
        trajectories: Sequence[int],
        *,
        latent_steps: int,
        stride: int,
        target_hz: float | None = None,
        gap_seconds: float | None = None,
        policy_frame_cache: FrameCache | None = None,
        statistics: ActionStatistics | None = None,
        normalization: NormalizationMode = "q01_q99",
        with_poses: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            frame_cache,
            trajectories,
            latent_steps=latent_steps,
            stride=stride,
            target_hz=target_hz,
            gap_seconds=gap_seconds,
            policy_frame_cache=policy_frame_cache,
        )
        # Poses are read with the actions, and only of labeled trajectories.
        more = ("robot_obs",) if with_poses else ()
        space = dataset.robot.action
        if with_poses and not dataset.holds(dataset.trajectories[trajectories[0]], "robot_obs"):
            raise InputError(f"{dataset.path} holds no robot_obs, which aids.pose_weight needs; set it to 0")
        read = [dataset.read_actions_and(dataset.trajectories[i], *more) for i in trajectories]
        raw = [actions for actions, *_ in read]
        for i, actions in zip(trajectories, raw, strict=True):
            # Absolute actions have the same shape, and mean something else to the robot.
            check_range(actions, space, f"{dataset.folder}, {dataset.trajectories[i].trajectory_id}")
        # Of the labeled trajectories alone: the others' actions stay unread.
        self.statistics = statistics or ActionStatistics.from_actions(
            np.concatenate(raw), mode=normalization, gripper_index=space.gripper_index
        )
        span = int(self.ahead[-1])
        self.actions = np.zeros((len(self), span, raw[0].shape[1]), np.float32)
        self.action_mask = np.zeros((len(self), span), bool)
        # Rows in the order of `episode` and `start`: the last time step of a trajectory starts no window.
        row = 0
        for actions in raw:
            normalized = self.statistics.normalize(actions)
            for start in range(len(actions) - 1):
                chunk = normalized[start : start + span]
                self.actions[row, : len(chunk)] = chunk
                self.action_mask[row, : len(chunk)] = True
                row += 1
        # Without the last time step, which starts no window: poses must have the rows of `actions`.
        states = [robot_obs[:-1] for _, *others in read for robot_obs in others]
        self.poses = end_effector_poses(np.concatenate(states)) if states else np.zeros((len(self), 0), np.float32)


def end_effector_poses(robot_obs: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return [n, P] from CALVIN's robot_obs [n, 15]: position, sines and cosines of the angles, gripper opening.

    Units are chosen so that all numbers vary about as much: 0.1 m around the middle of the space over the table for
    the position, 0.04 m for the opening.
    """
    position = robot_obs[:, :3] - (0, -0.1, 0.55)
    # Sine and cosine, since an angle jumps from -pi to pi where nothing moves.
    angles = robot_obs[:, 3:6]
    opening = robot_obs[:, 6:7]
    return np.concatenate(
        [position / 0.1, np.sin(angles), np.cos(angles), opening / 0.04], axis=1, dtype=np.float32, casting="same_kind"
    )
