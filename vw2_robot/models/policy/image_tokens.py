"""Image tokenizers of the policy's prompt: four ways that need no vision-language model.

Place in the flow: under `ar_policy.py`. `image: pixels | pretrained | features | discrete`:

    PixelTokens       a small convolution stack that knows the instruction, trained with the policy    soft tokens
    PretrainedTokens  EfficientNet-Lite0 with ImageNet weights, trained from some stage on    soft tokens
    FeatureTokens     f_0 of the frozen dLDM encoder, pooled to a grid; a linear map is trained    soft tokens
    DiscreteTokens    a fixed DCT of every patch, quantized by FSQ; nothing is trained            token ids

Soft tokens enter the sequence as embeddings, ids through rows of the extended vocabulary.
"""

# B batch · n image tokens · D width · C feature width · h, w grid · p patch side
from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..dldm.dldm import DLDM
from ..dldm.fsq import FSQ
from ..efficientnet import STAGES, EfficientNetLite0, read_imagenet_weights
from ..video.video_codec import dct_basis
from .config import NORM_GROUPS

# What DiscreteTokens keeps of a patch: brightness, two color differences, slope of brightness across and down.
DISCRETE_LEVELS = (8, 5, 5, 5, 5)
# Their usual size in photographs of table-top scenes, in units where pixels lie in [-1, 1]; FSQ saturates at about 2.
DISCRETE_SCALE = (0.6, 0.25, 0.25, 0.2, 0.2)


def modulation(width: int, channels: int) -> nn.Linear:
    """Return the layer that makes scale and shift of channels from the instruction; it starts as the identity (FiLM).

    FiLM: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018. In `Halving` the layer has the
    paper's name, in state dicts too: `self.film`.
    """
    scale_and_shift = nn.Linear(width, 2 * channels)
    nn.init.zeros_(scale_and_shift.weight)
    nn.init.zeros_(scale_and_shift.bias)
    return scale_and_shift


def modulated(x: Float[Tensor, "B c h w"], scale_and_shift: Float[Tensor, "B 2c"]) -> Float[Tensor, "B c h w"]:
    """Return features with their channels scaled and shifted as the output of `modulation` says."""
    scale, shift = scale_and_shift[..., None, None].chunk(2, dim=1)
    return x * (1 + scale) + shift


class Halving(nn.Module):
    """Convolution to half the side, group norm, channels scaled and shifted by the instruction (FiLM), SiLU."""

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, out)
        self.film = modulation(width, out)

    def forward(self, x: Float[Tensor, "B c H W"], instruction: Float[Tensor, "B D"]) -> Float[Tensor, "B C h w"]:
        """Return the features of half the side; an untrained layer ignores the instruction."""
        return F.silu(modulated(self.norm(self.convolution(x)), self.film(instruction)))


class PixelTokens(nn.Module):
    """Image -> a grid of soft tokens, by strided convolutions with pixel coordinates and the instruction as inputs.

    So coarse a grid keeps the exact position of an object only if the convolutions know which object matters: they get
    the coordinates of every pixel beside its colors, and the instruction modulates their channels (FiLM).

    Args:
        side: of the square image, in pixels.
        widths: channels of the convolutions, each of which halves the side.
        width: D, of the tokens.
        block: side of the square of pixels that is one position before the first convolution.
    """

    where: Tensor

    def __init__(self, side: int, widths: tuple[int, ...], width: int, *, block: int) -> None:
        super().__init__()
        self.block = block
        self.count = (side // block // 2 ** len(widths)) ** 2
        self.instruction = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.halvings = nn.ModuleList(
            Halving(channels, out, width) for channels, out in zip((5 * block**2, *widths), widths, strict=False)
        )
        self.project = nn.Linear(widths[-1], width)
        self.position = nn.Parameter(torch.randn(self.count, width) * 0.02)
        # Coordinates as two more channels (as in CoordConv): a convolution alone cannot tell where it is.
        ramp = torch.linspace(-1, 1, side)
        self.register_buffer("where", torch.stack(torch.meshgrid(ramp, ramp, indexing="ij")), persistent=False)

    def forward(self, image: Float[Tensor, "B 3 H W"], instruction: Float[Tensor, "B D"]) -> Float[Tensor, "B n D"]:
        """Return soft tokens.

        Args:
            image: pixels in [-1, 1].
            instruction: mean embedding of the instruction's tokens.
        """
        instruction = self.instruction(instruction)
        x = F.pixel_unshuffle(torch.cat([image, self.where.expand(len(image), -1, -1, -1)], dim=1), self.block)
        x = x.contiguous(memory_format=torch.channels_last)  # a tenth faster, with its gradient, on a CPU
        for halving in self.halvings:
            x = halving(x, instruction)
        out: Tensor = self.project(rearrange(x, "b c h w -> b (h w) c")) + self.position
        return out


class PretrainedTokens(nn.Module):
    """Image -> a grid of soft tokens: features of EfficientNet-Lite0, whose channels the instruction modulates.

    The outputs of the stages that train, and of the last one that does not, are modulated by FiLM.

    Args:
        side: of the square image, in pixels.
        width: D, of the tokens.
        stages: of the network; the last one's output becomes tokens.
        frozen: stages that never train, with the stem before them.
        imagenet: read the ImageNet weights; false where a checkpoint's weights replace all.

    Raises:
        InputError: the package with the weights is not installed.
    """

    def __init__(self, side: int, width: int, *, stages: int, frozen: int, imagenet: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.network = EfficientNetLite0(stages)
        if imagenet:
            self.network.load(read_imagenet_weights())
        for parameter in self.network.parameters_of_stages(frozen):
            parameter.requires_grad_(False)
        used = STAGES[:stages]
        self.count = (side // math.prod(stage.stride for stage in used) // 2) ** 2  # the stem halves too
        self.instruction = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.modulations = nn.ModuleDict(
            {
                str(number): modulation(width, stage.channels)
                for number, stage in enumerate(used)
                if number >= frozen - 1
            }
        )
        self.norm = nn.LayerNorm(used[-1].channels)
        self.project = nn.Linear(used[-1].channels, width)
        self.position = nn.Parameter(torch.randn(self.count, width) * 0.02)

    def forward(self, image: Float[Tensor, "B 3 H W"], instruction: Float[Tensor, "B D"]) -> Float[Tensor, "B n D"]:
        """Return soft tokens.

        Args:
            image: pixels in [-1, 1].
            instruction: mean embedding of the instruction's tokens.
        """
        instruction = self.instruction(instruction)
        x = image.contiguous(memory_format=torch.channels_last)
        for number in range(len(self.network.stages)):
            # Frozen also for a caller who asks for gradients of every parameter.
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.frozen):
                x = self.network.of_stage(number, x)
            if str(number) in self.modulations:
                x = modulated(x, self.modulations[str(number)](instruction))
        out: Tensor = self.project(self.norm(rearrange(x, "b c h w -> b (h w) c"))) + self.position
        return out


class FeatureTokens(nn.Module):
    """Image -> f_0 of the dLDM's encoder -> a pooled grid -> soft tokens.

    It holds a frozen copy of the encoder, so that a policy's weights are complete without the dLDM.
    """

    def __init__(self, dldm: DLDM, *, grid: int, width: int) -> None:
        super().__init__()
        self.size = (dldm.config.height, dldm.config.width)
        self.count = grid * grid
        self._grid = grid
        self.encoder = copy.deepcopy(dldm.encoder).requires_grad_(False)
        channels = dldm.config.levels[-1].width
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.randn(self.count, width) * 0.02)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B n D"]:
        """Return soft tokens of pixels in [-1, 1], which are resized to the encoder's size where they differ."""
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", antialias=True, align_corners=False)
        with torch.no_grad():  # frozen, also for a caller who asks for gradients of every parameter
            anchor = self.encoder(image[:, None])[:, 0]
        pooled = rearrange(F.adaptive_avg_pool2d(anchor, self._grid), "b c h w -> b (h w) c")
        out: Tensor = self.project(self.norm(pooled)) + self.position
        return out


class DiscreteTokens(nn.Module):
    """Image -> one token id per patch: five low-frequency DCT numbers, squashed and rounded by FSQ. No parameters.

    The method names no tokenizer for discrete images; this one is fixed, so that it needs no data and no download.
    """

    basis: Tensor
    scale: Tensor

    def __init__(self, side: int, *, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.side = side // patch
        self.count = self.side**2
        self.fsq = FSQ(DISCRETE_LEVELS)
        self.register_buffer("basis", dct_basis(patch, 2) / patch**0.5, persistent=False)  # rows: mean, slope
        self.register_buffer("scale", torch.tensor(DISCRETE_SCALE), persistent=False)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B n"]:
        """Return ids from 0 for pixels in [-1, 1], patch after patch in reading order."""
        # 1. The mean and the two slopes of each color, as a 2 x 2 DCT of the patch.
        blocks = rearrange(image, "b c (h p) (w q) -> b (h w) c p q", p=self.patch, q=self.patch)
        parts = self.basis @ blocks @ self.basis.T  # [B, n, 3, 2, 2]: rows down, columns across
        red, green, blue = parts.unbind(2)
        # 2. Brightness and two color differences; the slopes of brightness alone.
        light = (red + green + blue) / 3
        numbers = torch.stack(
            [
                light[..., 0, 0],
                (red - light)[..., 0, 0],
                (blue - light)[..., 0, 0],
                light[..., 0, 1],
                light[..., 1, 0],
            ],
            dim=-1,
        )
        return self.fsq.indices(self.fsq(numbers / self.scale))

    @torch.no_grad()
    def image(self, ids: Int[Tensor, "B n"]) -> Float[Tensor, "B 3 H W"]:
        """Return the image that the ids describe, for figures and tests."""
        # Clamped, since the outermost levels stand for everything beyond them.
        numbers = self.fsq.pre_images_of(ids).clamp(-1.5, 1.5) * self.scale
        light, red, blue, across, down = numbers.unbind(-1)
        flat = torch.stack([light + red, light - red - blue, light + blue], dim=2)  # the three differences sum to 0
        mean, slope = self.basis * self.patch  # inverse of a basis divided by sqrt(p): times p
        shape = across[..., None, None] * torch.outer(mean, slope) + down[..., None, None] * torch.outer(slope, mean)
        blocks = flat[..., None, None] + shape[:, :, None]
        return rearrange(blocks, "b (h w) c p q -> b c (h p) (w q)", h=self.side).clamp(-1, 1)
