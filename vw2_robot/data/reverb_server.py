"""The server side of a Reverb replay: one process that holds the windows and writes the checkpoints.

See `vw2_robot.data.reverb_tables` for what it holds and docs/scaling.md for how it is started.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vw2_robot.config_tree import differing_keys
from vw2_robot.errors import InputError

from .reverb_tables import CALL_S, Layout, ServerOptions, layout_of, load_reverb, make_tables, within


class ReplayServer:
    """A Reverb server in this process, restored from the last checkpoint in `path` if there is one.

    It listens on all interfaces of the machine, without a password: Reverb has no other way. See docs/scaling.md.

    Args:
        options: what it offers.
        path: folder for checkpoints; Reverb keeps the last one.
        port: to listen on.

    Raises:
        InputError: the port is taken, or the folder holds a replay with other options.
    """

    def __init__(self, options: ServerOptions, *, path: Path, port: int) -> None:
        reverb, _ = load_reverb()
        self.options, self.port = options, port
        _refuse_taken(port)
        session = 1 + _claim(path, options)
        (path / "reverb").mkdir(exist_ok=True)
        try:
            self._server: Any = reverb.Server(
                make_tables(options, session=session),
                port=port,
                checkpointer=reverb.checkpointers.DefaultCheckpointer(str((path / "reverb").resolve())),
            )
        except ValueError as error:
            raise InputError(
                f"Reverb could not start on port {port} with the checkpoint in {path / 'reverb'}: {error}; choose "
                "another port if this one is taken, or another folder"
            ) from error
        self._client: Any = reverb.Client(f"127.0.0.1:{port}")
        try:
            self._compare()
        except InputError:
            self.stop()
            raise

    def _compare(self) -> None:
        """After a restore the options of the old tables count, whatever was asked for: see that they are the same."""
        found = layout_of(self._client, f"127.0.0.1:{self.port}", CALL_S)
        wanted = Layout.of_options(self.options)
        if found != wanted:
            raise InputError(f"the restored tables are {found}, asked for {wanted}; use another folder")

    def sizes(self) -> dict[str, int]:
        """Return how many windows each table holds."""
        tables = self._client.server_info(int(CALL_S))
        return {name: tables[name].current_size for name in self.options.tables}

    def checkpoint(self, *, timeout_s: float) -> str:
        """Store all tables on disk; return where.

        Raises:
            ReplayTimeout: it took longer.
        """
        return str(within(timeout_s, "the checkpoint of the replay", self._client.checkpoint))

    def stop(self) -> None:
        """End the server; without it Reverb complains when the interpreter ends."""
        self._server.stop()


def _claim(path: Path, options: ServerOptions) -> int:
    """Return how often a server was started in this folder, and count one more.

    Raises:
        InputError: it had other options.
    """
    file = path / "replay.json"
    old: dict[str, Any] = {"options": asdict(options), "sessions": 0}
    if file.is_file():
        old = json.loads(file.read_text(encoding="utf-8"))
    if names := differing_keys(old["options"], asdict(options)):
        raise InputError(
            f"{path} holds a replay with other options; these differ: {', '.join(names)}. Use the old ones, or "
            "another folder"
        )
    path.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    new = {"options": asdict(options), "sessions": old["sessions"] + 1}
    temporary.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(file)
    return int(old["sessions"])


def _refuse_taken(port: int) -> None:
    """Reverb would share a port with another server in silence, and each would get some of the clients."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an ended server do not count
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"the replay server cannot listen on port {port} ({error}); choose another port"
            ) from error
