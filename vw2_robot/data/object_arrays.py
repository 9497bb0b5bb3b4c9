"""Reading a pickled dictionary, bare or inside an `.npy` file, without trusting whoever wrote it.

CALVIN stores its language labels and its table of scenes as `np.save` of one Python dict, which NumPy can only read
with `allow_pickle=True`, that is, by running whatever the file asks for. Here such a file is decoded by an unpickler
that knows plain containers, numbers, text, and arrays of them, and nothing else: no class of ours, no function, and not
even NumPy's own reconstruction functions (a hand-made dtype state can make those read foreign memory). Everything else
is refused with a message that names what was asked for. The pickle copy of Open-X is read the same way.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from vw2_robot.errors import InputError

_PLAIN_KINDS = "biufcSUO"


class _PlainDtype:
    """Stand-in for `numpy.dtype` in a pickle: a kind, a width and a byte order, no fields, no subarrays."""

    def __init__(self, spec: str, align: object = False, copy: object = False) -> None:
        self.dtype = np.dtype(spec)
        if self.dtype.kind not in _PLAIN_KINDS or self.dtype.fields is not None:
            raise pickle.UnpicklingError(f"array of dtype {spec!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, fields = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in fields):
            raise pickle.UnpicklingError("structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _PlainArray(np.ndarray[Any, Any]):
    """An array that fills itself from a pickle with a dtype of our own making only."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        kind = dtype.dtype
        wanted = list if kind.kind == "O" else bytes
        if not isinstance(raw, wanted):
            raise pickle.UnpicklingError(f"array of {kind} with content of type {type(raw).__name__}")
        super().__setstate__((1, tuple(shape), kind, bool(fortran), raw))


def _array(subtype: object, shape: object, code: object) -> _PlainArray:
    return np.ndarray.__new__(_PlainArray, (0,), "b")


def _no_array(*arguments: object) -> None:
    """Stand in for the class `numpy.ndarray`, which pickles name only as the (here ignored) argument of `_array`."""
    raise pickle.UnpicklingError("a direct call of numpy.ndarray")


def _scalar(dtype: _PlainDtype, raw: bytes) -> Any:
    if dtype.dtype.kind == "O":
        raise pickle.UnpicklingError("scalar of objects")
    return np.frombuffer(raw, dtype=dtype.dtype, count=1)[0]


def _from_buffer(
    raw: object, dtype: _PlainDtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> Any:
    """Make the array of a protocol 5 pickle, whose content is bytes; `axes` is NumPy 2.5's, for order "K"."""
    if not isinstance(raw, bytes | bytearray) or dtype.dtype.kind == "O" or order not in ("C", "F", "K"):
        raise pickle.UnpicklingError(f"array of {dtype.dtype} with content of type {type(raw).__name__}")
    array = np.frombuffer(raw, dtype=dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array.transpose(axes) if order == "K" else array


def _bytes_of(text: object, encoding: object) -> bytes:
    """Make the bytes of a protocol 2 pickle, which knows text only and stores them as that."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): _PlainDtype,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("_codecs", "encode"): _bytes_of,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _array
    _ALLOWED[_module, "scalar"] = _scalar
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _ALLOWED[_module, "_frombuffer"] = _from_buffer


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def load_object(path: Path) -> Any:
    """Return the one Python object that `np.save(path, obj, allow_pickle=True)` stored; run no code from the file.

    Raises:
        InputError: the file is missing, is no `.npy` of one object, or asks for anything but plain data.
    """
    value = _load(path, inside_npy=True)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


def load_pickle(path: Path) -> Any:
    """Return the object in a pickle file; run no code from the file.

    Raises:
        InputError: the file is missing, damaged, or asks for anything but plain data.
    """
    return _load(path, inside_npy=False)


def _load(path: Path, *, inside_npy: bool) -> Any:
    try:
        with path.open("rb") as file:
            if inside_npy:
                _expect_one_object(file, path)
            return _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except InputError:
        raise
    except Exception as error:  # a broken or hostile pickle can fail in any way; it is never run, only refused
        hint = " (torch tensors among them: save them again as NumPy arrays)" if str(error).startswith("torch") else ""
        raise InputError(
            f"{path} is not readable as plain data ({type(error).__name__}: {error}); expected one pickled dictionary"
            f" of numbers, text and arrays. Files that need anything else are refused{hint}: reading them would run"
            " their code"
        ) from error


def _expect_one_object(file: BinaryIO, path: Path) -> None:
    version = npy_format.read_magic(file)  # type: ignore[no-untyped-call]
    reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = reader(file)  # type: ignore[no-untyped-call]
    if dtype.kind != "O" or shape != ():
        raise InputError(f"{path}: expected one pickled dictionary, found an array of {dtype} with shape {shape}")
