"""The four play tables A to D, as URDF, OBJ and PNG files.

Joint names, link order, link frames, axes, ranges and outer sizes are those of the CALVIN benchmark, so that its start
states, tasks and instructions mean the same here; the geometry, the wood and the handles are our own. Lengths in this
file are meters in the world, after the simulator has loaded a table with `globalScaling=0.8`.

Collision shapes are boxes wherever that is exact, since a box rests on a box without a margin. The shelf is a hull on
purpose: Bullet adds a margin of 1 mm to hulls, and the benchmark's start states place blocks 1 mm above the shelf.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from .meshes import Mesh, Point, chamfered, number_list, regular
from .tessellation import cell, static_view, tessellate
from .textures import Wood, plain_png, wood_png

Files = dict[str, bytes]
Box = tuple[Point, Point]
SCALE = 0.8  # globalScaling with which the simulator loads tables and blocks
SLOPE = math.tan(math.radians(30))  # the face of the cabinet leans back by 30 degrees
GRAIN = 1.1  # textures per meter
TABLE_FRICTION = 0.5
HANDLE_GRAY = (0.30, 0.30, 0.31, 1.0)
METAL = (0.45, 0.46, 0.48, 1.0)
# Colors of the base link, as textures.
PLAIN = {"dark": (51, 43, 38), "metal": (115, 117, 122)}
SLOT_Z = (0.492, 0.592)
SLOT_WIDTH = 0.014
SLOT_DEPTH = 0.008
QUARTER = math.pi / 2
FRAME_ROTATION = {  # of a link's frame about the world's x axis, radians
    "button_link": QUARTER, "switch_link": QUARTER * 5 / 3, "slide_link": QUARTER * 2 / 3, "drawer_link": QUARTER,
    "led_link": QUARTER, "light_link": QUARTER, "plank_link": QUARTER,
}  # fmt: skip
BLACK = (0.03, 0.03, 0.03, 1.0)
WHITE = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Table:
    """What differs between the scenes: positions of the parts (x; bulb also y), range of the door, the woods."""

    button_x: float
    switch_x: float
    slide_x: float
    slide_range: float
    drawer_x: float
    bulb_y: float
    plank_x: float
    body: Wood
    front: Wood


TABLES = {
    "A": Table(-0.28, 0.30, -0.10, 0.28, 0.10, 0.132, -0.10,
               Wood((64, 30, 20), (132, 74, 50), seed=11), Wood((52, 24, 17), (112, 58, 40), seed=12, rings=20)),
    "B": Table(0.28, -0.32, 0.088, 0.304, 0.18, 0.136, 0.08,
               Wood((206, 160, 108), (255, 224, 176), seed=21, rings=10, fiber=0.45),
               Wood((196, 150, 100), (246, 210, 158), seed=22, rings=16, fiber=0.4)),
    "C": Table(-0.12, -0.32, 0.06, 0.24, 0.10, 0.132, 0.08,
               Wood((118, 70, 32), (192, 132, 74), seed=31, rings=18),
               Wood((64, 30, 19), (126, 68, 44), seed=32, rings=16)),
    "D": Table(-0.12, 0.30, -0.10, 0.28, 0.18, 0.132, -0.10,
               Wood((110, 76, 44), (204, 156, 104), seed=41),
               Wood((100, 70, 40), (188, 142, 92), seed=42, rings=9, bend=0.3)),
}  # fmt: skip


@dataclass
class Link:
    """One link under construction: visual meshes with texture (or None) and color, and its collision shapes."""

    name: str
    mass: float
    visuals: list[tuple[Mesh, str | None, tuple[float, float, float, float]]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    cylinders: list[tuple[Point, str, float, float]] = field(default_factory=list)  # center, rpy, radius, length
    hulls: list[Mesh] = field(default_factory=list)

    def mesh(self, texture: str | None = None, rgba: tuple[float, float, float, float] = WHITE) -> Mesh:
        """Add a visual mesh to this link and return it, empty."""
        mesh = Mesh(grain=GRAIN)
        self.visuals.append((mesh, texture, rgba))
        return mesh


def table_files(scene: str) -> Files:
    """Return every file of one table, by path relative to the assets folder."""
    table = TABLES[scene]
    root = f"calvin_table_{scene}"
    files: Files = {
        f"{root}/textures/body_wood.png": wood_png(table.body),
        f"{root}/textures/front_wood.png": wood_png(table.front),
    }
    for texture, color in PLAIN.items():
        files[f"{root}/textures/{texture}.png"] = plain_png(color)
    for texture in ("body_wood", "front_wood", *PLAIN):
        mtl = f"newmtl {texture}\nKa 1 1 1\nKd 1 1 1\nmap_Kd ../textures/{texture}.png\n"
        files[f"{root}/meshes/{texture}.mtl"] = mtl.encode()
    links = [
        base_link(table),
        button_link(),
        switch_link(),
        slide_link(),
        drawer_link(),
        led_link(),
        light_link(table),
        plank_link(),
    ]
    text = ['<?xml version="1.0"?>', f'<robot name="{root}">']
    for link in links:
        text += link_urdf(link, files, f"{root}/meshes")
    text += joints_urdf(table)
    files[f"{root}/urdf/{root}.urdf"] = ("\n".join([*text, "</robot>"]) + "\n").encode()
    return files


def _on_slope(z: float) -> float:
    """Return y of the cabinet's face at height z."""
    return 0.02 + (z - 0.44) * SLOPE


def base_link(table: Table) -> Link:
    """Return top, case, legs and cabinet. The compartment behind the door is 0.52 wide, the drawer's opening 0.40."""
    link = Link("base_link", 0.0)
    left = table.plank_x - 0.26
    right = table.plank_x + 0.26
    drawer_left = table.drawer_x - 0.2
    drawer_right = table.drawer_x + 0.2
    wood = link.mesh("body_wood")
    boards: list[tuple[Box, tuple[str, ...]]] = [  # each with the faces that no camera can see
        (((-0.44, -0.18, 0.40), (0.44, 0.02, 0.44)), ()),  # top
        (((-0.44, 0.02, 0.40), (left, 0.18, 0.44)), ("-y",)),
        (((right, 0.02, 0.40), (0.44, 0.18, 0.44)), ("-y",)),
        (((left, 0.02, 0.40), (right, 0.16, 0.42)), ("-x", "+x", "+z")),  # below the shelf
        (((left, 0.16, 0.40), (right, 0.18, 0.648)), ("-x", "+x")),  # back wall of the compartment
        (((-0.42, -0.16, 0.30), (0.42, 0.16, 0.316)), ("+z",)),  # bottom of the case
        (((-0.42, -0.145, 0.316), (-0.40, 0.145, 0.40)), ("+x", "-y", "+y", "-z", "+z")),
        (((0.40, -0.145, 0.316), (0.42, 0.145, 0.40)), ("-x", "-y", "+y", "-z", "+z")),
        (((-0.42, 0.145, 0.316), (0.42, 0.16, 0.40)), ("-y", "-z", "+z")),
        (((-0.42, -0.16, 0.316), (drawer_left, -0.145, 0.40)), ("+y", "-z", "+z")),  # beside the drawer
        (((min(drawer_right, 0.41), -0.16, 0.316), (0.42, -0.145, 0.40)), ("+y", "-z", "+z")),
    ]
    for (low, high), hidden in boards:
        wood.add_box(low, high, hidden=hidden)
        link.boxes.append((low, high))
    for x in (-0.42, 0.42):
        for y in (-0.163, 0.163):
            leg = ((x - 0.021, y - 0.018, 0.0), (x + 0.021, y + 0.018, 0.3995))
            wood.add_box(*leg, hidden=("-z", "+z"))
            link.boxes.append(leg)
    face = [(0.02, 0.44), (0.18, 0.44), (0.18, 0.648), (_on_slope(0.648), 0.648)]
    beam = [(_on_slope(0.626), 0.626), (0.16, 0.626), (0.16, 0.648), (_on_slope(0.648), 0.648)]
    # The slots of the lever are cut where the part of the face contains it; collision shapes are without slots.
    for outline, start, end in ((face, -0.44, left), (face, right, 0.44), (beam, left, right)):
        if start < table.switch_x < end:
            _add_slotted_face(link, wood, outline, start, table.switch_x, end)
        else:
            wood.add_prism(outline, 0, start, end)
        hull = Mesh()
        hull.add_prism(outline, 0, start, end)
        link.hulls.append(hull)
    # The collar of the button and the socket of the bulb.
    collar = link.mesh("body_wood")
    collar.add_prism([(x + table.button_x, y - 0.12) for x, y in regular(16, 0.04)], 2, 0.4395, 0.46)
    link.cylinders.append(((table.button_x, -0.12, 0.45), "0 0 0", 0.04, 0.02))
    socket = link.mesh("metal")
    socket.add_prism([(x + table.switch_x, y + 0.16) for x, y in regular(12, 0.016)], 2, 0.647, 0.656)
    return link


def _add_slotted_face(
    link: Link, wood: Mesh, outline: list[tuple[float, float]], start: float, switch_x: float, end: float
) -> None:
    """Add a part of the cabinet's face with two slots for the lever, dark inside."""
    wood.add_prism(outline, 0, start, end)
    face = wood.polygons.pop()  # the slope; its first edge points down, its last one along x
    dark = link.mesh("dark")
    top = outline[-1][1]
    bottom = outline[0][1]
    down = [0.0, *((top - z) / (top - bottom) for z in reversed(SLOT_Z)), 1.0]
    # Fractions of the face along both edges: the slots are two cells of a grid of 3 x 5.
    sides = [switch_x + arm + side * SLOT_WIDTH / 2 for arm in (-0.051, 0.051) for side in (-1, 1)]
    along = [0.0, *((x - start) / (end - start) for x in sides), 1.0]
    for i, j in itertools.product(range(3), range(5)):
        part = cell(face, (down[i], down[i + 1]), (along[j], along[j + 1]))
        if i == 1 and j in (1, 3):
            # Floor and walls of the slot.
            hole = part[0]
            floor = [(x, y + SLOT_DEPTH * math.cos(math.pi / 6), z - SLOT_DEPTH / 2) for x, y, z in hole]
            dark.add_polygon(floor)
            for k in range(4):
                n = (k + 1) % 4
                dark.add_polygon([hole[k], hole[n], floor[n], floor[k]])
        else:
            wood.polygons.append(part)


def button_link() -> Link:
    """Return a round push button, 22 mm above its collar. Frame: x as the world, y up, z toward the camera."""
    link = Link("button_link", 0.154)
    cap = link.mesh(None, BLACK)
    cap.add_prism([(b, a) for a, b in reversed(regular(16, 0.0315))], 1, -0.004, 0.020)
    cap.add_prism([(b, a) for a, b in reversed(regular(16, 0.0270))], 1, 0.0195, 0.0235)
    link.cylinders.append(((0.0, 0.0115, 0.0), "1.570796327 0 0", 0.031, 0.024))
    return link


def switch_link() -> Link:
    """Return a lever: two rods and a bar. Frame: y out of the cabinet's face, z down the face."""
    link = Link("switch_link", 0.239)
    rods: list[Box] = [
        ((-0.059, -0.004, -0.018), (-0.043, 0.046, 0.002)),
        ((0.043, -0.004, -0.018), (0.059, 0.046, 0.002)),
    ]
    bar: Box = ((-0.060, 0.042, -0.024), (0.060, 0.064, 0.008))
    gray = link.mesh(None, METAL)
    for low, high in rods:
        gray.add_box(low, high)
    gray.add_prism([(y + 0.053, z - 0.008) for y, z in chamfered(0.022, 0.032, 0.007)], 0, -0.060, 0.060)
    link.boxes = [*rods, bar]
    return link


def slide_link() -> Link:
    """Return the sliding door with an upright handle. Frame: x as the world, y up the cabinet's face, z out of it."""
    link = Link("slide_link", 1.54)
    door: Box = ((0.0, -0.109, 0.002), (0.28, 0.109, 0.018))
    posts: list[Box] = [
        ((0.126, -0.078, 0.018), (0.154, -0.058, 0.066)),
        ((0.126, 0.058, 0.018), (0.154, 0.078, 0.066)),
    ]
    bar: Box = ((0.122, -0.078, 0.060), (0.158, 0.078, 0.080))
    wood = link.mesh("front_wood")
    wood.add_box(*door)
    gray = link.mesh(None, HANDLE_GRAY)
    for low, high in posts:
        gray.add_box(low, high)
    gray.add_prism([(z + 0.070, x + 0.140) for z, x in chamfered(0.020, 0.036, 0.006)], 1, -0.078, 0.078)
    link.boxes = [door, *posts, bar]
    return link


def drawer_link() -> Link:
    """Return an open box with a front panel and a handle. Frame: x as the world, y up, z toward the camera."""
    link = Link("drawer_link", 4.23)
    boards: list[Box] = [
        ((-0.198, 0.0, -0.06), (0.198, 0.02, 0.16)),
        ((-0.198, 0.02, -0.06), (-0.18, 0.078, 0.16)),
        ((0.18, 0.02, -0.06), (0.198, 0.078, 0.16)),
        ((-0.18, 0.02, -0.06), (0.18, 0.078, -0.042)),
        ((-0.22, -0.019, 0.161), (0.22, 0.0795, 0.179)),
    ]
    wood = link.mesh("front_wood")
    for low, high in boards:
        wood.add_box(low, high, grain_axis=0)
    posts: list[Box] = [
        ((-0.118, 0.028, 0.179), (-0.100, 0.052, 0.246)),
        ((0.100, 0.028, 0.179), (0.118, 0.052, 0.246)),
    ]
    bar: Box = ((-0.120, 0.023, 0.240), (0.120, 0.057, 0.260))
    gray = link.mesh(None, HANDLE_GRAY)
    for low, high in posts:
        gray.add_box(low, high)
    gray.add_prism([(y + 0.040, z + 0.250) for y, z in chamfered(0.034, 0.020, 0.006)], 0, -0.120, 0.120)
    link.boxes = [*boards, *posts, bar]
    return link


def led_link() -> Link:
    """Return a light strip on top of the cabinet."""
    link = Link("led_link", 0.204)
    strip: Box = ((-0.08, 0.0005, -0.02), (0.08, 0.016, 0.02))
    link.mesh().add_box(*strip)
    link.boxes = [strip]
    return link


def light_link(table: Table) -> Link:
    """Return a round bulb on top of the cabinet; collision is a box inside it."""
    link = Link("light_link", 0.174)
    depth = table.bulb_y - 0.16  # the frame is at y 0.16, and its z points toward the camera
    add_ball(link.mesh(), (0.0, 0.032, depth), 0.027)
    link.boxes = [((-0.02, 0.006, depth - 0.02), (0.02, 0.052, depth + 0.02))]
    return link


def plank_link() -> Link:
    """Return the shelf behind the door, 0.52 x 0.14."""
    link = Link("plank_link", 2.84)
    shelf: Box = ((-0.26, 0.0, -0.07), (0.26, 0.02, 0.07))
    link.mesh("body_wood").add_box(*shelf, hidden=("-z",))
    hull = Mesh()
    hull.add_box(*shelf)
    link.hulls.append(hull)
    return link


def add_ball(mesh: Mesh, center: Point, radius: float, *, rings: int = 7, sides: int = 12) -> None:
    """Add a ball of flat facets, poles along y.

    Args:
        mesh: the facets are added here.
        center: (x, y, z) of the ball in the frame of the mesh, in meters.
        radius: of the ball, in meters.
        rings: number of rings of facets from pole to pole.
        sides: number of facets around each ring.
    """
    for i in range(rings):
        low = math.pi * i / rings
        high = math.pi * (i + 1) / rings
        for k in range(sides):
            a = 2 * math.pi * k / sides
            b = 2 * math.pi * (k + 1) / sides
            corners: list[Point] = []
            for polar, azimuth in ((low, a), (high, a), (high, b), (low, b)):
                ring = radius * math.sin(polar)
                x = center[0] + ring * math.sin(azimuth)
                y = center[1] + radius * math.cos(polar)
                z = center[2] + ring * math.cos(azimuth)
                corners.append((round(x, 6), round(y, 6), round(z, 6)))
            # At the poles two corners coincide.
            keep = [corner for n, corner in enumerate(corners) if corner not in corners[:n]]
            mesh.add_polygon(keep)


def link_urdf(link: Link, files: Files, folder: str) -> list[str]:
    """Return the URDF lines of a link, with all lengths divided by the global scaling.

    Args:
        link: the link, lengths as in the world.
        files: its meshes are added here.
        folder: path of the meshes, relative to the assets folder.
    """
    lines = [f'  <link name="{link.name}">', f'    <contact><lateral_friction value="{TABLE_FRICTION}"/></contact>']
    lines.append(f'    <inertial><origin xyz="{number_list(_center(link))}"/><mass value="{link.mass}"/>')
    lines.append('      <inertia ixx="0.01" ixy="0" ixz="0" iyy="0.01" iyz="0" izz="0.01"/></inertial>')
    for number, (mesh, texture, rgba) in enumerate(link.visuals):
        # One mesh per visual, tessellated for the static camera.
        name = f"{link.name}_{number}.obj"
        scaled = _rescaled(mesh)
        cut = Mesh(
            polygons=tessellate(scaled.polygons, static_view(rotation=FRAME_ROTATION.get(link.name, 0.0), scale=SCALE))
        )
        files[f"{folder}/{name}"] = cut.obj(texture).encode()
        color = " ".join(f"{value:g}" for value in rgba)
        lines.append(f'    <visual><geometry><mesh filename="../meshes/{name}"/></geometry>')
        lines.append(f'      <material name="{link.name}_{number}"><color rgba="{color}"/></material></visual>')
    for low, high in link.boxes:
        # URDF boxes are given by center and full size.
        center = [(a + b) / 2 / SCALE for a, b in zip(low, high, strict=True)]
        size = [(b - a) / SCALE for a, b in zip(low, high, strict=True)]
        shape = f'<box size="{number_list(size)}"/>'
        lines.append(f'    <collision><origin xyz="{number_list(center)}"/><geometry>{shape}</geometry></collision>')
    for middle, rpy, radius, length in link.cylinders:
        center = [value / SCALE for value in middle]
        shape = f'<cylinder radius="{radius / SCALE:.6g}" length="{length / SCALE:.6g}"/>'
        lines.append(
            f'    <collision><origin xyz="{number_list(center)}" rpy="{rpy}"/><geometry>{shape}</geometry></collision>'
        )
    for number, hull in enumerate(link.hulls):
        name = f"{link.name}_hull_{number}.obj"
        files[f"{folder}/{name}"] = _rescaled(hull).obj().encode()
        lines.append(f'    <collision><geometry><mesh filename="../meshes/{name}"/></geometry></collision>')
    return [*lines, "  </link>"]


def _rescaled(mesh: Mesh) -> Mesh:
    """Return a mesh with all lengths divided by the global scaling."""
    polygons = [([(x / SCALE, y / SCALE, z / SCALE) for x, y, z in points], uv) for points, uv in mesh.polygons]
    return Mesh(grain=mesh.grain, polygons=polygons)


def _center(link: Link) -> list[float]:
    """Return the center of mass of the collision boxes, by volume; the origin for a link without boxes."""
    # Links without mass never move.
    if link.mass == 0 or not link.boxes:
        return [0.0, 0.0, 0.0]
    weights = [math.prod(b - a for a, b in zip(low, high, strict=True)) for low, high in link.boxes]
    moment = [
        sum(w * (low[k] + high[k]) / 2 for w, (low, high) in zip(weights, link.boxes, strict=True)) for k in range(3)
    ]
    return [value / sum(weights) / SCALE for value in moment]


def joints_urdf(table: Table) -> list[str]:
    """Return the URDF lines of the seven joints, in the order that decides their indices."""
    quarter = "1.570796327 0 0"
    rows = [
        ("button", "prismatic", (table.button_x, -0.12, 0.46), quarter, "0 -1 0", 0.02),
        ("switch", "prismatic", (table.switch_x, 0.060928203, 0.494889727), "2.617993878 0 0", "0 0 -1", 0.088),
        ("slide", "prismatic", (table.slide_x, 0.075, 0.535264), "1.047197551 0 0", "-1 0 0", table.slide_range),
        ("drawer", "prismatic", (table.drawer_x, 0.0, 0.32), quarter, "0 0 1", 0.22),
        ("led", "fixed", (table.button_x, 0.16, 0.647846), quarter, None, None),
        ("light", "fixed", (table.switch_x, table.bulb_y, 0.647848), quarter, None, None),
        ("plank", "fixed", (table.plank_x, 0.09, 0.42), quarter, None, None),
    ]
    lines = []
    for name, kind, position, rpy, axis, upper in rows:
        lines.append(f'  <joint name="base__{name}" type="{kind}">')
        lines.append(f'    <origin xyz="{number_list([value / SCALE for value in position])}" rpy="{rpy}"/>')
        lines.append(f'    <parent link="base_link"/><child link="{name}_link"/>')
        if axis is not None and upper is not None:
            lines.append(f'    <axis xyz="{axis}"/>')
            lines.append(f'    <limit lower="0" upper="{upper / SCALE:.6g}" effort="0" velocity="0"/>')
        lines.append("  </joint>")
    return lines
