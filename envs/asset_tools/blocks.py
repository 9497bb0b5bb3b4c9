"""The colored blocks and the floor, as URDF, OBJ and PNG files.

Sizes, masses and friction are those of the CALVIN benchmark. Lengths are meters in the world, after the simulator has
loaded a block with `globalScaling=0.8`.
"""

from __future__ import annotations

from .meshes import number_list
from .tables import SCALE, Files
from .textures import floor_png

BLOCK_COLORS = {"red": "1 0 0 1", "blue": "0 0 1 1", "pink": "1 0 1 1"}
BLOCK_LENGTHS = {"small": 0.04, "middle": 0.056, "big": 0.08}  # the long edge, local x; the two others are 0.04

FLOOR = ((2.5, -4.5), (4.5, 8.0), (-9.0, 1.5))
"""One triangle with at least 2.8 m of floor around the table, all of it in front of the static camera: the renderer
need not clip it, and tests the image's pixels once instead of twice."""


def block_files() -> Files:
    """Return the files of the nine blocks: boxes of 1 kg."""
    files: Files = {}
    for color, rgba in BLOCK_COLORS.items():
        for name, length in BLOCK_LENGTHS.items():
            box = f'<geometry><box size="{number_list([length / SCALE, 0.04 / SCALE, 0.04 / SCALE])}"/></geometry>'
            text = f"""<?xml version="1.0"?>
<robot name="block_{color}_{name}">
  <link name="base_link">
    <contact><lateral_friction value="0.7"/><spinning_friction value="0.001"/></contact>
    <inertial><mass value="1"/><inertia ixx="1" ixy="0" ixz="0" iyy="1" iyz="0" izz="1"/></inertial>
    <visual>{box}<material name="{color}"><color rgba="{rgba}"/></material></visual>
    <collision>{box}</collision>
  </link>
</robot>
"""
            files[f"blocks/block_{color}_{name}.urdf"] = text.encode()
    return files


def plane_files() -> Files:
    """Return the files of the floor: tiles of 0.5 m as visual shape, a thick box as collision shape."""
    urdf = """<?xml version="1.0"?>
<robot name="plane">
  <link name="planeLink">
    <contact><lateral_friction value="1"/></contact>
    <inertial><mass value="0"/><inertia ixx="0" ixy="0" ixz="0" iyy="0" iyz="0" izz="0"/></inertial>
    <visual><geometry><mesh filename="plane.obj"/></geometry>
      <material name="tiles"><color rgba="1 1 1 1"/></material></visual>
    <collision><origin xyz="0 0 -5"/><geometry><box size="200 200 10"/></geometry></collision>
  </link>
</robot>
"""
    lines = ["mtllib plane.mtl", "usemtl tiles"]
    lines += [f"v {x} {y} 0" for x, y in FLOOR]
    lines += [f"vt {x} {y}" for x, y in FLOOR]
    lines += ["vn 0 0 1", "f 1/1/1 2/2/1 3/3/1"]
    return {
        "plane/plane.urdf": urdf.encode(),
        "plane/plane.obj": ("\n".join(lines) + "\n").encode(),
        "plane/plane.mtl": b"newmtl tiles\nKa 1 1 1\nKd 1 1 1\nmap_Kd tiles.png\n",
        "plane/tiles.png": floor_png((226, 226, 224), (198, 199, 201), (180, 181, 183)),
    }
