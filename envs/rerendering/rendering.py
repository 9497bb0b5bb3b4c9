"""The simulation that renders recorded states in another appearance; nothing in it moves by physics.

Everything that rests throughout a video (floor, wall, table, distractors, and the doors and blocks that nobody touches)
is rendered once per video; each frame is the arm and what moves over that image, wherever they are nearer, as in
`backdrop.py`. Videos for the prior are rendered at twice their size and reduced by area, because the software renderer
smooths no edges; labeled recordings are not, as CALVIN's images are not.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from PIL import Image

from ..asset_files import BUILTIN_ASSETS
from ..backdrop import Part
from ..cameras import Layer
from ..physics import Physics
from ..scene import LIGHTS, TABLE_JOINTS, Scene, Vector, scene_files
from .appearance import MIDDLE, PANDA, Appearance, Shape
from .embodiments import Arm, load_other_arm, load_panda
from .textures import Color, Texture, texture_image

Floats = NDArray[np.float64]
OVERSAMPLING = 2
NEAR_M = 0.3
FAR_M = 12.0
RESTING = 1e-4
"""meters or radians; what moves less within a video rests"""
FLOOR_M = (8.0, 8.0, 0.02)
WALL_M = (0.02, 8.0, 5.0)
TILES = 4
"""of their textures, along each side"""
WALL_DISTANCE_M = 1.3
"""from the middle of the table, away from the camera"""
WOOD = {"base_link": (0, 2), "plank_link": (0,)}
"""Numbers of the visual shapes that are wood, for each link of a built-in table."""


def render_video(
    scene: str,
    appearance: Appearance,
    robot_obs: Floats,
    scene_obs: Floats,
    *,
    image_size: int,
    oversampling: int = OVERSAMPLING,
) -> NDArray[np.uint8]:
    """Return the video of recorded states, uint8 [L, H, W, 3], a function of the arguments.

    Args:
        scene: "A", "B", "C" or "D".
        appearance: of the video.
        robot_obs: states of the robot [L, 15].
        scene_obs: states of the scene [L, 24].
        image_size: height and width of the frames.
        oversampling: pixels rendered along each side of one of the video.
    """
    size = image_size * oversampling
    video = np.empty((len(robot_obs), image_size, image_size, 3), np.uint8)
    # A simulation for each video: one that is emptied for the next keeps a megabyte of textures each time.
    physics = Physics()
    try:
        rendered = RerenderedScene(physics, scene, appearance, robot_obs, scene_obs)
        resting = rendered.resting_layer(size)
        for index, frame in enumerate(video):
            rendered.set_frame(index)
            image = resting.under(rendered.render_layer(size)).rgb
            frame[:] = np.asarray(Image.fromarray(image).reduce(oversampling))
    finally:
        physics.close()
    return video


class RerenderedScene:
    """A scene in one appearance, at the first of its recorded states.

    Args:
        physics: an empty simulation.
        scene: "A", "B", "C" or "D".
        appearance: of everything.
        robot_obs: states of the robot [L, 15].
        scene_obs: states of the scene [L, 24].
    """

    def __init__(
        self, physics: Physics, scene: str, appearance: Appearance, robot_obs: Floats, scene_obs: Floats
    ) -> None:
        self._physics = physics
        self._scene_obs = scene_obs
        self._appearance = appearance
        self._colors: dict[tuple[int, int, int], Color] = {}  # of each visual shape: body, link, number in the link
        self._scene = Scene(physics, scene, BUILTIN_ASSETS, seeding.np_random(0)[0])
        plane = self._scene.static_parts[0][0]
        physics.removeBody(plane)
        self._arm = self._load_arm(BUILTIN_ASSETS / scene_files(scene).robot, robot_obs)
        self._paint_robot()
        self._paint_table()
        self._replace_blocks()
        self._add_room()
        for item in appearance.distractors:
            uid = self._add(item.shape, item.edges, item.color)
            orientation = physics.getQuaternionFromEuler((0, 0, item.yaw))
            physics.resetBasePositionAndOrientation(uid, item.center, orientation)
        camera = appearance.camera
        self._view = physics.computeViewMatrix(camera.position, camera.target, camera.up)
        self._projection = physics.computeProjectionMatrixFOV(camera.fov_deg, 1.0, NEAR_M, FAR_M)
        self.set_frame(0)

    def set_frame(self, frame: int) -> None:
        """Go to a recorded state."""
        self._scene.reset_to(self._scene_obs[frame])
        self._arm.set_frame(self._physics, frame)

    def resting_layer(self, size_px: int) -> Layer:
        """Return the image of all that rests throughout the video, and hide it in later ones."""
        moving = self._moving_parts()
        self._set_visible(moving, visible=False)
        layer = self.render_layer(size_px)
        self._set_visible(moving, visible=True)
        self._set_visible({(uid, link) for uid, link, _ in self._colors} - moving, visible=False)
        return layer

    def render_layer(self, size_px: int) -> Layer:
        """Return the image of what is not hidden, and its depth buffer."""
        light = self._appearance.light
        image = self._physics.getCameraImage(
            size_px,
            size_px,
            self._view,
            self._projection,
            lightDirection=light.direction,
            lightColor=light.color,
            lightAmbientCoeff=light.ambient,
            lightDiffuseCoeff=light.diffuse,
            lightSpecularCoeff=light.specular,
        )
        # PyBullet returns RGBA, as a tuple or an array depending on its build.
        rgba = np.reshape(np.asarray(image[2], dtype=np.uint8), (size_px, size_px, 4))
        return Layer(rgba[:, :, :3], np.reshape(np.asarray(image[3], dtype=np.float32), (size_px, size_px)))

    def _moving_parts(self) -> set[Part]:
        """Return the parts that move within the video; lights count, since they change their color."""
        moves = np.ptp(self._scene_obs, axis=0) > RESTING
        scene = self._scene
        parts = {part for part, moved in zip(scene.moving_parts, moves[: len(TABLE_JOINTS)], strict=True) if moved}
        parts |= {(scene.table_uid, scene.links[link]) for link, _ in LIGHTS.values()}
        block_moves = moves[6:].reshape(len(scene.blocks), 6).any(axis=1)
        parts |= {(uid, -1) for uid, moved in zip(scene.blocks.values(), block_moves, strict=True) if moved}
        links = range(self._physics.getNumJoints(self._arm.uid))
        return parts | {(self._arm.uid, link) for link in links}

    def _load_arm(self, panda: Path, robot_obs: Floats) -> Arm:
        """Load the arm of the appearance, or CALVIN's where that one cannot follow."""
        appearance = self._appearance
        if appearance.embodiment != PANDA:
            rng = np.random.default_rng(appearance.arm_seed)
            arm = load_other_arm(self._physics, appearance.embodiment, robot_obs, rng)
            if arm is not None:
                return arm
        return load_panda(self._physics, panda, robot_obs)

    def _paint_robot(self) -> None:
        """Give each material of the arm another color."""
        colors: dict[Color, Color] = {}
        for uid in {uid for uid, _ in self._arm.static_parts}:
            for number, row in _numbered_shapes(self._physics, uid):
                color = colors.setdefault(row[7], self._appearance.robot_colors[len(colors) % 3])
                self._paint(uid, row[1], number, color)

    def _paint_table(self) -> None:
        """Give wood, doors and fittings of the table other textures and colors."""
        table = self._scene.table_uid
        links = {link: name for name, link in self._scene.links.items()}
        wood = self._load_texture(self._appearance.table)
        doors = self._load_texture(self._appearance.furniture)
        lights = {link for link, _ in LIGHTS.values()}
        for number, row in _numbered_shapes(self._physics, table):
            name = links[row[1]]
            if number in WOOD.get(name, ()):
                self._paint(table, row[1], number, (1, 1, 1), wood)
            elif name in ("slide_link", "drawer_link") and number == 0:
                self._paint(table, row[1], number, (1, 1, 1), doors)
            else:
                self._paint(table, row[1], number, (1, 1, 1) if name in lights else self._appearance.fittings)

    def _replace_blocks(self) -> None:
        """Put other objects in place of the blocks."""
        scene = self._scene
        for (name, uid), block in zip(list(scene.blocks.items()), self._appearance.blocks, strict=True):
            x, y, z = self._physics.getVisualShapeData(uid)[0][3]
            self._physics.removeBody(uid)
            scene.blocks[name] = self._add(block.shape, (x * block.size, y * block.size, z * block.size), block.color)

    def _add_room(self) -> None:
        """Add the floor, and a wall behind the table as seen from the camera."""
        physics = self._physics
        floor = self._add("box", FLOOR_M, (1, 1, 1), self._load_texture(self._appearance.floor, repeats=TILES))
        physics.resetBasePositionAndOrientation(floor, (0, 0, -FLOOR_M[2] / 2), (0, 0, 0, 1))
        wall = self._add("box", WALL_M, (1, 1, 1), self._load_texture(self._appearance.wall, repeats=TILES))
        x, y = np.subtract(MIDDLE, self._appearance.camera.position)[:2]
        away = math.atan2(y, x)
        center = (MIDDLE[0] + WALL_DISTANCE_M * math.cos(away), MIDDLE[1] + WALL_DISTANCE_M * math.sin(away), 0.0)
        physics.resetBasePositionAndOrientation(wall, center, physics.getQuaternionFromEuler((0, 0, away)))

    def _add(self, shape: Shape, edges: Vector, color: Color, texture: int | None = None) -> int:
        """Add a body that nothing touches, at the origin, and return its id.

        Args:
            shape: box or cylinder; that of a cylinder stands on its end.
            edges: of the box around it.
            color: multiplies its texture.
            texture: PyBullet's id.
        """
        physics = self._physics
        if shape == "box":
            visual = physics.createVisualShape(physics.GEOM_BOX, halfExtents=[edge / 2 for edge in edges])
        else:
            radius = (edges[0] + edges[1]) / 4
            visual = physics.createVisualShape(physics.GEOM_CYLINDER, radius=radius, length=edges[2])
        uid: int = physics.createMultiBody(0, -1, visual)
        self._paint(uid, -1, 0, color, texture)
        return uid

    def _paint(self, uid: int, link: int, number: int, color: Color, texture: int | None = None) -> None:
        """Give one visual shape of a link a color and perhaps a texture; every shape is painted once."""
        self._colors[uid, link, number] = color
        options = {} if texture is None else {"textureUniqueId": texture}
        self._physics.changeVisualShape(uid, link, shapeIndex=number, rgbaColor=(*color, 1), **options)

    def _set_visible(self, parts: set[Part], *, visible: bool) -> None:
        """Hide parts, or show them; the software renderer skips what is fully transparent."""
        # By the stored colors: PyBullet reports one color for all shapes of a link once one of them was changed.
        for (uid, link, number), color in self._colors.items():
            if (uid, link) in parts:
                self._physics.changeVisualShape(uid, link, shapeIndex=number, rgbaColor=(*color, float(visible)))

    def _load_texture(self, texture: Texture, *, repeats: int = 1) -> int:
        """Return PyBullet's id of a texture, `repeats` times along each side; PyBullet reads files alone."""
        image = Image.fromarray(np.tile(texture_image(texture), (repeats, repeats, 1)))
        with tempfile.NamedTemporaryFile(suffix=".bmp") as file:  # not compressed: a tenth of the time
            image.save(file)
            file.flush()
            uid: int = self._physics.loadTexture(file.name)
        return uid


def _numbered_shapes(physics: Physics, uid: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield each visual shape of a body after its number within its link."""
    counts: dict[int, int] = {}
    for row in physics.getVisualShapeData(uid):
        counts[row[1]] = counts.get(row[1], -1) + 1
        yield counts[row[1]], row
