"""Array files: NumPy's own come back as they were, ours are whole or told, and no header is believed."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vw2_robot.errors import InputError
from vw2_robot.storage import arrays
from vw2_robot.storage.arrays import array_names, map_array, read_array, read_arrays, write_arrays

ARRAYS = {"actions": np.arange(42, dtype=np.float32).reshape(2, 3, 7), "about": np.array('{"hz": 5}')}


def test_arrays_survive_the_disk_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_arrays(tmp_path / name, ARRAYS)
    found = read_arrays(tmp_path / "a.npz", cure="make it again")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 8))
@example(place=0.859375, bit=0)  # the length of a comment, which then hides the second array
def test_a_flipped_bit_or_a_cut_is_never_silent(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    file = tmp_path_factory.mktemp("flipped") / "chain_0000.npz"
    write_arrays(file, ARRAYS)
    data = bytearray(file.read_bytes())
    if bit == 8:
        del data[int(place * len(data)) :]
    else:
        data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    try:
        found = read_arrays(file, cure="make it again")
    except InputError as error:
        assert str(file) in str(error)  # noqa: PT017 - either outcome is right
        return
    assert found.keys() == ARRAYS.keys()  # some bits of a zip archive mean nothing
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


KINDS = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.array(3),
    np.array("text"),
    np.array([b"ab", b"c"]),
    np.array([True, False]),
    np.zeros((0, 3), np.uint8),
    np.arange(3, dtype=">i4"),
    np.ones(2, np.complex64),
]


@pytest.mark.parametrize("array", KINDS, ids=lambda array: f"{array.dtype} {array.shape}")
def test_what_numpy_wrote_is_read_back(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array, y=np.zeros(2))
    np.savez_compressed(tmp_path / "b.npz", x=array)
    assert array_names(tmp_path / "a.npz", cure="") == ["x", "y"]
    whole = read_arrays(tmp_path / "a.npz", cure="")["x"]
    packed = read_arrays(tmp_path / "b.npz", ["x"], cure="")["x"]
    for found in (read_array(tmp_path / "a.npy", cure=""), map_array(tmp_path / "a.npy", cure=""), whole, packed):
        np.testing.assert_array_equal(found, array)
        assert (found.dtype, found.shape, type(found)) == (array.dtype, array.shape, np.ndarray)
    assert whole.flags.writeable


def npy(descr="|u1", shape="(4,)", order="False", content=b"abcd", version=1, more=b""):
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode() + more + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


HOSTILE = {
    "too large for any memory": npy(shape="(10000000000000,)"),
    "larger than itself": npy(shape="(5,)"),
    "smaller than itself": npy(shape="(3,)"),
    "negative": npy(shape="(-4,)"),
    "objects": npy(descr="|O", content=b"\x80\x04N."),
    "fields": npy(descr="|V4"),
    "no such kind": npy(descr="|u3"),
    "a header of code": npy(shape="(4 if True else 0,)"),
    "two shapes": npy(more=b"'shape': (4,)"),
    "a header without end": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "no header": b"\x93NUMPY\x01\x00",
    "another version": npy(version=9),
    "nothing": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_header_is_not_believed(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for read in (read_array, map_array):
        with pytest.raises(InputError, match=r"a\.npy cannot be read, it is damaged .*; copy it again"):
            read(tmp_path / "a.npy", cure="copy it again")
    with pytest.raises(InputError, match=r"a\.npz cannot be read, it is damaged .*; copy it again"):
        read_arrays(tmp_path / "a.npz", cure="copy it again")


def directory(path, name, field, change):
    """Change a byte of a member's entry in the directory at the end of an archive."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
        for info in archive.infolist():
            if info.filename == name:
                data[place + field] ^= change
            place += 46 + sum(struct.unpack("<HHH", data[place + 28 : place + 34]))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("field", "change"), [(8, 1), (10, 16), (10, 4), (16, 1), (46, 4)], ids=["key", "method", "bzip2", "sum", "name"]
)
def test_one_bit_of_an_archive_s_directory_is_noticed(tmp_path, field, change):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3), y=np.arange(4))
    directory(path, "y.npy", field, change)
    with pytest.raises(InputError, match=r"a\.npz .*"):
        read_arrays(path, cure="copy it again")
    if field == 46:  # a name that only looks absent
        with pytest.raises(InputError, match=r"a\.npz cannot be read, it is damaged"):
            array_names(path, cure="copy it again")
    np.testing.assert_array_equal(read_arrays(path, ["x"], cure="")["x"], np.arange(3))


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000))
    assert (tmp_path / "a.npz").stat().st_size < 1000
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 80_000)
    with pytest.raises(InputError, match="claims 80128 bytes, more than the 80000 allowed"):
        read_arrays(tmp_path / "a.npz", cure="")


def test_missing_files_and_names_are_told(tmp_path):
    for read in (read_array, map_array, array_names, read_arrays):
        with pytest.raises(InputError, match="none is missing; copy it again"):
            read(tmp_path / "none", cure="copy it again")
    np.savez(tmp_path / "a.npz", x=np.zeros(1), y=np.zeros(1))
    with pytest.raises(InputError, match=r"a\.npz holds no z; it holds x, y"):
        read_arrays(tmp_path / "a.npz", ["x", "z"], cure="")
