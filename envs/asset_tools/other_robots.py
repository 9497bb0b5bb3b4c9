"""The other robots (`env=other_robots`): three seven-joint arms with two-finger grippers, as URDF and meshes.

Joint frames and limits are those of the KUKA LBR iiwa 7 R800, the UFACTORY xArm 7 and the Kinova Gen3; the shapes are
our own bodies of revolution with few triangles, and the gripper is our own too, in three designs. Masses are rounded.
Collision shapes are cylinders and boxes. Lengths in meters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .meshes import Floats, Mesh, Point, Triangles, number_list, smooth_obj

Files = dict[str, bytes]
ROOT = "other_robots"
SIDES = 16
QUARTER = math.pi / 2
FULL_CIRCLE = 2 * math.pi
Profile = tuple[tuple[float, float], ...]  # (height along the axis, radius)


@dataclass(frozen=True)
class RobotLink:
    """One link: mass, pose of its joint in the frame of the previous link, body of revolution about y (1) or z (2)."""

    mass: float
    xyz: Point
    rpy: Point
    limits: tuple[float, float]
    axis: int
    shell: Profile
    ring: Profile
    tube: tuple[float, float, float]  # collision cylinder: from, to, radius


@dataclass(frozen=True)
class Embodiment:
    """One robot: the links from the foot on, the pose of the gripper on the last, and its colors."""

    foot: Profile
    links: tuple[RobotLink, ...]
    flange: tuple[Point, Point]  # xyz and rpy of the gripper in the frame of the last link
    shell: str
    ring: str
    gripper: str
    palm: tuple[float, float]  # half sizes of the gripper's box along x and y


def ball(middle: float, radius: float, *, start: float, tube: float) -> Profile:
    """Return the profile of a tube from `start` that ends in a ball around `middle`.

    Args:
        middle: height of the center of the ball along the axis, in meters.
        radius: of the ball, in meters.
        start: height at which the tube begins, in meters.
        tube: radius of the tube, in meters.

    Returns:
        Pairs (height along the axis, radius), in meters: the start of the tube, then 7 points of the ball.
    """
    first = math.acos(min(1.0, tube / radius))
    angles = np.linspace(-first, QUARTER, 7)
    return ((start, tube), *((middle + radius * math.sin(a), max(radius * math.cos(a), 1e-4)) for a in angles.tolist()))


def band(low: float, high: float, radius: float) -> Profile:
    """Return the profile of a ring with beveled edges.

    Args:
        low: height of its lower end along the axis, in meters.
        high: height of its upper end along the axis, in meters.
        radius: of the ring between the bevels, in meters; 0.004 less at both ends.

    Returns:
        4 pairs (height along the axis, radius), in meters.
    """
    return ((low, radius - 0.004), (low + 0.003, radius), (high - 0.003, radius), (high, radius - 0.004))


def mirrored(profile: Profile) -> Profile:
    """Return the profile of the same body on the other side of the joint."""
    return tuple((-height, radius) for height, radius in reversed(profile))


def both_ways(limit: float) -> tuple[float, float]:
    """Return symmetric limits of a joint."""
    return -limit, limit


IIWA = Embodiment(
    foot=((0.0, 0.115), (0.03, 0.112), (0.05, 0.088), (0.1570, 0.078)),
    links=(
        RobotLink(4.0, (0, 0, 0.1575), (0, 0, 0), both_ways(2.967), 2,
                ball(0.2025, 0.088, start=0.0, tube=0.075), band(0.0, 0.022, 0.079), (0.0, 0.26, 0.075)),
        RobotLink(4.0, (0, 0, 0.2025), (QUARTER, 0, math.pi), both_ways(2.094), 1,
                ((0.05, 0.02), (0.055, 0.072), (0.2045, 0.070)), band(0.168, 0.196, 0.074), (0.04, 0.2045, 0.07)),
        RobotLink(3.0, (0, 0.2045, 0), (QUARTER, 0, math.pi), both_ways(2.967), 2,
                ball(0.2155, 0.082, start=0.0, tube=0.068), band(0.0, 0.020, 0.072), (0.0, 0.26, 0.068)),
        RobotLink(2.7, (0, 0, 0.2155), (QUARTER, 0, 0), both_ways(2.094), 1,
                ((0.05, 0.02), (0.055, 0.066), (0.1845, 0.062)), band(0.150, 0.178, 0.067), (0.04, 0.1845, 0.062)),
        RobotLink(1.7, (0, 0.1845, 0), (-QUARTER, math.pi, 0), both_ways(2.967), 2,
                ball(0.2155, 0.068, start=0.0, tube=0.056), band(0.0, 0.018, 0.060), (0.0, 0.25, 0.056)),
        RobotLink(1.8, (0, 0, 0.2155), (QUARTER, 0, 0), both_ways(2.094), 1,
                ((0.02, 0.02), (0.025, 0.052), (0.079, 0.047)), band(0.052, 0.070, 0.054), (0.0, 0.079, 0.05)),
        RobotLink(0.3, (0, 0.081, 0), (-QUARTER, math.pi, 0), both_ways(3.054), 2,
                ((0.0, 0.02), (0.001, 0.043), (0.040, 0.043), (0.045, 0.036), (0.0455, 0.001)), (),
                (0.0, 0.045, 0.043)),
    ),
    flange=((0, 0, 0.045), (0, 0, 0)),
    shell="0.86 0.87 0.88 1", ring="0.95 0.45 0.08 1", gripper="0.30 0.31 0.33 1", palm=(0.028, 0.062),
)  # fmt: skip

XARM = Embodiment(
    foot=((0.0, 0.082), (0.02, 0.080), (0.03, 0.063), (0.176, 0.062)),
    links=(
        RobotLink(2.4, (0, 0, 0.267), (0, 0, 0), both_ways(FULL_CIRCLE), 2,
                ball(0.0, 0.066, start=-0.090, tube=0.060), band(-0.090, -0.074, 0.063), (-0.09, 0.06, 0.06)),
        RobotLink(1.9, (0, 0, 0), (-QUARTER, 0, 0), (-2.059, 2.094), 1,
                mirrored(ball(0.205, 0.062, start=0.06, tube=0.052)), band(-0.20, -0.186, 0.064),
                (-0.26, -0.06, 0.05)),
        RobotLink(1.7, (0, -0.293, 0), (QUARTER, 0, 0), both_ways(FULL_CIRCLE), 2,
                ball(0.0, 0.060, start=-0.050, tube=0.052), (), (-0.05, 0.05, 0.05)),
        RobotLink(1.4, (0.0525, 0, 0), (QUARTER, 0, 0), (-0.19198, 3.927), 1,
                mirrored(ball(0.0, 0.058, start=-0.045, tube=0.050)), (), (-0.05, 0.05, 0.05)),
        RobotLink(1.2, (0.0775, -0.3425, 0), (QUARTER, 0, 0), both_ways(FULL_CIRCLE), 2,
                ball(0.0, 0.050, start=-0.335, tube=0.043), band(-0.20, -0.184, 0.046), (-0.33, 0.0, 0.043)),
        RobotLink(1.2, (0, 0, 0), (QUARTER, 0, 0), (-1.69297, math.pi), 2,
                ((-0.052, 0.02), (-0.050, 0.046), (0.050, 0.046), (0.052, 0.02)), (), (-0.05, 0.05, 0.045)),
        RobotLink(0.5, (0.076, 0.097, 0), (-QUARTER, 0, 0), both_ways(FULL_CIRCLE), 2,
                ((-0.125, 0.02), (-0.123, 0.040), (-0.001, 0.038), (0.0, 0.02)), band(-0.012, 0.0, 0.041),
                (-0.12, 0.0, 0.038)),
    ),
    flange=((0, 0, 0), (0, 0, 0)),
    shell="0.96 0.96 0.95 1", ring="0.15 0.15 0.16 1", gripper="0.90 0.90 0.90 1", palm=(0.034, 0.070),
)  # fmt: skip

GEN3 = Embodiment(
    foot=((0.0, 0.090), (0.012, 0.088), (0.016, 0.050), (0.156, 0.046)),
    links=(
        RobotLink(1.4, (0, 0, 0.15643), (math.pi, 0, 0), both_ways(FULL_CIRCLE), 2,
                mirrored(ball(0.128, 0.048, start=0.0, tube=0.046)), band(-0.02, 0.0, 0.048), (-0.15, 0.0, 0.045)),
        RobotLink(1.2, (0, 0.005375, -0.12838), (QUARTER, 0, 0), both_ways(2.24), 1,
                mirrored(ball(0.205, 0.046, start=0.03, tube=0.045)), band(-0.12, -0.10, 0.047),
                (-0.23, -0.03, 0.045)),
        RobotLink(1.2, (0, -0.21038, -0.006375), (-QUARTER, 0, 0), both_ways(FULL_CIRCLE), 2,
                mirrored(ball(0.205, 0.046, start=0.0, tube=0.045)), band(-0.14, -0.12, 0.047), (-0.23, 0.0, 0.045)),
        RobotLink(0.9, (0, 0.006375, -0.21038), (QUARTER, 0, 0), both_ways(2.57), 1,
                mirrored(ball(0.205, 0.044, start=0.03, tube=0.042)), (), (-0.22, -0.03, 0.042)),
        RobotLink(0.7, (0, -0.20843, -0.006375), (-QUARTER, 0, 0), both_ways(FULL_CIRCLE), 2,
                mirrored(ball(0.105, 0.040, start=0.0, tube=0.038)), band(-0.03, -0.01, 0.041), (-0.13, 0.0, 0.038)),
        RobotLink(0.7, (0, 0.000175, -0.10593), (QUARTER, 0, 0), both_ways(2.09), 1,
                mirrored(ball(0.105, 0.038, start=0.02, tube=0.037)), (), (-0.13, -0.02, 0.037)),
        RobotLink(0.4, (0, -0.10593, -0.000175), (-QUARTER, 0, 0), both_ways(FULL_CIRCLE), 2,
                ((-0.0615, 0.02), (-0.0610, 0.037), (-0.001, 0.038), (0.0, 0.02)), (), (-0.06, 0.0, 0.037)),
    ),
    flange=((0, 0, -0.061525), (math.pi, 0, 0)),
    shell="0.24 0.25 0.27 1", ring="0.10 0.42 0.72 1", gripper="0.12 0.12 0.13 1", palm=(0.040, 0.052),
)  # fmt: skip

EMBODIMENTS = {"iiwa": IIWA, "xarm": XARM, "gen3": GEN3}

# The gripper, in the frame of its palm: z to the tip, fingers slide along y. `TOOL_Z` is the point between the pads.
TOOL_Z = 0.135
GRIPPER_HEIGHT = 0.052
FINGER_BOXES = (  # the left one, in its own frame at the palm's z 0.05; the right one is rotated by pi
    ((-0.012, 0.004, 0.0), (0.012, 0.020, 0.055)),
    ((-0.011, 0.000, 0.050), (0.011, 0.012, 0.098)),
)
FINGER_RANGE = 0.04


def robot_files() -> Files:
    """Return every file of the other robots, by path relative to the assets folder."""
    files: Files = {}
    for name, arm in EMBODIMENTS.items():
        parts: Files = {}
        text = ['<?xml version="1.0"?>', f'<robot name="{name}">', *base_link(parts, arm)]
        for number, link in enumerate(arm.links, start=1):
            text += arm_link(parts, number, link, arm)
        text += gripper_links(parts, arm)
        parts["arm.urdf"] = ("\n".join([*text, "</robot>"]) + "\n").encode()
        files |= {f"{ROOT}/{name}/{part}": content for part, content in parts.items()}
    return files


def lathe(profile: Profile, *, axis: int) -> tuple[Floats, Triangles]:
    """Return a body of revolution about `axis` (1 is y, 2 is z) with closed ends."""
    angles = 2 * math.pi * np.arange(SIDES) / SIDES
    rings = [np.stack([r * np.cos(angles), r * np.sin(angles), np.full(SIDES, h)], axis=1) for h, r in profile]
    ends = np.array([[0.0, 0.0, profile[0][0]], [0.0, 0.0, profile[-1][0]]])
    vertices = np.concatenate([*rings, ends])
    if axis == 1:
        vertices = vertices[:, [1, 2, 0]]  # a cyclic permutation keeps the winding
    triangles = []
    for k in range(SIDES):
        j = (k + 1) % SIDES
        for ring in range(len(profile) - 1):
            a, b = ring * SIDES + k, ring * SIDES + j
            triangles += [(a, b, b + SIDES), (a, b + SIDES, a + SIDES)]
        last = (len(profile) - 1) * SIDES
        triangles += [(j, k, len(vertices) - 2), (last + k, last + j, len(vertices) - 1)]
    return vertices, np.array(triangles, dtype=np.int64)


def base_link(files: Files, arm: Embodiment) -> list[str]:
    """Return the URDF lines of the base and add its mesh to `files`."""
    files["base.obj"] = smooth_obj(*lathe(arm.foot, axis=2)).encode()
    top, radius = arm.foot[-1]
    return ['  <link name="base">', *_inertial(0.0, (0, 0, 0)), _visual("base.obj", arm.gripper),
            _cylinder(2, 0.0, top - 0.007, radius + 0.012), "  </link>"]  # fmt: skip


def arm_link(files: Files, number: int, link: RobotLink, arm: Embodiment) -> list[str]:
    """Return the URDF lines of link `number`, from 1, with its joint, and add its meshes to `files`.

    Args:
        files: path -> content; the OBJ files of shell and ring are added here.
        number: of the link, from 1; the parent of link 1 is the base.
        link: mass, joint pose and limits, and shapes of this link.
        arm: the robot, for the colors of shell and ring.
    """
    name = f"arm_{number}"
    parent = f"arm_{number - 1}" if number > 1 else "base"
    lines = [f'  <link name="{name}">']
    along = (link.tube[0] + link.tube[1]) / 2
    lines += _inertial(link.mass, (0, along, 0) if link.axis == 1 else (0, 0, along))
    for part, profile, color in (("shell", link.shell, arm.shell), ("ring", link.ring, arm.ring)):
        if profile:
            files[f"{name}_{part}.obj"] = smooth_obj(*lathe(profile, axis=link.axis)).encode()
            lines.append(_visual(f"{name}_{part}.obj", color))
    low, high = link.limits
    lines += [_cylinder(link.axis, *link.tube), "  </link>", f'  <joint name="joint_{number}" type="revolute">']
    lines += [f'    <origin xyz="{number_list(link.xyz)}" rpy="{number_list(link.rpy)}"/>',
              f'    <parent link="{parent}"/><child link="{name}"/><axis xyz="0 0 1"/>',
              f'    <limit lower="{low:.9g}" upper="{high:.9g}" effort="300" velocity="10"/>',
              '    <dynamics damping="0.5"/>', "  </joint>"]  # fmt: skip
    return lines


def gripper_links(files: Files, arm: Embodiment) -> list[str]:
    """Return the URDF lines of palm, fingers and tool frame, and add their meshes to `files`."""
    x, y = arm.palm
    palm = ((-x, -y, 0.0), (x, y, GRIPPER_HEIGHT))
    palm_mesh = Mesh()
    palm_mesh.add_box(*palm)
    finger = Mesh()
    for box in FINGER_BOXES:
        finger.add_box(*box)
    files["hand.obj"] = palm_mesh.obj().encode()
    files["finger.obj"] = finger.obj().encode()
    lines = ['  <link name="hand">', *_inertial(0.6, (0, 0, 0.03)), _visual("hand.obj", arm.gripper), _box(palm, 1),
             "  </link>", *_fixed("hand_joint", "arm_7", "hand", *arm.flange)]  # fmt: skip
    for side, sign, rotation in (("left", 1, 0.0), ("right", -1, math.pi)):
        name = f"{side}_finger"
        lines += [f'  <link name="{name}">',
                  '    <contact><lateral_friction value="1.0"/><spinning_friction value="0.05"/></contact>',
                  *_inertial(0.08, (0, 0.008 * sign, 0.05)), _visual("finger.obj", arm.gripper, rotation),
                  *(_box(box, sign) for box in FINGER_BOXES), "  </link>",
                  f'  <joint name="{name}_joint" type="prismatic">', '    <origin xyz="0 0 0.05"/>',
                  f'    <parent link="hand"/><child link="{name}"/><axis xyz="0 {sign} 0"/>',
                  f'    <limit lower="0" upper="{FINGER_RANGE}" effort="40" velocity="0.5"/>',
                  "  </joint>"]  # fmt: skip
    return [*lines, '  <link name="tool">', *_inertial(0.001, (0, 0, 0)), "  </link>",
            *_fixed("tool_joint", "hand", "tool", (0, 0, TOOL_Z), (0, 0, 0))]  # fmt: skip


def _fixed(name: str, parent: str, child: str, xyz: Point, rpy: Point) -> list[str]:
    origin = f'<origin xyz="{number_list(xyz)}" rpy="{number_list(rpy)}"/>'
    links = f'<parent link="{parent}"/><child link="{child}"/>'
    return [f'  <joint name="{name}" type="fixed">', f"    {origin}{links}", "  </joint>"]


def _inertial(mass: float, center: Point) -> list[str]:
    return [f'    <inertial><origin xyz="{number_list(center)}"/><mass value="{mass}"/>',
            '      <inertia ixx="0.01" ixy="0" ixz="0" iyy="0.01" iyz="0" izz="0.01"/></inertial>']  # fmt: skip


def _visual(mesh: str, color: str, rotation: float = 0.0) -> str:
    paint = f'<material name="c{color}"><color rgba="{color}"/></material>'
    origin = f'<origin rpy="0 0 {rotation:.9g}"/>'
    return f'    <visual>{origin}<geometry><mesh filename="{mesh}"/></geometry>{paint}</visual>'


def _box(box: tuple[Point, Point], sign: int) -> str:
    center = [(a + b) / 2 for a, b in zip(*box, strict=True)]
    size = [b - a for a, b in zip(*box, strict=True)]
    origin = f'<origin xyz="{number_list([center[0] * sign, center[1] * sign, center[2]])}"/>'
    return f'    <collision>{origin}<geometry><box size="{number_list(size)}"/></geometry></collision>'


def _cylinder(axis: int, start: float, end: float, radius: float) -> str:
    middle = (start + end) / 2
    xyz, rpy = ((0, middle, 0), f"{QUARTER:.9g} 0 0") if axis == 1 else ((0, 0, middle), "0 0 0")
    origin = f'<origin xyz="{number_list(xyz)}" rpy="{rpy}"/>'
    shape = f'<cylinder radius="{radius}" length="{end - start:.6g}"/>'
    return f"    <collision>{origin}<geometry>{shape}</geometry></collision>"
