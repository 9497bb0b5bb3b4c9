"""The part of the configuration that `vw2-ingest` and `vw2-replay-draw` share: which data, how they are cut."""

from __future__ import annotations

from dataclasses import dataclass, field

from tqdm import tqdm

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.episodes import EpisodeSource
from vw2_robot.data.formats import Format, open_source
from vw2_robot.data.mixtures import open_mixture
from vw2_robot.data.replay import Progress, ReplayWriter
from vw2_robot.data.replay_ingest import IngestPlan, ingest
from vw2_robot.errors import InputError


@dataclass(frozen=True)
class SourceConfig:
    """One data set; see `vw2_robot.data.formats.open_source`."""

    path: str
    weight: float = 1.0
    """how often an epoch goes through it"""
    format: Format | None = None
    """recognised where it is not given"""
    split: str | None = None
    image_key: str | None = None
    hz: float | None = None


@dataclass(frozen=True)
class ReplayData:
    """Data sets, and how they become windows; must be the same in all processes that fill one replay."""

    sources: tuple[SourceConfig, ...] = ()
    mixture: str | None = None
    """octo, openvla, videoworld2, or a yaml file; looked for below `root`"""
    root: str | None = None
    windows: WindowOptions = field(default_factory=lambda: WindowOptions(frames=9))
    epochs: int = 1
    seed: int = 0
    max_bad: int = 10

    def __post_init__(self) -> None:
        if (self.mixture is None) != (self.root is None):
            raise ValueError(f"data.mixture={self.mixture} and data.root={self.root}: give both or none")

    def plan(self, *, ingest: int, ingests: int) -> IngestPlan:
        """Return what one of several ingest processes does."""
        return IngestPlan(
            self.windows, seed=self.seed, epochs=self.epochs, ingest=ingest, ingests=ingests, max_bad=self.max_bad
        )

    def open(self) -> list[tuple[EpisodeSource, float]]:
        """Open all data sets; no episode is read.

        Raises:
            InputError: none was named, or one cannot be opened.
        """
        opened: list[tuple[EpisodeSource, float]] = [
            (
                open_source(s.path, format=s.format or "auto", split=s.split, image_key=s.image_key, hz=s.hz),
                s.weight,
            )
            for s in self.sources
        ]
        if self.mixture is not None and self.root is not None:
            opened += [(member.open(), member.weight) for member in open_mixture(self.mixture, self.root)]
        if not opened:
            raise InputError("no data: give data.sources=[{path: DIR}], or data.mixture and data.root")
        return opened


def fill(data: ReplayData, writer: ReplayWriter, *, number: int, ingests: int) -> int:
    """Ingest the share of process `number` under a progress bar; return how many windows were stored."""
    stored = 0
    with tqdm(desc=f"ingest {number}", unit="window", disable=None, dynamic_ncols=True) as bar:

        def report(_: Progress, windows: int) -> None:
            nonlocal stored
            stored += windows
            bar.update(windows)

        ingest(data.open(), data.plan(ingest=number, ingests=ingests), writer, report=report)
    return stored
