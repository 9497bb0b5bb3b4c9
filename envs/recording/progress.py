"""The progress of a recording: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

from tqdm import tqdm

LINE_SHARE = 0.1
LINE_SECONDS = 30.0
"""Without a terminal a line is printed after this share of the work, or after this time if something was done in it."""


def show_progress(
    finished: Iterable[None], *, total: int, already: int, unit: str, stream: TextIO | None = None
) -> None:
    """Consume `finished`, which yields after each item of work, and show the progress.

    Args:
        finished: yields after each item.
        total: number of items.
        already: how many of them were complete at the start.
        unit: name of one item.
        stream: where to print; None: standard error.
    """
    stream = stream or sys.stderr
    # A bar rewrites its line, which makes a log file unreadable.
    if stream.isatty():
        with tqdm(total=total, initial=already, desc="record", unit=unit, file=stream) as bar:
            for _ in finished:
                bar.update()
        return
    for line in progress_lines(finished, total=total, already=already, unit=unit):
        print(line, file=stream, flush=True)


def progress_lines(finished: Iterable[None], *, total: int, already: int, unit: str) -> Iterator[str]:
    """Yield the lines when they are due; the last one when all is done.

    Args:
        finished: yields after each item.
        total: number of items, with those that were complete at the start.
        already: how many of them were complete at the start.
        unit: name of one item, in the singular.

    Yields:
        One line: items done, seconds for each, and minutes left.
    """
    started = last_line = time.monotonic()
    count = already
    next_count = already + LINE_SHARE * total
    for _ in finished:
        count += 1
        now = time.monotonic()
        # Due after a share of the work, after some time, or at the end.
        if count < next_count and now - last_line < LINE_SECONDS and count < total:
            continue
        last_line = now
        next_count = count + LINE_SHARE * total
        each = (now - started) / (count - already)
        remaining = each * (total - count)
        yield f"record: {count} of {total} {unit}s, {each:.1f} s each, {remaining / 60:.1f} min left"
