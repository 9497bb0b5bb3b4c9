"""Fill a Reverb replay: one of the ingest processes of `vw2-replay-server`.

    vw2-ingest address=127.0.0.1:8765 ingest=0 ingests=2 data.sources=[{path: DIR/bridge_dataset/1.0.0}]

Killed, or ended because the server went away, it is started again with the same words and goes on where the server says
that it was. Ends when its share of all epochs is stored; started once more, it ends at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vw2_robot.cli import program
from vw2_robot.data.reverb_writer import ReverbWriter

from .replay_data import ReplayData, fill


@dataclass(frozen=True)
class IngestConfig:
    """Everything `vw2-ingest` can be told."""

    address: str
    """host:port of the server"""
    data: ReplayData = field(default_factory=ReplayData)
    ingest: int = 0
    """which ingest process this is, from 0 on"""
    ingests: int = 1
    timeout_s: float = 600.0
    """how long to wait for the server, and for room in it"""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, found {self.timeout_s}")
        self.data.plan(ingest=self.ingest, ingests=self.ingests)


def fill_server(config: IngestConfig) -> None:
    """Store this process's share of the data."""
    writer = ReverbWriter(config.address, ingest=config.ingest, timeout_s=config.timeout_s)
    try:
        stored = fill(config.data, writer, number=config.ingest, ingests=config.ingests)
    finally:
        writer.close()
    print(f"ingest {config.ingest} of {config.ingests}: {stored} windows stored, nothing left to do", flush=True)


main = program(IngestConfig, config_name="ingest")(fill_server)

if __name__ == "__main__":
    main()
