"""Program `vw2-train-judge`: labeled frames of videos with key steps -> the judge that counts key steps.

    vw2-train-judge videos=[runs/craft_judge/training,runs/craft_judge/validation] run_dir=runs/judge

Frames are sampled between the key frames of each video, so that every state is there equally often. A frame is labeled
with the number of key steps done; for the other tasks, from the third key step on, it is "another task's". Whole videos
are held out; the balanced accuracy on their frames, with an interval over videos, is written to judge.json.
"""

# n frames · B batch · Q tasks · S states
from __future__ import annotations

import itertools
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.sources.craft_bench import KEY_STEPS, CraftVideo, read_craft_videos, read_frames
from vw2_robot.errors import InputError
from vw2_robot.models.judge import OTHER, STATES, Judge, JudgeConfig, pretrained_judge
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import jitter_color, shift_randomly, to_model_range
from vw2_robot.random_numbers import SampleNoise, generator
from vw2_robot.runs import Run
from vw2_robot.storage.files import write_json

from .config import TrainJudgeConfig

STREAM_INIT, STREAM_FRAMES, STREAM_BATCH, STREAM_NOISE = 90, 91, 92, 93
REPORT = "judge.json"
DISTINCT_STEPS = 3
"""key steps after which no task looks like another"""
RESAMPLES = 1000


class LabeledFrames(NamedTuple):
    """Frames with the task that they show and the key steps done.

    Attributes:
        pixels: uint8 [n, H, W, 3].
        task: [n], numbers of tasks.
        state: [n], 0 to 7.
        video: [n], numbers of videos.
    """

    pixels: NDArray[np.uint8]
    task: NDArray[np.int64]
    state: NDArray[np.int64]
    video: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> LabeledFrames:
        """Return some of the frames."""
        return LabeledFrames(self.pixels[chosen], self.task[chosen], self.state[chosen], self.video[chosen])


def train_judge(config: TrainJudgeConfig) -> dict[str, Any]:
    """Train the judge, or return at once when complete; returns the content of judge.json.

    Raises:
        InputError: fewer than two videos, or one without key frames.
    """
    device = config.hardware.torch_device()
    videos = [video for folder in config.videos for video in read_craft_videos(folder)]
    if len(videos) < 2:
        raise InputError(f"videos={config.videos} holds {len(videos)} video; a judge needs some to be tested on")
    tasks = tuple(sorted({video.task for video in videos}))
    tree = config_tree(config)
    result = {key: tree[key] for key in tree if key not in ("run_dir", "hardware", "track")}
    loop = config.loop
    with Run(
        config.run_dir,
        result,
        stage="judge",
        total_steps=loop.train_steps,
        save_every=loop.save_every,
        log_every=loop.log_every,
        hardware=config.hardware,
        track=config.track,
    ) as run:
        judge, frames, is_held_out = prepare(config, videos, tasks)
        judge.to(device)
        if run.complete:
            assert run.checkpoint is not None
            load_checkpoint(run.checkpoint, kind="judge").load_into(judge=judge)
        else:
            fit(config, run, judge, frames.where(~is_held_out), device)
        report = {
            "features": judge.name,
            "tasks": list(tasks),
            "videos": {"training": _count(frames, ~is_held_out), "held_out": _count(frames, is_held_out)},
            "held_out": accuracy(judge, frames.where(is_held_out), seed=config.seed, device=device),
        }
        write_json(Path(config.run_dir) / REPORT, report)
    return report


def prepare(
    config: TrainJudgeConfig, videos: list[CraftVideo], tasks: tuple[str, ...]
) -> tuple[Judge, LabeledFrames, NDArray[np.bool_]]:
    """Return the untrained judge, all frames, and which of them are held out.

    Args:
        config: of the program.
        videos: at least two.
        tasks: of the videos.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        judge = pretrained_judge(JudgeConfig(tasks, config.px, config.width), config.dinov2)
    rng = np.random.default_rng([config.seed, STREAM_FRAMES])
    parts = [sampled_frames(video, number, tasks, config, rng) for number, video in enumerate(videos)]
    frames = LabeledFrames(*map(np.concatenate, zip(*parts, strict=True)))
    count = min(len(videos) - 1, max(1, round(config.held_out * len(videos))))
    return judge, frames, np.isin(frames.video, rng.permutation(len(videos))[:count])


def sampled_frames(
    video: CraftVideo, number: int, tasks: tuple[str, ...], config: TrainJudgeConfig, rng: np.random.Generator
) -> LabeledFrames:
    """Return frames of every state of a video.

    Args:
        video: with key frames.
        number: of the video.
        tasks: that the judge knows.
        config: `frames_per_state` and `px`.
        rng: of the choice within each state.
    """
    # Nobody says how long the last state lasts; as long as the one before is safe, since short videos repeat their end.
    key_frames = video.key_frames
    borders = [0, *key_frames, 2 * key_frames[-1] - key_frames[-2]]
    wanted: list[int] = []
    for begin, end in itertools.pairwise(borders):
        count = min(config.frames_per_state, max(1, end - begin))
        wanted += sorted((begin + rng.permutation(max(1, end - begin))[:count]).tolist())
    pixels = read_frames(video, wanted, height=config.px, width=config.px)
    state = np.array([video.steps_done(frame) for frame in wanted])
    return LabeledFrames(pixels, np.full(len(wanted), tasks.index(video.task)), state, np.full(len(wanted), number))


def fit(config: TrainJudgeConfig, run: Run, judge: Judge, frames: LabeledFrames, device: torch.device) -> None:
    """Train all steps that are left, from the last checkpoint on.

    Args:
        config: of the program.
        run: its folder.
        judge: on the device; is trained in place.
        frames: to train on.
        device: of the judge.
    """
    loop = config.loop
    optimizer = build_optimizer(judge.parameters(), loop.optim)
    if run.checkpoint is not None:
        load_checkpoint(run.checkpoint, kind="judge").load_into(judge=judge)
        load_optimizer(run.checkpoint, optimizer)
    judge.train()
    run.begin()
    for step in run.steps():
        # Batches are a function of seed and step: a resumed run sees the same.
        rows = torch.randint(
            len(frames.state), (loop.batch_size,), generator=generator(config.seed, step, stream=STREAM_BATCH)
        ).numpy()
        noise = SampleNoise(config.seed, step, stream=STREAM_NOISE, samples=range(loop.batch_size))
        x = augmented(to_model_range(torch.from_numpy(frames.pixels[rows])), noise, config).to(device)
        loss = judge_loss(
            judge(x), torch.from_numpy(frames.task[rows]).to(device), torch.from_numpy(frames.state[rows]).to(device)
        )
        loss.backward()
        norm = optimizer_step(loss.detach(), optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
        if run.due(step, loop.log_every):
            run.log(step, {"judge/loss": loss.detach(), "judge/grad_norm": norm})
        if run.checkpoint_due(step, loop.save_every):
            write = partial(
                save_checkpoint,
                kind="judge",
                config=asdict(judge.config),
                modules={"judge": judge},
                optimizer=optimizer,
            )
            run.save(step, write)


def augmented(x: Tensor, noise: SampleNoise, config: TrainJudgeConfig) -> Tensor:
    """Return images with other colors, moved, and with noise, as imagined images are not clean.

    Args:
        x: [B, 3, H, W] in [-1, 1].
        noise: of these B images.
        config: how strong each change is at most.
    """
    x = jitter_color(shift_randomly(x, most=config.shift_px, noise=noise), strength=config.jitter, noise=noise)
    strength = config.noise * noise.rand(1, 1, 1)
    return (x + strength * noise.randn(*x.shape[1:])).clamp(-1, 1)


def judge_loss(logits: Tensor, task: Tensor, state: Tensor) -> Tensor:
    """Return the cross-entropy of the state, and of "another task's" for all other tasks once these can be told apart.

    Args:
        logits: [B, Q, S].
        task: [B].
        state: [B], key steps done.
    """
    target = torch.full(logits.shape[:2], OTHER, device=logits.device)
    target[torch.arange(len(task)), task] = state
    # Before the third key step an image may belong to several tasks: the others are not asked. Together they weigh half
    # as much as the task that is shown, or "another task's" would be the best guess for every image.
    weight = (state >= DISTINCT_STEPS)[:, None].expand_as(target) * (0.5 / max(1, logits.shape[1] - 1))
    weight[torch.arange(len(task)), task] = 1.0
    loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    return (loss * weight).sum() / weight.sum()


@torch.no_grad()
def accuracy(judge: Judge, frames: LabeledFrames, *, seed: int, device: torch.device) -> dict[str, Any]:
    """Return the balanced accuracy on frames, with an interval over their videos, and what it is made of.

    Args:
        judge: on the device.
        frames: that it was not trained on.
        seed: of the interval.
        device: of the judge.
    """
    judge.eval()
    x = to_model_range(torch.from_numpy(frames.pixels))
    logits = torch.cat([judge(part.to(device)).cpu() for part in x.split(64)])
    found = logits[torch.arange(len(x)), torch.from_numpy(frames.task)].argmax(-1).numpy()
    confusion = np.zeros((KEY_STEPS + 1, STATES), int)
    np.add.at(confusion, (frames.state, found), 1)
    # For each video right answers and frames of each state, so that resampled videos give resampled accuracies.
    videos = np.unique(frames.video)
    right = np.zeros((len(videos), KEY_STEPS + 1))
    total = np.zeros_like(right)
    place = np.searchsorted(videos, frames.video)
    np.add.at(right, (place, frames.state), found == frames.state)
    np.add.at(total, (place, frames.state), 1)
    rng = np.random.default_rng([seed, STREAM_FRAMES])
    samples = rng.integers(len(videos), size=(RESAMPLES, len(videos)))
    several = _balanced(right[samples].sum(1), total[samples].sum(1))
    low, high = np.nanquantile(several, (0.025, 0.975)).tolist()
    others = logits[torch.from_numpy(frames.state >= DISTINCT_STEPS)].argmax(-1).numpy()
    shown = frames.task[frames.state >= DISTINCT_STEPS]
    foreign = others[np.arange(others.shape[1]) != shown[:, None]]
    return {
        "balanced_accuracy": float(_balanced(right.sum(0), total.sum(0))),
        "interval95": [low, high],
        "frames": len(found),
        "videos": len(videos),
        "within_one": float((np.abs(found - frames.state) <= 1).mean()),
        "other_task_recognized": float((foreign == OTHER).mean()) if len(foreign) else None,
        "confusion": confusion.tolist(),
    }


def _balanced(right: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over states of the share of right answers; a state without frames is left out."""
    share = np.divide(right, total, out=np.full_like(right, np.nan), where=total > 0)
    return np.asarray(np.nanmean(share, axis=-1))


def _count(frames: LabeledFrames, chosen: NDArray[np.bool_]) -> int:
    return len(set(frames.video[chosen].tolist()))


def main(config: TrainJudgeConfig) -> None:
    """Train, and print how right the judge is."""
    held_out = (report := train_judge(config))["held_out"]
    low, high = held_out["interval95"]
    print(
        f"judge ({report['features']}): balanced accuracy {held_out['balanced_accuracy']:.3f} ({low:.3f} to {high:.3f})"
        f" on {held_out['frames']} frames of {held_out['videos']} held-out videos; {Path(config.run_dir) / REPORT}"
    )


if __name__ == "__main__":
    entry_points.train_judge.main()
