"""What the parts of the simulation look like: the visual shapes of its URDF files, and their meshes.

They are read from a simulation of their own, since the layered renderer hides most of them in the one that runs. Bodies
are loaded there in the same order, so they have the same numbers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gymnasium.utils import seeding

from ..physics import Physics
from ..robot import Panda
from ..scene import Scene, scene_files

Kind = Literal["mesh", "box", "cylinder", "sphere"]


@dataclass(frozen=True)
class Shape:
    """One visual shape of a part.

    Attributes:
        body: number of the body in PyBullet.
        link: number of the link, -1 for the base.
        kind: of the shape.
        file: of a mesh; None for the others.
        size: scale of a mesh [3], sides of a box [3], length and radius of a cylinder, radius of a sphere.
        position: [3] in the frame of the part.
        quaternion: [4] in the frame of the part, w first.
        color: RGBA, 0 to 1.
    """

    body: int
    link: int
    kind: Kind
    file: Path | None
    size: tuple[float, ...]
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]
    color: tuple[float, float, float, float]

    @property
    def part(self) -> str:
        """Name of the part."""
        return part_name(self.body, self.link)


def part_name(body: int, link: int) -> str:
    """Return the name of a part, which is a path of the scene tree."""
    return f"/body_{body}/link_{link}"


@functools.lru_cache(maxsize=4)
def read_shapes(assets_dir: Path, scene: str) -> tuple[Shape, ...]:
    """Return the visual shapes of robot, blocks and table; not the ground.

    Args:
        assets_dir: of the scene.
        scene: its name.
    """
    physics = Physics()
    try:
        Panda(physics, assets_dir / scene_files(scene).robot)
        table = Scene(physics, scene, assets_dir, seeding.np_random(0)[0]).table_uid
        kinds: dict[int, Kind] = {
            physics.GEOM_MESH: "mesh",
            physics.GEOM_BOX: "box",
            physics.GEOM_CYLINDER: "cylinder",
            physics.GEOM_SPHERE: "sphere",
        }
        return tuple(
            _shape(row, kinds[row[2]])
            for body in range(table + 1)  # the ground is loaded after the table
            for row in physics.getVisualShapeData(body)
            if row[2] in kinds
        )
    finally:
        physics.close()


def _shape(row: Any, kind: Kind) -> Shape:
    """Return a row of PyBullet's visual shapes: body, link, kind, size, file, position, orientation, color."""
    x, y, z, w = row[6]
    file = Path(row[4].decode()) if kind == "mesh" else None
    return Shape(row[0], row[1], kind, file, tuple(row[3]), tuple(row[5]), (w, x, y, z), tuple(row[7]))
