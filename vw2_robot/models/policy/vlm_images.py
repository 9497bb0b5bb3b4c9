"""The first image for a vision-language model: its pixel tensors, and the number of image tokens in the sequence.

Place in the flow: under `ar_policy.py`, `image: vlm`. The model's image processor makes the tensors; in the sequence
its image token is repeated between `<img>` and `</img>`. The text around it is laid out as for every other policy.
Differs from the model's chat processor on purpose: those of several families need torchvision, and add markers that an
extended vocabulary makes superfluous.
"""

# B batch · n image tokens · R rows of an image tensor per sample
from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vw2_robot.errors import InputError
from vw2_robot.pixels import to_pixels


class VLMImages:
    """The image processor of one model, with a count of image tokens per image size.

    Raises:
        InputError: the model has no image token, or no method that gives its image features.
    """

    def __init__(self, model: nn.Module, image_processor: Any) -> None:
        config: Any = model.config
        token = getattr(config, "image_token_id", None)
        token = getattr(config, "image_token_index", None) if token is None else token
        if token is None or not hasattr(model, "get_image_features"):
            raise InputError(
                f"policy.backbone.weights: {type(model).__name__} has no image token or no get_image_features; give "
                "another vision-language model"
            )
        self.token = int(token)
        self._processor = image_processor
        self._counts: dict[tuple[int, ...], int] = {}
        parameters = inspect.signature(model.base_model.forward).parameters  # type: ignore[union-attr]
        self._marks = [name for name in ("mm_token_type_ids", "token_type_ids") if name in parameters]

    def tensors(self, image: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """Return the image tensors of the model's forward pass for pixels in [-1, 1], each [B, R, ...]."""
        images = to_pixels(image).cpu().numpy()
        made = self._processor(images=[[one] for one in images], return_tensors="pt")
        batch = len(images)
        # Some models put the rows (crops, patches) of all samples into one axis.
        return {
            name: value.to(image.device).unflatten(0, (batch, value.shape[0] // batch))
            for name, value in made.items()
            if isinstance(value, Tensor)
        }

    @torch.no_grad()
    def count(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> int:
        """Return n, the image tokens of one image: as many as the model makes features of it."""
        shape = tuple(tensors["pixel_values"].shape[1:])
        if shape not in self._counts:
            found = model.get_image_features(**flat_rows({k: v[:1] for k, v in tensors.items()}))  # type: ignore[operator]
            features = getattr(found, "pooler_output", found)
            rows = features if isinstance(features, list | tuple) else [features]
            self._counts[shape] = sum(row.flatten(0, -2).shape[0] for row in rows)
        return self._counts[shape]

    def marks(self, tokens: Int[Tensor, "B S"]) -> dict[str, Tensor]:
        """Return which tokens are image, for the models whose forward pass has an argument for it."""
        where = (tokens == self.token).long()
        return dict.fromkeys(self._marks, where)


def flat_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return image tensors [B, R, ...] as [B * R, ...], the layout of transformers."""
    return {name: value.flatten(0, 1) for name, value in tensors.items()}
