"""The server of a Reverb replay: holds windows between `vw2-ingest` processes and trainer ranks, writes checkpoints.

    vw2-replay-server path=runs/replay ranks=2 ingests=2 frames=9 listen=all

One process on the machine with the most free memory; docs/scaling.md has the commands for two machines. Stopped by
SIGTERM or Ctrl-C it writes a last checkpoint (unless checkpoint_minutes=0), as far as that takes seconds, and started
again it goes on from the last.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from vw2_robot.command_line.program import program
from vw2_robot.data.replay.reverb_server import ReplayServer
from vw2_robot.data.replay.reverb_tables import ServerOptions
from vw2_robot.errors import InputError
from vw2_robot.limits import Unbounded

# Within `process.GRACE_SECONDS`.
_LAST_CHECKPOINT_S, _STOP_S = 5.0, 2.0


@dataclass(frozen=True, kw_only=True)
class ReplayServerConfig(ServerOptions):
    """Everything `vw2-replay-server` can be told: what it offers, and the rest."""

    path: str
    """folder for checkpoints"""
    port: int = 8765
    """TCP port; 0 takes a free one"""
    listen: Literal["all"] | None = None
    """Reverb listens on all interfaces and asks for no password; `all` says that you know"""
    checkpoint_minutes: Unbounded = 10.0
    """0: only when a trainer asks"""
    checkpoint_timeout_seconds: float = 600.0
    """how long a checkpoint may take before clients are told to give up"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.port < 2**16 or self.checkpoint_minutes < 0 or not self.checkpoint_timeout_seconds > 0:
            raise ValueError(
                f"port ({self.port}) must lie in 1..65535, checkpoint_minutes ({self.checkpoint_minutes}) must not be "
                f"negative, checkpoint_timeout_seconds ({self.checkpoint_timeout_seconds}) must be positive"
            )

    @property
    def options(self) -> ServerOptions:
        """What the server offers to its clients."""
        return ServerOptions(**{field.name: getattr(self, field.name) for field in fields(ServerOptions)})


def serve(config: ReplayServerConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    if config.listen != "all":
        raise InputError(
            "Reverb can only listen on all interfaces of this machine, without a password. Close port "
            f"{config.port} to everybody but your own machines (docs/scaling.md shows how), then say listen=all"
        )
    server = ReplayServer(config.options, path=Path(config.path), port=config.port)
    try:
        print(f"replay server on port {config.port}, all interfaces: {_contents(server)}", flush=True)
        while True:
            threading.Event().wait(config.checkpoint_minutes * 60 or None)
            _checkpoint(server, config.checkpoint_timeout_seconds)
    except KeyboardInterrupt:  # SIGTERM as well
        print("replay server: told to stop", flush=True)
        if config.checkpoint_minutes:
            _checkpoint(server, min(config.checkpoint_timeout_seconds, _LAST_CHECKPOINT_S))
    finally:
        ended = server.stop(timeout_seconds=_STOP_S)
    print("replay server: stopped", flush=True)
    if not ended:
        os._exit(0)


def _checkpoint(server: ReplayServer, timeout_seconds: float) -> None:
    """Store the windows, or say why not: the last checkpoint stays, and the server goes on."""
    begin = time.monotonic()
    try:
        where = server.checkpoint(timeout_seconds=timeout_seconds)
    except InputError as error:
        print(f"no checkpoint, the one before stays: {error}", file=sys.stderr, flush=True)
    else:
        print(f"checkpoint {where} in {time.monotonic() - begin:.1f} s: {_contents(server)}", flush=True)


def _contents(server: ReplayServer) -> str:
    return ", ".join(f"{name} {size} windows" for name, size in server.sizes().items())


main = program(ReplayServerConfig, config_name="replay_server")(serve)

if __name__ == "__main__":
    main()
