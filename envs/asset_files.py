"""The files of a scene: from the `assets` option to a directory in which every file exists and is undamaged.

`builtin` is the set that comes with this package; anything else is a directory with the layout of `calvin_env/data`.
References are followed from URDF to mesh and, for table and ground, on to material and texture, because PyBullet
ignores a missing texture silently. The original robot meshes name material files that were never published; those are
not checked. Existing files are also checked for damage (damaged_files.py).
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
_MTL_FILE = re.compile(rb"^mtllib[ \t]+(\S.*?)\s*$", re.MULTILINE)
_TEXTURE = re.compile(r"^\s*map_Kd\s+(\S.*?)\s*$", re.MULTILINE)
_MESH_HEAD_BYTES = 4096  # an .obj names its material file before its vertices
_SHOWN = 8
_ADVICE = 'give "builtin" or a directory laid out like calvin_env/data'


def find_assets(assets: str | Path, scene: str) -> Path:
    """Return the directory of the assets, after checking the files of a scene.

    Args:
        assets: "builtin" or a directory.
        scene: "A", "B", "C" or "D".

    Raises:
        InputError: no directory, or missing or damaged files, which it lists.
    """
    if not isinstance(assets, str | os.PathLike):
        raise InputError(f"assets: expected a directory, found {assets!r}; {_ADVICE}")
    root = BUILTIN_ASSETS if str(assets) == "builtin" else Path(assets)
    if not root.is_dir():
        raise InputError(f"assets: {root} is no directory; {_ADVICE}")
    files = scene_files(scene)
    needed: dict[Path, None] = {}
    for urdf in (files.robot, *files.blocks, files.table, files.plane):
        needed.update(dict.fromkeys(referenced_files(root / urdf, materials=urdf != files.robot)))
    missing = [path for path in needed if not path.is_file()]
    if missing:
        # Name the directory that was probably meant, if it is near.
        near = next(
            (d for d in (root / "data", root / "calvin_env" / "data", root.parent) if (d / files.robot).is_file()), None
        )
        advice = _ADVICE if near is None else f"did you mean {near}?"
        raise InputError(
            f"assets: {root} misses {len(missing)} file(s) of scene {scene}: "
            f"{_listed([_below(path, root) for path in missing])}; {advice}"
        )
    flaws = [f"{_below(path, root)} {flaw}" for path in needed if (flaw := flaw_of(path))]
    if flaws:
        raise InputError(
            f"assets: {root} holds {len(flaws)} damaged file(s) of scene {scene}: {_listed(flaws)}; restore them, or "
            'give "builtin"'
        )
    return root.resolve()


def referenced_files(urdf: Path, *, materials: bool) -> Iterator[Path]:
    """Yield a URDF file and the files that it refers to, whether or not they exist."""
    yield urdf
    if not urdf.is_file():
        return
    for name in _MESH.findall(urdf.read_text(errors="replace")):
        mesh = urdf.parent / name.removeprefix("package://")
        yield mesh
        if materials and mesh.suffix.lower() == ".obj" and mesh.is_file():
            with mesh.open("rb") as file:
                named = _MTL_FILE.search(file.read(_MESH_HEAD_BYTES))
            if named is None:
                continue
            mtl = mesh.parent / named[1].decode(errors="replace")
            yield mtl
            if mtl.is_file():
                for texture in _TEXTURE.findall(mtl.read_text(errors="replace")):
                    yield mtl.parent / texture


def _listed(names: list[str]) -> str:
    """Return the first names as one text, with the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _below(path: Path, root: Path) -> str:
    """Return `path` relative to `root`, with `..` resolved."""
    if not path.is_relative_to(root):
        return str(path)
    parts: list[str] = []
    for part in path.relative_to(root).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
