"""Error of the end effector's position as the policy's image encoder predicts it, along and across the line of sight.

    python -m benchmarks.end_effector_depth --data runs/results/data/D --sides 64 96 128
    python -m benchmarks.end_effector_depth --data runs/results/data/D --policies RUN1 RUN2        # fine-tuned heads

In the image of one distant camera, end effectors at different depths can be at the same pixel; only the rest of the arm
differs. So the convolutions of `policy.image=pixels` (as in model=tiny, blocks proportional to the side) are trained to
predict only the end effector's position, from images and robot_obs of some demonstrations, and tested on others. The
bound is the spread of positions. `--policies` tests policies that were fine-tuned with `aids.pose_weight`
instead, without codes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.data.images import resize_frame
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.envs.cameras import STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET
from vw2_robot.finetune.labeled_windows import end_effector_poses
from vw2_robot.models.policy.acting import act, acting_of
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig
from vw2_robot.models.policy.image_tokens import PixelTokens
from vw2_robot.pixels import shift_randomly, to_model_range
from vw2_robot.random_numbers import SampleNoise

WIDTHS = (64, 128, 128)  # channels of the convolutions
WIDTH = 128  # of the image tokens
BATCH = 64
EVERY = 2  # steps between the images that are used
IMAGE = 200  # side of a recorded image


class Observations(NamedTuple):
    """uint8 images [n, side, side, 3], end effector positions [n, 3] in meters, instructions [n]."""

    images: Tensor
    positions: Tensor
    instructions: list[str]


def read(data: str, split: str, count: int, side: int) -> Observations:
    """Return every other step of `count` demonstrations."""
    dataset = CalvinDataset(data, split)  # type: ignore[arg-type]
    resized_images: list[NDArray[np.uint8]] = []
    positions: list[NDArray[np.float64]] = []
    instructions: list[str] = []
    for number in np.random.default_rng(0).permutation(len(dataset))[:count]:
        trajectory = dataset.trajectories[number]
        robot_obs, images = dataset.read_together(
            trajectory, ("robot_obs", "rgb_static"), range(0, trajectory.length, EVERY)
        )
        resized_images += [resize_frame(image, height=side, width=side) for image in images]
        positions.append(robot_obs[:, :3])
        instructions += [trajectory.instruction] * len(images)
    return Observations(
        torch.from_numpy(np.stack(resized_images)), torch.from_numpy(np.concatenate(positions)).float(), instructions
    )


def errors(training: Observations, test: Observations, *, train_steps: int, shift: int) -> Tensor:
    """Train on one set, return the errors on the other, [n, 3] in meters."""
    torch.manual_seed(0)
    side = training[0].shape[1]
    encoder = PixelTokens(side, WIDTHS, WIDTH, block=side // 32)
    head = nn.Sequential(
        nn.LayerNorm(encoder.count * WIDTH), nn.Linear(encoder.count * WIDTH, 256), nn.GELU(), nn.Linear(256, 3)
    )
    # Standardized targets: the three axes have different ranges.
    mean = training[1].mean(0)
    spread = training[1].std(0)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    # Warm-up and linear decay to 0, as in the training of policies.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / 100, (train_steps - k) / train_steps)
    )
    generator = torch.Generator().manual_seed(0)

    def guess(images: Tensor, moved: int, step: int = 0) -> Tensor:
        noise = SampleNoise(0, step, stream=0, samples=range(len(images)))
        image = shift_randomly(to_model_range(images), most=moved, noise=noise)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # The encoder also takes the mean embedding of the instruction; zeros leave that out.
            out: Tensor = head(encoder(image, torch.zeros(len(image), WIDTH)).flatten(1))
        return out.float()

    for step in range(train_steps):
        rows = torch.randint(len(training[1]), (BATCH,), generator=generator)
        loss = F.mse_loss(guess(training[0][rows], shift, step), (training[1][rows] - mean) / spread)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = torch.cat([guess(part, 0) for part in test[0].split(256)])
    return found * spread + mean - test[1]


@torch.no_grad()
def errors_of_policy(run: str, test: Observations) -> Tensor:
    """Return the errors of the head of a fine-tuned policy, [n, 3] in meters."""
    checkpoint = load_checkpoint(run, kind="policy")
    policy = LatentPolicy.from_checkpoint(checkpoint).eval()
    config = ActionHeadConfig.of_checkpoint(checkpoint.config)
    stride = int(checkpoint.config["stride"])
    head = ActionHead(config, width=policy.backbone.width, queries=policy.config.queries, stride=stride, action_size=7)
    checkpoint.load_into(head=head)
    head.eval()
    px = policy.config.image_px
    found = []
    for first in range(0, len(test.instructions), 256):
        instructions = test.instructions[first : first + 256]
        images = test.images[first : first + 256].numpy()
        resized = np.stack([resize_frame(image, height=px, width=px) for image in images])
        prompt = policy.prompt(instructions, to_model_range(torch.from_numpy(resized)))
        acted = act(
            policy,
            prompt,
            latent_steps=int(checkpoint.config["latent_steps"]),
            acting=acting_of(checkpoint.config),
            last_code=config.last_code,
            generator=torch.Generator().manual_seed(0),
        )
        found.append(head.end_effector_pose(acted.states_BHRD))
    return position_of(torch.cat(found)) - test.positions


def position_of(pose: Tensor) -> Tensor:
    """Return the position of normalized poses, [n, 3] in meters."""
    # Poses are scaled linearly, so two points give the inverse.
    zero, one = (torch.from_numpy(end_effector_poses(np.full((1, 15), value)))[0, :3] for value in (0.0, 1.0))
    return (pose[:, :3] - zero) / (one - zero)


def along_and_across(error: Tensor) -> tuple[Tensor, Tensor]:
    """Return absolute errors in cm along the camera's line of sight and across it."""
    # Unit vector from the camera to its target.
    sight = F.normalize(torch.tensor(STATIC_CAMERA_TARGET) - torch.tensor(STATIC_CAMERA_POSITION), dim=0).float()
    along = error @ sight
    return 100 * along.abs(), 100 * (error - along[:, None] * sight).norm(dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row for each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a CALVIN data set with a validation split")
    parser.add_argument("--sides", nargs="+", type=int, default=[64, 96, 128], help="multiples of 32, in pixels")
    parser.add_argument("--demonstrations", type=int, default=900)
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--policies", nargs="+", default=[], help="run folders of vw2-finetune with aids.pose_weight")
    parser.add_argument("--shift", type=int, default=2, help="random shift of training images, in pixels")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{'image':<12}{'along, median':>15}{'90 %':>8}{'across, median':>16}{'90 %':>8}   cm{'s of a core':>14}")
    if args.policies:
        shown = read(args.data, "validation", 10**9, IMAGE)
        row("bound", shown.positions.mean(0) - shown.positions, 0.0)
        for run in args.policies:
            begin = time.process_time()
            row(Path(run).name, errors_of_policy(run, shown), time.process_time() - begin)
        return
    for number, side in enumerate(args.sides):
        training, test = (
            read(args.data, split, count, side)
            for split, count in (("training", args.demonstrations), ("validation", 10**9))
        )
        if number == 0:
            row("bound", training[1].mean(0) - test[1], 0.0)
        begin = time.process_time()
        error = errors(training, test, train_steps=args.train_steps, shift=args.shift)
        row(f"{side} px", error, time.process_time() - begin)


def row(name: str, error: Tensor, seconds: float) -> None:
    """Print one line of the table."""
    along, across = along_and_across(error)
    cells = [f"{part.quantile(q):.1f}" for part in (along, across) for q in (0.5, 0.9)]
    print(f"{name:<12}{cells[0]:>15}{cells[1]:>8}{cells[2]:>16}{cells[3]:>8}     {seconds:>14.0f}", flush=True)


if __name__ == "__main__":
    main()
