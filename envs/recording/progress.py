"""How far a recording has come: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

from tqdm import tqdm

LINE_SHARE = 0.1
LINE_SECONDS = 30.0
"""Without a terminal a line is due after this share of the work, and after this time if something was done in it."""


def show_progress(
    finished: Iterable[None], *, total: int, already: int, unit: str, stream: TextIO | None = None
) -> None:
    """Go through `finished`, which yields after each piece of work, and say how far things are.

    `already` of the `total` pieces were there at the start.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        with tqdm(total=total, initial=already, desc="record", unit=unit, file=stream) as bar:
            for _ in finished:
                bar.update()
        return
    for line in progress_lines(finished, total=total, already=already, unit=unit):
        print(line, file=stream, flush=True)


def progress_lines(finished: Iterable[None], *, total: int, already: int, unit: str) -> Iterator[str]:
    """Yield the plain lines, as they fall due; the last one when all is done."""
    begun = said = time.monotonic()
    count, next_count = already, already + LINE_SHARE * total
    for _ in finished:
        count += 1
        now = time.monotonic()
        if count < next_count and now - said < LINE_SECONDS and count < total:
            continue
        said, next_count = now, count + LINE_SHARE * total
        each = (now - begun) / (count - already)
        left = each * (total - count)
        yield f"record: {count} of {total} {unit}s, {each:.1f} s each, {left / 60:.1f} min left"
