"""A policy behind openpi's websocket protocol, for many robots at once.

    with PolicyServer(VW2Agent.from_pretrained("runs/first/finetune"), ServerSettings(port=0)) as server:
        print(server.port)

Each connection is an episode of its own: it gets the metadata, then an answer for each observation. The event loop runs
in one thread and the policy in another, so that pings and new robots are answered while the policy computes. Wrong
input gets a text frame that says what is wrong, and the connection stays; an error of the policy closes the connection,
without a traceback to the robot. docs/integrations/openpi.md describes what goes over the wire.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
import logging
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vw2_robot.errors import InputError, require
from vw2_robot.limits import Count, Rate, Unbounded

from .batching import Batcher, Counters, ServedPolicy
from .requests import read_request
from .wire import EXTRA, SUBPROTOCOL, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request as HttpRequest
    from websockets.http11 import Response

_LOG = logging.getLogger(__name__)
# Together less than `process.GRACE_SECONDS`, after which a program is killed.
LAST_ANSWERS_SECONDS = 4.0
CLOSE_SECONDS = 2.0
OPEN_SECONDS = 10.0
"""for the handshake of a connection"""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server listens, and what it grants to a client."""

    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0: all interfaces, use an api_key_file then"""
    port: int = 8000
    """0: any free one"""
    image_keys: dict[str, list[str]] = field(
        default_factory=lambda: {"static": ["observation/image", "observation/exterior_image_1_left"]}
    )
    """camera of the policy -> keys of an observation under which its image may be, beside images/CAMERA"""
    api_key_file: str | None = None
    """file with a key that clients must send (Authorization: Api-Key KEY); null: none"""
    max_batch_size: Count = 16
    """waiting requests in one call of the policy"""
    max_connections: Count = 64
    """robots at a time"""
    max_message_mib: Rate = 8.0
    """of an observation"""
    max_requests_per_second: Unbounded = 100.0
    """of a connection; later ones wait"""
    ping_interval_seconds: Rate = 30.0
    """between two pings to a client"""
    ping_timeout_seconds: Rate = 120.0
    """after which a client that does not answer a ping is gone"""
    metrics: bool = False
    """answer GET /metrics with counters, in the text format of Prometheus"""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16 or not self.max_requests_per_second > 0:
            raise ValueError(
                f"port ({self.port}) must lie in 0..65535, max_requests_per_second ({self.max_requests_per_second}) "
                "must be positive"
            )

    def api_key(self) -> str | None:
        """Return the key that clients must send.

        Raises:
            InputError: the file is missing or empty.
        """
        if self.api_key_file is None:
            return None
        try:
            key = Path(self.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"api_key_file={self.api_key_file} cannot be read ({error})") from error
        if not key:
            raise InputError(f"api_key_file={self.api_key_file} is empty; put a key of your choice into it")
        return key


class PolicyServer:
    """A server in a thread of its own, from `with` to its end.

    Args:
        policy: `VW2Agent`, or another policy with `clone`.
        settings: of the server.

    Attributes:
        port: that it listens on.
        counters: what happened so far.
    """

    port: int

    def __init__(self, policy: ServedPolicy, settings: ServerSettings) -> None:
        self.counters = Counters()
        self._policy = policy
        self._settings = settings
        self._api_key = settings.api_key()
        self._cameras = {
            camera: (f"images/{camera}", *settings.image_keys.get(camera, ())) for camera in policy.metadata["cameras"]
        }
        self._metadata = pack(
            {
                **policy.metadata,
                "action_horizon": policy.metadata["n_action_steps"],
                "image_keys": {camera: list(keys) for camera, keys in self._cameras.items()},
            }
        )
        self._admitted: set[ServerConnection] = set()
        self._in_progress = 0
        self._listening: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="policy server", daemon=True)

    def __enter__(self) -> PolicyServer:
        """Listen.

        Raises:
            InputError: the address cannot be used.
            MissingExtraError: the extra `serve` is not installed.
        """
        require("websockets", extra=EXTRA)
        self._thread.start()
        self.port = self._listening.result()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer what is in progress, within seconds, and close all connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def wait(self) -> None:
        """Wait for an error of the server, and raise it; without one this never ends."""
        self._ended.result()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if not self._listening.done():
                self._listening.set_exception(error)
                return
            _LOG.exception("the server ended by an error")  # for programs that do not call `wait`
            self._ended.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._batcher = Batcher(self._policy, max_batch_size=self._settings.max_batch_size, counters=self.counters)
        try:
            # The first call takes longer, and a policy that cannot act raises here.
            images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in self._cameras}
            await self._batcher.infer(self._policy.clone(), {"images": images, "prompt": "wait"})
            server = await self._listen()
        except Exception:
            self._batcher.stop()
            raise
        self._listening.set_result(server.sockets[0].getsockname()[1])
        ended: asyncio.Future[Any] = self._batcher.ended
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([ended, stop], return_when=asyncio.FIRST_COMPLETED)
        deadline = time.monotonic() + LAST_ANSWERS_SECONDS
        while self._in_progress and time.monotonic() < deadline and not ended.done():
            await asyncio.sleep(0.01)
        self._batcher.stop()
        server.close()
        await asyncio.wait([asyncio.create_task(server.wait_closed()), ended], timeout=CLOSE_SECONDS)
        if ended.done():
            ended.result()  # raises the error that ended it

    async def _listen(self) -> Server:
        from websockets.asyncio.server import serve

        # Strangers that connect and leave are no news for a log.
        quiet = logging.getLogger(f"{__name__}.websockets")
        quiet.setLevel(logging.CRITICAL)
        try:
            return await serve(
                self._talk,
                self._settings.host,
                self._settings.port,
                process_request=self._admit,
                select_subprotocol=_select_subprotocol,
                origins=[None],  # no web page: a browser would let any page use a server on its own machine
                compression=None,
                max_size=int(self._settings.max_message_mib * 2**20),
                max_queue=2,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
                ping_interval=self._settings.ping_interval_seconds,
                ping_timeout=self._settings.ping_timeout_seconds,
                logger=quiet,
            )
        except OSError as error:
            where = f"host={self._settings.host} port={self._settings.port}"
            raise InputError(
                f"{where}: {error.strerror or error}; choose another port, or stop what uses it"
            ) from error

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer a plain HTTP request, or refuse a connection before it may send anything; None lets it in."""
        from websockets.protocol import State

        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(200, "OK\n")
        if self._api_key is not None:
            sent = request.headers.get_all("Authorization")
            wanted = f"Api-Key {self._api_key}".encode()
            if len(sent) != 1 or not hmac.compare_digest(sent[0].encode("utf-8", "surrogateescape"), wanted):
                return connection.respond(401, "this server wants its key: Authorization: Api-Key KEY\n")
        if path == "/metrics" and self._settings.metrics:
            return connection.respond(200, self._metrics())
        self._admitted = {other for other in self._admitted if other.state is not State.CLOSED}
        if len(self._admitted) >= self._settings.max_connections:
            return connection.respond(503, f"this server has its {self._settings.max_connections} connections\n")
        self._admitted.add(connection)
        return None

    def _metrics(self) -> str:
        values = {**asdict(self.counters), "in_progress": self._in_progress, "open_connections": len(self._admitted)}
        return "".join(f"vw2_{name} {value}\n" for name, value in values.items())

    async def _talk(self, connection: ServerConnection) -> None:
        """Answer one robot until it leaves or the server stops."""
        from websockets.exceptions import ConnectionClosed

        self.counters.connections += 1
        pause = 1 / self._settings.max_requests_per_second
        seconds: float | None = None
        try:
            policy = self._policy.clone()
            policy.reset()
            await connection.send(self._metadata)
            while not self._stopping.is_set():
                message = await connection.recv()
                begin = time.perf_counter()
                self._in_progress += 1
                try:
                    answer = await self._answer(connection, policy, message, seconds)
                    if answer is not None:
                        await connection.send(answer)
                finally:
                    self._in_progress -= 1
                seconds = time.perf_counter() - begin
                if seconds < pause:
                    await asyncio.sleep(pause - seconds)
        except ConnectionClosed:
            pass
        except Exception:
            self.counters.failed += 1
            _LOG.exception("the policy failed")
            with suppress(ConnectionClosed):
                await connection.send("the policy failed; the log of the server says why")
            await connection.close(1011, "the policy failed")

    async def _answer(
        self, connection: ServerConnection, policy: ServedPolicy, message: bytes | str, previous_seconds: float | None
    ) -> bytes | str | None:
        """Return the frame that answers a message; None if the robot has left."""
        from websockets.protocol import State

        begin = time.perf_counter()
        self.counters.requests += 1
        try:
            request = read_request(message, self._cameras)
            if request.reset:
                policy.reset(request.observation["prompt"], request.seed)
            output = await self._batcher.infer(policy, request.observation, lambda: connection.state is State.OPEN)
        except InputError as error:
            self.counters.refused += 1
            return str(error)
        if output is None:
            return None
        timing = {"infer_ms": 1000 * (time.perf_counter() - begin)}
        if previous_seconds is not None:
            timing["prev_total_ms"] = 1000 * previous_seconds
        # Clients slice every array by time step, so the actions alone are an array.
        answer = {"actions": output["actions"], "server_timing": timing}
        if "latent_tokens" in output:
            answer["latent_tokens"] = output["latent_tokens"].tolist()
        return pack(answer)


def _select_subprotocol(_: ServerConnection, offered: Sequence[Any]) -> Any:
    """Return our subprotocol for a client that offers it; openpi's clients offer none."""
    from websockets.exceptions import NegotiationError

    if offered and SUBPROTOCOL not in offered:
        raise NegotiationError(
            f"this server speaks {SUBPROTOCOL}, the client {', '.join(offered)}; update the older one"
        )
    return SUBPROTOCOL if offered else None
