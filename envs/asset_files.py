"""From the `assets` option of an environment to a directory in which every file that a scene needs exists.

`builtin` is the set that comes with this package; anything else is a directory with the layout of `calvin_env/data`.
The files are followed from URDF to mesh and, for table and ground, on to material and texture, because PyBullet passes
over a missing texture in silence. The original robot meshes name materials that were never published; those are not
looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vw2_robot.errors import InputError

from .scene import scene_files

BUILTIN_ASSETS = Path(__file__).parent / "assets"

_MESH = re.compile(r'filename="([^"]+)"')
_MATERIAL_FILE = re.compile(rb"^mtllib[ \t]+(\S.*?)\s*$", re.MULTILINE)
_TEXTURE = re.compile(r"^\s*map_Kd\s+(\S.*?)\s*$", re.MULTILINE)
_MESH_HEAD_BYTES = 4096  # an .obj names its material file before its vertices
_SHOWN = 8


def find_assets(assets: str | Path, scene: str) -> Path:
    """The directory behind `assets`, or InputError that lists what scene `scene` misses in it."""
    root = BUILTIN_ASSETS if str(assets) == "builtin" else Path(assets)
    if not root.is_dir():
        raise InputError(f'assets: {root} is no directory; give "builtin" or a directory laid out like calvin_env/data')
    files = scene_files(scene)
    missing: dict[Path, None] = {}
    for urdf in (files.robot, *files.blocks, files.table, files.plane):
        missing.update(dict.fromkeys(_missing_behind(root / urdf, materials=urdf != files.robot)))
    if missing:
        names = [_below(path, root) for path in missing]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise InputError(
            f"assets: {root} misses {len(names)} file(s) of scene {scene}: {', '.join(names[:_SHOWN])}{more}; "
            'give "builtin" or a directory laid out like calvin_env/data'
        )
    return root.resolve()


def _missing_behind(urdf: Path, *, materials: bool) -> Iterator[Path]:
    """The files that `urdf` leads to and that are not there, itself included."""
    if not urdf.is_file():
        yield urdf
        return
    for name in _MESH.findall(urdf.read_text(errors="replace")):
        mesh = urdf.parent / name.removeprefix("package://")
        if not mesh.is_file():
            yield mesh
        elif materials and mesh.suffix.lower() == ".obj":
            yield from _missing_materials(mesh)


def _missing_materials(mesh: Path) -> Iterator[Path]:
    with mesh.open("rb") as file:
        named = _MATERIAL_FILE.search(file.read(_MESH_HEAD_BYTES))
    if named is None:
        return
    material = mesh.parent / named[1].decode(errors="replace")
    if not material.is_file():
        yield material
        return
    for texture in _TEXTURE.findall(material.read_text(errors="replace")):
        if not (material.parent / texture).is_file():
            yield material.parent / texture


def _below(path: Path, root: Path) -> str:
    """`path` as seen from `root`, without detours through `..`."""
    parts: list[str] = []
    for part in path.relative_to(root).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
