"""NumPy archives (.npz) on disk: written whole, and read so that no damage and no stranger's file goes unnoticed.

`numpy.load` compares a checksum only where it happens to read an array to its end, and believes what a header says
about sizes. Here every member is read and checked first, and no more than the file's own size is taken.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError
from vw2_robot.storage import atomic_write

MAX_BYTES = 2**30
# What zipfile and NumPy raise for damage depends on where it is.
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    OverflowError,
)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], *, sync: bool = True) -> None:
    """Write an uncompressed .npz; equal arrays give equal bytes."""
    archive = io.BytesIO()  # on a full disk zipfile would fail a second time, where nobody can catch it
    np.savez(archive, **dict(arrays))
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_bytes(archive.getbuffer())


def read_arrays(path: Path, *, cure: str, most_bytes: int = MAX_BYTES) -> dict[str, NDArray[Any]]:
    """All arrays of a file that `write_arrays` wrote.

    Args:
        path: the file.
        cure: what a person should do if it is missing or damaged, as the end of the message.
        most_bytes: larger files are refused.

    Raises:
        InputError: missing, unreadable, damaged, compressed or too large.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise InputError(f"{path} has {size} bytes, expected at most {most_bytes}; {cure}")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if packed := [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]:
                raise InputError(f"{path} holds {packed[0]} compressed, which is not how it was written; {cure}")
            contents = {member.filename: archive.read(member) for member in members}
        return {name.removesuffix(".npy"): _array(content) for name, content in contents.items()}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {cure}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); {cure}") from error
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {cure}") from error


def _array(content: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)  # type: ignore[no-untyped-call]
    return array
