"""What a robot sends to the server, as an observation of the policy: names in, names out, everything checked.

An image is found under `images/CAMERA` (nested or with the slash in its name) or one of the keys of openpi's robots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import Observation
from vw2_robot.errors import InputError
from vw2_robot.limits import MAX_INT

from .camera_images import check_image
from .wire import unpack

MAX_PROMPT = 2000
"""characters"""


class Request(NamedTuple):
    """One message of a robot.

    Attributes:
        observation: of the policy.
        reset: a new episode begins with it.
        seed: of that episode; None: the policy's default.
    """

    observation: Observation
    reset: bool
    seed: int | None


def read_request(message: bytes | str, cameras: Mapping[str, Sequence[str]]) -> Request:
    """Return the request that a message holds; other keys than those of the policy are ignored.

    Args:
        message: a frame of the websocket.
        cameras: name of each camera of the policy -> the keys under which its image may be.

    Raises:
        InputError: it is none, with key, expected and found.
    """
    if isinstance(message, str):
        raise InputError("an observation is a binary frame of msgpack, found a text frame")
    content = unpack(message)
    if not isinstance(content, dict):
        raise InputError(f"an observation is a map of images and prompt, found {type(content).__name__}")
    prompt, reset, seed = content.get("prompt"), content.get("reset", False), content.get("seed")
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT:
        found = f"{len(prompt)} characters" if isinstance(prompt, str) else type(prompt).__name__
        raise InputError(f'"prompt" must be the instruction, text of 1 to {MAX_PROMPT} characters; found {found}')
    if not isinstance(reset, bool):
        raise InputError(f'"reset" must be true or false, found {type(reset).__name__}')
    if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_INT):
        raise InputError('"seed" must be a whole number from 0 to 2^63 - 1')
    images = {camera: _image(content, keys) for camera, keys in cameras.items()}
    return Request({"images": images, "prompt": prompt}, reset, seed)


def _image(content: dict[Any, Any], keys: Sequence[str]) -> NDArray[np.uint8]:
    """Return the image under the first of the keys that is there."""
    for key in keys:
        value = content.get(key)
        if value is None and "/" in key:
            folder, _, name = key.partition("/")
            inner = content.get(folder)
            value = inner.get(name) if isinstance(inner, dict) else None
        if value is None:
            continue
        return check_image(value, key)
    nested = [f"{key}/{name}" for key, inner in content.items() if isinstance(inner, dict) for name in inner]
    flat = [str(key) for key, inner in content.items() if not isinstance(inner, dict)]
    raise InputError(f"there is no image under {' or '.join(keys)}; found {', '.join(sorted(nested + flat))[:300]}")
