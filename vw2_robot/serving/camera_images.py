"""Images of other stacks: found under their names, checked, and handed on under the policy's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError


def policy_images(images: Any, cameras: Mapping[str, str]) -> dict[str, NDArray[np.uint8]]:
    """Return the images of a policy's cameras.

    Args:
        images: name -> image, of the other stack.
        cameras: camera of the policy -> its name there.

    Raises:
        InputError: one is missing or no image.
    """
    found = images if isinstance(images, Mapping) else {}
    if missing := [name for name in cameras.values() if name not in found]:
        raise InputError(
            f"there is no image {', '.join(missing)}; found {', '.join(map(str, found)) or type(images).__name__}; "
            "give the names of the cameras"
        )
    return {camera: check_image(found[name], name) for camera, name in cameras.items()}


def check_image(image: Any, name: str) -> NDArray[np.uint8]:
    """Return an image as a contiguous array; an InputError with its name if it is none."""
    # What comes over a wire may be a ragged list, which NumPy itself refuses with another error.
    array = image if isinstance(image, np.ndarray) else np.empty(0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or array.size == 0:
        found = f"{array.dtype} {list(array.shape)}" if array is image else type(image).__name__
        raise InputError(f'"{name}" must be uint8 [height, width, 3], RGB from 0 to 255; found {found}')
    return np.ascontiguousarray(array)


def check_cameras(cameras: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
    """Raise an InputError if a camera of the policy has no name in the other stack, or one is not the policy's."""
    if set(cameras) != set(metadata["cameras"]):
        raise InputError(
            f"cameras names {', '.join(cameras) or 'none'}; the policy has {', '.join(metadata['cameras']) or 'none'}"
        )
