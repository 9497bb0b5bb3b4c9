"""The second robot world: one of three seven-joint arms on a table with colored things, seen by one camera.

It shares no image element with the CALVIN scenes: other arms, table, objects and colors, and a camera that stands
elsewhere in every episode. `sample_layout` draws a scene, `OtherRobotsEnv` builds it in an empty simulation, moves
the arm and takes images. What the arm should do, and whether it did it, is the business of `arms`. Meters, radians,
seconds; z = 0 is the table top, the arm stands at the origin and reaches along +x; the tool points down, `yaw` turns
it about z, and the fingers close across it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..physics import Physics

Floats = NDArray[np.float64]
ASSETS = Path(__file__).parents[1] / "assets" / "other_robots"
PHYSICS_HZ = 240
CONTROL_STEPS = 8  # physics steps between two commands to the arm: 30 Hz
GRAVITY = -9.8

ARM_JOINTS = tuple(range(7))
LEFT_FINGER, RIGHT_FINGER, TOOL = 8, 9, 10
HOME = {
    "iiwa": (0.0, 0.55, 0.0, -1.45, 0.0, 1.14, 0.0),
    "xarm": (0.0, 0.0, 0.0, 1.2, 0.0, 1.2, 0.0),
    "gen3": (0.0, 0.5, 0.0, 1.5, 0.0, 1.1, 0.0),
}
"""A pose of each arm with the tool before it and down, from which the inverse kinematics start."""
OPEN_M = 0.036  # per finger
ARM_FORCE, ARM_SPEED = 250.0, 2.5
CLOSE_FORCE, OPEN_FORCE, FINGER_SPEED = 25.0, 10.0, 0.25

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
PLATE_RADIUS, PLATE_HEIGHT = 0.075, 0.010
TABLE_TONES = ((0.80, 0.78, 0.74), (0.55, 0.57, 0.60), (0.42, 0.36, 0.34), (0.45, 0.58, 0.52), (0.78, 0.66, 0.52))
WALL_TONES = ((0.88, 0.87, 0.84), (0.62, 0.68, 0.74), (0.72, 0.74, 0.62), (0.52, 0.50, 0.50))
AREA = ((0.38, -0.20), (0.58, 0.20))  # where things may lie: x and y, low and high
SPACING_M = 0.125
AROUND = 1.9
"""How far the camera may stand to either side of the place that faces the arm, in radians about the table's middle."""
WALL_M = 1.35  # from the table's middle


@dataclass(frozen=True)
class Thing:
    """A thing on the table, by color, shape and place."""

    color: str
    shape: str  # a key of SHAPES, or "plate"
    xy: tuple[float, float]
    yaw: float

    @property
    def name(self) -> str:
        """As an instruction calls it."""
        return f"{self.color} {self.shape}"

    @property
    def height(self) -> float:
        """Of its top above the table."""
        return PLATE_HEIGHT if self.shape == "plate" else SHAPES[self.shape][2]


@dataclass(frozen=True)
class SceneLayout:
    """Everything that differs between two episodes before the arm moves."""

    arm: str
    """a key of HOME"""
    things: tuple[Thing, ...]
    tool: tuple[float, float, float]  # where the arm starts
    tool_yaw: float
    table: tuple[float, float, float]
    wall: tuple[float, float, float]
    mat: tuple[float, float, float] | None
    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    view_deg: float
    light: tuple[float, float, float]

    @property
    def ahead(self) -> Floats:
        """Horizontal unit vector away from the camera."""
        way = np.subtract(self.target, self.eye)[:2]
        return np.asarray(way / np.linalg.norm(way))

    @property
    def right(self) -> Floats:
        """Horizontal unit vector that points to the right in the image."""
        x, y = self.ahead
        return np.array([y, -x])


def sample_layout(rng: np.random.Generator, *, embodiments: Sequence[str], plates: int) -> SceneLayout:
    """Draw an arm, two to four things of different colors, of which `plates` are plates, and how the scene looks."""
    arm = embodiments[int(rng.integers(len(embodiments)))]
    count = plates + int(rng.integers(2, 4))
    colors = rng.permutation(sorted(COLORS))[:count].tolist()
    kinds = ["plate"] * plates + [str(kind) for kind in rng.choice(sorted(SHAPES), size=count - plates)]
    places = _spread(rng, count)
    yaws = rng.uniform(-math.pi / 4, math.pi / 4, size=count).tolist()
    things = tuple(Thing(*row) for row in zip(colors, kinds, places, yaws, strict=True))
    azimuth, height = rng.uniform(-AROUND, AROUND), rng.uniform(0.52, 0.66)
    distance = rng.uniform(0.60, 0.68)
    target = (0.45 + rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02), 0.06)
    tone = rng.uniform(0.9, 1.08)
    mat = tuple(rng.uniform(0.25, 0.85, size=3).tolist()) if rng.random() < 0.5 else None
    return SceneLayout(
        arm=arm,
        things=things,
        tool=(rng.uniform(0.40, 0.52), rng.uniform(-0.12, 0.12), rng.uniform(0.18, 0.25)),
        tool_yaw=rng.uniform(-0.4, 0.4),
        table=_tone(TABLE_TONES[rng.integers(len(TABLE_TONES))], tone),
        wall=WALL_TONES[rng.integers(len(WALL_TONES))],
        mat=None if mat is None else (mat[0], mat[1], mat[2]),
        eye=(target[0] + distance * math.cos(azimuth), target[1] + distance * math.sin(azimuth), height),
        target=target,
        view_deg=rng.uniform(45.0, 50.0),
        light=(rng.uniform(0.2, 1.0), rng.uniform(-0.8, 0.8), 1.4),
    )


def _tone(color: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    r, g, b = (min(1.0, value * factor) for value in color)
    return r, g, b


def _spread(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Places that keep their distance from one another."""
    while True:
        places = rng.uniform(*AREA, size=(count, 2))
        gaps = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(count, 1)]
        if gaps.min() >= SPACING_M:
            return [(float(x), float(y)) for x, y in places]


class OtherRobotsEnv:
    """One layout in a physics client, which it empties first: equal layouts and commands give equal bytes."""

    def __init__(self, physics: Physics, layout: SceneLayout) -> None:
        self.layout = layout
        self._physics = physics
        physics.resetSimulation()
        physics.setGravity(0, 0, GRAVITY)
        physics.setTimeStep(1 / PHYSICS_HZ)
        self.arm: int = physics.loadURDF(str(ASSETS / layout.arm / "arm.urdf"), (0, 0, 0), useFixedBase=True)
        self._limits = [physics.getJointInfo(self.arm, joint)[8:10] for joint in ARM_JOINTS]
        gear = physics.createConstraint(
            self.arm, LEFT_FINGER, self.arm, RIGHT_FINGER, physics.JOINT_GEAR, (1, 0, 0), (0, 0, 0), (0, 0, 0)
        )
        physics.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)
        self.things = [self._add_thing(thing) for thing in layout.things]
        self.table = self._add_box((0.55, 0.75, 0.02), (0.35, 0, -0.02), layout.table, solid=True)
        if layout.mat is not None:
            self._add_box((0.16, 0.28, 0.0005), (0.48, 0, 0.0005), layout.mat, solid=False)
        ahead_x, ahead_y = layout.ahead
        wall = (layout.target[0] + WALL_M * ahead_x, layout.target[1] + WALL_M * ahead_y, 0.2)
        self._add_box((0.01, 4.0, 1.5), wall, layout.wall, solid=False, yaw=math.atan2(ahead_y, ahead_x))
        self._place_tool(layout.tool, layout.tool_yaw)

    def command(self, position: Floats, yaw: float, *, closed: bool) -> None:
        """Set the motors on a tool pose and the fingers on open or closed; valid until the next command."""
        joints = self._solve(position, yaw)
        self._physics.setJointMotorControlArray(
            self.arm, ARM_JOINTS, self._physics.POSITION_CONTROL, targetPositions=joints, forces=[ARM_FORCE] * 7
        )
        target, force = (0.0, CLOSE_FORCE) if closed else (OPEN_M, OPEN_FORCE)
        for finger in (LEFT_FINGER, RIGHT_FINGER):
            self._physics.setJointMotorControl2(
                self.arm, finger, self._physics.POSITION_CONTROL, target, force=force, maxVelocity=FINGER_SPEED
            )

    def step(self) -> None:
        """One physics step of 1/240 s."""
        self._physics.stepSimulation()

    def tool(self) -> tuple[Floats, Floats]:
        """Position and fixed-axis Euler angles of the point between the finger pads, now."""
        state = self._physics.getLinkState(self.arm, TOOL, computeForwardKinematics=True)
        return np.array(state[4]), np.array(self._physics.getEulerFromQuaternion(state[5]))

    def thing(self, index: int) -> Floats:
        """Center of a thing, now."""
        return np.array(self._physics.getBasePositionAndOrientation(self.things[index])[0])

    def speed(self, index: int) -> float:
        """Speed of a thing in m/s."""
        return float(np.linalg.norm(self._physics.getBaseVelocity(self.things[index])[0]))

    def touched(self, index: int) -> set[tuple[int, int]]:
        """(body, link) pairs that press against a thing."""
        rows = self._physics.getContactPoints(bodyA=self.things[index])
        return {(row[2], row[4]) for row in rows if row[9] > 0}

    def image(self, size_px: int) -> NDArray[np.uint8]:
        """What the camera sees, uint8 [size, size, 3]."""
        physics, layout = self._physics, self.layout
        view = physics.computeViewMatrix(layout.eye, layout.target, (0, 0, 1))
        intrinsics = physics.computeProjectionMatrixFOV(layout.view_deg, 1.0, 0.05, 5.0)
        image = physics.getCameraImage(size_px, size_px, view, intrinsics, lightDirection=layout.light)[2]
        return np.array(np.reshape(image, (size_px, size_px, 4))[..., :3], dtype=np.uint8)

    def _solve(self, position: Floats, yaw: float) -> list[float]:
        """Inverse kinematics, started from the joints as they are (its null-space form misses by centimeters here)."""
        turn = self._physics.getQuaternionFromEuler((math.pi, 0.0, yaw))
        found = self._physics.calculateInverseKinematics(self.arm, TOOL, position.tolist(), turn)
        return [max(low, min(high, joint)) for joint, (low, high) in zip(found[:7], self._limits, strict=True)]

    def _place_tool(self, position: tuple[float, float, float], yaw: float) -> None:
        """Put the arm, without simulating, where its tool is in the given pose and its fingers are open."""
        joints: list[float] = list(HOME[self.layout.arm])
        for _ in range(20):
            for joint, angle in zip(ARM_JOINTS, joints, strict=True):
                self._physics.resetJointState(self.arm, joint, angle)
            joints = self._solve(np.array(position), yaw)
        for finger in (LEFT_FINGER, RIGHT_FINGER):
            self._physics.resetJointState(self.arm, finger, OPEN_M)
        self.command(np.array(position), yaw, closed=False)

    def _add_thing(self, thing: Thing) -> int:
        physics, rgba = self._physics, (*COLORS[thing.color], 1.0)
        if thing.shape in ("plate", "can"):
            radius = PLATE_RADIUS if thing.shape == "plate" else SHAPES["can"][0] / 2
            hull = physics.createCollisionShape(physics.GEOM_CYLINDER, radius=radius, height=thing.height)
            look = physics.createVisualShape(physics.GEOM_CYLINDER, radius=radius, length=thing.height, rgbaColor=rgba)
        else:
            half = [edge / 2 for edge in SHAPES[thing.shape]]
            hull = physics.createCollisionShape(physics.GEOM_BOX, halfExtents=half)
            look = physics.createVisualShape(physics.GEOM_BOX, halfExtents=half, rgbaColor=rgba)
        turn = physics.getQuaternionFromEuler((0, 0, thing.yaw))
        mass = 0.5 if thing.shape == "plate" else 0.12
        body: int = physics.createMultiBody(mass, hull, look, (*thing.xy, thing.height / 2), turn)
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
        physics = self._physics
        hull = physics.createCollisionShape(physics.GEOM_BOX, halfExtents=half) if solid else -1
        look = physics.createVisualShape(physics.GEOM_BOX, halfExtents=half, rgbaColor=(*color, 1.0))
        body: int = physics.createMultiBody(0, hull, look, center, physics.getQuaternionFromEuler((0, 0, yaw)))
        if solid:
            physics.changeDynamics(body, -1, lateralFriction=0.7)
        return body
