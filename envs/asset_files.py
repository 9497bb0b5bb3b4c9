"""From the `assets` option of an environment to a directory in which every file that a scene needs exists and is whole.

`builtin` is the set that comes with this package; anything else is a directory with the layout of `calvin_env/data`.
The files are followed from URDF to mesh and, for table and ground, on to material and texture, because PyBullet passes
over a missing texture in silence. The original robot meshes name materials that were never published; those are not
looked for. What is there is looked at, too (damaged_files.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vw2_robot.errors import InputError

from .damaged_files import flaw_of
from .scene import scene_files

BUILTIN_ASSETS = Path(__file__).parent / "assets"

_MESH = re.compile(r'filename="([^"]+)"')
_MATERIAL_FILE = re.compile(rb"^mtllib[ \t]+(\S.*?)\s*$", re.MULTILINE)
_TEXTURE = re.compile(r"^\s*map_Kd\s+(\S.*?)\s*$", re.MULTILINE)
_MESH_HEAD_BYTES = 4096  # an .obj names its material file before its vertices
_SHOWN = 8
_ADVICE = 'give "builtin" or a directory laid out like calvin_env/data'


def find_assets(assets: str | Path, scene: str) -> Path:
    """The directory behind `assets`, or InputError that lists what scene `scene` misses in it, or what is damaged."""
    if not isinstance(assets, str | os.PathLike):
        raise InputError(f"assets: expected a directory, found {assets!r}; {_ADVICE}")
    root = BUILTIN_ASSETS if str(assets) == "builtin" else Path(assets)
    if not root.is_dir():
        raise InputError(f"assets: {root} is no directory; {_ADVICE}")
    files = scene_files(scene)
    needed: dict[Path, None] = {}
    for urdf in (files.robot, *files.blocks, files.table, files.plane):
        needed.update(dict.fromkeys(_behind(root / urdf, materials=urdf != files.robot)))
    missing = [path for path in needed if not path.is_file()]
    if missing:
        raise InputError(
            f"assets: {root} misses {len(missing)} file(s) of scene {scene}: "
            f"{_listed([_below(path, root) for path in missing])}; {_hint(root, files.robot)}"
        )
    flaws = [f"{_below(path, root)} {flaw}" for path in needed if (flaw := flaw_of(path))]
    if flaws:
        raise InputError(
            f"assets: {root} holds {len(flaws)} damaged file(s) of scene {scene}: {_listed(flaws)}; restore them, or "
            'give "builtin"'
        )
    return root.resolve()


def _behind(urdf: Path, *, materials: bool) -> Iterator[Path]:
    """The files that `urdf` leads to, itself first, whether or not they are there."""
    yield urdf
    if not urdf.is_file():
        return
    for name in _MESH.findall(urdf.read_text(errors="replace")):
        mesh = urdf.parent / name.removeprefix("package://")
        yield mesh
        if materials and mesh.suffix.lower() == ".obj" and mesh.is_file():
            yield from _materials_behind(mesh)


def _materials_behind(mesh: Path) -> Iterator[Path]:
    with mesh.open("rb") as file:
        named = _MATERIAL_FILE.search(file.read(_MESH_HEAD_BYTES))
    if named is None:
        return
    material = mesh.parent / named[1].decode(errors="replace")
    yield material
    if material.is_file():
        for texture in _TEXTURE.findall(material.read_text(errors="replace")):
            yield material.parent / texture


def _hint(root: Path, file: str) -> str:
    """What to do; names the directory that was probably meant, if one is near."""
    for near in (root / "data", root / "calvin_env" / "data", root.parent):
        if (near / file).is_file():
            return f"did you mean {near}?"
    return _ADVICE


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _below(path: Path, root: Path) -> str:
    """`path` as seen from `root`, without detours through `..`."""
    if not path.is_relative_to(root):
        return str(path)
    parts: list[str] = []
    for part in path.relative_to(root).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
