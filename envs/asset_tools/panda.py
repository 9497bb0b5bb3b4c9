"""The Panda arm with longer fingers: a URDF of our own, few triangles, hulls of a few dozen corners.

Shapes come from the meshes in pybullet's data (`pybullet_data/franka_panda`, Apache-2.0, Franka Emika); joint frames,
limits and masses are the manufacturer's, the contact values of the fingers those of the CALVIN benchmark. Fingers,
finger tips and camera are our own boxes. Bullet computes inertias from the collision shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .decimation import decimate, hull_of
from .meshes import Floats, Mesh, Point, Triangles, read_obj, smooth_obj

Files = dict[str, bytes]
ROOT = "franka_panda"
LIGHT = "0.93 0.94 0.95 1"
DARK = "0.36 0.36 0.39 1"
DARK_SHADE = 0.5  # materials of the source meshes with a diffuse color below this are the dark parts


@dataclass(frozen=True)
class PandaLink:
    """A link of the arm and the joint that carries it; revolute about its z axis if it has limits, else fixed."""

    name: str
    mass: float
    center: Point
    mesh: str | None  # source mesh; the visual one if there is one, else the collision mesh
    triangles: int = 0
    joint: str = ""
    parent: str = ""
    xyz: Point = (0.0, 0.0, 0.0)
    rpy: Point = (0.0, 0.0, 0.0)
    limits: tuple[float, float, float, float] | None = None  # in the order of LIMIT_NAMES


QUARTER = 1.57079632679
LIMIT_NAMES = ("lower", "upper", "effort", "velocity")
ARM = (
    PandaLink("panda_link0", 2.9, (0, 0, 0.05), "link0", 200),
    PandaLink("panda_link1", 2.7, (0, -0.04, -0.05), "link1", 340, "panda_joint1", "panda_link0", (0, 0, 0.333),
            (0, 0, 0), (-2.9671, 2.9671, 87, 2.175)),
    PandaLink("panda_link2", 2.73, (0, -0.04, 0.06), "link2", 340, "panda_joint2", "panda_link1", (0, 0, 0),
            (-QUARTER, 0, 0), (-1.8326, 1.8326, 87, 2.175)),
    PandaLink("panda_link3", 2.04, (0.01, 0.01, -0.05), "link3", 400, "panda_joint3", "panda_link2", (0, -0.316, 0),
            (QUARTER, 0, 0), (-2.9671, 2.9671, 87, 2.175)),
    PandaLink("panda_link4", 2.08, (-0.03, 0.03, 0.02), "link4", 400, "panda_joint4", "panda_link3", (0.0825, 0, 0),
            (QUARTER, 0, 0), (-3.1416, 0.0, 87, 2.175)),
    PandaLink("panda_link5", 3.0, (0, 0.04, -0.12), "link5", 460, "panda_joint5", "panda_link4", (-0.0825, 0.384, 0),
            (-QUARTER, 0, 0), (-2.9671, 2.9671, 12, 2.61)),
    PandaLink("panda_link6", 1.3, (0.04, 0, 0), "link6", 520, "panda_joint6", "panda_link5", (0, 0, 0),
            (QUARTER, 0, 0), (-0.0873, 3.8223, 12, 2.61)),
    PandaLink("panda_link7", 0.2, (0, 0, 0.08), "link7", 200, "panda_joint7", "panda_link6", (0.088, 0, 0),
            (QUARTER, 0, 0), (-2.9671, 2.9671, 12, 2.61)),
    PandaLink("panda_link8", 0.0, (0, 0, 0), None, 0, "panda_joint8", "panda_link7", (0, 0, 0.107)),
    PandaLink("panda_hand", 0.81, (0, 0, 0.04), "hand", 420, "panda_hand_joint", "panda_link8", (0, 0, 0),
            (0, 0, -0.785398163397)),
)  # fmt: skip

# Left finger, in its own frame: it slides along +y, z points to the tip. The right one is rotated by pi about z.
FINGER_BOXES = (
    ((-0.0105, 0.005, 0.0), (0.0105, 0.027, 0.030)),
    ((-0.0095, 0.010, 0.028), (0.0095, 0.0215, 0.068)),
    ((-0.0090, 0.005, 0.064), (0.0090, 0.0090, 0.0965)),
)
# Finger tip pad in the frame of its joint, x toward the other finger.
TIP_BOX = ((0.0158, -0.0090, 0.0047), (0.0201, 0.0090, 0.0297))


def panda_files(source: Path) -> Files:
    """Return every file of the robot, by path relative to the assets folder; `source` is pybullet_data/franka_panda."""
    files: Files = {}
    text = ['<?xml version="1.0"?>', '<robot name="panda">']
    for link in ARM:
        text += arm_link(link, source, files)
    # Two fingers and their pads, in the joint order finger, tip, finger, tip.
    visual = Mesh()
    for low, high in FINGER_BOXES:
        visual.add_box(low, high)
    pad = Mesh()
    pad.add_box(*TIP_BOX)
    files[f"{ROOT}/meshes/visual/finger.obj"] = visual.obj().encode()
    files[f"{ROOT}/meshes/visual/finger_tip.obj"] = pad.obj().encode()
    text += finger_links(1, "left", 1)
    text += finger_links(2, "right", -1)
    text += tool_frames()
    files[f"{ROOT}/panda_longer_finger.urdf"] = ("\n".join([*text, "</robot>"]) + "\n").encode()
    files[f"{ROOT}/LICENSE.txt"] = (source / "LICENSE.txt").read_bytes()
    return files


def arm_link(link: PandaLink, source: Path, files: Files) -> list[str]:
    """Return the URDF lines of a link and of its joint, and add the meshes to `files`.

    Args:
        link: the link, with the joint that carries it.
        source: the folder pybullet_data/franka_panda, where the meshes are read.
        files: path relative to the assets folder -> content; the meshes of the link are added.
    """
    lines = [f'  <link name="{link.name}">', *_inertial(link.mass, link.center)]
    if link.mesh is not None:
        for shade, (vertices, triangles) in shaded_parts(source, link).items():
            name = f"meshes/visual/{link.mesh}_{shade}.obj"
            files[f"{ROOT}/{name}"] = smooth_obj(vertices, triangles).encode()
            lines += _visual(name, shade)
        points, _, _ = read_obj(source / "meshes" / "collision" / f"{link.mesh}.obj")
        name = f"meshes/collision/{link.mesh}.obj"
        files[f"{ROOT}/{name}"] = smooth_obj(*hull_of(points, points=48)).encode()
        lines.append(f'    <collision><geometry><mesh filename="{name}"/></geometry></collision>')
    lines.append("  </link>")
    if link.joint:
        kind = "revolute" if link.limits else "fixed"
        lines += _joint(link.joint, kind, link.parent, link.name, link.xyz, link.rpy)
        if link.limits:
            limits = " ".join(f'{key}="{value}"' for key, value in zip(LIMIT_NAMES, link.limits, strict=True))
            lines.append(f'    <axis xyz="0 0 1"/><limit {limits}/>')
        lines.append("  </joint>")
    return lines


def shaded_parts(source: Path, link: PandaLink) -> dict[str, tuple[Floats, Triangles]]:
    """Return the light and the dark part of a link, decimated; each gets triangles in proportion to its surface."""
    visual = source / "meshes" / "visual" / f"{link.mesh}.obj"
    path = visual if visual.is_file() else source / "meshes" / "collision" / f"{link.mesh}.obj"
    vertices, triangles, materials = read_obj(path)
    dark_names = dark_materials(path.with_suffix(".mtl"))
    # The source has many materials; two shades are enough at the benchmark's image sizes.
    dark = np.array([name in dark_names for name in materials])
    parts = {}
    for shade, chosen in (("light", ~dark), ("dark", dark)):
        share = _surface(vertices, triangles[chosen]) / _surface(vertices, triangles)
        # A part below one percent of the surface is too small to be seen.
        if share > 0.01:
            # In proportion to the surface, but never so few that the shape is lost.
            target = max(40, round(link.triangles * share))
            parts[shade] = decimate(vertices, triangles[chosen], target=target, cell_m=0.003)
    return parts


def _surface(vertices: Floats, triangles: Triangles) -> float:
    """Return the area of a mesh."""
    corners = vertices[triangles]
    edges = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return float(np.sqrt((np.cross(*edges) ** 2).sum(axis=1)).sum() / 2)


def dark_materials(path: Path) -> set[str]:
    """Return the names of the dark gray materials of an .mtl file (screws in signal colors stay light)."""
    if not path.is_file():
        return set()
    dark = set()
    name = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[:1] == ["newmtl"]:
            name = fields[1]
        elif fields[:1] == ["Kd"] and max(float(text) for text in fields[1:4]) < DARK_SHADE:
            dark.add(name)
    return dark


def finger_links(number: int, side: str, sign: int) -> list[str]:
    """Return the URDF lines of a finger and its pad.

    Args:
        number: number in the name of the finger's joint, 1 for the left finger and 2 for the right one.
        side: `left` or `right`, as in the names of the links.
        sign: 1 for the left finger, which slides along +y, and -1 for the right one, which slides along -y.
    """
    rotation = 0.0 if sign == 1 else 2 * QUARTER
    return [
        f'  <link name="panda_{side}finger">',
        '    <contact><friction_anchor/><stiffness value="30000"/><damping value="1000"/>',
        '      <spinning_friction value="0.1"/><lateral_friction value="1"/></contact>',
        *_inertial(0.1, (0, 0.01 * sign, 0.02)),
        *_visual("meshes/visual/finger.obj", "light", rotation),
        *(line for box in FINGER_BOXES for line in _box_collision(box, sign)),
        "  </link>",
        *_joint(f"panda_finger_joint{number}", "prismatic", "panda_hand", f"panda_{side}finger", (0, 0, 0.0584)),
        f'    <axis xyz="0 {sign} 0"/><limit lower="0" upper="0.04" effort="20" velocity="0.2"/>',
        "  </joint>",
        f'  <link name="finger_{side}_tip">',
        '    <contact><lateral_friction value="1"/><spinning_friction value="0.001"/></contact>',
        *_inertial(0.0001, (0, 0, 0)),
        *_visual("meshes/visual/finger_tip.obj", "dark"),
        *_box_collision(TIP_BOX, 1),
        "  </link>",
        *_joint(f"joint_finger_tip_{side}", "fixed", f"panda_{side}finger", f"finger_{side}_tip",
                (0.0, 0.021 * sign, 0.066), (0, 0, -QUARTER * sign)),
        "  </joint>",
    ]  # fmt: skip


def tool_frames() -> list[str]:
    """Return the URDF lines of the frames after the fingers: grasp target, wrist camera, tool center point."""
    box = '<geometry><box size="0.08 0.025 0.01"/></geometry>'
    camera = [f'    <visual>{box}<material name="dark"><color rgba="{DARK}"/></material></visual>']
    rows: tuple[tuple[str, str, float, Point, Point, list[str]], ...] = (
        ("panda_grasptarget", "panda_grasptarget_hand", 0.0, (0, 0, 0.105), (0, 0, 0), []),
        ("gripper_cam", "camera_joint", 0.2, (-0.1, 0, 0), (1.3, 0, -1.57), camera),
        ("tcp", "tcp_joint", 0.00001, (0, 0, 0.14), (0, 0, 0), []),
    )
    lines = []
    for link, joint, mass, xyz, rpy, extra in rows:
        lines += [f'  <link name="{link}">', *_inertial(mass, (0, 0, 0)), *extra, "  </link>"]
        lines += [*_joint(joint, "fixed", "panda_hand", link, xyz, rpy), "  </joint>"]
    return lines


def _joint(name: str, kind: str, parent: str, child: str, xyz: Point, rpy: Point = (0.0, 0.0, 0.0)) -> list[str]:
    """Return the opening lines of a joint; the caller adds axis and limits and closes it."""
    links = f'<parent link="{parent}"/><child link="{child}"/>'
    return [f'  <joint name="{name}" type="{kind}">', f"    {_origin(xyz, rpy)}{links}"]


def _origin(xyz: tuple[float, ...], rpy: tuple[float, ...] = (0.0, 0.0, 0.0)) -> str:
    return f'<origin xyz="{" ".join(f"{v:g}" for v in xyz)}" rpy="{" ".join(f"{v:.12g}" for v in rpy)}"/>'


def _inertial(mass: float, center: tuple[float, ...]) -> list[str]:
    return [f"    <inertial>{_origin(center)}<mass value=\"{mass}\"/>"
            '<inertia ixx="0.1" ixy="0" ixz="0" iyy="0.1" iyz="0" izz="0.1"/></inertial>']  # fmt: skip


def _visual(mesh: str, shade: str, rotation: float = 0.0) -> list[str]:
    color = DARK if shade == "dark" else LIGHT
    paint = f'<material name="panda_{shade}"><color rgba="{color}"/></material>'
    geometry = f'<geometry><mesh filename="{mesh}"/></geometry>'
    return [f"    <visual>{_origin((0, 0, 0), (0, 0, rotation))}{geometry}{paint}</visual>"]


def _box_collision(box: tuple[tuple[float, ...], tuple[float, ...]], sign: int) -> list[str]:
    """Return the line of a collision box; sign -1 rotates it by pi about z."""
    low, high = box
    center = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    size = " ".join(f"{b - a:.6g}" for a, b in zip(low, high, strict=True))
    turned = (center[0] * sign, center[1] * sign, center[2])
    return [f'    <collision>{_origin(turned)}<geometry><box size="{size}"/></geometry></collision>']
