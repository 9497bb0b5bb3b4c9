"""Fill a Reverb replay: one of the ingest processes of `vw2-replay-server`.

    vw2-ingest address=127.0.0.1:8765 ingest=0 ingests=2 data.sources=[{path: DIR/bridge_dataset/1.0.0}]

Killed, or ended because the server went away, it is started again with the same words and goes on where the server says
that it was. Ends when its share of all epochs is stored; started once more, it ends at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tqdm import tqdm

from vw2_robot.command_line.program import program
from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.episodes import EpisodeSource
from vw2_robot.data.replay import rlds_transformations
from vw2_robot.data.replay.ingest import IngestPlan, ingest
from vw2_robot.data.replay.reverb_writer import ReverbWriter
from vw2_robot.data.replay.windows import Progress
from vw2_robot.data.sources.formats import Format, open_source, open_training
from vw2_robot.data.sources.mixtures import open_mixture
from vw2_robot.errors import InputError
from vw2_robot.limits import Rate


@dataclass(frozen=True)
class SourceConfig:
    """One data set; see `vw2_robot.data.sources.formats.open_source`."""

    path: str
    """folder of the data set"""
    weight: Rate = 1.0
    """how often an epoch goes through it"""
    format: Format | None = None
    """recognized where it is not given"""
    split: str | None = None
    """null: what pre-training takes"""
    image_key: str | None = None
    """camera to use instead of the table's"""
    hz: Rate | None = None
    """frames per second, where the data set names none"""


@dataclass(frozen=True)
class ReplayData:
    """Data sets, and how they become windows; must be the same in all processes that fill one replay."""

    sources: tuple[SourceConfig, ...] = ()
    """data sets to read, each with its weight"""
    mixture: str | None = None
    """octo, openvla, videoworld2, or a yaml file; looked for below `root`"""
    root: str | None = None
    """folder of the data sets where sources are given by name"""
    windows: WindowOptions = field(default_factory=lambda: WindowOptions(num_frames=9))
    epochs: int = 1
    """passes over the data"""
    seed: int = 0
    """of the order of the windows"""
    max_skipped: int = 10
    """undecodable episodes that are named and skipped before the program stops"""

    def __post_init__(self) -> None:
        if (self.mixture is None) != (self.root is None):
            raise ValueError(f"data.mixture={self.mixture} and data.root={self.root}: give both or none")

    def plan(self, *, ingest: int, ingests: int) -> IngestPlan:
        """Return what one of several ingest processes does."""
        return IngestPlan(
            self.windows,
            seed=self.seed,
            epochs=self.epochs,
            ingest=ingest,
            ingests=ingests,
            max_skipped=self.max_skipped,
        )

    def open(self) -> list[tuple[EpisodeSource, float]]:
        """Open all data sets; no episode is read.

        Raises:
            InputError: none was named, or one cannot be opened.
        """
        opened: list[tuple[EpisodeSource, float]] = []
        for s in self.sources:
            if s.format is None and s.split is None:
                opened += [(source, s.weight) for source in open_training(s.path, image_key=s.image_key, hz=s.hz)]
            else:
                found = open_source(s.path, format=s.format or "auto", split=s.split, image_key=s.image_key, hz=s.hz)
                opened.append((found, s.weight))
        if self.mixture is not None and self.root is not None:
            opened += [(member.open(), member.weight) for member in open_mixture(self.mixture, self.root)]
        if not opened:
            raise InputError("no data: give data.sources=[{path: DIR}], or data.mixture and data.root")
        return opened


@dataclass(frozen=True)
class IngestConfig:
    """Everything `vw2-ingest` can be told."""

    address: str
    """host:port of the server"""
    data: ReplayData = field(default_factory=ReplayData)
    ingest: int = 0
    """which ingest process this is, from 0 on"""
    ingests: int = 1
    """processes that fill the replay together"""
    timeout_seconds: float = 600.0
    """how long to wait for the server, and for room in it"""

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be positive, found {self.timeout_seconds}")
        self.data.plan(ingest=self.ingest, ingests=self.ingests)


def fill_server(config: IngestConfig) -> None:
    """Store this process's share of the data, under a progress bar."""
    plan, stored = config.data.plan(ingest=config.ingest, ingests=config.ingests), 0
    writer = ReverbWriter(config.address, ingest=config.ingest, timeout_seconds=config.timeout_seconds)
    try:
        if writer.ingests != config.ingests:
            raise InputError(
                f"ingests={config.ingests}, but the replay server at {config.address} was started for "
                f"{writer.ingests} ingest processes; give both the same number"
            )
        with tqdm(desc=f"ingest {config.ingest}", unit="window", disable=None, dynamic_ncols=True) as bar:

            def report(_: Progress, windows: int) -> None:
                nonlocal stored
                stored += windows
                bar.update(windows)

            ingest(config.data.open(), plan, writer, report=report, frames_of=rlds_transformations.window_frames)
    finally:
        writer.close()
    print(f"ingest {config.ingest} of {config.ingests}: {stored} windows stored, nothing left to do", flush=True)


main = program(IngestConfig, config_name="ingest")(fill_server)

if __name__ == "__main__":
    main()
