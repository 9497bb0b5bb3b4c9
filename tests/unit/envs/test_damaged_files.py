"""Files that exist but are damaged are named, before PyBullet loads them."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from vw2_robot.envs.asset_files import BUILTIN_ASSETS, find_assets
from vw2_robot.envs.damaged_files import flaw_of
from vw2_robot.errors import InputError


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nothing(data: bytes) -> bytes:
    return b""


def noise(data: bytes) -> bytes:
    return bytes(range(256)) * 8


def half_the_lines(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: len(lines) // 2])


def no_number(data: bytes) -> bytes:
    return data.replace(b"\nf ", b"\nf " + b"1" * 5000 + b" ", 1)


def poster(data: bytes, side: int = 60_000) -> bytes:
    """The same PNG, but for what its head says about its size."""
    head = data[12:16] + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


@pytest.mark.parametrize(
    ("pattern", "damage", "says"),
    [
        ("calvin_table_D/urdf/*.urdf", nothing, "is empty"),
        ("calvin_table_D/urdf/*.urdf", half, "is not well-formed XML"),
        ("calvin_table_D/urdf/*.urdf", noise, "is not well-formed XML"),
        ("franka_panda/*longer_finger.urdf", lambda data: b"<robot/>", "is no URDF: expected <robot> with .* <link>"),
        ("blocks/block_red_middle.urdf", lambda data: b"<html><body/></html>", "is no URDF: .* found <html>"),
        ("calvin_table_D/meshes/base_link_0.obj", nothing, "is empty"),
        ("calvin_table_D/meshes/base_link_0.obj", noise, r"holds no surface \(0 vertices, 0 faces\)"),
        ("calvin_table_D/meshes/base_link_0.obj", half, "is cut short|holds no surface|fewer than three"),
        ("calvin_table_D/meshes/base_link_0.obj", half_the_lines, "is cut short|holds no surface"),
        ("calvin_table_D/meshes/base_link_0.obj", lambda data: data[:-1], "stops in the middle of a line"),
        ("franka_panda/meshes/collision/hand.obj", half, "is cut short|holds no surface|fewer than three"),
        ("calvin_table_D/**/*.mtl", noise, "describes no material"),
        ("calvin_table_D/meshes/base_link_0.obj", no_number, "holds a face with a corner that is no number"),
        ("calvin_table_D/**/*.png", nothing, "is empty"),
        ("calvin_table_D/**/*.png", poster, "is too large an image"),
        ("calvin_table_D/**/*.png", lambda data: poster(data, 9_000), r"is too large an image \(9000 x 9000\)"),
        ("calvin_table_D/**/*.png", half, "is a damaged image"),
        ("calvin_table_D/**/*.png", noise, "is no image"),
    ],
)
def test_a_damaged_file_is_named_with_its_flaw(
    tmp_path: Path, pattern: str, damage: Callable[[bytes], bytes], says: str
) -> None:
    assets = Path(shutil.copytree(BUILTIN_ASSETS, tmp_path / "assets"))
    file = sorted(assets.glob(pattern))[0]
    file.write_bytes(damage(file.read_bytes()))
    name = file.relative_to(assets).as_posix()
    with pytest.raises(InputError, match=rf"holds 1 damaged file\(s\) of scene D: {name} ({says})") as caught:
        find_assets(assets, "D")
    assert 'restore them, or give "builtin"' in str(caught.value)


def test_a_mesh_that_lies_somewhere_else_is_named(tmp_path: Path) -> None:
    assets = Path(shutil.copytree(BUILTIN_ASSETS, tmp_path / "assets"))
    file = sorted(assets.glob("calvin_table_D/urdf/*.urdf"))[0]
    file.write_bytes(file.read_bytes().replace(b'filename="', b'filename="/nowhere/', 1))
    with pytest.raises(InputError, match=r"misses 1 file\(s\) of scene D: /nowhere/"):
        find_assets(assets, "D")


def test_a_file_is_looked_at_again_once_it_has_changed(tmp_path: Path) -> None:
    mesh = tmp_path / "triangle.obj"
    whole = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    mesh.write_text(whole)
    assert flaw_of(mesh) is None
    mesh.write_text(whole[:-4])
    assert flaw_of(mesh) == "holds a face with fewer than three corners"
    mesh.write_text(whole)
    assert flaw_of(mesh) is None


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\n", None),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1/1/1 2//2 3/1\n", None),
        (
            "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n",
            "is cut short or mixed up: it has 3 vertices, its faces use those up to 4",
        ),
    ],
)
def test_faces_must_fit_the_vertices(tmp_path: Path, text: str, flaw: str | None) -> None:
    mesh = tmp_path / "triangle.obj"
    mesh.write_text(text)
    assert flaw_of(mesh) == flaw


def test_a_binary_stl_must_be_as_long_as_it_says(tmp_path: Path) -> None:
    mesh = tmp_path / "part.STL"
    whole = bytes(80) + (2).to_bytes(4, "little") + bytes(100)
    mesh.write_bytes(whole)
    assert flaw_of(mesh) is None
    mesh.write_bytes(whole[:-1])
    assert flaw_of(mesh) == "is cut short or no STL: 2 triangles take 184 bytes, found 183"
    mesh.write_bytes(whole[:40])
    assert flaw_of(mesh) == "is cut short: 40 bytes"
    mesh.write_text("solid part\nendsolid part\n")
    assert flaw_of(mesh) is None


def test_the_folder_that_was_probably_meant_is_named(tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_ASSETS, tmp_path / "calvin_env" / "data")
    for given in (tmp_path, tmp_path / "calvin_env", tmp_path / "calvin_env" / "data" / "blocks"):
        with pytest.raises(InputError, match=r"misses 6 file\(s\) of scene D: .*did you mean .*calvin_env/data\?"):
            find_assets(given, "D")
