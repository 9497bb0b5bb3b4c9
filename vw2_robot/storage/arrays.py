"""Writing of NumPy's array files (`.npy`, `.npz`), and reading them without trust in their content.

NumPy's reader raises a dozen different exceptions for damaged files, some of them after it has tried to allocate all
memory: the header is an expression in Python's syntax, and its shape decides what is allocated. Here nothing is
allocated that is not in the file, every checksum of a zip archive is compared, and every damage ends in one InputError
with the file and what to do. Arrays of objects are pickles; `data.object_arrays` reads those.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError
from vw2_robot.storage.files import atomic_write

MAX_ARRAY_BYTES = 4 * 2**30
"""largest array that is unpacked from an archive; by compression a small file can hold much more"""
_MAX_HEADER_BYTES = 10_000
_END_RECORD_BYTES = 22  # of a zip archive, before its comment
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile and zlib raise for damaged archives; RuntimeError: encrypted, or of an unknown version.
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError)
_DAMAGE += (struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ArrayHeader:
    """The header of a `.npy` file: shape, type and order of the array that follows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]

    @property
    def num_bytes(self) -> int:
        """Return the size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], *, sync: bool = True) -> None:
    """Write an uncompressed .npz; equal arrays give equal bytes.

    Args:
        path: the file.
        arrays: by name.
        sync: as in `files.atomic_write`.
    """
    # In memory first: on a full disk zipfile would fail a second time, in a destructor.
    archive = io.BytesIO()
    np.savez(archive, **dict(arrays))
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_bytes(archive.getbuffer())


def read_array(path: Path, *, cure: str) -> NDArray[Any]:
    """Return the array in a `.npy` file.

    Args:
        path: the file.
        cure: what a user should do if it is damaged, as the end of the message.

    Raises:
        InputError: missing, damaged, or an array of objects.
    """
    with _named(path, cure), path.open("rb") as file:
        header = _checked_header(file, os.fstat(file.fileno()).st_size)
        return _array(header, bytearray(file.read()), 0)


def map_array(path: Path, *, cure: str) -> NDArray[Any]:
    """Return the array in a `.npy` file, mapped and read-only; raises like `read_array`."""
    with _named(path, cure), path.open("rb") as file:
        header = _checked_header(file, os.fstat(file.fileno()).st_size)
        return np.asarray(np.memmap(file, header.dtype, "r", file.tell(), header.shape, header.order))


def map_bytes(path: Path, *, cure: str) -> NDArray[np.uint8]:
    """Return the bytes of a file that is not empty, mapped and read-only; raises like `read_array`."""
    with _named(path, cure):
        return np.asarray(np.memmap(path, np.uint8, "r"))


def array_names(path: Path, *, cure: str) -> list[str]:
    """Return the names of the arrays in a `.npz` file; opens each, unpacks none, raises like `read_arrays`."""
    with _named(path, cure), zipfile.ZipFile(path) as archive:
        members = _members(archive)
        for info in members:
            archive.open(info).close()  # compares the two places where an archive keeps a name
        return [info.filename.removesuffix(".npy") for info in members]


def read_arrays(path: Path, names: Sequence[str] | None = None, *, cure: str) -> dict[str, NDArray[Any]]:
    """Return arrays of a `.npz` file by name. No other array is unpacked.

    Args:
        path: the file.
        names: of the arrays; None: all.
        cure: what a user should do if it is damaged, as the end of the message.

    Raises:
        InputError: missing, damaged, or without one of the names.
    """
    with _named(path, cure), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in _members(archive)}
        missing = [name for name in names or () if name not in members]
        if missing:
            raise InputError(f"{path} holds no {missing[0]}; it holds {', '.join(sorted(members))}; {cure}")
        arrays = {}
        for name in names if names is not None else members:
            info = members[name]
            if info.compress_type not in _METHODS:
                raise ValueError(
                    f"{info.filename} is compressed by method {info.compress_type}, which NumPy does not write"
                )
            if info.file_size > MAX_ARRAY_BYTES:
                raise ValueError(
                    f"{info.filename} claims {info.file_size} bytes, more than the {MAX_ARRAY_BYTES} allowed"
                )
            content = bytearray(archive.read(info))  # grows with what is there, not with the size in the header
            stream = io.BytesIO(content)
            header = _checked_header(stream, len(content))
            arrays[name] = _array(header, content, stream.tell())
        return arrays


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return what an archive holds; `zipfile` does not notice that a damaged length has hidden a member.

    Raises:
        ValueError: the end of the archive counts others.
    """
    members = archive.infolist()
    assert archive.fp is not None
    archive.fp.seek(-_END_RECORD_BYTES - len(archive.comment), os.SEEK_END)
    (count,) = struct.unpack_from("<H", archive.fp.read(_END_RECORD_BYTES), 10)
    # This many or more are counted in another place; no file of ours has them.
    if count not in (len(members), 0xFFFF):
        raise ValueError(f"it lists {len(members)} of its {count} arrays")
    return members


def read_header(stream: BinaryIO) -> ArrayHeader:
    """Read the header of a `.npy` file.

    Raises:
        ValueError, struct.error: it is none, or describes no plain array.
    """
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError("it does not begin like an array file")
    length_format = "<H" if magic[6] == 1 else "<I"
    (length,) = struct.unpack(length_format, stream.read(struct.calcsize(length_format)))
    text = stream.read(min(length, _MAX_HEADER_BYTES)).decode("latin-1")
    dtype = re.findall(r"'descr'\s*:\s*'([<>|=][biufcSUO]\d{0,9})'", text)
    order = re.findall(r"'fortran_order'\s*:\s*(True|False)", text)
    shape = re.findall(r"'shape'\s*:\s*\(([\d\s,L]*)\)", text)  # Python 2 wrote 3L
    if len(text) != length or not len(dtype) == len(order) == len(shape) == 1:
        raise ValueError("the header of the array is damaged, or describes no plain array")
    numbers = tuple(int(number) for number in shape[0].replace("L", "").split(",") if number.strip())
    try:
        kind = np.dtype(dtype[0])
    except TypeError as error:
        raise ValueError(str(error)) from error
    return ArrayHeader(numbers, kind, "F" if order[0] == "True" else "C")


def _checked_header(stream: BinaryIO, size: int) -> ArrayHeader:
    """Return the header of an array of numbers or text that fills the rest of a stream of `size` bytes."""
    header = read_header(stream)
    if header.dtype.hasobject:
        raise ValueError("it holds an array of objects")
    found = size - stream.tell()
    if found != header.num_bytes:
        raise ValueError(f"its header says {header.dtype} {header.shape}, {header.num_bytes} bytes, it holds {found}")
    return header


def _array(header: ArrayHeader, content: bytearray, offset: int) -> NDArray[Any]:
    """Return the array in a buffer, without a copy."""
    count = math.prod(header.shape)
    flat = np.frombuffer(content, header.dtype, count, offset) if count else np.empty(0, header.dtype)
    return flat.reshape(header.shape, order=header.order)


@contextmanager
def _named(path: Path, cure: str) -> Iterator[None]:
    """Turn every error with a file into an InputError; for the code of this module alone."""
    try:
        if not path.is_file() and path.exists():
            raise InputError(f"{path} is no file; {cure}")  # opening a pipe would block
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {cure}") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path} cannot be read ({error.strerror}); {cure}") from error
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read, it is damaged ({reason}); {cure}") from error
