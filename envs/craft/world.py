"""The simulation of block building: blocks on a table, seen by one camera, and a hand or an arm that carries them.

Blocks fall and rest by physics. Carrying is not physics: while the fingers are closed on a block, it keeps its pose
in the tool, and neither hand nor arm collides with blocks. So towers can fall, and a grip cannot slip.

Meters, radians, seconds; z = 0 is the table top, an arm stands at the origin and reaches along +x.
"""

from __future__ import annotations

import math
import tempfile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..other_robots.arm import TableArm
from ..other_robots.world import CONTROL_STEPS, GRAVITY, PHYSICS_HZ, WALL_M
from ..physics import Physics
from ..rerendering.textures import Texture, texture_image
from .human_hand import HumanHand
from .layout import HUMAN_HAND, CraftLayout
from .patterns import UNIT_M, block_edges

Floats = NDArray[np.float64]
COMMAND_HZ = PHYSICS_HZ / CONTROL_STEPS
OVERSAMPLING = 2
"""pixels rendered along each side of one of the image, since the software renderer smooths no edges"""
DENSITY = 900.0  # kg / m³
TILES = 3
NEAR_M, FAR_M = 0.05, 5.0


class CraftWorld:
    """One layout in an empty simulation: equal layouts and commands give equal bytes.

    Args:
        physics: an empty simulation; textures stay in it until it is closed, so take one for each episode.
        layout: what to build.
    """

    def __init__(self, physics: Physics, layout: CraftLayout) -> None:
        self.layout = layout
        self._physics = physics
        self._held: int | None = None
        physics.setGravity(0, 0, GRAVITY)
        physics.setTimeStep(1 / PHYSICS_HZ)
        self._tool: HumanHand | TableArm
        if layout.embodiment == HUMAN_HAND:
            self._tool = HumanHand(
                physics,
                skin=layout.skin,
                sleeve=layout.sleeve,
                elbow=layout.elbow,
                closed_m=UNIT_M / 2,
                hz=COMMAND_HZ,
            )
        else:
            self._tool = TableArm(physics, layout.embodiment, closed_m=UNIT_M / 2)
            self._let_pass(self._tool.uid)
        self.blocks = [self._add_block(index) for index in range(len(layout.blocks))]
        self._add_surfaces()
        if isinstance(self._tool, TableArm):
            for block in self.blocks:
                for link in range(-1, physics.getNumJoints(self._tool.uid)):
                    physics.setCollisionFilterPair(self._tool.uid, block, link, -1, 0)
        self._tool.place(np.array(layout.tool_position), 0.0)

    def command(self, position: Floats, yaw: float, *, closed: bool) -> None:
        """Set where the tool goes; it holds until the next command.

        Args:
            position: of the tool [3], meters.
            yaw: of the tool, radians.
            closed: whether the fingers close.
        """
        self._tool.command(position, yaw, closed=closed)

    def step(self) -> None:
        """Advance the simulation by one physics step of 1/240 s."""
        self._physics.stepSimulation()
        if self._held is not None:
            position, yaw = self.tool()
            offset, rotation = self._grip
            cos, sin = math.cos(yaw), math.sin(yaw)
            moved = np.array([cos * offset[0] - sin * offset[1], sin * offset[0] + cos * offset[1], offset[2]])
            self._put(self.blocks[self._held], position + moved, yaw + rotation)

    def hold(self, index: int | None) -> None:
        """Carry a block from now on as it lies in the tool; None: let go."""
        self._held = index
        if index is not None:
            position, yaw = self.tool()
            center, block_yaw = self.block_pose(index)
            x, y, z = (center - position).tolist()
            cos, sin = math.cos(-yaw), math.sin(-yaw)
            self._grip = (np.array([cos * x - sin * y, sin * x + cos * y, z]), block_yaw - yaw)

    def tool(self) -> tuple[Floats, float]:
        """Return position [3] and yaw of the point between the fingers."""
        position, angles = self._tool.tool()
        return position, float(angles[2])

    def block_pose(self, index: int) -> tuple[Floats, float]:
        """Return center [3] and yaw of a block."""
        position, orientation = self._physics.getBasePositionAndOrientation(self.blocks[index])
        return np.array(position), float(self._physics.getEulerFromQuaternion(orientation)[2])

    def block_speed(self, index: int) -> float:
        """Return the speed of a block in m/s."""
        return float(np.linalg.norm(self._physics.getBaseVelocity(self.blocks[index])[0]))

    def image(self, size_px: int) -> NDArray[np.uint8]:
        """Return the camera's image, uint8 [size, size, 3]."""
        physics = self._physics
        view, projection = self._matrices()
        pixels = size_px * OVERSAMPLING
        rendered = physics.getCameraImage(
            pixels,
            pixels,
            view,
            projection,
            lightDirection=self.layout.light,
            lightAmbientCoeff=0.62,
            lightDiffuseCoeff=0.45,
            lightSpecularCoeff=0.03,
            renderer=physics.ER_TINY_RENDERER,
        )[2]
        image = np.reshape(rendered, (pixels, pixels, 4))[..., :3].astype(np.uint8)
        return np.asarray(Image.fromarray(image).reduce(OVERSAMPLING))

    def in_image(self, point: Floats) -> tuple[float, float]:
        """Return where a point [3] is seen: column and row in 0..1 of the image, outside of it below 0 or above 1."""
        view, projection = (np.reshape(matrix, (4, 4)).T for matrix in self._matrices())
        x, y, _, w = (projection @ view @ np.array([*point, 1.0])).tolist()
        return (x / w + 1) / 2, (1 - y / w) / 2

    def _matrices(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        layout = self.layout
        view = self._physics.computeViewMatrix(layout.camera_position, layout.camera_target, (0, 0, 1))
        projection = self._physics.computeProjectionMatrixFOV(layout.fov_deg, 1.0, NEAR_M, FAR_M)
        return view, projection

    def _put(self, body: int, position: Floats, yaw: float) -> None:
        self._physics.resetBasePositionAndOrientation(
            body, position.tolist(), self._physics.getQuaternionFromEuler((0.0, 0.0, yaw))
        )
        self._physics.resetBaseVelocity(body, (0, 0, 0), (0, 0, 0))

    def _let_pass(self, arm: int) -> None:
        """Let the arm pass through the table, since a finger that touches it would hold up the arm."""
        for link in range(-1, self._physics.getNumJoints(arm)):
            self._physics.setCollisionFilterGroupMask(arm, link, 0, 0)

    def _add_block(self, index: int) -> int:
        physics = self._physics
        block = self.layout.blocks[index]
        edges = block_edges(block.shape)
        half = [edge / 2 for edge in edges]
        collision = physics.createCollisionShape(physics.GEOM_BOX, halfExtents=half)
        visual = physics.createVisualShape(physics.GEOM_BOX, halfExtents=half, rgbaColor=(*block.color, 1.0))
        orientation = physics.getQuaternionFromEuler((0.0, 0.0, block.yaw))
        body: int = physics.createMultiBody(
            DENSITY * math.prod(edges), collision, visual, (*block.xy, half[2]), orientation
        )
        physics.changeDynamics(body, -1, lateralFriction=0.9, spinningFriction=0.02, restitution=0.0)
        return body

    def _add_surfaces(self) -> None:
        """Add the table, and behind it, as seen from the camera, the wall."""
        layout = self.layout
        table = self._add_box((0.62, 0.80, 0.02), (0.40, 0.0, -0.02), 0.0, layout.table)
        self._physics.changeDynamics(table, -1, lateralFriction=0.9)
        ahead = np.subtract(layout.camera_target, layout.camera_position)[:2]
        x, y = (ahead / np.linalg.norm(ahead)).tolist()
        place = (layout.camera_target[0] + WALL_M * x, layout.camera_target[1] + WALL_M * y, 0.2)
        self._add_box((0.01, 4.0, 1.5), place, math.atan2(y, x), layout.wall)

    def _add_box(
        self, half: Floats | tuple[float, ...], center: tuple[float, ...], yaw: float, texture: Texture
    ) -> int:
        """Add a fixed box that blocks rest on, and return its body id."""
        physics = self._physics
        collision = physics.createCollisionShape(physics.GEOM_BOX, halfExtents=half)
        visual = physics.createVisualShape(physics.GEOM_BOX, halfExtents=half, rgbaColor=(1, 1, 1, 1))
        orientation = physics.getQuaternionFromEuler((0.0, 0.0, yaw))
        body: int = physics.createMultiBody(0, collision, visual, center, orientation)
        image = Image.fromarray(np.tile(texture_image(texture), (TILES, TILES, 1)))
        with tempfile.NamedTemporaryFile(suffix=".bmp") as file:  # PyBullet reads textures from files alone
            image.save(file)
            file.flush()
            physics.changeVisualShape(body, -1, textureUniqueId=physics.loadTexture(file.name))
        return body
