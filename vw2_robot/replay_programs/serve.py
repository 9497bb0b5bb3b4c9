"""Subcommand `vw2-replay serve`: a Reverb server that holds windows between the processes that fill it and trainers.

    vw2-replay serve path=runs/replay ranks=2 ingests=2 num_frames=9 listen=all

One process, on the machine with the most free memory; docs/scaling.md has the commands for two machines. Stopped by
SIGTERM or Ctrl-C it writes a last checkpoint (unless checkpoint_minutes=0) if that takes no more than seconds. Started
again it continues from its last checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from vw2_robot.command_line import entry_points
from vw2_robot.data.replay.reverb_server import ReplayServer
from vw2_robot.data.replay.reverb_tables import ServerOptions
from vw2_robot.errors import InputError
from vw2_robot.limits import Unbounded

# Together less than `process.GRACE_SECONDS`, after which the process is killed.
LAST_CHECKPOINT_SECONDS = 5.0
STOP_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class ReplayServeConfig(ServerOptions):
    """The root configuration of `vw2-replay serve`: what the server offers to its clients, and how it runs."""

    path: str
    """folder for checkpoints"""
    port: int = 8765
    """that clients connect to"""
    listen: Literal["all"] | None = None
    """Reverb listens on all interfaces without a password; `all` confirms that this is wanted"""
    checkpoint_minutes: Unbounded = 10.0
    """minutes between two checkpoints; 0: only when a trainer asks for one"""
    checkpoint_timeout_seconds: float = 600.0
    """how long a checkpoint may take"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.port < 2**16 or self.checkpoint_minutes < 0 or not self.checkpoint_timeout_seconds > 0:
            raise ValueError(
                f"port ({self.port}) must lie in 1..65535, checkpoint_minutes ({self.checkpoint_minutes}) must not be "
                f"negative, checkpoint_timeout_seconds ({self.checkpoint_timeout_seconds}) must be positive"
            )

    @property
    def options(self) -> ServerOptions:
        """The part that the server offers to its clients."""
        return ServerOptions(**{field.name: getattr(self, field.name) for field in fields(ServerOptions)})


def serve(config: ReplayServeConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: `listen` is not `all`, or the server cannot start.
    """
    if config.listen != "all":
        raise InputError(
            "Reverb can only listen on all interfaces of this machine, without a password. Close port "
            f"{config.port} to everybody but your own machines (docs/scaling.md shows how), then set listen=all"
        )
    server = ReplayServer(config.options, path=Path(config.path), port=config.port)
    try:
        print(f"replay server on port {config.port}, all interfaces: {describe_tables(server)}", flush=True)
        while True:
            # Nobody sets the event. Unlike `time.sleep`, it can wait without end: for `checkpoint_minutes=0`.
            threading.Event().wait(config.checkpoint_minutes * 60 or None)
            write_checkpoint(server, config.checkpoint_timeout_seconds)
    except KeyboardInterrupt:  # SIGTERM as well
        print("replay server: received a signal to stop", flush=True)
        if config.checkpoint_minutes:
            write_checkpoint(server, min(config.checkpoint_timeout_seconds, LAST_CHECKPOINT_SECONDS))
    finally:
        ended = server.stop(timeout_seconds=STOP_SECONDS)
    print("replay server: stopped", flush=True)
    # `os._exit` flushes no buffer, which is why every message here is printed with `flush`.
    if not ended:
        os._exit(0)  # a thread of Reverb that hangs would keep Python from exiting


def write_checkpoint(server: ReplayServer, timeout_seconds: float) -> None:
    """Write a checkpoint, or print why not: then the last one stays, and the server continues."""
    begin = time.monotonic()
    try:
        where = server.checkpoint(timeout_seconds=timeout_seconds)
    except InputError as error:
        print(f"no checkpoint, the one before stays: {error}", file=sys.stderr, flush=True)
    else:
        print(f"checkpoint {where} in {time.monotonic() - begin:.1f} s: {describe_tables(server)}", flush=True)


def describe_tables(server: ReplayServer) -> str:
    """Return the number of windows in each table, for messages."""
    return ", ".join(f"{name} {size} windows" for name, size in server.sizes().items())


if __name__ == "__main__":
    entry_points.replay_serve.main()
