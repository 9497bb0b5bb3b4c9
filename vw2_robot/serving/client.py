"""A client of any server that speaks openpi's websocket protocol: numpy, msgpack, websockets, and no torch.

    with PolicyClient(port=8000) as policy:
        actions = policy.infer({"images": {"static": image}, "prompt": "open the drawer"})["actions"]

It has the methods of openpi's `WebsocketClientPolicy` and works with numpy 1 and 2. On a robot without torch:
`pip install --no-deps CHECKOUT_OR_WHEEL numpy msgpack websockets`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vw2_robot.errors import InputError, require

from .wire import EXTRA, SUBPROTOCOL, pack, unpack

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

RETRY_SECONDS = 0.5


class PolicyClient:
    """A connection to a policy server. One episode at a time; not for several threads.

    Attributes:
        metadata: what the server sends first: chunk_size, n_action_steps, image_keys, ... of ours.
    """

    metadata: dict[str, Any]

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = 8000,
        *,
        api_key: str | None = None,
        connect_seconds: float = 60.0,
        answer_seconds: float | None = None,
    ) -> None:
        """Connect.

        Args:
            host: name or address, or a whole "ws://..." or "wss://...".
            port: None: of the address.
            api_key: where the server wants one.
            connect_seconds: how long to wait for a server that starts, or is full.
            answer_seconds: how long to wait for an answer; None: as long as it takes (the first call may compile).

        Raises:
            InputError: the server refuses the key or the version, or does not speak the protocol.
            ConnectionError: there was no server in time.
        """
        address = host if host.startswith(("ws://", "wss://")) else f"ws://{host}"
        self._address = address if port is None else f"{address}:{port}"
        self._answer_seconds = answer_seconds
        self._open = ExitStack()
        self._connection = self._connect(api_key, connect_seconds)
        self._reset: dict[str, Any] = {}
        try:
            self.metadata = self._receive()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the server."""
        self._open.close()

    def get_server_metadata(self) -> dict[str, Any]:
        """Return `metadata`."""
        return self.metadata

    def reset(self, *, seed: int | None = None) -> None:
        """Begin an episode with the next observation; a server other than ours knows none and is not notified."""
        if self._connection.subprotocol == SUBPROTOCOL:
            self._reset = {"reset": True} if seed is None else {"reset": True, "seed": seed}

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the server's answer: `actions` [H, A], a writable array, and what else it sends.

        Raises:
            InputError: the server refuses the observation; the connection stays.
            ConnectionError: the server is gone, or did not answer in time.
        """
        exceptions = require("websockets.exceptions", extra=EXTRA)
        message = pack({**obs, **self._reset})
        try:
            self._connection.send(message)
        except exceptions.ConnectionClosed as error:
            raise ConnectionError(f"{self._address} closed the connection ({error})") from error
        self._reset = {}
        return self._receive()

    def _connect(self, api_key: str | None, seconds: float) -> ClientConnection:
        connect = require("websockets.sync.client", extra=EXTRA).connect
        exceptions = require("websockets.exceptions", extra=EXTRA)
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._open.enter_context(
                    connect(
                        self._address,
                        subprotocols=[SUBPROTOCOL],
                        additional_headers={} if api_key is None else {"Authorization": f"Api-Key {api_key}"},
                        compression=None,
                        max_size=None,
                        ping_interval=None,  # openpi's server answers no pings while its policy computes
                        proxy=None,
                    )
                )
            except exceptions.InvalidStatus as error:
                reason = error.response.body.decode(errors="replace").strip()
                # A full server is waited for, as one that is not there yet.
                if error.response.status_code != 503:
                    raise InputError(f"{self._address} refuses the connection: {reason}") from error
            except (OSError, exceptions.InvalidMessage, EOFError) as error:
                reason = str(error)
            except (exceptions.InvalidHandshake, exceptions.InvalidURI) as error:
                raise InputError(f"{self._address} is no policy server ({error})") from error
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise ConnectionError(f"{self._address} gave no connection within {seconds:g} s: {reason}")
            time.sleep(RETRY_SECONDS)

    def _receive(self) -> dict[str, Any]:
        exceptions = require("websockets.exceptions", extra=EXTRA)
        try:
            message = self._connection.recv(self._answer_seconds)
        except TimeoutError as error:
            self.close()  # else its late answer would be taken for that of the next observation
            raise ConnectionError(f"{self._address} gave no answer within {self._answer_seconds} s") from error
        except exceptions.ConnectionClosed as error:
            raise ConnectionError(f"{self._address} closed the connection ({error})") from error
        if isinstance(message, str):
            raise InputError(f"{self._address}: {message}")
        answer = unpack(message, writable=True)
        if not isinstance(answer, dict):
            raise InputError(f"{self._address} is no policy server: it sent {type(answer).__name__} instead of a map")
        return answer
