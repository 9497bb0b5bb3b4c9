"""The judge of key steps: an image -> for each task, how many of its seven key steps are done, or that it is another's.

As the paper evaluates Video-CraftBench: image features and a classification head, trained together on labeled frames.
The features are those of DINOv2 where a folder of its weights is given (the paper's), else of a small convolutional
net, which is a stand-in and named so wherever its numbers are shown.
"""

# B batch · H, W pixels · D features · Q tasks · S states of a task: 0 .. 7 key steps done, and "other"
from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError

KEY_STEPS = 7
STATES = KEY_STEPS + 2
OTHER = KEY_STEPS + 1
"""the state of an image that shows another task's work"""
STAND_IN = "convolutional net (stand-in for DINOv2)"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCH_PX = 14
"""of DINOv2; the sides of its images are multiples of it"""


@dataclass(frozen=True)
class JudgeConfig:
    """The size of a judge."""

    tasks: tuple[str, ...] = ()
    """that it knows, in the order of its outputs"""
    px: int = 96
    """height and width of its images"""
    width: int = 32
    """channels of the first layer of the convolutional net"""
    dinov2: dict[str, Any] | None = None
    """the configuration of DINOv2 as transformers writes it; null: the convolutional net"""

    def __post_init__(self) -> None:
        if self.px < 32 or self.width < 4:
            raise ValueError(f"judge: px={self.px}, width={self.width}, expected at least 32 and 4")
        if self.dinov2 is not None and self.px % PATCH_PX:
            raise ValueError(f"judge: px={self.px} is no multiple of {PATCH_PX}, the patch of DINOv2; try 98 or 224")


class Judge(nn.Module):
    """Features and head; `forward` gives logits of every task.

    Args:
        config: of the judge.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        if config.dinov2 is None:
            self.features: nn.Module = ConvFeatures(config.width)
            features = 2 * 8 * config.width
        else:
            import transformers  # seconds, and not needed by the convolutional net

            described = dict(config.dinov2)
            options = transformers.AutoConfig.for_model(described.pop("model_type"), **described)
            self.features = transformers.AutoModel.from_config(options)  # type: ignore[no-untyped-call]
            features = 2 * options.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, len(config.tasks) * STATES))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def name(self) -> str:
        """What its features are, for reports."""
        return STAND_IN if self.config.dinov2 is None else "DINOv2"

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Q S"]:
        """Return the logits of images in [-1, 1]."""
        # Normalized as DINOv2 was trained; the convolutional net learns at any scale.
        x = ((images + 1) / 2 - self.mean) / self.std
        if self.config.dinov2 is None:
            features = self.features(x)
        else:
            tokens = self.features(x).last_hidden_state
            # The class token and the mean of the patches, as linear probes of DINOv2 take them.
            features = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
        logits: Tensor = self.head(features)
        return logits.unflatten(1, (len(self.config.tasks), STATES))

    @torch.no_grad()
    def states(self, images: Float[Tensor, "T 3 H W"], task: str, *, batch_size: int = 64) -> Int[Tensor, " T"]:
        """Return the most probable state of each image of a video of a task.

        Args:
            images: in [-1, 1], of the judge's size.
            task: that the video should show.
            batch_size: images that are judged at once.

        Raises:
            InputError: the judge does not know the task.
        """
        if task not in self.config.tasks:
            raise InputError(f"this judge knows {', '.join(self.config.tasks)}, not {task!r}; train one with that task")
        number = self.config.tasks.index(task)
        return torch.cat([self(part)[:, number].argmax(-1) for part in images.split(batch_size)])


class ConvFeatures(nn.Sequential):
    """Five convolutions, four of which halve the image; mean and maximum over what is left, [B, 16 · width]."""

    def __init__(self, width: int) -> None:
        sizes = (3, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(sizes[-1], sizes[-1], 3, padding=1), nn.GELU(), MeanAndMax())


class MeanAndMax(nn.Module):
    """Mean and maximum over the image, [B, D, h, w] -> [B, 2 D]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return both, side by side: the maximum finds a small block that the mean drowns."""
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)


def pretrained_judge(config: JudgeConfig, folder: str | Path | None) -> Judge:
    """Return an untrained head on the features of a DINOv2 folder, or on an untrained convolutional net.

    Args:
        config: of the judge; its `dinov2` is taken from the folder.
        folder: of DINOv2, saved by transformers; None: the convolutional net.

    Raises:
        InputError: the folder holds no DINOv2.
    """
    if folder is None:
        return Judge(config)
    import transformers

    try:
        features = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"dinov2={folder} holds no model that transformers can read ({error})") from error
    described = features.config.to_dict()
    if described.get("model_type") not in ("dinov2", "dinov2_with_registers"):
        raise InputError(f"dinov2={folder} holds a model of type {described.get('model_type')!r}, expected dinov2")
    judge = Judge(JudgeConfig(config.tasks, config.px, config.width, described))
    judge.features.load_state_dict(features.state_dict())
    return judge


def load_judge(path: str, device: torch.device) -> Judge:
    """Return a trained judge in evaluation mode.

    Raises:
        InputError: it is none, or was damaged.
    """
    checkpoint = load_checkpoint(path, kind="judge")
    with checkpoint.building():
        judge = Judge(config_from(JudgeConfig, checkpoint.config))
        checkpoint.load_into(judge=judge)
    return judge.to(device).eval()


def key_steps_reached(states: Int[Tensor, " T"], *, persistence: int = 2) -> list[int | None]:
    """Return for each key step the frame at which it is reached, None from the first on that is not.

    A key step counts only after those before it, and only if it is seen in `persistence` frames in a row: the success
    is continuous, as in the paper's table.

    Args:
        states: of the frames of a video, 0 to 7, or `OTHER`.
        persistence: frames in a row.
    """
    found: list[int | None] = []
    begin = 0
    for step in range(1, KEY_STEPS + 1):
        seen = 0
        reached = None
        for frame in range(begin, len(states)):
            seen = seen + 1 if int(states[frame]) == step else 0
            if seen == persistence:
                reached = frame - persistence + 1
                break
        found.append(reached)
        if reached is None:
            return found + [None] * (KEY_STEPS - step)
        begin = reached
    return found
