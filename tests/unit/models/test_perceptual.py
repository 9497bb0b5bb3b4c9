"""The perceptual distance reads weights in torchvision's layout, of any widths."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vw2_robot.errors import InputError
from vw2_robot.models.perceptual import BLOCKS, LAYER_WEIGHTS, MEAN, STD, PerceptualDistance

WIDTHS = (2, 3, 4, 4, 5)


def stock():
    """A narrow VGG16 as torchvision lists its layers: convolution and ReLU, a pool after each block."""
    torch.manual_seed(0)
    layers, width = [], 3
    for block, out in zip(BLOCKS, WIDTHS, strict=True):
        for _ in block:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ["vgg16.pth", "vgg16.safetensors"])
def test_the_distance_is_the_weighted_difference_of_the_features_of_a_stock_model(name, tmp_path):
    model = stock()
    weights = {f"features.{key}": value for key, value in model.state_dict().items()} | {
        "classifier.0.bias": torch.ones(1)
    }
    (torch.save if name.endswith("pth") else save_file)(weights, tmp_path / name)
    distance = PerceptualDistance(tmp_path)
    a, b = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))
    a.requires_grad_()
    found = distance(a, b)
    expected, mean, std = torch.zeros(2), torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    x, y = (a - mean) / std, (b - mean) / std
    for last, weight, before in zip((3, 8, 15, 22, 29), LAYER_WEIGHTS, (0, 4, 9, 16, 23), strict=True):
        x, y = (model[before : last + 1](one) for one in (x, y))
        expected = expected + weight * (x - y).abs().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert a.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert distance(b, b).tolist() == [0.0, 0.0]


def test_a_file_that_is_not_vgg16_is_refused(tmp_path):
    with pytest.raises(InputError, match="found 0"):
        PerceptualDistance(tmp_path)
    save_file({"features.0.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"features\.0\.bias is missing"):
        PerceptualDistance(tmp_path)


@pytest.mark.parametrize("name", ["vgg16.pth", "vgg16.safetensors"])
def test_a_damaged_file_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=rf"{name} holds no weights"):
        PerceptualDistance(tmp_path)
