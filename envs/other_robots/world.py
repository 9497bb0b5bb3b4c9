"""The simulation of other robots: one of three seven-joint arms at a table with colored objects, seen by one camera.

It shares no image element with the CALVIN scenes: other arms, table, objects and colors, and a camera whose pose
differs in every episode. `sample_layout` returns a random scene; `OtherRobotsEnv` builds it in an empty simulation,
moves the arm and renders images. What the arm should do, and whether it succeeded, is decided in `environment.py`.

Meters, radians, seconds; z = 0 is the table top, the arm stands at the origin and reaches along +x. The tool points
down, `yaw` rotates it about z, and the fingers close across it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..physics import Physics
from .arm import TableArm

Floats = NDArray[np.float64]
PHYSICS_HZ = 240
CONTROL_STEPS = 8  # physics steps between two commands to the arm: 30 Hz
GRAVITY = -9.8

COLORS = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.85),
    "yellow": (0.95, 0.82, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "purple": (0.50, 0.18, 0.65),
    "white": (0.95, 0.95, 0.95),
    "brown": (0.45, 0.27, 0.14),
}
SHAPES = {"cube": (0.050, 0.050, 0.050), "brick": (0.090, 0.046, 0.046), "can": (0.050, 0.050, 0.080)}  # full sizes
PLATE_RADIUS = 0.075
PLATE_HEIGHT = 0.010
TABLE_TONES = ((0.80, 0.78, 0.74), (0.55, 0.57, 0.60), (0.42, 0.36, 0.34), (0.45, 0.58, 0.52), (0.78, 0.66, 0.52))
WALL_TONES = ((0.88, 0.87, 0.84), (0.62, 0.68, 0.74), (0.72, 0.74, 0.62), (0.52, 0.50, 0.50))
AREA = ((0.38, -0.20), (0.58, 0.20))  # where objects may lie: (x, y), low and high
SPACING_M = 0.125  # smallest distance between the centers of two objects
MAX_AZIMUTH = 1.9
"""Largest azimuth of the camera about the table's middle, radians; at 0 it faces the arm."""
WALL_M = 1.35  # distance of the wall from the table's middle


@dataclass(frozen=True)
class SceneObject:
    """An object on the table: color, shape, position in the plane [2] and yaw."""

    color: str
    shape: str  # a key of SHAPES, or "plate"
    xy: tuple[float, float]
    yaw: float

    @property
    def name(self) -> str:
        """How instructions name it."""
        return f"{self.color} {self.shape}"

    @property
    def height(self) -> float:
        """Height of its top above the table."""
        return PLATE_HEIGHT if self.shape == "plate" else SHAPES[self.shape][2]


@dataclass(frozen=True)
class SceneLayout:
    """Everything that differs between the starts of two episodes; colors are RGB in 0..1."""

    embodiment: str
    """a key of `arm.HOME`"""
    objects: tuple[SceneObject, ...]
    tool_position: tuple[float, float, float]
    """where the arm starts"""
    tool_yaw: float
    table: tuple[float, float, float]
    wall: tuple[float, float, float]
    mat: tuple[float, float, float] | None
    camera_position: tuple[float, float, float]
    camera_target: tuple[float, float, float]
    fov_deg: float
    light: tuple[float, float, float]

    @property
    def ahead(self) -> Floats:
        """Horizontal unit vector [2] that points away from the camera."""
        direction = np.subtract(self.camera_target, self.camera_position)[:2]
        return np.asarray(direction / np.linalg.norm(direction))

    @property
    def right(self) -> Floats:
        """Horizontal unit vector [2] that points to the right in the image."""
        x, y = self.ahead
        return np.array([y, -x])


def sample_layout(rng: np.random.Generator, *, embodiments: Sequence[str], plates: int) -> SceneLayout:
    """Return a random layout.

    Args:
        rng: generator of all random choices.
        embodiments: names of the robots to choose from, keys of `HOME`.
        plates: how many of the objects are plates; two or three others are added, all of different colors.
    """
    embodiment = embodiments[int(rng.integers(len(embodiments)))]
    count = plates + int(rng.integers(2, 4))
    colors = rng.permutation(sorted(COLORS))[:count].tolist()
    shapes = ["plate"] * plates + [str(shape) for shape in rng.choice(sorted(SHAPES), size=count - plates)]
    positions = _sample_positions(rng, count)
    yaws = rng.uniform(-math.pi / 4, math.pi / 4, size=count).tolist()
    objects = tuple(SceneObject(*row) for row in zip(colors, shapes, positions, yaws, strict=True))
    # The camera lies on a circle about a point near the table's middle and is directed at that point.
    azimuth = rng.uniform(-MAX_AZIMUTH, MAX_AZIMUTH)
    height = rng.uniform(0.52, 0.66)
    distance = rng.uniform(0.60, 0.68)
    target = (0.45 + rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02), 0.06)
    brightness = rng.uniform(0.9, 1.08)
    mat = tuple(rng.uniform(0.25, 0.85, size=3).tolist()) if rng.random() < 0.5 else None
    tool_position = (rng.uniform(0.40, 0.52), rng.uniform(-0.12, 0.12), rng.uniform(0.18, 0.25))
    tool_yaw = rng.uniform(-0.4, 0.4)
    r, g, b = (min(1.0, value * brightness) for value in TABLE_TONES[rng.integers(len(TABLE_TONES))])
    wall = WALL_TONES[rng.integers(len(WALL_TONES))]
    return SceneLayout(
        embodiment=embodiment,
        objects=objects,
        tool_position=tool_position,
        tool_yaw=tool_yaw,
        table=(r, g, b),
        wall=wall,
        mat=None if mat is None else (mat[0], mat[1], mat[2]),
        camera_position=(
            target[0] + distance * math.cos(azimuth),
            target[1] + distance * math.sin(azimuth),
            height,
        ),
        camera_target=target,
        fov_deg=rng.uniform(45.0, 50.0),
        light=(rng.uniform(0.2, 1.0), rng.uniform(-0.8, 0.8), 1.4),
    )


def _sample_positions(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Return random positions in `AREA`, at least `SPACING_M` apart, by rejection sampling."""
    while True:
        positions = rng.uniform(*AREA, size=(count, 2))
        gaps = np.linalg.norm(positions[:, None] - positions[None], axis=2)[np.triu_indices(count, 1)]
        if gaps.min() >= SPACING_M:
            return [(float(x), float(y)) for x, y in positions]


class OtherRobotsEnv:
    """One layout in a physics client, which it empties first: equal layouts and commands give equal bytes.

    Args:
        physics: the client; everything in it is removed.
        layout: what to build.
    """

    def __init__(self, physics: Physics, layout: SceneLayout) -> None:
        self.layout = layout
        self._physics = physics
        physics.resetSimulation()
        physics.setGravity(0, 0, GRAVITY)
        physics.setTimeStep(1 / PHYSICS_HZ)
        self._arm = TableArm(physics, layout.embodiment)
        self.robot = self._arm.uid
        self.object_ids = [self._add_object(item) for item in layout.objects]
        self.table = self._add_box((0.55, 0.75, 0.02), (0.35, 0, -0.02), layout.table, solid=True)
        if layout.mat is not None:
            self._add_box((0.16, 0.28, 0.0005), (0.48, 0, 0.0005), layout.mat, solid=False)
        ahead_x, ahead_y = layout.ahead
        # The wall stands behind the table as seen from the camera, so that it fills the background.
        wall = (layout.camera_target[0] + WALL_M * ahead_x, layout.camera_target[1] + WALL_M * ahead_y, 0.2)
        self._add_box((0.01, 4.0, 1.5), wall, layout.wall, solid=False, yaw=math.atan2(ahead_y, ahead_x))
        self._arm.place(np.array(layout.tool_position), layout.tool_yaw)

    def command(self, position: Floats, yaw: float, *, closed: bool) -> None:
        """Set the targets of the motors; they hold until the next command.

        Args:
            position: of the tool [3], meters.
            yaw: of the tool, radians.
            closed: whether the fingers close.
        """
        self._arm.command(position, yaw, closed=closed)

    def step(self) -> None:
        """Advance the simulation by one physics step of 1/240 s."""
        self._physics.stepSimulation()

    def tool(self) -> tuple[Floats, Floats]:
        """Return position [3] and fixed-axis Euler angles [3] of the point between the finger pads."""
        return self._arm.tool()

    def object_position(self, index: int) -> Floats:
        """Return the center [3] of an object."""
        return np.array(self._physics.getBasePositionAndOrientation(self.object_ids[index])[0])

    def object_speed(self, index: int) -> float:
        """Return the speed of an object in m/s."""
        return float(np.linalg.norm(self._physics.getBaseVelocity(self.object_ids[index])[0]))

    def contacts(self, index: int) -> set[tuple[int, int]]:
        """Return the (body, link) pairs that press against an object."""
        rows = self._physics.getContactPoints(bodyA=self.object_ids[index])
        # Element 2 of a row is the other body, 4 its link, 9 the normal force; contacts without force do not count.
        return {(row[2], row[4]) for row in rows if row[9] > 0}

    def image(self, size_px: int) -> NDArray[np.uint8]:
        """Return the camera's image, uint8 [size, size, 3]."""
        physics = self._physics
        layout = self.layout
        view = physics.computeViewMatrix(layout.camera_position, layout.camera_target, (0, 0, 1))
        projection = physics.computeProjectionMatrixFOV(layout.fov_deg, 1.0, 0.05, 5.0)
        image = physics.getCameraImage(size_px, size_px, view, projection, lightDirection=layout.light)[2]
        return np.array(np.reshape(image, (size_px, size_px, 4))[..., :3], dtype=np.uint8)

    def _add_object(self, item: SceneObject) -> int:
        """Add an object and return its body id."""
        physics = self._physics
        rgba = (*COLORS[item.color], 1.0)
        if item.shape in ("plate", "can"):
            radius = PLATE_RADIUS if item.shape == "plate" else SHAPES["can"][0] / 2
            collision = physics.createCollisionShape(physics.GEOM_CYLINDER, radius=radius, height=item.height)
            visual = physics.createVisualShape(physics.GEOM_CYLINDER, radius=radius, length=item.height, rgbaColor=rgba)
        else:
            half = [edge / 2 for edge in SHAPES[item.shape]]
            collision = physics.createCollisionShape(physics.GEOM_BOX, halfExtents=half)
            visual = physics.createVisualShape(physics.GEOM_BOX, halfExtents=half, rgbaColor=rgba)
        orientation = physics.getQuaternionFromEuler((0, 0, item.yaw))
        mass = 0.5 if item.shape == "plate" else 0.12
        body: int = physics.createMultiBody(mass, collision, visual, (*item.xy, item.height / 2), orientation)
        # Rolling friction keeps a can that was pushed over from rolling off the table.
        physics.changeDynamics(body, -1, lateralFriction=0.8, spinningFriction=0.01, rollingFriction=0.001)
        return body

    def _add_box(
        self,
        half: tuple[float, float, float],
        center: tuple[float, float, float],
        color: tuple[float, ...],
        *,
        solid: bool,
        yaw: float = 0.0,
    ) -> int:
        """Add a fixed box, which objects pass through unless it is `solid`, and return its body id."""
        physics = self._physics
        collision = physics.createCollisionShape(physics.GEOM_BOX, halfExtents=half) if solid else -1
        visual = physics.createVisualShape(physics.GEOM_BOX, halfExtents=half, rgbaColor=(*color, 1.0))
        body: int = physics.createMultiBody(0, collision, visual, center, physics.getQuaternionFromEuler((0, 0, yaw)))
        if solid:
            physics.changeDynamics(body, -1, lateralFriction=0.7)
        return body
