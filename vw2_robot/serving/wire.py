"""The wire format of openpi's websocket protocol: msgpack with NumPy arrays, read within bounds.

An array is a map {b"__ndarray__": True, b"data": bytes, b"dtype": dtype.str, b"shape": [...]}, a NumPy scalar
{b"__npgeneric__": True, b"data": number, b"dtype": dtype.str}. Nothing is pickled, and arrays hold numbers only. Server
and client share this file, so it needs numpy and msgpack alone.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError, require

SUBPROTOCOL = "vw2.1"
"""offered by our client: openpi's messages, and observations may have the keys `reset` and `seed`"""
EXTRA = "serve"

# A message of 8 MiB could otherwise become a gigabyte of empty lists.
MAX_CONTAINERS = 1024
MAX_LENGTH = 4096
MAX_TEXT = 2**16
MAX_DIMENSIONS = 8
_NUMBERS = re.compile(r"[<>|=]?[biuf]\d{1,2}")  # no objects, structures, complex numbers, nor text


def pack(value: Any) -> bytes:
    """Return the message of a value: dictionaries, lists, text, numbers and arrays of numbers."""
    return require("msgpack", extra=EXTRA).packb(value, default=_as_map)


def unpack(message: bytes, *, writable: bool = False) -> Any:
    """Return the value of a message, whoever sent it.

    Args:
        message: from `pack`, openpi's packer or a stranger.
        writable: copy arrays; else they are read-only views of the message.

    Raises:
        InputError: no msgpack, a damaged array, or more than the bounds of this file allow.
    """
    containers = 0

    def counted(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise InputError(f"the message has more than {MAX_CONTAINERS} lists and maps; send arrays as arrays")
        return container

    def as_array(found: dict[Any, Any]) -> Any:
        if b"__ndarray__" in counted(found):
            array = _array(found)
            return array.copy() if writable else array
        return _scalar(found) if b"__npgeneric__" in found else found

    try:
        return require("msgpack", extra=EXTRA).unpackb(
            message,
            object_hook=as_array,
            list_hook=counted,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_str_len=MAX_TEXT,
            max_ext_len=0,
        )
    except InputError:
        raise
    except ValueError as error:  # truncated, trailing bytes, too long, no UTF-8, too deep
        raise InputError(f"the message is no msgpack of at most {MAX_LENGTH} entries in a list ({error})") from error


def _as_map(value: Any) -> Any:
    """Return the map of an array or NumPy scalar."""
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a message cannot hold {type(value).__name__}")
    if value.dtype.kind not in "biuf":
        raise TypeError(f"a message cannot hold arrays of {value.dtype}; send numbers")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _array(found: dict[Any, Any]) -> NDArray[Any]:
    """Return the array of a map; its size is compared with that of its data before it is made."""
    dtype = _dtype(found)
    shape, data = found.get(b"shape"), found.get(b"data")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise InputError(f"the shape of an array must be up to {MAX_DIMENSIONS} sizes, found {shape!r:.100}")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        found_bytes = len(data) if isinstance(data, bytes) else type(data).__name__
        raise InputError(
            f"an array {shape} of {dtype} has {math.prod(shape) * dtype.itemsize} bytes, found {found_bytes}"
        )
    return np.ndarray(shape, dtype, buffer=data)


def _scalar(found: dict[Any, Any]) -> Any:
    """Return the NumPy scalar of a map; a number outside of its type wraps around."""
    value = found.get(b"data")
    if not isinstance(value, bool | int | float):
        raise InputError(f"a NumPy scalar must be a number, found {type(value).__name__}")
    with np.errstate(all="ignore"):
        return np.asarray(value).astype(_dtype(found))[()]


def _dtype(found: dict[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if isinstance(name, str) and _NUMBERS.fullmatch(name):
        try:
            return np.dtype(name)
        except TypeError:  # "f3"
            pass
    raise InputError(f"the dtype of an array must be one of numbers, such as '|u1' or '<f4', found {name!r:.100}")
