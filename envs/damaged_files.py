"""What is wrong with a URDF, mesh, material or texture file, told without PyBullet.

PyBullet loads half a mesh as if it were whole, shows a broken texture as white, and says so at most on its standard
output. A world with a hole in the table is worse than none, so every file is looked at before it is loaded: is it
readable, whole, of the kind its name says? Files that were in order are not read again until they change. The files
may be a stranger's: how large they are is looked at before they are read.
"""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_FACE = re.compile(rb"(?m)^f([ \t].*)$")
_CORNER = re.compile(rb"[ \t](-?\d+)")
_STL_HEAD_BYTES, _STL_TRIANGLE_BYTES = 84, 50
MAX_BYTES, MAX_PIXELS = 2**28, 2**26
"""far above the largest file and texture of the benchmark"""


def flaw_of(path: Path) -> str | None:
    """What is wrong with a file that exists, or None. Kinds of file that are not known here pass."""
    status = path.stat()
    return _flaw_of(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _flaw_of(path: Path, changed_ns: int, size: int) -> str | None:
    if size == 0:
        return "is empty"
    if size > MAX_BYTES:
        return f"is too large ({size} bytes, at most {MAX_BYTES} are read)"
    check = _CHECKS.get(path.suffix.lower())
    try:
        return check(path) if check else None
    except OSError as error:
        return f"cannot be read ({error})"


def _urdf_flaw(path: Path) -> str | None:
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        return f"is not well-formed XML ({error})"
    if root.tag != "robot" or root.find("link") is None:
        return f"is no URDF: expected <robot> with at least one <link>, found <{root.tag}>"
    return None


def _obj_flaw(path: Path) -> str | None:
    data = path.read_bytes()
    vertices = data.count(b"\nv ") + data.startswith(b"v ")
    faces = set(_FACE.findall(data))
    if not vertices or not faces:
        return f"holds no surface ({vertices} vertices, {len(faces)} faces)"
    try:
        corners = [[int(corner) for corner in _CORNER.findall(face)] for face in faces]
    except ValueError:  # more digits than Python reads
        return "holds a face with a corner that is no number"
    if min(map(len, corners)) < 3:
        return "holds a face with fewer than three corners"
    highest = max(map(max, corners))
    if min(map(min, corners)) > 0 and highest != vertices:  # negative numbers count backwards; those are not checked
        return f"is cut short or mixed up: it has {vertices} vertices, its faces use those up to {highest}"
    if not data.endswith(b"\n"):
        return "stops in the middle of a line"
    return None


def _stl_flaw(path: Path) -> str | None:
    data = path.read_bytes()
    if data.startswith(b"solid") and b"endsolid" in data[-256:]:
        return None
    if len(data) < _STL_HEAD_BYTES:
        return f"is cut short: {len(data)} bytes"
    (triangles,) = struct.unpack_from("<I", data, _STL_HEAD_BYTES - 4)
    expected = _STL_HEAD_BYTES + _STL_TRIANGLE_BYTES * triangles
    if len(data) != expected:
        return f"is cut short or no STL: {triangles} triangles take {expected} bytes, found {len(data)}"
    return None


def _mtl_flaw(path: Path) -> str | None:
    return None if b"newmtl" in path.read_bytes() else "describes no material (no line `newmtl`)"


def _image_flaw(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"is too large an image ({image.width} x {image.height})"
            image.load()
    except Image.DecompressionBombError:
        return "is too large an image"
    except UnidentifiedImageError:
        return "is no image"
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damage depends on where it is
        return f"is a damaged image ({error})"
    return None


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".urdf": _urdf_flaw,
    ".obj": _obj_flaw,
    ".stl": _stl_flaw,
    ".mtl": _mtl_flaw,
    ".png": _image_flaw,
    ".jpg": _image_flaw,
    ".jpeg": _image_flaw,
}
