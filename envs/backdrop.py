"""What rests in the static camera's image, rendered once; images then take a quarter of the time.

Floor, table and the foot of the arm fill most of that image, while the software renderer pays for every pixel of every
triangle. They are rendered once per process, in a simulation of their own, and each part of the furniture (doors,
button, lever) once wherever it comes to rest, in a second one. In the simulation itself all of them are hidden: an
image is the arm, the blocks and the lights over that backdrop, wherever they are nearer. The software renderer has no
shadows, so this is the whole image except for pixels where two surfaces are equally near, to a few micrometers: which
of them is seen then hangs on rounding. At most two pixels of an image are affected, none in most
(tests/unit/envs/test_backdrop.py). An image depends on the present state alone, not on those before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path

from gymnasium.utils import seeding

from .cameras import Camera, GripperCamera, Layer, StaticCamera
from .physics import Physics
from .robot import Panda
from .scene import Scene, scene_files

Part = tuple[int, int]
"""Body and link; -1 is the base."""
DECIMALS = 7
"""of the furniture's joints, in meters: 1e-5 of a pixel. A resting lever trembles below them."""
NEAR_M = 1.0
"""Near clipping plane. Nothing is as near; with one at 0.01 m, PyBullet rounds depth to a tenth of a millimeter."""


class Shapes:
    """The visual shapes of some parts of a simulation, to hide them in its images and show them again.

    Args:
        physics: the simulation, in which none of the shapes has been hidden yet.
        parts: whose shapes they are.
    """

    def __init__(self, physics: Physics, parts: Iterable[Part]) -> None:
        self._physics = physics
        self._colors = {
            (uid, link, number): color
            for uid, link in parts
            # Of a row of PyBullet's visual shapes, element 1 is the link and element 7 the color.
            for number, color in enumerate(row[7] for row in physics.getVisualShapeData(uid) if row[1] == link)
        }

    def hide(self) -> None:
        """Hide them; the software renderer skips what is fully transparent."""
        for uid, link, number in self._colors:
            self._physics.changeVisualShape(uid, link, shapeIndex=number, rgbaColor=(1, 1, 1, 0))

    def show(self) -> None:
        """Show them in their colors."""
        for (uid, link, number), color in self._colors.items():
            self._physics.changeVisualShape(uid, link, shapeIndex=number, rgbaColor=color)


class Backdrop:
    """The image of all that rests, for the present positions of the furniture.

    Args:
        scene_name: "A", "B", "C" or "D".
        assets_dir: of the scene.
    """

    def __init__(self, scene_name: str, assets_dir: Path) -> None:
        self._scene_name = scene_name
        self._assets_dir = assets_dir
        self._physics: Physics | None = None
        self._joints: tuple[float, ...] = ()

    def layer(self, joints: Iterable[float]) -> Layer:
        """Return the image for these positions of the `TABLE_JOINTS`."""
        rounded = tuple(round(joint, DECIMALS) for joint in joints)
        if self._physics is None:
            self._load()
        if rounded != self._joints:
            self._furniture.set_joints(rounded)
            for number, (now, before) in enumerate(zip(rounded, self._joints, strict=True)):
                if now != before:
                    self._layers[number] = self._render_alone(self._shapes[number])
            self._layer = functools.reduce(Layer.under, self._layers, self._static)
            self._joints = rounded
        return self._layer

    def close(self) -> None:
        """Free its simulation."""
        if self._physics is not None:
            self._physics.close()

    def _load(self) -> None:
        """Load the furniture; only with the first image, since many environments never render one."""
        self._static = _static_layer(self._scene_name, self._assets_dir)
        physics = Physics()
        self._furniture = _load_scene(physics, self._scene_name, self._assets_dir)
        self._shapes = [Shapes(physics, [part]) for part in self._furniture.moving_parts]
        _hide_all_but(physics, ())
        self._camera = StaticCamera(physics, near_m=NEAR_M)
        # No position equals NaN, so the first image renders each part.
        self._joints = (math.nan,) * len(self._shapes)
        self._layers: list[Layer] = [self._static] * len(self._shapes)
        self._physics = physics

    def _render_alone(self, shapes: Shapes) -> Layer:
        """Return the image of one part of the furniture."""
        shapes.show()
        layer = self._camera.render_layer()
        shapes.hide()
        return layer


class FrontCamera(StaticCamera):
    """The static camera in a simulation whose resting parts are hidden: it renders the others over the backdrop."""

    def __init__(self, physics: Physics, scene: Scene, backdrop: Backdrop) -> None:
        super().__init__(physics, near_m=NEAR_M)
        self._scene = scene
        self._backdrop = backdrop

    def render_layer(self) -> Layer:
        """Return the image as in one pass; where two surfaces are equally near, the backdrop is seen."""
        return self._backdrop.layer(self._scene.joints()).under(super().render_layer())


class UncoveringCamera(GripperCamera):
    """The gripper camera in a simulation whose resting parts are hidden: it renders all parts."""

    def __init__(self, physics: Physics, robot: Panda, hidden: Shapes) -> None:
        super().__init__(physics, robot)
        self._hidden = hidden

    def render_layer(self) -> Layer:
        """Return the image of all parts."""
        self._hidden.show()
        layer = super().render_layer()
        self._hidden.hide()
        return layer


def layered_cameras(physics: Physics, robot: Panda, scene: Scene, backdrop: Backdrop) -> dict[str, Camera]:
    """Return both cameras by name, and hide what rests.

    Args:
        physics: the simulation.
        robot: its arm, which carries the gripper camera.
        scene: its table.
        backdrop: of the same scene.
    """
    hidden = Shapes(physics, (*robot.static_parts, *scene.static_parts, *scene.moving_parts))
    hidden.hide()
    return {"static": FrontCamera(physics, scene, backdrop), "gripper": UncoveringCamera(physics, robot, hidden)}


def _load_scene(physics: Physics, scene_name: str, assets_dir: Path) -> Scene:
    """Load a scene; where its blocks are does not matter, for they are hidden."""
    return Scene(physics, scene_name, assets_dir, seeding.np_random(0)[0])


@functools.lru_cache(maxsize=16)
def _static_layer(scene_name: str, assets_dir: Path) -> Layer:
    """Return the static camera's image of what never moves, rendered once per process."""
    physics = Physics()
    try:
        robot = Panda(physics, assets_dir / scene_files(scene_name).robot)
        scene = _load_scene(physics, scene_name, assets_dir)
        _hide_all_but(physics, (*robot.static_parts, *scene.static_parts))
        return StaticCamera(physics, near_m=NEAR_M).render_layer()
    finally:
        physics.close()


def _hide_all_but(physics: Physics, parts: Iterable[Part]) -> None:
    """Hide all other parts in the images of a simulation."""
    bodies = map(physics.getBodyUniqueId, range(physics.getNumBodies()))
    everything = {(uid, row[1]) for uid in bodies for row in physics.getVisualShapeData(uid)}
    Shapes(physics, everything - set(parts)).hide()
