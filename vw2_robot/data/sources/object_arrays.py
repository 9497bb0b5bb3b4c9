"""Safe reader of pickled dictionaries, bare or inside an `.npy` file.

CALVIN stores its language labels and its table of scenes as `np.save` of one Python dict, which NumPy can read only
with `allow_pickle=True`, that is, by running code from the file. Here such a file is decoded by an unpickler that
supports plain containers, numbers, text, and arrays of them only: no classes, no functions, and not even NumPy's own
reconstruction functions (a crafted dtype state can make those read memory outside the array). Everything else is
refused with a message that names it. The pickle copy of Open-X is read the same way.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vw2_robot.errors import InputError
from vw2_robot.storage.arrays import read_header

MAX_ENTRIES = 2_000_000
"""Limit of the objects in a file, shared ones counted each time: eight times the largest published label file."""
MAX_DEPTH = 100
_PLAIN_KINDS = "biufcSUO"


class _PlainDtype:
    """Stand-in for `numpy.dtype` in a pickle: a kind, a width and a byte order, no fields, no subarrays."""

    def __init__(self, spec: str, align: object = False, copy: object = False) -> None:
        if not isinstance(spec, str):
            raise pickle.UnpicklingError(f"dtype {type(spec).__name__}")
        # A spec such as "i4,f8" would make a structured dtype, which is refused below.
        self.dtype = np.dtype(spec)
        if self.dtype.kind not in _PLAIN_KINDS or self.dtype.fields is not None:
            raise pickle.UnpicklingError(f"array of dtype {spec!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        fields = state[2:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in fields):
            raise pickle.UnpicklingError("structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _PlainArray(np.ndarray[Any, Any]):
    """An array that takes its content from a pickle only with a checked `_PlainDtype`."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        kind = dtype.dtype
        wanted = list if kind.kind == "O" else bytes
        if not isinstance(raw, wanted):
            raise pickle.UnpicklingError(f"array of {kind} with content of type {type(raw).__name__}")
        # NumPy trusts the shape and would read behind the end of a shorter list.
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"array of shape {shape}")
        count = math.prod(shape)
        if len(raw) != count * (1 if kind.hasobject else kind.itemsize) or (count and not kind.itemsize):
            raise pickle.UnpicklingError(f"array of {kind} {tuple(shape)} with content of length {len(raw)}")
        super().__setstate__((1, tuple(shape), kind, bool(fortran), raw))


def _array(subtype: object, shape: object, code: object) -> _PlainArray:
    """Replace `numpy._core.multiarray._reconstruct`: an empty array, filled by `__setstate__`."""
    return np.ndarray.__new__(_PlainArray, (0,), "b")


def _no_array(*arguments: object) -> None:
    """Replace the class `numpy.ndarray`, which pickles name only as the first argument of `_array`."""
    raise pickle.UnpicklingError("a direct call of numpy.ndarray")


def _scalar(dtype: _PlainDtype, raw: bytes) -> Any:
    """Replace `numpy._core.multiarray.scalar`."""
    if dtype.dtype.kind == "O":
        raise pickle.UnpicklingError("scalar of objects")
    return np.frombuffer(raw, dtype=dtype.dtype, count=1)[0]


def _from_buffer(
    raw: object, dtype: _PlainDtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> Any:
    """Replace `numpy._core.numeric._frombuffer` of protocol 5; NumPy 2.5 adds `axes`, for order "K"."""
    if not isinstance(raw, bytes | bytearray) or dtype.dtype.kind == "O" or order not in ("C", "F", "K"):
        raise pickle.UnpicklingError(f"array of {dtype.dtype} with content of type {type(raw).__name__}")
    array = np.frombuffer(raw, dtype=dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array.transpose(axes) if order == "K" else array


def _bytes_of(text: object, encoding: object) -> bytes:
    """Replace `_codecs.encode`: protocol 2 has no bytes and stores them as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): _PlainDtype,
    ("builtins", "complex"): complex,
    ("_codecs", "encode"): _bytes_of,
}
# NumPy 2 renamed these modules; files have either name.
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _array
    _ALLOWED[_module, "scalar"] = _scalar
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _ALLOWED[_module, "_frombuffer"] = _from_buffer


class _PlainUnpickler(pickle.Unpickler):
    # Every way in which a pickle can name code leads here.
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


class _Size:
    """Size of an object on the stack: the objects in it, their depth, and whether it is part of another object."""

    __slots__ = ("depth", "entries", "used")

    def __init__(self, *, used: bool = False) -> None:
        self.entries = 1
        self.depth = 0
        self.used = used

    def take(self, parts: list[_Size]) -> None:
        for part in parts:
            self.entries += part.entries
            self.depth = max(self.depth, part.depth + 1)
            part.used = True
        if self.entries > MAX_ENTRIES or self.depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"more than {MAX_ENTRIES} objects, or more than {MAX_DEPTH} levels")


# One for all texts and numbers: they hold nothing, so it never changes.
_LEAF = _Size(used=True)
_NEEDS = {opcode.name: [kind.name for kind in opcode.stack_before] for opcode in pickletools.opcodes}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_HASHES = {"SETITEM": 2, "SETITEMS": 2, "DICT": 2, "ADDITEMS": 1, "FROZENSET": 1}
"""opcode -> every so manieth part is a key, which is hashed"""


def _check_size(stream: BinaryIO) -> None:
    """Simulate a pickle's stack machine, and refuse a pickle that would take too much time or memory.

    No object may change once another one holds it (so none holds itself), and keys must be text or numbers. Then the
    size of an object is known when it is used, and the time to read a file is proportional to its size.

    Raises:
        pickle.UnpicklingError, ValueError, LookupError: it would take too much, or the file is no pickle.
    """
    stack: list[_Size] = []
    marks: list[int] = []
    memo: dict[int, _Size] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if count >= MAX_ENTRIES:
            raise pickle.UnpicklingError(f"more than {MAX_ENTRIES} instructions")
        # Long integers take quadratic time to read.
        if isinstance(argument, int) and not -(2**63) <= argument < 2**64:
            raise pickle.UnpicklingError("a number of more than 64 bits")
        if name in _PUTS:
            slot = len(memo) if argument is None else argument
            if slot > count:  # the unpickler allocates all slots below
                raise pickle.UnpicklingError(f"slot {slot} after {count} instructions")
            memo[slot] = stack[-1]
        elif name in _GETS or name == "DUP":
            found = memo[argument] if isinstance(argument, int) else stack[-1]
            found.used = True
            stack.append(found)
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            # Every other instruction takes some objects off the stack and puts one on it, or none.
            needs = _NEEDS[name]
            begin = len(stack) - len(needs)
            if "mark" in needs:
                begin = marks.pop() - needs.index("mark")
            if begin < (marks[-1] if marks else 0):
                raise pickle.UnpicklingError(f"{name} without what it needs")
            # A filling instruction changes its first object, the others are its new parts.
            parts = stack[begin:]
            del stack[begin:]
            made = parts.pop(0) if name in _FILLS else _LEAF
            if name in _FILLS and made.used:
                raise pickle.UnpicklingError(f"{name} of an object that is part of another")
            if name in _HASHES and any(part is not _LEAF for part in parts[:: _HASHES[name]]):
                raise pickle.UnpicklingError(f"{name} with a key that is no text or number")
            if made is _LEAF and (parts or "mark" in needs or name.startswith("EMPTY")):
                made = _Size()
            made.take(parts)
            stack += [made] * len(opcode.stack_after)


def load_object(path: Path) -> Any:
    """Return the one Python object that `np.save(path, obj, allow_pickle=True)` stored; run no code from the file.

    Raises:
        InputError: the file is missing, is no `.npy` of one object, or holds anything but plain data.
    """
    value = _load(path, inside_npy=True)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


def load_pickle(path: Path) -> Any:
    """Return the object in a pickle file; run no code from the file.

    Raises:
        InputError: the file is missing, damaged, or holds anything but plain data.
    """
    return _load(path, inside_npy=False)


def _load(path: Path, *, inside_npy: bool) -> Any:
    try:
        stream = io.BytesIO(path.read_bytes())  # in memory, so that a wrong length in the pickle cannot allocate more
        if inside_npy:
            header = read_header(stream)
            if not header.dtype.hasobject or header.shape != ():
                raise InputError(
                    f"{path}: expected one pickled dictionary, found an array of {header.dtype} with shape "
                    f"{header.shape}"
                )
        begin = stream.tell()
        _check_size(stream)
        stream.seek(begin)
        return _PlainUnpickler(stream).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except InputError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise any error; it is never run, only refused
        advice = (
            " (torch tensors among them: save them again as NumPy arrays)" if str(error).startswith("torch") else ""
        )
        raise InputError(
            f"{path} is not readable as plain data ({type(error).__name__}: {error}); expected one pickled dictionary"
            f" of numbers, text and arrays. Files that need anything else are refused{advice}: reading them would run"
            " their code"
        ) from error
