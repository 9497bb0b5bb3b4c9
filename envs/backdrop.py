"""What stands still before a camera that stands still is drawn once; images then take half the time.

Floor and table fill most of the static camera's image and never change, while the software renderer pays for every
pixel of every triangle. So they are drawn once, by a simulation that holds nothing else, and hidden in all others; a
image is what moves, laid over that wherever it is nearer. The software renderer draws no shadows, so this is the
whole image but for pixels where something that moves touches something that does not: there the depth that PyBullet
gives, rounded to a tenth of a millimeter, does not tell which of the two the renderer would have chosen. At most two
pixels of an image are such, often one where the button meets its collar (tests/unit/envs/test_backdrop.py). Equal
worlds give equal images, as always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .physics import Physics

Part = tuple[int, int]
"""Body and link; -1 is the base."""
Color = tuple[float, float, float, float]
HIDDEN: Color = (1.0, 1.0, 1.0, 0.0)
"""The software renderer leaves out what is fully transparent."""


class Layer(NamedTuple):
    """An image, uint8 [H, W, 3], and the depth buffer behind it, float32 [H, W]; larger is farther."""

    rgb: NDArray[np.uint8]
    z: NDArray[np.float32]

    def under(self, front: Layer) -> Layer:
        """Lay `front` over this one where it is nearer."""
        nearer = front.z < self.z
        return Layer(np.where(nearer[..., None], front.rgb, self.rgb), np.where(nearer, front.z, self.z))


class Backdrop:
    """Parts of a world that never move, and the layer that they make in the images of a still camera.

    Args:
        physics: the world.
        parts: of it; see `paintable`.
        layer: returns what they look like; called when an image is wanted.
    """

    def __init__(self, physics: Physics, parts: Mapping[Part, Color], layer: Callable[[], Layer]) -> None:
        self._physics, self._parts, self.layer = physics, parts, layer
        self._hidden = False

    def hide(self) -> None:
        """Take the parts out of every image."""
        if not self._hidden:
            for part in self._parts:
                self._physics.changeVisualShape(*part, rgbaColor=HIDDEN)
        self._hidden = True

    def show(self) -> None:
        """Put them back."""
        if self._hidden:
            for part, color in self._parts.items():
                self._physics.changeVisualShape(*part, rgbaColor=color)
        self._hidden = False


def paintable(physics: Physics, parts: Iterable[Part]) -> dict[Part, Color]:
    """Those of the parts whose shapes all have one color, with it.

    PyBullet paints all shapes of a link at once, so a link of several colors could never be shown again.
    """
    found: dict[Part, Color] = {}
    for uid, link in parts:
        colors = {row[7] for row in physics.getVisualShapeData(uid) if row[1] == link}
        if len(colors) == 1:
            found[uid, link] = colors.pop()
    return found


def hide_all_but(physics: Physics, parts: Iterable[Part]) -> None:
    """Leave only these parts in the images of a world; for good."""
    kept = set(parts)
    for body in range(physics.getNumBodies()):
        uid = physics.getBodyUniqueId(body)
        for link in {row[1] for row in physics.getVisualShapeData(uid)}:
            if (uid, link) not in kept:
                physics.changeVisualShape(uid, link, rgbaColor=HIDDEN)
