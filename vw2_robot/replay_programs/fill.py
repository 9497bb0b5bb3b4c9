"""Subcommand `vw2-replay fill`: one of the ingest processes that store windows on a replay server.

    vw2-replay fill address=127.0.0.1:8765 ingest=0 ingests=2 data.sources=[{path: DIR/bridge_dataset/1.0.0}]

Killed, or ended because the server is gone, it is started again with the same arguments and continues from the position
that the server has stored. It ends when its share of all epochs is stored; started once more, it ends at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tqdm import tqdm

from vw2_robot.command_line import entry_points
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
    """its folder or bucket"""
    weight: Rate = 1.0
    """how many times an epoch goes through it"""
    format: Format | None = None
    """null: recognized from the files"""
    split: str | None = None
    """null: the one that pre-training takes"""
    image_key: str | None = None
    """camera to use instead of the default one"""
    hz: Rate | None = None
    """frames per second, where the data do not have it"""


@dataclass(frozen=True)
class ReplayDataConfig:
    """Data sets, and how they are cut into windows; the same in all processes that fill one replay."""

    sources: tuple[SourceConfig, ...] = ()
    """data sets, each with its options"""
    mixture: str | None = None
    """octo, openvla, videoworld2, or a yaml file; looked for below `root`"""
    root: str | None = None
    """folder or bucket of the mixture's data sets"""
    # 1 + 2 * 4 frames, the clip of model=tiny; it must be that of the server and of the trainers.
    windows: WindowOptions = field(default_factory=lambda: WindowOptions(num_frames=9))
    epochs: int = 1
    """passes through the data"""
    seed: int = 0
    """of the order of episodes"""
    max_skipped: int = 10
    """damaged episodes that are logged and skipped before the process stops"""

    def __post_init__(self) -> None:
        if (self.mixture is None) != (self.root is None):
            raise ValueError(f"data.mixture={self.mixture} and data.root={self.root}: give both or none")

    def plan(self, *, ingest: int, ingests: int) -> IngestPlan:
        """Return the plan of one ingest process.

        Args:
            ingest: its number, from 0.
            ingests: how many there are.
        """
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
        for source in self.sources:
            # Without options as pre-training does, so that the same folder gives the same episodes.
            if source.format is None and source.split is None:
                found = open_training(source.path, image_key=source.image_key, hz=source.hz)
                opened += [(part, source.weight) for part in found]
            else:
                one = open_source(
                    source.path,
                    format=source.format or "auto",
                    split=source.split,
                    image_key=source.image_key,
                    hz=source.hz,
                )
                opened.append((one, source.weight))
        if self.mixture is not None and self.root is not None:
            opened += [(member.open(), member.weight) for member in open_mixture(self.mixture, self.root)]
        if not opened:
            raise InputError("no data: give data.sources=[{path: DIR}], or data.mixture and data.root")
        return opened


@dataclass(frozen=True)
class ReplayFillConfig:
    """The root configuration of `vw2-replay fill`."""

    address: str
    """host:port of the server"""
    data: ReplayDataConfig = field(default_factory=ReplayDataConfig)
    ingest: int = 0
    """number of this ingest process, from 0"""
    ingests: int = 1
    """ingest processes that share the data"""
    timeout_seconds: float = 600.0
    """how long to wait for the server, and for free space on it"""

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be positive, found {self.timeout_seconds}")
        # Raises where the numbers do not fit, before any server is asked.
        self.data.plan(ingest=self.ingest, ingests=self.ingests)


def fill_server(config: ReplayFillConfig) -> None:
    """Store this process's share of the data, with a progress bar.

    Raises:
        InputError: the server was started for another number of processes, or the data cannot be read.
    """
    plan = config.data.plan(ingest=config.ingest, ingests=config.ingests)
    stored = 0
    writer = ReverbWriter(config.address, ingest=config.ingest, timeout_seconds=config.timeout_seconds)
    try:
        # The shares of all processes make up the data: with another number some would come twice, others never.
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

            # Cut by the package rlds with the pattern of Reverb's writer; a replay in memory needs neither package.
            ingest(config.data.open(), plan, writer, report=report, frames_of=rlds_transformations.window_frames)
    finally:
        writer.close()
    print(f"ingest {config.ingest} of {config.ingests}: {stored} windows stored, nothing left to do", flush=True)


if __name__ == "__main__":
    entry_points.replay_fill.main()
