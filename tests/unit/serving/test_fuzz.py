"""Strangers at the server: whatever they send is answered or closed, robots are served on, and nothing grows."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vw2_robot.serving.client import PolicyClient
from vw2_robot.serving.server import PolicyServer, ServerSettings
from vw2_robot.serving.wire import pack, unpack

from .echo_policy import EchoPolicy

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed (extra serve)")
connect = pytest.importorskip("websockets.sync.client", reason="websockets is not installed (extra serve)").connect
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed

GROWTH_MIB = 20
MIB = 2**20


def good(rng: np.random.Generator) -> dict[str, Any]:
    return {"images": {"static": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)}, "prompt": "open"}


def random_bytes(rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(0, 300)))


def truncated(rng: np.random.Generator) -> bytes:
    whole = pack(good(rng))
    return whole[: int(rng.integers(0, len(whole)))]


def flipped(rng: np.random.Generator) -> bytes:
    whole = bytearray(pack(good(rng)))
    for place in rng.integers(0, len(whole), 5):
        whole[place] ^= 1 << int(rng.integers(8))
    return bytes(whole)


def wrong_array(rng: np.random.Generator) -> bytes:
    dtypes = ("|O", "<f4", "|u1", "<c8", "|S4", "<U9", "|V8", "<M8[s]", "u1,u1", "(9,)u1", "", 7, None)
    shapes = ([8, 8, 3], [2**62, 2**62], [-1], [], [0], [1.5], None, "x", [[1]], [1] * 99)
    array = {b"__ndarray__": True, b"data": bytes(192), b"dtype": dtypes[rng.integers(len(dtypes))]}
    array[b"shape"] = shapes[rng.integers(len(shapes))]
    return msgpack.packb({"images": {"static": array}, "prompt": "open"})


def not_an_image(rng: np.random.Generator) -> bytes:
    images = (
        np.full((8, 8, 3), np.nan, np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        np.uint8(3),
        [1, 2, 3],
        None,
    )
    return pack({**good(rng), "images": {"static": images[rng.integers(len(images))]}})


def bomb(rng: np.random.Generator) -> bytes:
    bombs = (b"\x91" * 5000, msgpack.packb([[]] * 5000), b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", bytes(MIB))
    return bombs[rng.integers(len(bombs))]


def text(rng: np.random.Generator) -> str:
    return "open the drawer" * int(rng.integers(1, 9))


KINDS: tuple[Callable[[np.random.Generator], bytes | str], ...] = (
    random_bytes, truncated, flipped, wrong_array, not_an_image, bomb, text,
)  # fmt: skip


class Stranger:
    """A client that sends frames; it connects again when it was closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection: Any = None

    def send(self, frame: bytes | str) -> str:
        """Return how the server dealt with it."""
        if self.connection is None:
            self.connection = connect(f"ws://127.0.0.1:{self.port}", compression=None, ping_interval=None).__enter__()
            self.connection.recv(10)
        try:
            self.connection.send(frame)
            answer = self.connection.recv(10)
        except ConnectionClosed:
            self.leave()
            return "closed"
        return "refused" if isinstance(answer, str) else "answered"

    def leave(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def vanish(port: int, rng: np.random.Generator, left: list[socket.socket]) -> None:
    """A client below the websocket: no HTTP, half a handshake or frame, a wrong opcode; it leaves, or stays silent."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    shake = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    shake += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    kind = int(rng.integers(5))
    if kind < 2:
        raw.sendall((rng.bytes(100), shake[:-9])[kind])
    else:
        raw.sendall(shake)
        raw.recv(100)
        raw.sendall(
            (struct.pack(">BBQ", 0x82, 0xFF, MIB) + bytes(99), b"\x8f\x80" + bytes(4), b"\x82\x05hello")[kind - 2]
        )
    if rng.random() < 0.1:
        left.append(raw)  # as slow as can be
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(rng.integers(2)), 0))  # some with a RST
    raw.close()


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@pytest.mark.parametrize("frames", [210, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_frame_is_answered_or_closed_and_the_server_lives_on(frames: int) -> None:
    settings = ServerSettings(port=0, max_requests_per_second=float("inf"), max_message_mib=0.5, max_connections=500)
    rng = np.random.default_rng(0)
    found: dict[str, int] = {}
    left: list[socket.socket] = []
    with PolicyServer(EchoPolicy(), settings) as server, PolicyClient(port=server.port) as robot:
        stranger = Stranger(server.port)
        for number in range(frames):
            how = stranger.send(KINDS[number % len(KINDS)](rng))
            found[how] = found.get(how, 0) + 1
            if number % 7 == 3:
                image = good(rng)
                assert robot.infer(image)["actions"][0, 0] == image["images"]["static"].sum()
            if number % 10 == 5:
                vanish(server.port, rng, left)
            if number % 50 == 9:
                stranger.leave()
            if number == frames // 3:
                before = resident_mib(), threading.active_count()
        assert resident_mib() < before[0] + GROWTH_MIB
        assert threading.active_count() <= before[1] + 1  # of the stranger, where it had just left
        assert server.counters.failed == 0
        assert robot.infer(good(rng))["actions"].shape == (4, 7)
        for raw in left:
            raw.close()
        stranger.leave()
    assert sum(found.values()) == frames
    assert found["refused"] > 0.7 * frames  # by a message; what cannot be read as a frame is closed
    assert found["answered"] > 0  # flipped bits of pixels make another image


def test_a_robot_that_reads_no_answers_delays_nobody() -> None:
    settings = ServerSettings(port=0, max_requests_per_second=float("inf"))
    with PolicyServer(EchoPolicy(), settings) as server, PolicyClient(port=server.port) as robot:
        rng = np.random.default_rng(0)
        with connect(f"ws://127.0.0.1:{server.port}", ping_interval=None) as deaf:
            for _ in range(50):
                deaf.send(pack(good(rng)))
            image = good(rng)
            assert robot.infer(image)["actions"][0, 0] == image["images"]["static"].sum()
            answers = [deaf.recv(10) for _ in range(51)]
    assert all("actions" in unpack(answer) for answer in answers[1:])
