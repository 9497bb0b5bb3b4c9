"""The loop of an ingest process: read episodes of many sources, cut windows, store them in a replay.

It is the same for both engines of `windows`. `ingests` processes share the data by `shards.epoch_chunks`. Each reads
its segments (chunks of parts) in an order that depends on (seed, epoch, ingest), so the windows and their identities
are a pure function of the plan. After every episode the progress is stored in the replay. A process that was killed and
started again continues there; an episode that was stored but not yet counted is stored again under the same identities,
and the reader drops windows that it already got.

An episode that the source skips is left out, and so is the rest of a damaged part; both are named in the log. Frames
are not decoded here: the trainer finds images that cannot be decoded.
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

_HASHED_NAMES = {"num_frames": "frames", "temporal_stride": "stride_s", "gap_seconds": "gap_s"}
"""names of window options in the first release, which the hash of a plan still uses: stored replays stay valid"""


@dataclass(frozen=True)
class IngestPlan:
    """What all ingest processes of one replay must agree on, and which of them this is."""

    windows: WindowOptions
    seed: int = 0
    """of the order of episodes"""
    epochs: int = 1
    """how often the data are read"""
    ingest: int = 0
    """which ingest process this is, from 0 on"""
    ingests: int = 1
    """number of ingest processes"""
    max_skipped: int = 10
    """damaged parts that are left out before the process stops"""

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
    """Store all windows of this process's share, continuing at the progress that is stored in the replay.

    Args:
        sources: each with its weight, see `vw2_robot.data.shards`; the same list in all processes.
        plan: windows, seed, epochs and the number of processes.
        writer: the replay.
        report: called after each episode with the new progress and the number of windows that were stored.
        frames_of: computes which frames the windows show; all choices give the same result.

    Raises:
        InputError: there is no episode to read, none has a window, too many parts are damaged, or the replay was filled
            by another plan.
        ReplayTimeout: the replay does not answer, or stays full.
    """
    if not sources or not any(source.parts() for source, _ in sources):
        raise InputError("nothing to ingest: no source, or none with a part; check path and split")
    identity = fingerprint(sources, plan)
    skipped = SkippedEpisodes(plan.max_skipped)
    # Again if the replay was restored to an earlier state meanwhile.
    while not _run(sources, plan, writer, writer.progress(identity), skipped, report, frames_of):
        pass


def fingerprint(sources: Sequence[tuple[EpisodeSource, float]], plan: IngestPlan) -> str:
    """Return a hash of everything that the windows depend on; equal in all processes of one replay."""
    listing = [[s.name, weight, [[part.name, part.episodes] for part in s.parts()]] for s, weight in sources]
    values = {**dataclasses.asdict(plan), "sources": listing}
    # Which process this is and how much damage it accepts changes no window of the others.
    del values["max_skipped"]
    del values["ingest"]
    values["windows"] = {_HASHED_NAMES.get(name, name): value for name, value in values["windows"].items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _run(
    sources: Sequence[tuple[EpisodeSource, float]],
    plan: IngestPlan,
    writer: ReplayWriter,
    at: Progress,
    skipped: SkippedEpisodes,
    report: Callable[[Progress, int], None] | None,
    frames_of: WindowFrames,
) -> bool:
    """Continue from `at` to the end; False if the replay was restored to an earlier state meanwhile."""
    if at.done:
        return True
    # Epoch by epoch and segment by segment; `at` holds the place inside the first of them.
    for epoch in range(at.epoch, plan.epochs):
        segments = _segments(sources, plan, epoch)
        # A process that continues in the middle does not know whether there was one before.
        found_window = at != Progress(epoch)
        for index in range(at.segment, len(segments)):
            number, chunk = segments[index]
            windows = at.windows
            for position, episode in _episodes(sources[number][0], chunk, at.episode, skipped):
                cut = cut_episode(
                    episode,
                    plan.windows,
                    epoch=epoch,
                    segment=f"{epoch}/{plan.ingest}/{index}",
                    number=windows,
                    frames_of=frames_of,
                )
                windows += len(cut.windows)
                found_window = found_window or windows > 0
                after = Progress(epoch, index, position + 1, windows)
                # An episode without windows is not stored; its progress follows with the next one.
                if cut.windows and not writer.add(cut, after):
                    return False
                if report is not None:
                    report(after, len(cut.windows))
            at = Progress(epoch, index + 1)
        if not found_window and plan.ingests == 1:  # of several, one may have nothing to do
            names = ", ".join(source.name for source, _ in sources)
            raise InputError(f"no window in {names}: no episode is long enough for {plan.windows}; see the log")
        at = Progress(epoch + 1)
    return writer.finish(Progress(plan.epochs, done=True))


def _segments(sources: Sequence[tuple[EpisodeSource, float]], plan: IngestPlan, epoch: int) -> list[tuple[int, Chunk]]:
    """Return the chunks (index of the source, chunk) of this process in an epoch, in random order."""
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
    # Segments of all sources are mixed, so that every part of an epoch holds all of them.
    order = np.random.default_rng([plan.seed, 3, epoch, plan.ingest]).permutation(len(found))
    return [found[index] for index in order.tolist()]


def _episodes(
    source: EpisodeSource, chunk: Chunk, start: int | None, skipped: SkippedEpisodes
) -> Iterator[tuple[int, Episode]]:
    """Yield (number in the part, episode) from `start` to the end of the chunk."""
    number = chunk.start if start is None else start
    if chunk.stop is not None and number >= chunk.stop:
        return
    # An episode that the source itself skips still takes a number.
    messages: Sequence[str] = getattr(getattr(source, "skipped", None), "messages", ())
    skips_before = len(messages)
    try:
        for episode in source.read(chunk.part, start=number):
            number += len(messages) - skips_before
            skips_before = len(messages)
            if chunk.stop is not None and number >= chunk.stop:
                return
            yield number, episode
            number += 1
    except InputError as error:
        skipped.add(
            InputError(f"{source.name}, {source.parts()[chunk.part].name}, left from episode {number} on: {error}")
        )
