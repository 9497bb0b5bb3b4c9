"""The wire format: what comes back is what went in, and nothing that a stranger sends is larger than its message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.serving.wire import MAX_CONTAINERS, MAX_LENGTH, pack, unpack

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed (extra serve)")


def as_array(**changes: Any) -> bytes:
    whole: dict[Any, Any] = {b"__ndarray__": True, b"data": bytes(6), b"dtype": "|u1", b"shape": [2, 3]}
    return msgpack.packb(whole | {key.encode(): value for key, value in changes.items()})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        np.arange(6, dtype=">i8").reshape(3, 2).T,
        np.float16(0.5),
        np.zeros((0, 3), np.float32),
        np.array(True),
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}",
)
def test_arrays_and_scalars_come_back_with_type_and_shape(array: Any) -> None:
    for value in (unpack(pack({"x": [array]}))["x"][0], unpack(pack(array), writable=True)):
        np.testing.assert_array_equal(value, array)
        assert (value.dtype, value.shape, type(value)) == (array.dtype, array.shape, type(array))


def test_the_client_gets_arrays_that_it_may_change() -> None:
    message = pack(np.zeros(3))
    assert unpack(message, writable=True).flags.writeable
    assert not unpack(message).flags.writeable


@pytest.mark.parametrize(
    "value",
    [np.array([None]), np.array(["x"]), np.complex64(1), object(), {1, 2}],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_not_sent(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        pack({"x": value})


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "no msgpack"),
        (pack({"x": np.zeros(9)})[:-1], "no msgpack"),
        (b"\xc1", "no msgpack"),
        (pack(1) + pack(2), "no msgpack"),
        (b"\xdd\xff\xff\xff\xff", "no msgpack"),  # a list of 2^32 entries
        (b"\x91" * 100_000, "no msgpack"),  # lists in lists
        (msgpack.packb(msgpack.Timestamp(0)), "no msgpack"),
        (b"\xa2\xff\xfe", "no msgpack"),  # text that is no UTF-8
        (msgpack.packb({1: 2}), "no msgpack"),
        (msgpack.packb([[]] * (MAX_LENGTH // 2)), f"more than {MAX_CONTAINERS} lists"),
        (as_array(shape=[2**40, 2**40]), "bytes, found 6"),
        (as_array(shape=[-2, -3]), "up to 8 sizes"),
        (as_array(shape=[1] * 40), "up to 8 sizes"),
        (as_array(shape="23"), "up to 8 sizes"),
        (as_array(shape=[True, 6]), "up to 8 sizes"),
        (as_array(data="aaaaaa"), "found str"),
        (as_array(dtype="|O"), "dtype"),
        (as_array(dtype="u1,u1"), "dtype"),
        (as_array(dtype="(1000000000,)u1"), "dtype"),
        (as_array(dtype="<f3"), "dtype"),
        (as_array(dtype=["a"]), "dtype"),
        (msgpack.packb({b"__ndarray__": True}), "dtype"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}), "must be a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_or_huge_message_is_refused_by_name(message: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        unpack(message)
