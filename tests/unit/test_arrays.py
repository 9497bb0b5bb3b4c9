"""An .npz of ours: whole or told, whatever bit was flipped and wherever it was cut."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vw2_robot.arrays import read_arrays, write_arrays
from vw2_robot.errors import InputError

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


def test_what_numpy_would_unpack_or_believe_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "packed.npz", a=np.zeros(10))
    with pytest.raises(InputError, match=r"packed\.npz holds a\.npy compressed.*; make it again"):
        read_arrays(tmp_path / "packed.npz", cure="make it again")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"pickled\.npz is damaged.*make it again"):
        read_arrays(tmp_path / "pickled.npz", cure="make it again")
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (2**60,)})
    with (tmp_path / "huge.npz").open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", content.getvalue())
    with pytest.raises(InputError, match=r"huge\.npz is damaged"):
        read_arrays(tmp_path / "huge.npz", cure="make it again")
    write_arrays(tmp_path / "large.npz", {"a": np.zeros(1000)})
    with pytest.raises(InputError, match="expected at most 1000"):
        read_arrays(tmp_path / "large.npz", cure="make it again", most_bytes=1000)
    with pytest.raises(InputError, match=r"none\.npz is missing; make it again"):
        read_arrays(tmp_path / "none.npz", cure="make it again")
