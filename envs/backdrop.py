"""The static part of the static camera's image, rendered once; images then take half the time.

Floor and table fill most of the static camera's image and never change, while the software renderer pays for every
pixel of every triangle. They are rendered once, by a simulation that holds nothing else, and hidden in all others; an
image is then the moving parts over that backdrop, wherever they are nearer. The software renderer has no shadows, so
this is the whole image except for pixels where moving and static parts touch: PyBullet rounds depth to a tenth of a
millimeter, which does not decide which of the two the renderer would have chosen. At most two pixels of an image are
affected, often one where the button meets its collar (tests/unit/envs/test_backdrop.py). Equal states still give equal
images.
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
"""The software renderer skips what is fully transparent."""


class Layer(NamedTuple):
    """An image, uint8 [H, W, 3], and the depth buffer behind it, float32 [H, W]; larger is farther."""

    rgb: NDArray[np.uint8]
    z: NDArray[np.float32]

    def under(self, front: Layer) -> Layer:
        """Return this layer with `front` over it where `front` is nearer."""
        # Ties go to the backdrop; they are the one or two pixels of the module docstring.
        nearer = front.z < self.z
        return Layer(np.where(nearer[..., None], front.rgb, self.rgb), np.where(nearer, front.z, self.z))


class Backdrop:
    """The static parts of a scene, and the layer that they make in the images of a static camera.

    Args:
        physics: the simulation.
        parts: its static parts with their colors, see `paintable`.
        layer: returns their image; called for each image.
    """

    def __init__(self, physics: Physics, parts: Mapping[Part, Color], layer: Callable[[], Layer]) -> None:
        self._physics = physics
        self._parts = parts
        self.layer = layer
        self._hidden = False

    def hide(self) -> None:
        """Hide the parts in all images."""
        # Changing a color costs time, so the state is remembered.
        if not self._hidden:
            for part in self._parts:
                self._physics.changeVisualShape(*part, rgbaColor=HIDDEN)
        self._hidden = True

    def show(self) -> None:
        """Show the parts again."""
        if self._hidden:
            for part, color in self._parts.items():
                self._physics.changeVisualShape(*part, rgbaColor=color)
        self._hidden = False


def paintable(physics: Physics, parts: Iterable[Part]) -> dict[Part, Color]:
    """Return those of the parts whose shapes all have one color, with that color.

    PyBullet sets the color of all shapes of a link at once, so a link of several colors could not be restored.
    """
    found: dict[Part, Color] = {}
    for uid, link in parts:
        # Of a row of PyBullet's visual shapes, element 1 is the link and element 7 the color.
        colors = {row[7] for row in physics.getVisualShapeData(uid) if row[1] == link}
        if len(colors) == 1:
            found[uid, link] = colors.pop()
    return found


def hide_all_but(physics: Physics, parts: Iterable[Part]) -> None:
    """Hide all other parts in the images of a simulation, permanently."""
    kept = set(parts)
    for body in range(physics.getNumBodies()):
        uid = physics.getBodyUniqueId(body)
        for link in {row[1] for row in physics.getVisualShapeData(uid)}:
            if (uid, link) not in kept:
                physics.changeVisualShape(uid, link, rgbaColor=HIDDEN)
