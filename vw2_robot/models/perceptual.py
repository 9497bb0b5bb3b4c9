"""Perceptual distance of images: differences of VGG16's features, a part of the published reconstruction loss.

Place in the flow: reconstruction and clip -> `pretrain/dldm_losses.py`, with `train_dldm.perceptual_weight`. The
weights are of others and not part of this package: a file under torchvision's names (`features.0.weight` ...), such as
vgg16-397923af.pth, or the same as safetensors.
"""

# N images · H, W pixels · C channels of a layer
from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vw2_robot.errors import InputError

# Convolutions by their number in torchvision's list, block by block; between blocks the image is halved.
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
# Weight of the last features of each block, as published.
LAYER_WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
# What VGG was trained with, for pixels in [-1, 1].
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """VGG16's convolutions with frozen weights, of any widths.

    Args:
        path: the file, or a folder that holds one.

    Raises:
        InputError: there is no such file, or it lacks a layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        weights = _read(Path(path))
        self.convolutions = nn.ParameterDict()
        for number in (number for block in BLOCKS for number in block):
            for part in ("weight", "bias"):
                name = f"features.{number}.{part}"
                if name not in weights:
                    raise InputError(f"{path}: {name} is missing; give weights of VGG16 under torchvision's names")
                self.convolutions[f"{number}_{part}"] = nn.Parameter(weights[name].float(), requires_grad=False)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def _features(self, x: Float[Tensor, "N 3 H W"]) -> list[Tensor]:
        """Return the last features of each block."""
        found = []
        x = (x - self.mean) / self.std
        for number, block in enumerate(BLOCKS):
            if number:
                x = F.max_pool2d(x, 2)
            for layer in block:
                weight, bias = (self.convolutions[f"{layer}_{part}"] for part in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            found.append(x)
        return found

    def forward(self, images: Float[Tensor, "N 3 H W"], others: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
        """Return the distance of each image in [-1, 1] from the other one; the gradient reaches both."""
        pairs = zip(LAYER_WEIGHTS, self._features(images), self._features(others), strict=True)
        return torch.stack([weight * (a - b).abs().mean(dim=(1, 2, 3)) for weight, a, b in pairs]).sum(0)


def _read(path: Path) -> dict[str, Tensor]:
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.pth")])
    if len(files) != 1:
        raise InputError(f"{path}: give a file of VGG16's weights, or a folder with one; found {len(files)}")
    try:
        if files[0].suffix == ".safetensors":
            return load_file(files[0])
        weights: dict[str, Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{files[0]} holds no weights that can be read ({error}); download it again") from error
    return weights
