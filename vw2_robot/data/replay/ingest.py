"""Fill a replay: read episodes of many sources, cut windows, store them, remember where to go on.

The loop of an ingest process, the same for both engines of `windows`. `ingests` processes share the data by
`shards.epoch_chunks`; each goes through its stretches (pieces of parts) in an order drawn from (seed, epoch,
ingest), so the windows and their identities are a pure function of the plan. After every episode the replay is told
how far the process has come. Killed and started again, it goes on there; an episode that was stored but not yet counted
is stored again under the same identities, and the reader drops what it has had.

An episode the source leaves out is skipped, a damaged part is left from there on; both are named in the log. Frames are
not decoded here: an image that is none is found by the trainer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vw2_robot.errors import InputError

from ..blocks import WindowOptions
from ..episodes import Episode, EpisodeSource, SkippedEpisodes
from ..shards import Chunk, epoch_chunks
from .windows import Progress, ReplayWriter, WindowFrames, cut_episode, window_frames


@dataclass(frozen=True)
class IngestPlan:
    """What all ingest processes of one replay agree on, and which of them this is."""

    windows: WindowOptions
    seed: int = 0
    epochs: int = 1
    ingest: int = 0
    ingests: int = 1
    max_skipped: int = 10
    """damaged parts that are named and left before the process stops"""

    def __post_init__(self) -> None:
        if not 0 <= self.ingest < self.ingests or self.epochs < 1 or self.seed < 0 or self.max_skipped < 0:
            raise ValueError(
                f"ingest {self.ingest} must lie below ingests {self.ingests}, epochs ({self.epochs}) be positive, "
                f"seed ({self.seed}) and max_skipped ({self.max_skipped}) not negative"
            )


def ingest(
    sources: Sequence[tuple[EpisodeSource, float]],
    plan: IngestPlan,
    writer: ReplayWriter,
    *,
    report: Callable[[Progress, int], None] | None = None,
    frames_of: WindowFrames = window_frames,
) -> None:
    """Store all windows of this process's share, from where the replay says that it stands.

    Args:
        sources: each with its weight, see `vw2_robot.data.shards`; the same list in all processes.
        plan: see there.
        writer: the replay.
        report: called after each episode with the new progress and the number of windows that were stored.
        frames_of: what finds the frames of the windows; all give the same.

    Raises:
        InputError: no episode to read, no window in any of them, too many damaged parts, or a replay that was filled
            by another plan.
        ReplayTimeout: the replay does not answer, or stays full.
    """
    if not sources or not any(source.parts() for source, _ in sources):
        raise InputError("nothing to ingest: no source, or none with a part; check path and split")
    identity = fingerprint(sources, plan)
    bad = SkippedEpisodes(plan.max_skipped)
    while not _run(sources, plan, writer, writer.progress(identity), bad, report, frames_of):
        pass


def fingerprint(sources: Sequence[tuple[EpisodeSource, float]], plan: IngestPlan) -> str:
    """Return a hash of everything that decides which windows are made; the same in all processes of one replay."""
    listing = [[s.name, weight, [[part.name, part.episodes] for part in s.parts()]] for s, weight in sources]
    values = {**dataclasses.asdict(plan), "sources": listing}
    del values["max_skipped"], values["ingest"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _run(
    sources: Sequence[tuple[EpisodeSource, float]],
    plan: IngestPlan,
    writer: ReplayWriter,
    at: Progress,
    bad: SkippedEpisodes,
    report: Callable[[Progress, int], None] | None,
    frames_of: WindowFrames,
) -> bool:
    """Go on from `at` to the end; False if the replay went back to an earlier state meanwhile."""
    if at.done:
        return True
    for epoch in range(at.epoch, plan.epochs):
        stretches, cut_before = _stretches(sources, plan, epoch), at != Progress(epoch)
        for turn in range(at.turn, len(stretches)):
            number, chunk = stretches[turn]
            stretch, windows = f"{epoch}/{plan.ingest}/{turn}", at.windows
            for position, episode in _episodes(sources[number][0], chunk, at.episode, bad):
                cut = cut_episode(
                    episode, plan.windows, epoch=epoch, stretch=stretch, number=windows, frames_of=frames_of
                )
                windows += len(cut.windows)
                cut_before = cut_before or windows > 0
                after = Progress(epoch, turn, position + 1, windows)
                if cut.windows and not writer.add(cut, after):
                    return False
                if report is not None:
                    report(after, len(cut.windows))
            at = Progress(epoch, turn + 1)
        if not cut_before and plan.ingests == 1:  # of several, one may have nothing to do
            names = ", ".join(source.name for source, _ in sources)
            raise InputError(f"no window in {names}: no episode is long enough for {plan.windows}; see the log")
        at = Progress(epoch + 1)
    return writer.finish(Progress(plan.epochs, done=True))


def _stretches(sources: Sequence[tuple[EpisodeSource, float]], plan: IngestPlan, epoch: int) -> list[tuple[int, Chunk]]:
    found = [
        (number, chunk)
        for number, (source, weight) in enumerate(sources)
        for chunk in epoch_chunks(
            source.parts(),
            seed=(plan.seed, 0, number),
            epoch=epoch,
            weight=weight,
            shard=plan.ingest,
            shards=plan.ingests,
        )
    ]
    order = np.random.default_rng([plan.seed, 3, epoch, plan.ingest]).permutation(len(found))
    return [found[index] for index in order.tolist()]


def _episodes(
    source: EpisodeSource, chunk: Chunk, start: int | None, bad: SkippedEpisodes
) -> Iterator[tuple[int, Episode]]:
    """Yield (number in the part, episode) from `start` to the end of the chunk."""
    number = chunk.start if start is None else start
    if chunk.stop is not None and number >= chunk.stop:
        return
    skipped = _left_out(source)
    try:
        for episode in source.read(chunk.part, start=number):
            number += _left_out(source) - skipped
            skipped = _left_out(source)
            if chunk.stop is not None and number >= chunk.stop:
                return
            yield number, episode
            number += 1
    except InputError as error:
        bad.add(InputError(f"{source.name}, {source.parts()[chunk.part].name}, left from episode {number} on: {error}"))


def _left_out(source: EpisodeSource) -> int:
    """Return how many episodes the source has left out by itself: their numbers pass without an episode."""
    messages: Sequence[str] = getattr(getattr(source, "skipped", None), "messages", ())
    return len(messages)
