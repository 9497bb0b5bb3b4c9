"""Damage in URDF, mesh, material and texture files, found without PyBullet.

PyBullet loads half a mesh as if it were whole and shows a broken texture as white, with at most a line on its standard
output. A table with a hole is worse than an error, so every file is checked before it is loaded: is it readable,
complete, and of the type of its suffix? An undamaged file is not read again until it changes. Files may come from an
untrusted source, so their size is checked before they are read.
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
_STL_HEAD_BYTES = 84
_STL_TRIANGLE_BYTES = 50
MAX_BYTES = 2**28
MAX_PIXELS = 2**26
"""far above the largest file and texture of the benchmark"""


def flaw_of(path: Path) -> str | None:
    """Return what is wrong with an existing file, or None; other types of files pass."""
    status = path.stat()
    return _flaw_of(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _flaw_of(path: Path, changed_ns: int, size: int) -> str | None:
    # `changed_ns` is part of the cache's key alone: a file that changes is checked again.
    if size == 0:
        return "is empty"
    if size > MAX_BYTES:
        return f"is too large ({size} bytes, at most {MAX_BYTES} are read)"
    check = _CHECKS.get(path.suffix.lower())
    try:
        return check(path) if check else None
    except OSError as error:
        return f"cannot be read ({error})"


def urdf_flaw(path: Path) -> str | None:
    """Return what is wrong with a URDF file, or None."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        return f"is not well-formed XML ({error})"
    if root.tag != "robot" or root.find("link") is None:
        return f"is no URDF: expected <robot> with at least one <link>, found <{root.tag}>"
    return None


def obj_flaw(path: Path) -> str | None:
    """Return what is wrong with an OBJ mesh, or None."""
    data = path.read_bytes()
    # A mesh that was cut short has faces that use vertices which are not there, or the reverse.
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


def stl_flaw(path: Path) -> str | None:
    """Return what is wrong with an STL mesh, or None."""
    data = path.read_bytes()
    # A text file passes if it is complete; a binary one has a header with the number of triangles.
    if data.startswith(b"solid") and b"endsolid" in data[-256:]:
        return None
    if len(data) < _STL_HEAD_BYTES:
        return f"is cut short: {len(data)} bytes"
    (triangles,) = struct.unpack_from("<I", data, _STL_HEAD_BYTES - 4)
    expected = _STL_HEAD_BYTES + _STL_TRIANGLE_BYTES * triangles
    if len(data) != expected:
        return f"is cut short or no STL: {triangles} triangles take {expected} bytes, found {len(data)}"
    return None


def mtl_flaw(path: Path) -> str | None:
    """Return what is wrong with a material file, or None."""
    return None if b"newmtl" in path.read_bytes() else "describes no material (no line `newmtl`)"


def image_flaw(path: Path) -> str | None:
    """Return what is wrong with an image, or None."""
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
    ".urdf": urdf_flaw,
    ".obj": obj_flaw,
    ".stl": stl_flaw,
    ".mtl": mtl_flaw,
    ".png": image_flaw,
    ".jpg": image_flaw,
    ".jpeg": image_flaw,
}
