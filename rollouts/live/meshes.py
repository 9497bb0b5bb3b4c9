"""Visual shapes as nodes of viser's scene; trimesh, which viser brings, reads the mesh files."""

from __future__ import annotations

from typing import Any

import numpy as np

from vw2_robot.errors import InputError, require

from .control import ShownShape

CYLINDER_SEGMENTS = 48


def add_shape(scene: Any, name: str, shape: ShownShape, *, is_light: bool) -> Any:
    """Add a shape to the scene and return its node.

    Args:
        scene: viser's.
        name: path of the node, below that of its part.
        shape: what to show.
        is_light: its color will change, so it gets no texture.

    Raises:
        InputError: a mesh file cannot be read.
    """
    trimesh = require("trimesh", extra="live")
    pose = {"position": shape.position, "wxyz": shape.quaternion}
    rgb = shape.color[:3]
    if shape.kind == "box":
        return scene.add_box(name, color=rgb, dimensions=shape.size, **pose)
    if shape.kind == "cylinder":
        mesh = trimesh.creation.cylinder(radius=shape.size[1], height=shape.size[0], sections=CYLINDER_SEGMENTS)
    elif shape.kind == "sphere":
        mesh = trimesh.creation.icosphere(radius=shape.size[0])
    else:
        try:
            # The textures of these assets lie beside the folder of their meshes.
            resolver = trimesh.resolvers.FilePathResolver(shape.file, allow_anywhere=True)
            mesh = trimesh.load(shape.file, force="mesh", resolver=resolver)
        except Exception as error:  # each format has a reader of its own, with errors of its own
            raise InputError(f"{shape.file} cannot be read as a mesh ({error}); restore it") from error
        mesh.apply_scale(shape.size)
        texture = getattr(getattr(mesh.visual, "material", None), "image", None)
        if texture is not None and not is_light:
            return scene.add_mesh_trimesh(name, mesh, **pose)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    return scene.add_mesh_simple(name, vertices, faces, color=rgb, side="double", **pose)
